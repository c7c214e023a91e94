"""The nearly linear parameters of a law given all others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from hybrid.amortized.groups import group
from hybrid.amortized.law_frame import LawFrame
from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law
from hybrid.models.prior import Parameter, Prior

LEVEL = Parameter("level", Distribution("LogNormal", loc=0.3, scale=0.8))
SIGMA = Parameter("sigma", Distribution("LogNormal", loc=-3.0, scale=1.0))


def test_given_all_others_a_linear_parameter_is_normal_about_its_estimate() -> None:
    """Of a law that is linear in one parameter the conditional posterior is known, but for sigma at its best."""

    class Line(Law):
        name = "line"
        nearly_linear = ("level",)

        def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Frame) -> Any:
            return theta["level"] * x ** theta["slope"]

    slope = Parameter("slope", Distribution("Normal", loc=0.0, scale=1.0))
    law = LawFrame(Prior("line", Line(), [LEVEL, slope, SIGMA]), True)
    rng = np.random.default_rng(0)
    x = np.geomspace(0.01, 1.0, 12)
    v = 0.3 - 0.2 * np.log(x) + 0.05 * rng.standard_normal(12)
    xi, mask = torch.from_numpy(np.log(x))[None], torch.ones(1, 12, dtype=torch.bool)
    frame = Frame(*(torch.full((1, 1), value, dtype=torch.float64) for value in (0.0, 1.0, 1.0, 0.01, 1.0, 10.0)))
    values = torch.from_numpy(v)[None]
    modes = law(xi, values, mask, group(xi, values, mask, 32), frame)
    slopes = torch.tensor([-0.5, -0.2, 0.4], dtype=torch.float64)
    s = torch.stack([torch.zeros(3, dtype=torch.float64), (slopes - law.loc[1]) / law.scale[1]], -1)[:, None]
    given = law.conditional(s, modes)
    for k, b in enumerate(slopes.tolist()):
        sigma, loc, scale = float(given.log_sigma[k, 0].exp()), float(law.loc[0]), float(law.scale[0])
        precision = 12 / sigma**2 + 1 / scale**2
        level = (np.sum(v - b * np.log(x)) / sigma**2 + loc / scale**2) / precision
        assert float(given.centre[k, 0, 0]) * scale + loc == pytest.approx(level, abs=0.1 / precision**0.5)
        assert float(given.root[k, 0, 0, 0]) / scale == pytest.approx(precision**0.5, rel=0.15)
    # The worse the slope, the larger the noise that is left.
    assert float(given.log_sigma[1, 0]) < float(given.log_sigma[0, 0]) < float(given.log_sigma[2, 0])

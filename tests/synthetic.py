"""A fit made by hand: draws scattered around known parameters, as an engine would return them; and less work for networks."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hybrid import Curve
from hybrid.models.coordinates import get_coordinates
from hybrid.models.engine import EngineResult
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior
from hybrid.result import Fit

TRUTH = {"y_first": 1.0, "y_ratio": 0.6, "floor": 0.5, "saturation": 0.6, "alpha": 0.3, "sigma": 0.02}
X = np.geomspace(1e18, 1e21, 12)
HORIZON = 1e23
Y_SCALE = 3.0
POSITIVE = ("y_first", "alpha", "sigma")
SPREAD = {"y_first": 0.004, "y_ratio": 0.002, "floor": 0.02, "saturation": 0.02, "alpha": 0.05, "sigma": 0.1}


@contextlib.contextmanager
def few_joint_curves() -> Iterator[None]:
    """Calibrations and `next_points` draw a tenth of their joint curves, where no number that they give is looked at."""
    from hybrid import choosing
    from hybrid.amortized import predictive
    from hybrid.diagnostics import sbc

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictive, "FEWEST_CURVES", 20)
        patch.setattr(sbc, "JOINT_DRAWS", 20)
        patch.setattr(choosing, "CURVES", 100)
        yield


def make_curve(targets: bool = True) -> Curve:
    """A noisy M4 curve from the true parameters."""
    prior = get_prior("m4")
    assert isinstance(prior, Prior)
    frame = get_coordinates("ratio").frame(X, HORIZON, Y_SCALE)
    rng = np.random.default_rng(1)
    x = np.append(X, [1e22, 1e23])
    mean = Y_SCALE * prior.mean({k: np.asarray(v) for k, v in TRUTH.items()}, frame.x_to(x), frame)
    y = mean * np.exp(0.02 * rng.standard_normal(x.size))
    held_out: dict[str, Any] = {"x_target": x[12:], "y_target": y[12:]} if targets else {}
    return Curve(x[:12], y[:12], "training FLOPs", "loss (nats/token)", name="synthetic", **held_out)


def make_result(chains: int = 4, draws: int = 250) -> EngineResult:
    """Draws around the truth."""
    rng = np.random.default_rng(2)
    shape = (chains, draws)
    posterior = {}
    for name, value in TRUTH.items():
        z = SPREAD[name] * rng.standard_normal(shape)
        posterior[name] = value * np.exp(z) if name in POSITIVE else np.clip(value + z, 0.01, 0.99)
    stats = {
        "diverging": rng.uniform(size=shape) < 0.01,
        "energy": rng.normal(size=shape),
        "tree_depth": rng.integers(1, 7, shape),
    }
    info = {"method": "by hand", "max_rhat": 1.004, "min_ess_bulk": 812.3, "min_ess_tail": 740.9, "divergences": 3}
    return EngineResult(posterior, stats, "ok", (), info)


def make_fit(**changes: Any) -> Fit:
    """A fit of `make_curve` with the draws of `make_result`."""
    fields: dict[str, Any] = {
        "curve": make_curve(),
        "prior": get_prior("m4"),
        "engine": "nuts",
        "horizon": HORIZON,
        "y_scale": Y_SCALE,
        "seed": 0,
        "result": make_result(),
        "versions": {"numpy": np.__version__},
    }
    return Fit(**{**fields, **changes})


def power_law_curve(n: int = 12, seed: int = 0, scale: float = 1.0, unit: float = 1.0) -> Curve:
    """M2 with an asymptote of .3 and 1 % noise, in units of `scale` and `unit`."""
    rng = np.random.default_rng(seed)
    x = np.geomspace(1.0, 100.0, n)
    y = (0.3 + 0.6 * x**-0.4) * np.exp(0.01 * rng.standard_normal(n))
    return Curve(unit * x, scale * y)

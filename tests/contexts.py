"""Contexts that the tests of the frames of reference share, and the laws that are fitted to them."""

import functools
import math

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.amortized.coordinates import MOST_TOKENS
from hybrid.amortized.groups import group
from hybrid.amortized.law_frame import LawFrame, Modes
from hybrid.models.coordinates import Frame
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

QUICK = settings(max_examples=40, deadline=None)
# Curves whose parameters the context fixes.
TRUTHS: dict[str, dict[str, float]] = {
    "m2": {"y_first": 0.8, "y_ratio": 0.5, "floor": 0.6},
    "m4": {"y_first": 1.2, "y_ratio": 0.4, "floor": 0.5, "saturation": 0.7, "alpha": 0.4},
    "bnsl": {"y_first": 1.0, "y_ratio": 0.5, "floor": 0.4, "break_1": 0.4, "slope_change_1": 0.8, "sharpness_1": 0.3},
}


def shipped(name: str) -> Prior:
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    return prior


@functools.cache
def law_of(name: str = "m4", logarithmic: bool = True) -> LawFrame:
    """The law of a shipped prior."""
    return LawFrame(shipped(name), logarithmic)


def in_units(law: LawFrame, factor: float) -> LawFrame:
    """The same law where y is so many times larger."""
    loc = {p.name: p.distribution["loc"] + math.log(factor) for p in law.prior.parameters if p.name in ("y_first", "sigma")}
    changed = ["y_first"] if law.logarithmic else ["y_first", "sigma"]
    return LawFrame(law.prior.replace(**{name: {"loc": loc[name]} for name in changed}), law.logarithmic)


def frame_of(x: Tensor) -> Frame:
    """The ratio frame of sorted contexts (B, n) without padding, left in the units of x."""
    zero, one = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
    return Frame(zero, one, one, x[:, :1], x[:, -1:], x[:, -1:])


def falling(size: int, width: float = 6.0, noise: float = 0.03, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Irregular positions up to 1 over `width` nats, and a falling curve with multiplicative noise, shape (size,)."""
    rng = np.random.default_rng(seed)
    xi = np.sort(rng.uniform(-width, 0.0, size))
    xi[0], xi[-1] = -width, 0.0
    v = np.log(0.3 + 0.7 * np.exp(-0.4 * xi)) + noise * rng.standard_normal(size)
    return torch.from_numpy(np.exp(xi)), torch.from_numpy(np.exp(v))


@st.composite
def extremes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Contexts of any size, width, level and noise, with or without repeats."""
    size = draw(st.integers(3, 200))
    width = draw(st.floats(0.01, 16.0))
    noise = draw(st.sampled_from([0.0, 1e-9, 1e-3, 0.3, 10.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    xi = np.sort(rng.uniform(-width, 0.0, size))
    xi[0], xi[-1] = -width, 0.0
    if draw(st.booleans()):
        xi = np.round(xi / width * draw(st.integers(2, 10))) / 10.0 * width
        xi += 0.0 - xi[-1]
    level = math.log(10.0) * draw(st.floats(-8.0, 8.0))
    v = level - draw(st.floats(-2.0, 2.0)) * xi + noise * rng.standard_normal(size)
    return torch.from_numpy(np.exp(xi)), torch.from_numpy(np.exp(np.clip(v, math.log(1e-8), math.log(1e8))))


def modes_of(law: LawFrame, x: Tensor, v: Tensor, most: int = MOST_TOKENS, starts: Tensor | None = None) -> Modes:
    """Modes for contexts (n,) or (B, n) without padding."""
    x, v = torch.broadcast_tensors(torch.atleast_2d(x), torch.atleast_2d(v))
    xi, mask = (x / x[:, -1:]).log(), torch.ones_like(x, dtype=torch.bool)
    return law(xi, v.contiguous(), mask, group(xi, v.contiguous(), mask, most), frame_of(x), starts)


def truth(law: LawFrame, name: str) -> Tensor:
    """s of the true curve, shape (1, d)."""
    theta = {k: torch.tensor([value], dtype=torch.float64) for k, value in TRUTHS[name].items()}
    return (law.unconstrain(theta) - law.loc) / law.scale


def noisy(law: LawFrame, name: str, size: int, noise: float, seeds: int, width: float = 5.0) -> tuple[Tensor, Tensor]:
    """x (n,) and values of the true curve with noise, shape (seeds, n)."""
    x = torch.linspace(-width, 0.0, size, dtype=torch.float64).exp()
    v = law.curve(truth(law, name), x[None], frame_of(x[None]))
    return x, v + noise * torch.randn(seeds, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))

"""Does a forecast rise, where no curve of the prior does? Then the network does not know such a context."""

import functools
import math

import torch
from torch import Tensor

from hybrid.amortized.law_frame import frame_prior
from hybrid.amortized.predictive import Contexts
from hybrid.models.coordinates import Frame
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.torch_random import seeded

DRAWS = 2000
RISEN = 0.03  # of log y, from the lowest median on: more than on curves of the prior itself
EARLIEST, FARTHEST = 1e-4, 1e3  # x over the last context x, between which curves of the prior are looked at
PLACES = 24
ROUNDING = 1e-9


@functools.lru_cache(maxsize=64)
def falls(prior: AbstractPrior) -> bool:
    """Whether no curve of a prior with continuous parameters and multiplicative noise rises, by some that are drawn from it."""
    if not isinstance(prior, Prior) or frame_prior(prior) is not prior or not prior.noise.multiplicative:
        return False
    with seeded(0):
        theta = prior.draw_torch(DRAWS, torch.float64)
    x = torch.logspace(math.log10(EARLIEST), math.log10(FARTHEST), PLACES, dtype=torch.float64)
    one = torch.ones(DRAWS, 1, dtype=torch.float64)
    frame = Frame(0.0 * one, one, one, EARLIEST * one, one, FARTHEST * one)
    level = prior.mean(theta, x.expand(DRAWS, -1), frame)
    return bool((level[:, 1:] <= level[:, :-1] * (1.0 + ROUNDING)).all())


def places(frame: Frame, farthest: float) -> Tensor:
    """Positions (B, PLACES) from the first context x to the horizon, or to so many times the last context x."""
    first, last = frame.first.log(), torch.minimum(frame.horizon, farthest * frame.last).log()
    share = torch.linspace(0.0, 1.0, PLACES, dtype=first.dtype, device=first.device)
    found: Tensor = (first + (last - first) * share).exp()
    return found


def rise(contexts: Contexts, farthest: float) -> tuple[Tensor, Tensor]:
    """How far the median of log y rises from its lowest value on, shape (B,), and the summary of the contexts."""
    bars, summary = contexts.asked(places(contexts.frame, farthest))
    with torch.inference_mode():
        median = bars.icdf(torch.full_like(bars.loc, 0.5))
        return (median - median.cummin(1).values).amax(1), summary

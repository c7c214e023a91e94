"""Does a forecast rise, where no curve of the prior does? Then the network does not know such a context."""

import torch
from torch import Tensor

from hybrid.amortized.predictive import Contexts
from hybrid.models.coordinates import Frame

RISEN = 0.03  # of log y, from the lowest median on: more than on curves of the prior itself
RISES = (
    "The median of the network's forecast rises by {:.0f} %, as no curve of prior {!r} does: the network does not know such a "
    "context. Let forecasts follow from its draws with forecast='draws', or fit with engine='nuts'."
)
PLACES = 24


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

"""What the forecast of a network that knows the context does not do: rise where no curve of the prior does, or miss the points
that it was given."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid.amortized.coordinates import to_value
from hybrid.amortized.predictive import Contexts, of_value
from hybrid.models.coordinates import Frame

RISEN = 0.03  # of log y, from the lowest median on: more than on curves of the prior itself
RISES = (
    "The median of the network's forecast rises by {:.0f} %, as no curve of prior {!r} does: the network does not know such a "
    "context. Let forecasts follow from its draws with forecast='draws', or fit with engine='nuts'."
)
PLACES = 24
LATEST = 4
MISSED = 2.7  # mean normal score of the latest points under their own forecast: more than on curves of the prior itself
MISSES = (
    "The network's forecast misses the last {} points of the context, which lie {:.1f} sds {} it in the mean: it does not know "
    "such a context. Compare another prior, or fit with engine='nuts' if it serves this one."
)


class Look(NamedTuple):
    """What a first look at forecasts found, for a batch of contexts."""

    risen: Tensor  #: (B,) how far the median of log y rises from its lowest value on; 0 where the prior's curves may rise
    score: Tensor  #: (B,) mean normal score of the latest points; of fewer than LATEST the first counts for those that lack
    summary: Tensor  #: (B, summaries * width) of the contexts

    def remarks(self, k: int, points: int, prior: str) -> list[str]:
        """What is to be said of the forecast for context k, of so many points."""
        risen, score = float(self.risen[k]), float(self.score[k])
        found = [RISES.format(100.0 * math.expm1(risen), prior)] if risen > RISEN else []
        if abs(score) > MISSED:
            found.append(MISSES.format(min(points, LATEST), abs(score), "above" if score > 0 else "below"))
        return found


def look(contexts: Contexts, farthest: float) -> Look:
    """Ask, in one pass, for the forecasts at the latest points and, where no curve rises, up to `farthest` times the last x."""
    count = contexts.mask.sum(1, keepdim=True)
    latest = (count - LATEST + torch.arange(LATEST, device=count.device)).clamp(min=0)
    x, y = contexts.x.gather(1, latest), contexts.y.gather(1, latest)
    falls = contexts.model.falls
    bars, summary = contexts.asked(torch.cat([x, places(contexts.frame, farthest)], 1) if falls else x)
    with torch.inference_mode():
        v = to_value(y, contexts.model.logarithmic)
        rest = v[:, :1].expand(-1, bars.loc.shape[1] - LATEST)
        below = of_value(bars, contexts.model).cdf(torch.cat([v, rest], 1))[:, :LATEST]
        score = torch.special.ndtri(below.clamp(1e-12, 1.0 - 1e-12)).mean(1)
        median = bars.icdf(torch.full_like(bars.loc, 0.5))[:, LATEST:] if falls else v[:, :1]
        return Look((median - median.cummin(1).values).amax(1), score, summary)


def unseen(contexts: Contexts) -> Look:
    """No look: for forecasts that are not the network's."""
    nothing = torch.zeros(len(contexts.mask))
    return Look(nothing, nothing, contexts.summary())


def places(frame: Frame, farthest: float) -> Tensor:
    """Positions (B, PLACES) from the first context x to the horizon, or to so many times the last context x."""
    first, last = frame.first.log(), torch.minimum(frame.horizon, farthest * frame.last).log()
    share = torch.linspace(0.0, 1.0, PLACES, dtype=first.dtype, device=first.device)
    found: Tensor = (first + (last - first) * share).exp()
    return found

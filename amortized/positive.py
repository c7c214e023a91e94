"""What a distribution over the real line says of a positive variable: all that lies above 0, rescaled."""

import torch
from torch import Tensor

from hybrid.amortized.bar_distribution import BarDistribution


class Positive:
    """A `BarDistribution` of y, given that y > 0.

    Where most of its mass lies below 0, as that of a line that falls to there, probabilities are counted from above, and
    where 0 lies in the right tail all that is left of it is exponential: nothing is divided by what underflows.

    Parameters
    ----------
    bars
        The distribution without the condition.
    """

    def __init__(self, bars: BarDistribution) -> None:
        self.bars, self.mirror = bars, bars.mirrored()
        zero = torch.zeros_like(bars.loc)
        self._lost, self._left = bars.cdf(zero), self.mirror.cdf(zero)
        self._exponential = -bars.loc / bars.scale > bars.edges[-1]
        self._length = bars.scale * bars.tail_scales[1]

    def log_prob(self, y: Tensor) -> Tensor:
        """log density at y > 0."""
        inside = self.bars.log_prob(y) - self._left.log()
        return torch.where(self._exponential, -y / self._length - self._length.log(), inside)

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y <= y) for y > 0."""
        below = (self.bars.cdf(y) - self._lost) / (1.0 - self._lost)
        inside = torch.where(self._lost < 0.5, below, 1.0 - self.mirror.cdf(-y) / self._left)
        return torch.where(self._exponential, -torch.expm1(-y / self._length), inside)

    def icdf(self, p: Tensor) -> Tensor:
        """The quantile at each probability in (0, 1)."""
        below = self.bars.icdf(self._lost + (1.0 - self._lost) * p)
        inside = torch.where(self._lost < 0.5, below, -self.mirror.icdf(self._left * (1.0 - p)))
        return torch.where(self._exponential, -self._length * torch.log1p(-p), inside).clamp(min=0.0)

"""What a distribution over the real line says of a positive variable: all that lies above 0, rescaled."""

import functools

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

    @functools.cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, from those of the left tail, the bins and the right tail, each as far as it lies above 0."""
        bars = self.bars
        edges = bars.loc[..., None] + bars.scale[..., None] * bars.edges
        left, right = (bars.scale * scale for scale in bars.tail_scales)
        above = edges.clamp(min=0.0)
        low, high = above[..., :-1], above[..., 1:]
        depth = above[..., 0]
        ratio = torch.where(depth > 0, depth / left, 1.0)
        share = torch.cat(
            [
                torch.where(depth > 0, -torch.expm1(-ratio), 0.0)[..., None],
                (high - low) / (edges[..., 1:] - edges[..., :-1]),
                torch.ones_like(right)[..., None],
            ],
            -1,
        )
        # Of a truncated exponential; where it is cut short of its length it is nearly uniform.
        short = ratio < 1e-3
        in_left = torch.where(short, 0.5 * depth, left - depth / torch.expm1(ratio))
        left_variance = torch.where(
            short, depth.square() / 12.0, left.square() - (0.5 * depth / torch.sinh(0.5 * ratio)).square()
        )
        mean = torch.cat([(depth - in_left)[..., None], 0.5 * (low + high), (above[..., -1] + right)[..., None]], -1)
        inner = torch.cat([left_variance[..., None], (high - low).square() / 12.0, right.square()[..., None]], -1)
        log_mass = bars.logits + share.log()
        mass = log_mass.softmax(-1)
        centre = (mass * mean).sum(-1)
        return centre, (mass * (inner + (mean - centre[..., None]).square())).sum(-1)

    @property
    def mean(self) -> Tensor:
        """E[Y], in closed form."""
        return torch.where(self._exponential, self._length, self._moments[0])

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of Y, in closed form."""
        return torch.where(self._exponential, self._length, self._moments[1].sqrt())

"""A Bayesian smoother in closed form: the reference line from which the network sees, and states, everything.

In log x the value v (y or log y) is a straight line plus softplus bends at fixed knots,

    v(xi) = w_0 + w_1 xi / W + sum_j w_j (f_j / W) softplus((xi - delta_j) / f_j) + noise,

with xi = log(x / last context x) and W the width of the context in xi. The weights are normal, the bends with one of a few sds,
the noise sd is one of a grid; all grids are averaged over with their marginal likelihoods (Bishop 2006, section 3.5). This is
no law and no prior of Hybrid: only a frame of reference that has the right size when the noise is a millionth of the range,
where a network in single precision could not even state the answer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

EVEN_KNOTS = 8  # evenly spaced in xi
POINT_KNOTS = 6  # at quantiles of the positions
BEND_SCALES = (0.05, 0.5, 5.0)
NOISE_SCALES = tuple(10.0 ** (-6.0 + 0.4 * i) for i in range(17))  # relative to the spread of the context
WEAK = 5.0  # prior sd of level and slope, in spreads
LEAST_SPREAD = 1e-9  # of a constant context, relative to its level


class Smooth(NamedTuple):
    """The smoother's posterior for a batch of curves."""

    knots: Tensor  #: (B, J)
    widths: Tensor  #: (B, J) f
    width: Tensor  #: (B, 1) W
    centre: Tensor  #: (B, 1) mean of v over the context
    spread: Tensor  #: (B, 1) sd of v over the context
    rotation: Tensor  #: (B, S, K, K) eigenvectors of the scaled Gram matrix, one for each sd of the bends
    weights: Tensor  #: (B, S, K, G) posterior means of the rotated weights for each noise sd
    shrinkage: Tensor  #: (B, S, K, G) posterior variances of the same
    probability: Tensor  #: (B, S, G) posterior of the two grids

    def noise(self) -> Tensor:
        """Geometric posterior mean of the noise sd, in spreads, shape (B, 1)."""
        grid = torch.tensor(NOISE_SCALES, dtype=self.width.dtype, device=self.width.device)
        return (self.probability.sum(1) * grid.log()).sum(-1, keepdim=True).exp()


def _basis(xi: Tensor, knots: Tensor, widths: Tensor, width: Tensor) -> Tensor:
    """Shape (B, n, K) for xi of shape (B, n)."""
    f = widths[:, None]
    bends = f / width[..., None] * torch.nn.functional.softplus((xi[..., None] - knots[:, None]) / f)
    return torch.cat([torch.ones_like(xi)[..., None], (xi / width)[..., None], bends], -1)


def _prior_scales(like: Tensor) -> Tensor:
    """Prior sds of the weights for each sd of the bends, shape (S, K)."""
    bends = EVEN_KNOTS + POINT_KNOTS
    rows = [[WEAK, WEAK, *[scale] * bends] for scale in BEND_SCALES]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def smooth(xi: Tensor, v: Tensor, mask: Tensor) -> Smooth:
    """Fit the smoother to the contexts of a batch.

    Parameters
    ----------
    xi
        log(x / last context x), shape (B, N), float64; 0 where the mask is False.
    v
        Values, shape (B, N), float64.
    mask
        True on the points of the context, shape (B, N).

    Returns
    -------
    Smooth
    """
    count = mask.sum(1, keepdim=True)
    known = mask.to(v.dtype)
    width = -torch.where(mask, xi, 0.0).amin(1, keepdim=True)
    even = (torch.arange(EVEN_KNOTS, dtype=v.dtype, device=v.device) / (EVEN_KNOTS - 1) - 1.0) * width
    ordered = torch.where(mask, xi, torch.inf).sort(1).values
    place = (torch.arange(POINT_KNOTS, dtype=v.dtype, device=v.device) + 1.0) / (POINT_KNOTS + 1) * (count - 1)
    at_points = torch.lerp(
        ordered.gather(1, place.long()), ordered.gather(1, (place.long() + 1).clamp(max=count - 1)), place.frac()
    )
    gaps = torch.cat([-width, at_points, torch.zeros_like(width)], 1).diff(dim=1)
    point_widths = torch.maximum(0.5 * (gaps[:, 1:] + gaps[:, :-1]), width / 64.0)
    knots = torch.cat([even, at_points], 1)
    widths = torch.cat([(width / EVEN_KNOTS).expand_as(even), point_widths], 1)

    centre = (v * known).sum(1, keepdim=True) / count
    deviation = (v - centre) * known
    spread = (deviation.square().sum(1, keepdim=True) / count).sqrt()
    spread = torch.maximum(spread, LEAST_SPREAD * (1.0 + centre.abs()))
    target = deviation / spread

    basis = _basis(xi, knots, widths, width) * known[..., None]
    scales = _prior_scales(v)
    gram = scales[:, :, None] * (basis.mT @ basis)[:, None] * scales[:, None]
    values, rotation = torch.linalg.eigh(gram)
    moment = rotation.mT @ (scales[..., None] * (basis.mT @ target[..., None])[:, None])  # (B, S, K, 1)
    grid = torch.tensor(NOISE_SCALES, dtype=v.dtype, device=v.device)
    values = values.clamp(min=0.0)[..., None]
    weights = moment / (values + grid**2)
    residual = target.square().sum(1)[:, None, None] - (moment * weights).sum(2)
    evidence = -0.5 * (
        torch.log1p(values / grid**2).sum(2) + 2.0 * count[..., None] * grid.log() + residual.clamp(min=0.0) / grid**2
    )
    probability = evidence.flatten(1).softmax(1).view_as(evidence)
    return Smooth(knots, widths, width, centre, spread, rotation, weights, grid**2 / (values + grid**2), probability)


def smoothed(fitted: Smooth, xi: Tensor) -> Tensor:
    """Mean of the smoother at xi (B, n), in spreads from the centre."""
    rotated = (fitted.weights * fitted.probability[:, :, None]).sum(-1, keepdim=True)
    weights = (_prior_scales(xi)[..., None] * (fitted.rotation @ rotated)).sum(1)
    return (_basis(xi, fitted.knots, fitted.widths, fitted.width) @ weights)[..., 0]


def forecast(fitted: Smooth, xi: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd (the noise included) of the smoother's predictive at xi (B, n), in spreads from the centre."""
    basis = _basis(xi, fitted.knots, fitted.widths, fitted.width)[:, None] * _prior_scales(xi)[:, None]
    rotated = basis @ fitted.rotation  # (B, S, n, K)
    p = fitted.probability[:, :, None]
    means = rotated @ fitted.weights  # (B, S, n, G)
    mean = (p * means).sum((1, 3))
    within = (rotated.square() @ (p * fitted.shrinkage).sum(-1, keepdim=True)).sum((1, 3))
    between = (p * (means - mean[:, None, :, None]).square()).sum((1, 3))
    grid = torch.tensor(NOISE_SCALES, dtype=xi.dtype, device=xi.device)
    noise = (fitted.probability * grid**2).sum((1, 2))[:, None]
    return mean, (within + between + noise).sqrt()

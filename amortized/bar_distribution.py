"""A piecewise-uniform density with exponential tails: the predictive head of the network.

Between sorted edges e_0 < ... < e_K the density is constant in each bin, and outside them it falls exponentially:

    f(u) = p_0 / s_0 exp(-(e_0 - u) / s_0)       u < e_0
    f(u) = p_k / (e_k - e_{k-1})                 e_{k-1} <= u < e_k,  k = 1 ... K
    f(u) = p_{K+1} / s_1 exp(-(u - e_K) / s_1)   u >= e_K

with p the softmax of K + 2 logits. A tail's scale s is the width of the bin next to it over log 2, which makes the tail of an
exponential variable exact when the tail and the bin hold equal mass; or it is any factor of that. With a factor of its own for
each forecast the network can say that a curve may turn up beyond the context: a few per cent of the mass, tens of widths away.
The variable is y = loc + scale u, so that bins set once in a relative coordinate serve any units.

The head follows the "Riemann distribution" of Müller et al. (2022, arXiv 2112.10510), which has half-normal tails. In the
version released with NSL-PFN density, quantiles and samples disagree at the edges; here all follow from the one f above.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from hybrid.models.errors import InvalidArgumentError


def _check_edges(edges: Tensor) -> None:
    if edges.dim() != 1 or edges.numel() < 2:
        raise InvalidArgumentError(f"edges must be one-dimensional with at least 2 entries, got shape {tuple(edges.shape)}")
    if not bool(torch.isfinite(edges).all()):
        raise InvalidArgumentError("edges must be finite")
    steps = edges.diff()
    if not bool((steps > 0).all()):
        at = int((steps <= 0).nonzero()[0])
        raise InvalidArgumentError(
            f"edges must increase strictly in {edges.dtype}, but entries {at} and {at + 1} are "
            f"{float(edges[at])!r} and {float(edges[at + 1])!r}"
        )


def _take(table: Tensor, index: Tensor) -> Tensor:
    """table[..., index] with the leading axes of the table broadcast against those of the index."""
    return table.expand(*index.shape, table.shape[-1]).gather(-1, index[..., None]).squeeze(-1)


class BarDistribution(torch.distributions.Distribution):
    """Piecewise-uniform density with exponential tails, of y = loc + scale u.

    Parameters
    ----------
    logits
        Unnormalised log masses, shape (..., K + 2): left tail, K bins, right tail. Half precision is raised to float32.
    edges
        Edges of the bins in u, shape (K + 1,), finite and strictly increasing.
    loc, scale
        The affine map from u to y, broadcasting against the leading axes of the logits; scale > 0.
    tails
        Logarithms of the factors by which the left and the right tail are longer than the bins next to them make them, shape
        (..., 2), the leading axes those of the logits; None is 0.
    validate_args
        False leaves out the checks of all arguments, which on a GPU wait for the device.

    Raises
    ------
    InvalidArgumentError
        If the edges are not strictly increasing and finite, the logits are not two more than the bins, or the tails not two.
    ValueError
        If logits or tails are NaN or a scale is not positive (raised by torch).

    Notes
    -----
    Every method takes values of shape (..., *batch_shape), broadcasting, and, except `sample`, is differentiable in logits and
    tails.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.real,
        "scale": constraints.positive,
        "tails": constraints.real_vector,
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        edges: Tensor,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        tails: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        for other in (loc, scale):
            if isinstance(other, Tensor) and other.is_floating_point():
                dtype = torch.promote_types(dtype, other.dtype)
        self.logits = logits.to(dtype)
        self.edges = edges.to(logits.device, dtype)
        self.loc = torch.as_tensor(loc, dtype=dtype, device=logits.device)
        self.scale = torch.as_tensor(scale, dtype=dtype, device=logits.device)
        self.tails = self.logits.new_zeros(2) if tails is None else tails.to(logits.device, dtype)
        if logits.shape[-1] != edges.numel() + 1:
            raise InvalidArgumentError(f"{edges.numel()} edges need {edges.numel() + 1} logits, got {logits.shape[-1]}")
        if self.tails.shape[-1:] != (2,):
            raise InvalidArgumentError(f"there are two tails, but tails has shape {tuple(self.tails.shape)}")
        self.logits = self.logits.expand(*torch.broadcast_shapes(logits.shape[:-1], self.tails.shape[:-1]), logits.shape[-1])
        if validate_args is not False:
            _check_edges(self.edges)
        shape = torch.broadcast_shapes(self.logits.shape[:-1], self.loc.shape, self.scale.shape)
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BarDistribution":
        """The same distribution with its batch axes broadcast to `batch_shape`."""
        del _instance
        shape = torch.Size(batch_shape)
        logits, tails = (part.expand(*shape, part.shape[-1]) for part in (self.logits, self.tails))
        affine = self.loc.expand(shape), self.scale.expand(shape)
        found = BarDistribution(logits, self.edges, *affine, tails, validate_args=False)
        found._validate_args = self._validate_args  # as torch's own do: of values, whose checks go on
        return found

    def mirrored(self) -> "BarDistribution":
        """The distribution of -y."""
        return BarDistribution(
            self.logits.flip(-1), -self.edges.flip(0), -self.loc, self.scale, self.tails.flip(-1), validate_args=False
        )

    @functools.cached_property
    def _log_mass(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @functools.cached_property
    def _mass(self) -> Tensor:
        return self.logits.softmax(-1)

    @functools.cached_property
    def _widths(self) -> Tensor:
        return self.edges.diff()

    @functools.cached_property
    def tail_scales(self) -> tuple[Tensor, Tensor]:
        """Scales of the left and the right tail in u, each of the leading shape of the tails."""
        left, right = self.tails.exp().unbind(-1)
        return left * (self._widths[0] / math.log(2.0)), right * (self._widths[-1] / math.log(2.0))

    def _accumulate(self, mass: Tensor) -> Tensor:
        # In single precision a thousand masses would add up to 1 only within 1e-5; Apple's GPUs have nothing better.
        dtype = mass.dtype if mass.device.type == "mps" else torch.float64
        total = mass.cumsum(-1, dtype=dtype)
        return (total / total[..., -1:])[..., :-1].to(mass.dtype)

    @functools.cached_property
    def _below(self) -> Tensor:
        """P(U <= edge), shape (..., K + 1)."""
        return self._accumulate(self._mass)

    @functools.cached_property
    def _above(self) -> Tensor:
        """P(U > edge), shape (..., K + 1), summed from the right so that small masses keep their precision."""
        return self._accumulate(self._mass.flip(-1)).flip(-1)

    def _locate(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Piece (0 left tail, 1 ... K bins, K + 1 right tail), share of the bin, and distances into the two tails."""
        if self._validate_args:
            self._validate_sample(value)
        u = ((value - self.loc) / self.scale).to(self.edges.dtype)
        u = u.expand(torch.broadcast_shapes(u.shape, self.batch_shape)).contiguous()
        piece = torch.searchsorted(self.edges, u.detach(), right=True)
        k = (piece - 1).clamp(0, self._widths.numel() - 1)
        share = ((u - self.edges[k]) / self._widths[k]).clamp(0.0, 1.0)
        left, right = self.tail_scales
        return piece, share, ((self.edges[0] - u) / left).clamp(min=0.0), ((u - self.edges[-1]) / right).clamp(min=0.0)

    def _choose(self, piece: Tensor, left: Tensor, bins: Tensor, right: Tensor) -> Tensor:
        return torch.where(piece == 0, left, torch.where(piece > self._widths.numel(), right, bins))

    def log_prob(self, value: Tensor) -> Tensor:
        """log density at y, nats per unit of y."""
        piece, _, into_left, into_right = self._locate(value)
        left, right = self.tail_scales
        bins = self._widths.log()[(piece - 1).clamp(0, self._widths.numel() - 1)]
        span = self._choose(piece, left.log(), bins, right.log())
        return _take(self._log_mass, piece) - span - into_left - into_right - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """P(Y <= y)."""
        piece, share, into_left, into_right = self._locate(value)
        k = piece.clamp(1, self._widths.numel())
        bins = _take(self._below, k - 1) + share * _take(self._mass, k)
        left = (self._log_mass[..., 0] - into_left).exp()
        right = 1.0 - (self._log_mass[..., -1] - into_right).exp()
        return self._choose(piece, left, bins.clamp(max=1.0), torch.maximum(right, self._below[..., -1]))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile at each probability; -inf at 0, inf at 1, NaN outside."""
        p = value.to(self.edges.dtype)
        shape = torch.broadcast_shapes(p.shape, self.batch_shape)
        extra = len(shape) - len(self.batch_shape)
        # searchsorted wants equal leading axes: the sample axes go last and share one row of the table.
        rows = p.expand(shape).reshape(-1, *shape[extra:]).movedim(0, -1).contiguous()
        table = self._below.detach().expand(*shape[extra:], self.edges.numel()).contiguous()
        piece = torch.searchsorted(table, rows).movedim(-1, 0).reshape(shape)
        k = piece.clamp(1, self._widths.numel())
        tiny = torch.finfo(p.dtype).tiny
        share = ((p - _take(self._below, k - 1)) / _take(self._mass, k).clamp(min=tiny)).clamp(0.0, 1.0)
        left, right = self.tail_scales
        bins = self.edges[k - 1] + share * self._widths[k - 1]
        inside = (p > 0) & (p < 1)
        within = torch.where(inside, p, 0.5)  # infinities would make NaN of gradients
        low = self.edges[0] - left * (self._log_mass[..., 0] - within.log()).clamp(min=0.0)
        high = self.edges[-1] + right * (self._log_mass[..., -1] - (-within).log1p()).clamp(min=0.0)
        u = self._choose(piece, low, bins, high)
        u = torch.where(p == 0, -torch.inf, torch.where(p == 1, torch.inf, torch.where(inside, u, torch.nan)))
        return self.loc + self.scale * u

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws by inversion of the cdf, shape (*sample_shape, *batch_shape)."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.edges.dtype, device=self.edges.device)
        return self.icdf(uniform.clamp(min=torch.finfo(uniform.dtype).tiny))

    def _pieces(self, left: Tensor, bins: Tensor, right: Tensor) -> Tensor:
        """A figure of each piece: of the tails (...), of the bins (K,); shape (..., K + 2)."""
        return torch.cat([left[..., None], bins.expand(*left.shape, -1), right[..., None]], -1)

    @functools.cached_property
    def _centres(self) -> Tensor:
        """Mean of each piece, shape (..., K + 2)."""
        left, right = self.tail_scales
        return self._pieces(self.edges[0] - left, self.edges[:-1] + 0.5 * self._widths, self.edges[-1] + right)

    @functools.cached_property
    def _mean_u(self) -> Tensor:
        return (self._mass * self._centres).sum(-1)

    @property
    def mean(self) -> Tensor:
        """E[y], shape batch_shape."""
        return (self.loc + self.scale * self._mean_u).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Var[y], shape batch_shape."""
        left, right = self.tail_scales
        inner = self._pieces(left**2, self._widths**2 / 12.0, right**2)
        spread = (self._mass * (inner + (self._centres - self._mean_u[..., None]) ** 2)).sum(-1)
        return (self.scale**2 * spread).expand(self.batch_shape)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, shape batch_shape."""
        left, right = self.tail_scales
        inner = self._pieces(1.0 + left.log(), self._widths.log(), 1.0 + right.log())
        log_mass = torch.where(self._mass > 0, self._log_mass, 0.0)  # 0 log 0 = 0, with a gradient of 0 as well
        return ((self._mass * (inner - log_mass)).sum(-1) + self.scale.log()).expand(self.batch_shape)

    def crps(self, value: Tensor) -> Tensor:
        """Continuous ranked probability score at y, in units of y, in closed form; lower is better.

        The integral of F^2 below y plus that of (1 - F)^2 above it: a quadratic in each bin, exponentials in the tails.
        """
        piece, share, into_left, into_right = self._locate(value)
        left, right = self.tail_scales
        f, g, width = self._below, self._above, self._widths
        first, last = self._mass[..., 0], self._mass[..., -1]
        f_bins = width * (f[..., :-1] ** 2 + f[..., :-1] * f[..., 1:] + f[..., 1:] ** 2) / 3.0
        g_bins = width * (g[..., :-1] ** 2 + g[..., :-1] * g[..., 1:] + g[..., 1:] ** 2) / 3.0
        before = torch.cat([(0.5 * left * first**2)[..., None], f_bins], -1).cumsum(-1)
        after = torch.cat([g_bins, (0.5 * right * last**2)[..., None]], -1).flip(-1).cumsum(-1).flip(-1)

        k = piece.clamp(1, width.numel())
        mass, f_low, g_high = _take(self._mass, k), _take(f, k - 1), _take(g, k)
        f_here, g_here = f_low + share * mass, g_high + (1.0 - share) * mass
        inside = share * (f_low**2 + f_low * f_here + f_here**2) + (1.0 - share) * (g_high**2 + g_high * g_here + g_here**2)
        bins = _take(before, k - 1) + _take(after, k) + width[k - 1] * inside / 3.0

        def tail(length: Tensor, mass: Tensor, into: Tensor) -> Tensor:
            beyond = 0.5 * mass**2 * (-2.0 * into).exp()
            return length * (beyond + into + 2.0 * mass * (-into).expm1() - 0.5 * mass**2 * (-2.0 * into).expm1())

        low = tail(left, first, into_left) + after[..., 0]
        high = tail(right, last, into_right) + before[..., -1]
        return self.scale * self._choose(piece, low, bins, high)

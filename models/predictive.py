"""The posterior predictive distribution as a mixture over posterior draws."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import elementwise
from scipy.special import logsumexp

from hybrid.models.coordinates import Frame
from hybrid.models.prior import Prior

Array = Any
RELATIVE_TOLERANCE = 1e-11
_LARGE = 1e300
_BLOCK = 2_000_000  # numbers held in one temporary at most, unless the answer itself is larger


class MixturePredictive:
    """p(y | x, context) = 1/S sum_s p(y | f(x, theta_s), theta_s): an equal-weight mixture over S posterior draws.

    Everything is in the user's units, runs in NumPy alone and is exact for the given draws: moments by the laws of total
    expectation and variance, densities and cdfs as averages over all draws, quantiles as roots of that cdf. No number at one x
    depends on the other x asked for. Positions x are arrays of shape (n,), n at least 1.

    Parameters
    ----------
    prior
        The prior whose law and noise model are meant.
    draws
        Parameters by name, constrained and in coordinates, each of shape (S,); S = 1 is a point estimate.
    frame
        The frame that maps between the coordinates and the user's units.
    """

    def __init__(self, prior: Prior, draws: Mapping[str, Array], frame: Frame) -> None:
        self._prior = prior
        self._noise = prior.noise
        self._theta = {name: np.asarray(value, dtype=float) for name, value in draws.items()}
        self._frame = frame
        self._size = next(iter(self._theta.values())).shape[0]

    def curves(self, x: Array) -> Array:
        """Noise-free curves, one per draw: x of shape (n,), result (S, n)."""
        with np.errstate(all="ignore"):  # a draw may over- or underflow far from the data, and its limits are then right
            return self._level(x).T * self._frame.y_scale

    def mean(self, x: Array) -> Array:
        """E[y] at x, shape (n,)."""
        return self._moments(x)[0]

    def sd(self, x: Array) -> Array:
        """Standard deviation of y at x, shape (n,): the mean of the variances plus the variance of the means."""
        return self._moments(x)[1]

    def cdf(self, x: Array, y: Array) -> Array:
        """P(Y <= y) at x, for y of shape (n,) or scalar; shape (n,)."""
        y = np.broadcast_to(np.asarray(y, dtype=float) / self._frame.y_scale, np.shape(x))
        with np.errstate(all="ignore"):
            blocks = [self._noise.cdf(y[s, None], self._level(x[s]), self._theta).mean(-1) for s in self._blocks(x)]
        return np.concatenate(blocks)

    def log_density(self, x: Array, y: Array) -> Array:
        """log p(y | x, context) in nats per point, in the units of y as given; shape (n,)."""
        y = np.broadcast_to(y, np.shape(x))
        with np.errstate(all="ignore"):
            blocks = [logsumexp(self.log_density_by_draw(x[s], y[s]), axis=0) for s in self._blocks(x)]
        return np.concatenate(blocks) - np.log(self._size)

    def log_density_by_draw(self, x: Array, y: Array) -> Array:
        """log p(y | x, theta_s) for every draw, in the units of y as given; shape (S, n)."""
        y = np.broadcast_to(np.asarray(y, dtype=float) / self._frame.y_scale, np.shape(x))
        found = np.empty((self._size, len(y)))
        for s in self._blocks(x):
            with np.errstate(all="ignore"):
                inside = self._noise.log_prob(y[s, None], self._level(x[s]), self._theta)
            outside = (y[s, None] <= 0) & np.isnan(inside)
            found[:, s] = np.where(outside, -np.inf, inside).T - np.log(self._frame.y_scale)
        return found

    def quantile(self, x: Array, levels: Array) -> Array:
        """Quantiles of y at the given levels in (0, 1); shape (len(levels), n), relative error 1e-11.

        The bracket: where a share sqrt(p) of the components has at least probability sqrt(p) each below y, the mixture has
        at least p below y, and likewise from above. Draws far off do not widen it. Chandrupatla's method finds the root.
        """
        levels = np.asarray(levels, dtype=float)
        with np.errstate(all="ignore"):
            blocks = [self._quantile(self._level(x[s]), levels) for s in self._blocks(x, levels.size)]
            return np.concatenate(blocks, axis=1) * self._frame.y_scale

    def sample(self, x: Array, n: int, seed: int) -> Array:
        """n coherent curves, shape (n, n_x): each takes one posterior draw for all x and its own independent noise.

        The draws are used evenly, in random order. Points appended to x leave the values at the others unchanged.
        """
        rng = np.random.default_rng(seed)
        rounds = -(-n // self._size)
        chosen = np.concatenate([rng.permutation(self._size) for _ in range(rounds)])[:n]
        return self._noisy(x, chosen, rng)

    def replicate(self, x: Array, seed: int) -> Array:
        """One noisy curve per posterior draw, in the order of the draws; shape (S, n_x)."""
        return self._noisy(x, np.arange(self._size), np.random.default_rng(seed))

    def _level(self, x: Array) -> Array:
        """Noise-free values in coordinates, NaN where there is none: shape (n, S), so that parameters broadcast as they are."""
        x = self._frame.x_to(np.asarray(x, dtype=float))
        level = self._prior.mean(self._theta, x, self._frame)
        if self._noise.multiplicative:
            level = np.where(level < 0, np.nan, level)  # of log y there is none
        return np.ascontiguousarray(level.T)

    def _blocks(self, x: Array, width: int = 1) -> list[slice]:
        """Slices of x that keep arrays of shape (width, n, S) within a bounded memory."""
        step = max(1, _BLOCK // (self._size * width))
        return [slice(i, i + step) for i in range(0, len(x), step)]

    def _moments(self, x: Array) -> Array:
        """Mean and standard deviation, shape (2, n)."""
        blocks = []
        with np.errstate(all="ignore"):
            for s in self._blocks(x):
                mean, variance = self._noise.moments(self._level(x[s]), self._theta)
                both = np.stack([mean.mean(-1), np.sqrt(variance.mean(-1) + mean.var(-1))])
                blocks.append(np.where(np.isposinf(both[0]), np.inf, both))
        return np.concatenate(blocks, axis=1) * self._frame.y_scale

    def _quantile(self, level: Array, p: Array) -> Array:
        """Quantiles in coordinates, shape (len(p), n), for noise-free values of shape (n, S)."""
        if self._size == 1:
            return self._noise.icdf(p[:, None], level[:, 0], {k: v[0] for k, v in self._theta.items()})
        low = np.array([-self._order_statistic(-self._component(1 - np.sqrt(1 - q), level), np.sqrt(1 - q)) for q in p])
        high = np.array([self._order_statistic(self._component(np.sqrt(q), level), np.sqrt(q)) for q in p])
        low, high = low - 1e-9 * np.abs(low), high + 1e-9 * np.abs(high)  # rounding must not put the root outside
        points, targets = np.broadcast_arrays(np.arange(level.shape[0]), p[:, None])

        below = self._noise.cdf_of_rows(level, self._theta)

        def excess(y: Array, point: Array, target: Array) -> Array:
            return below(y.ravel(), point.ravel()).mean(-1).reshape(y.shape) - target

        tolerances = {"xrtol": RELATIVE_TOLERANCE, "fatol": 0.0}
        root = elementwise.find_root(excess, (low, high), args=(points, targets), tolerances=tolerances, maxiter=2000)
        nearest = np.where(np.abs(root.f_bracket[0]) < np.abs(root.f_bracket[1]), *root.bracket)
        return np.where(root.status == -1, nearest, root.x)  # -1: no change of sign, so the root is an end

    def _component(self, p: float, level: Array) -> Array:
        """The p-quantile of every component, shape (n, S), finite."""
        return np.clip(self._noise.icdf(p, level, self._theta), -_LARGE, _LARGE)

    def _order_statistic(self, values: Array, share: float) -> Array:
        """The smallest value in each row that at least the given share of the row does not exceed."""
        k = min(max(int(np.ceil(share * self._size)), 1), self._size) - 1
        return np.partition(values, k, axis=-1)[:, k]

    def _noisy(self, x: Array, chosen: Array, rng: np.random.Generator) -> Array:
        theta = {name: value[chosen] for name, value in self._theta.items()}
        drawn = np.empty((chosen.size, len(x)))
        for s in self._blocks(x, -(-chosen.size // self._size)):
            with np.errstate(all="ignore"):
                level = self._level(x[s])[:, chosen]
                drawn[:, s] = self._noise.icdf(rng.uniform(size=level.shape), level, theta).T * self._frame.y_scale
        return drawn

"""The sampler released with NSL-PFN (Lee et al. 2025), with its rejection steps: for comparison, never for NUTS.

A curve is redrawn while any of its noisy points is negative (or, for Down-Up-Down, above the first), also points that
would be targets; breaks depend on where the context ends; the Beta cdf of the rise divides by the wrong length; M4 takes the
nearest of 1000 levels. So the implied density has no closed form, and the prior cannot be given to NUTS. Here the
draws are vectorised over curves in NumPy; M4 is solved and then rounded to the grid of 1000.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import special

from hybrid.models.coordinates import Frame, Unit
from hybrid.models.distributions import Distribution
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.m4 import solve_logit
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import FORMAT, AbstractPrior, Parameter

Array = Any
GRID = 1000
MAX_ROUNDS = 10_000
ROW = 100  # positions of a curve that is drawn, at least
FARTHEST_END = 0.9  # of a context
LAW = "nslpfn"  # there is no such law, but a sampler
_FAMILIES = (0.7, 0.2, 0.1)


def _fall(rng: np.random.Generator, x: Array, n: int) -> Array:
    """n M3 or M4 curves over all of x (shape (n, n_x)), each rescaled to run from y0 ~ U(.2, 1.2) to y1 ~ U(0, y0)."""
    kind = rng.uniform(size=(n, 1)) < 0.5
    c3, gamma = rng.lognormal(-2, 1, (n, 1)), rng.lognormal(0, 1, (n, 1))
    alpha, beta, c4 = rng.lognormal(0, 0.5, (n, 1)), rng.lognormal(-1, 0.5, (n, 1)), rng.lognormal(0, 0.5, (n, 1))
    xp = get_namespace("numpy")
    w = xp.expit(solve_logit(xp, alpha, np.log(beta) - c4 * np.log(x)))
    shape = np.where(kind, (1 / x + gamma) ** c3, np.round(w * (GRID - 1)) / (GRID - 1))
    low, high = shape[:, -1:], shape[:, :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        shape = (shape - low) / (high - low)
    y0 = rng.uniform(0.2, 1.2, (n, 1))
    y1 = rng.uniform(0, y0)
    return shape * (y0 - y1) + y1


def _break_positions(rng: np.random.Generator, cutoff: Array, count: Array, last_before_cutoff: bool) -> Array:
    """Break positions, shape (n, 2); with one break the second is 1."""
    low = np.minimum(np.maximum(cutoff - 0.05, 0.0), 0.2)
    pieces = rng.uniform(low[:, None], 0.4, (cutoff.size, 2))
    first = pieces[:, 0]
    second = np.where(count == 2, pieces.prod(1), first)
    early, late = np.minimum(first, second), np.maximum(first, second)
    limit = late if last_before_cutoff else early
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = limit / np.minimum(limit, cutoff - 0.05)
        early, late = early / scale, late / scale
    return np.stack([early, np.where(count == 2, late, 1.0)], 1)


def _start_index(x: Array, position: Array) -> Array:
    return np.maximum(np.array([np.searchsorted(row, p) for row, p in zip(x, position, strict=True)]), 1)


def _join(pieces: list[Array], starts: list[Array], n_x: int) -> Array:
    """Take pieces[k] from index starts[k] - 1 on, shifted to meet what comes before."""
    y = pieces[0].copy()
    rows, columns = np.arange(y.shape[0])[:, None], np.arange(n_x)[None, :]
    for piece, start in zip(pieces[1:], starts, strict=True):
        at = np.clip(start - 1, 0, n_x - 1)[:, None]
        shifted = piece - piece[rows, at] + y[rows, at]
        y = np.where(columns >= start[:, None], shifted, y)
    return y


def _rise(rng: np.random.Generator, x: Array, begin: Array, end: Array) -> Array:
    """The rising piece of Down-Up-Down, from 0, between x = begin and end, shape (n, n_x)."""
    n = len(x)
    b, power = np.exp(rng.uniform(0.5, 1, n)), rng.lognormal(0, 0.1, n)
    share = np.clip((x - begin[:, None]) / end[:, None], 0, 1)  # divides by the position, not by the width, as released
    height = rng.uniform(0.01, 0.7, n) * (end - begin)
    return height[:, None] * special.betainc(b[:, None], b[:, None], share) ** power[:, None]


def _break(rng: np.random.Generator, x: Array, cutoff: Array, up: Array, first_piece: Array) -> Array:
    """Curves (n, n_x) that start as `first_piece` and break once or twice; those marked `up` rise between two breaks."""
    n, n_x = x.shape
    count = np.where(up, 2, rng.integers(1, 3, n))
    down = _break_positions(rng, cutoff, count, last_before_cutoff=True)
    rising = _break_positions(rng, cutoff, count, last_before_cutoff=False)
    breaks: Array = np.where(up[:, None], rising, down)
    first, second = (_start_index(x, breaks[:, k]) for k in range(2))
    starts = [first, np.where(count == 2, second, n_x)]
    rows = np.arange(n)
    begin, end = x[rows, starts[0] - 1], x[rows, np.clip(starts[1], 1, n_x) - 1]
    middle = _fall(rng, x, n)
    middle[up] = _rise(rng, x[up], begin[up], end[up])
    return _join([first_piece, middle, _fall(rng, x, n)], starts, n_x)


def _curves(rng: np.random.Generator, x: Array, cutoff: Array, family: Array) -> Array:
    """Noise-free curves (n, n_x) of the given families, before any rejection."""
    curves = _fall(rng, x, len(x))
    broken = np.flatnonzero(family)
    if broken.size:
        curves[broken] = _break(rng, x[broken], cutoff[broken], family[broken] == 2, curves[broken])
    return curves


class NslPfn(AbstractPrior):
    """The released sampler of NSL-PFN as a prior that can be simulated but not evaluated."""

    coordinates = "unit"
    class_meanings = MappingProxyType({"family": "0 Down, 1 Down-Down, 2 Down-Up-Down"})

    def __init__(self, sigma: Distribution | None = None, name: str = LAW) -> None:
        if not isinstance(name, str):
            raise InvalidArgumentError(f"the name of a prior must be text, got {name!r}")
        self._sigma = sigma or Distribution("LogNormal", loc=-4.0, scale=1.0)
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NslPfn) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"NslPfn(sigma={self._sigma!r}, fingerprint={self.fingerprint!r})"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("sigma", self._sigma, "standard deviation of the additive noise"),)

    @property
    def has_density(self) -> bool:
        return False

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "name": self.name, "law": LAW, "law_version": 1, "sigma": self._sigma.to_dict()}

    def replace(self, name: str | None = None, **changes: Any) -> "NslPfn":
        """The same sampler under another name, or with other noise: sigma, a LogNormal or a mapping of its hyperparameters."""
        if set(changes) - {"sigma"} or (name is None and not changes):
            raise InvalidArgumentError("prior 'nslpfn' can only replace sigma; the rest is the released sampler")
        change = changes.get("sigma", self._sigma)
        sigma = self._sigma.replace(**change) if isinstance(change, Mapping) else change
        if not isinstance(sigma, Distribution) or sigma.family != "LogNormal":
            raise InvalidArgumentError("sigma of 'nslpfn' must be a LogNormal distribution")
        return NslPfn(sigma, self.name if name is None else name)

    def log_density(self, *args: Any, **kwargs: Any) -> Array:
        """Not available: the released sampler has no density."""
        del args, kwargs
        raise EngineUnavailableError("prior 'nslpfn' can only be simulated: its rejection steps have no density; use 'nsl'")

    def simulate(self, x: Array, context_size: Array, rng: np.random.Generator) -> tuple[dict[str, Array], Array, Array]:
        """One curve per row of x.

        Parameters
        ----------
        x
            Sorted positions in [0.01, 1], shape (n, n_x).
        context_size
            Index of the first target in each row, shape (n,); breaks depend on it, as released.
        rng
            Source of random numbers.

        Returns
        -------
        family and sigma by name, shape (n,); the noise-free curves and the noisy curves, shape (n, n_x).
        """
        n = x.shape[0]
        family = rng.choice(3, n, p=_FAMILIES)
        cutoff = x[np.arange(n), context_size]
        mean, y, sigma = np.zeros_like(x), np.zeros_like(x), np.zeros(n)
        todo = np.arange(n)
        for _ in range(MAX_ROUNDS):
            if todo.size == 0:
                break
            curves = _curves(rng, x[todo], cutoff[todo], family[todo])
            scale = rng.lognormal(self._sigma["loc"], self._sigma["scale"], todo.size)
            noisy = curves + scale[:, None] * rng.standard_normal(curves.shape)
            with np.errstate(invalid="ignore"):
                good = np.all(noisy >= 0, 1)  # also False where a degenerate shape gave NaN
                good &= (family[todo] != 2) | np.all(noisy <= noisy[:, :1], 1)
            mean[todo[good]], y[todo[good]], sigma[todo[good]] = curves[good], noisy[good], scale[good]
            todo = todo[~good]
        if todo.size:
            raise InvalidArgumentError(
                f"{todo.size} of {n} curves were refused {MAX_ROUNDS} times: with noise this large almost none stays positive; "
                "choose a smaller sigma"
            )
        return {"family": family, "sigma": sigma}, mean, y

    def simulate_at(self, x: Array, last: Array, rng: np.random.Generator) -> tuple[dict[str, Array], Array, Array]:
        """Curves at any positions in [0.01, 1].

        The sampler rejects a curve for any of its points and takes the two ends of a row for 0.01 and 1: so both ends join
        every row, here, and are left out of what is returned.

        Parameters
        ----------
        x
            Positions in unit coordinates, shape (n, m), in any order.
        last
            Where each context ends, shape (n, 1).
        rng
            Source of randomness.

        Returns
        -------
        As `simulate`, in the order of x.
        """
        everywhere = np.concatenate([x, np.broadcast_to([Unit.low, 1.0], (len(x), 2))], 1)
        order = np.argsort(everywhere, 1, kind="stable")
        ordered = np.take_along_axis(everywhere, order, 1)
        size = np.minimum(np.sum(ordered <= last, 1), ordered.shape[1] - 1)
        theta, mean, y = self.simulate(ordered, size, rng)
        back = np.empty((2, *y.shape))
        for into, values in zip(back, (mean, y), strict=True):
            np.put_along_axis(into, order, values, 1)
        return theta, *back[:, :, : x.shape[1]]

    def draw(self, n: int, x: Array, frame: Frame, seed: int, backend: str) -> tuple[dict[str, Array], Array, Array]:
        """n curves at the same x. Drawn by NumPy for every backend.

        The context ends at `frame.last`; where that is next to the horizon, as for x that go all the way, anywhere from 10 to
        90 % of the way. Uniform positions fill up what is fewer than 100, as the sampler's own curves have.
        """
        del backend
        rng = np.random.default_rng(seed)
        x = np.asarray(x, dtype=float)
        padding = rng.uniform(Unit.low, 1.0, (n, max(0, ROW - x.size)))
        rows = np.concatenate([np.broadcast_to(x, (n, x.size)), padding], 1)
        last = float(frame.last)
        ends = np.full((n, 1), last) if last < FARTHEST_END else rng.uniform(0.1, FARTHEST_END, (n, 1))
        theta, mean, y = self.simulate_at(rows, ends, rng)
        return theta, mean[:, : x.size], y[:, : x.size]


PRIOR = NslPfn()

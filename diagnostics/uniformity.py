"""Are values that should be uniform, ranks and probability integral transforms, uniform? Everything here takes plain arrays.

Three questions, each with its own power. The ECDF against its simultaneous band (Säilynoja, Bürkner and Vehtari 2022) sees
any gross departure. Normal scores z = Phi^-1(u) sum up small ones: their mean is off where posteriors are shifted, their
variance is above 1 where they are too narrow and below 1 where too wide. And ranks that are uniform over all data may still
depend on the data, as those of a posterior that equals the prior do: their correlation with features of the data is zero only
if the posterior takes in what these features tell (compare Modrák et al. 2023, section 3).
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from hybrid.models.errors import InvalidArgumentError

Array = Any
LEVEL = 0.99  # half of 1 - LEVEL goes to the band, the other half is shared out among the tests of the scores
BAND_SIMULATIONS, MOST_SIMULATIONS = 2000, 10_000
MOST = 2000  # values that the band is made for; of more, evenly spaced ones are taken
LEAST = 1e-300  # of a tail's probability
FEWEST = 8  # values that anything can be said of
EDGE = 1e-6  # ranks and PIT closer to 0 or 1 than this count as this far


class Uniformity(NamedTuple):
    """What the three questions found for one quantity."""

    values: int  #: number of values n
    level: float  #: of the band and the tests of the scores together
    excess: float  #: how far the ECDF leaves its simultaneous band; 0 where it stays inside
    shift: float  #: sqrt(n) times the mean normal score: standard normal if all is well
    spread: float  #: normal score of the scores' sum of squares, by its chi-square: positive where posteriors are too narrow
    dependence: float  #: of the standardised rank correlations with the features, the one furthest from 0; 0 without features
    feature: str  #: the feature that it is with
    p: float  #: smallest p-value of shift, spread and every correlation, times their number (Bonferroni), at most 1
    undefined: int = 0  #: how many of the values are no numbers; all else is about the others

    @property
    def ok(self) -> bool:
        """Inside the band, no test of the scores rejects, and every value is a number."""
        return self.excess == 0.0 and self.p > 0.5 * (1.0 - self.level) and not self.undefined

    @property
    def diagnosis(self) -> str:
        """In words, what is wrong; empty where nothing is."""
        if self.ok:
            return ""
        if self.undefined:
            return f"{self.undefined} of {self.values} values are not numbers"
        least = {
            "shifted up: the truth lies higher than the posterior has it": self.shift,
            "shifted down: the truth lies lower than the posterior has it": -self.shift,
            "too narrow": self.spread,
            "too wide": -self.spread,
            f"the ranks depend on {self.feature}, so that the posterior leaves out what the data say": abs(self.dependence),
        }
        worst = max(least, key=lambda name: least[name])
        return worst if self.p <= 0.5 * (1.0 - self.level) else f"outside the band by {self.excess:.3f}"


def normalised_rank(draws: Array, truth: Array, rng: np.random.Generator) -> Array:
    """The rank of each true value among its posterior draws, in (0, 1), ties broken at random.

    Parameters
    ----------
    draws
        Shape (simulations, draws), nearly independent within a row; NaN where a row has fewer draws.
    truth
        Shape (simulations,).
    rng
        Breaks ties and spreads each rank over its cell.

    Returns
    -------
    (number of draws below + u (number equal + 1)) / (number of draws + 1), u ~ U(0, 1), shape (simulations,): exactly uniform
    where the truth is exchangeable with the draws, for discrete quantities too (Modrák et al. 2023, section 2.2). NaN where the
    truth is, or no draw is a number.
    """
    draws, truth = np.asarray(draws, dtype=float), np.asarray(truth, dtype=float)[:, None]
    known = ~np.isnan(draws)
    below = np.sum(known & (draws < truth), 1)
    equal = np.sum(known & (draws == truth), 1)
    rank = (below + rng.uniform(size=len(below)) * (equal + 1)) / (known.sum(1) + 1)
    return np.where(np.isnan(truth[:, 0]) | ~known.any(1), np.nan, rank)


@functools.lru_cache(maxsize=32)
def _pointwise(count: int, level: float) -> float:
    """The pointwise probability with which the ECDF's band is simultaneous."""
    found = importlib.import_module("arviz_stats.ecdf_utils")
    points = np.arange(1, count) / count
    rng = np.random.default_rng(count)
    simulations = int(BAND_SIMULATIONS * max(1.0, (1.0 - LEVEL) / (1.0 - level)))
    return float(found.simulate_confidence_bands(count, 1, points, level, min(simulations, MOST_SIMULATIONS), rng))


def thinned(values: Array) -> Array:
    """At most MOST of the values, evenly spaced."""
    values = np.asarray(values, dtype=float).ravel()
    return values[np.linspace(0, values.size - 1, min(values.size, MOST)).round().astype(int)]


def ecdf_band(values: Array, level: float = LEVEL) -> tuple[Array, Array, Array, Array]:
    """The ECDF of values in [0, 1] less that of the uniform, and its simultaneous band.

    The band is by ArviZ's simulation, for levels of .99 and more; at lower ones it is a little too narrow.

    Returns
    -------
    Points, difference, lower and upper edge, each of shape (n - 1,) with n the number of values, at most MOST.
    """
    values = thinned(values)
    count = values.size
    points = np.arange(1, count) / count
    ecdf = np.searchsorted(np.sort(values), points, side="right") / count
    mass = _pointwise(count, level)
    low, high = (stats.binom.ppf(q, count, points) / count for q in (0.5 * (1 - mass), 0.5 * (1 + mass)))
    return points, ecdf - points, low - points, high - points


def band_level(level: float) -> float:
    """The level of the band alone, which has half of the error of a check."""
    return 0.5 * (1.0 + level)


def check_uniform(values: Array, features: Mapping[str, Array] | None = None, level: float = LEVEL) -> Uniformity:
    """Ask the three questions of one quantity.

    Parameters
    ----------
    values
        Independent ranks or PIT in [0, 1], shape (n,), at least 8 of them numbers: a quantity with any that is NaN fails.
    features
        What was known to the posterior, by name, each of shape (n,).
    level
        Of the simultaneous band and the tests of the scores together, half of the error for each: a right posterior fails
        one in 100 times at .99.

    Returns
    -------
    Uniformity; `ok` says whether the quantity passes.

    Raises
    ------
    InvalidArgumentError
        If fewer than 8 values are numbers.
    """
    values = np.asarray(values, dtype=float).ravel()
    known = np.isfinite(values)
    total, n, values = values.size, int(known.sum()), values[known]
    features = {name: np.asarray(feature)[known] for name, feature in (features or {}).items()}
    if n < FEWEST:
        raise InvalidArgumentError(
            f"{n} of {total} ranks or PIT are numbers, and {FEWEST} are needed to judge their uniformity"
        )
    _, difference, low, high = ecdf_band(values, band_level(level))
    excess = float(np.maximum(np.maximum(low - difference, difference - high), 0.0).max())
    z = special.ndtri(np.clip(values, EDGE, 1.0 - EDGE))
    shift = float(np.sqrt(n) * z.mean())
    squares = float(np.sum(z * z))
    tail = stats.chi2.sf(squares, n), stats.chi2.cdf(squares, n)
    spread = -float(special.ndtri(max(tail[0], LEAST))) if tail[0] < 0.5 else float(special.ndtri(max(tail[1], LEAST)))
    correlations = {name: _dependence(values, f) for name, f in features.items()}
    feature = max(correlations, key=lambda name: abs(correlations[name]), default="")
    dependence = float(correlations.get(feature, 0.0))
    tests = [2 * stats.norm.sf(abs(shift)), 2 * min(*tail, 0.5)]
    tests += [2 * stats.norm.sf(abs(c)) for c in correlations.values()]
    p = float(min(1.0, len(tests) * min(tests)))
    return Uniformity(total, level, excess, shift, spread, dependence, feature, p, total - n)


def _dependence(one: Array, other: Array) -> float:
    """Rank correlation over the pairs that are numbers, times the root of their number less one; 0 where one does not vary."""
    both = np.stack([np.asarray(v, dtype=float) for v in (one, other)])
    a, b = (stats.rankdata(v) for v in both[:, ~np.isnan(both).any(0)])
    if a.size < 2:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sqrt(a.size - 1.0) * np.sum(a * b) / scale) if scale > 0 else 0.0


def contraction(posterior_variance: Array, prior_variance: float) -> Array:
    """1 - posterior variance over prior variance: 0 where the data say nothing, 1 where they say all (Betancourt 2018)."""
    return 1.0 - np.asarray(posterior_variance, dtype=float) / prior_variance

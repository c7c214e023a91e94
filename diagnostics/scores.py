"""Scores of forecasts against what was observed, and their standard errors. Everything here takes plain arrays."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any
MSCE_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_MINUS_OF_EXPONENT = re.compile(r"(?<=\d[eE])-(?=\d)")
_REPLICATE = re.compile(r"[\s/_,;|-](?:(?:v|rep|run|seed)[\s_-]?\d+|\d+-?shots?)$", re.IGNORECASE)
_LAST_NUMBERED_PART = re.compile(r"^(.*?\w.*)[\s/_,;|-][^\s/_,;|-]*\d.*$")


def rmsle(forecast: Array, y: Array) -> float:
    """Root of the mean squared log(forecast / y) over the points of a curve.

    Parameters
    ----------
    forecast, y
        Point forecasts and observations, shape (n,), above 0, in one unit.

    Returns
    -------
    A number without unit; infinite where a forecast is infinite, 0 or, as additive noise allows, below. Lower is better.
    """
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(np.log(np.maximum(forecast, 0.0)) - np.log(y)))))


def coverage(pit: Array, levels: Sequence[float] | Array = MSCE_LEVELS) -> Array:
    """The share of observations inside central predictive intervals.

    Parameters
    ----------
    pit
        P(Y <= y) of each observation y under its forecast, shape (n,): y lies in the central interval of probability q where
        abs(2 pit - 1) <= q.
    levels
        Probabilities q of the intervals, shape (levels,).

    Returns
    -------
    Array of shape (levels,), between 0 and 1, NaN where a pit is NaN. A calibrated forecast covers q on average.
    """
    depth = np.abs(2.0 * np.asarray(pit)[:, None] - 1.0)
    return np.mean(np.where(np.isnan(depth), np.nan, depth <= np.asarray(levels)), axis=0)


def coverage_error(pit: Array, curve: Array, levels: Sequence[float] | Array = MSCE_LEVELS) -> Array:
    """Standard error of `coverage` over points of several curves: those of one curve are not independent.

    That of the ratio of two sums over curves, inside and all (Cochran 1977, Sampling Techniques, section 6.4).

    Parameters
    ----------
    pit
        P(Y <= y) of each observation under its forecast, shape (n,).
    curve
        The number of the curve that each belongs to, shape (n,).
    levels
        Probabilities of the intervals, shape (levels,).

    Returns
    -------
    Array of shape (levels,); NaN where all points are of one curve, a pit is NaN, or all or none are inside, which tells
    nothing of the error.
    """
    depth = np.abs(2.0 * np.asarray(pit)[:, None] - 1.0)
    inside = np.where(np.isnan(depth), np.nan, depth <= np.asarray(levels))
    members = np.unique(np.asarray(curve), return_inverse=True)[1].reshape(-1)
    count = int(members.max()) + 1
    away = np.zeros((count, inside.shape[1]))
    np.add.at(away, members, inside - inside.mean(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.sqrt(np.square(away).sum(0) * np.divide(count, count - 1)) / len(inside)
    share = inside.mean(0)
    return np.where((count > 1) & (share > 0) & (share < 1), found, np.nan)


def msce(observed: Array, levels: Sequence[float] | Array = MSCE_LEVELS) -> Array:
    """Mean squared calibration error: the mean over levels of (observed coverage - level)^2.

    Parameters
    ----------
    observed
        Observed coverages, shape (..., levels).
    levels
        The nominal ones, shape (levels,); by default those of the NSL-PFN paper (Lee et al. 2025, arXiv 2505.23032).

    Returns
    -------
    Array of shape (...). Of one curve with n independent points it is .144 / n on average even where the forecast is
    calibrated, so it says little of short curves; intervals that always cover score .0789.
    """
    return np.mean(np.square(np.asarray(observed) - np.asarray(levels)), axis=-1)


def interval_score(lower: Array, upper: Array, y: Array, level: float) -> Array:
    """The interval score of central intervals: width, plus 2 / (1 - level) times the distance of y outside.

    Parameters
    ----------
    lower, upper, y
        Ends of the intervals and observations, shape (n,), in one unit.
    level
        Probability of the intervals, in (0, 1).

    Returns
    -------
    Array of shape (n,), in that unit; lower is better (Gneiting and Raftery 2007, section 6.2, doi:10.1198/016214506000001437).
    """
    with np.errstate(invalid="ignore"):
        outside = np.maximum(lower - y, 0.0) + np.maximum(y - upper, 0.0)
        return upper - lower + 2.0 / (1.0 - level) * outside


def related_group(name: str) -> str:
    """The group of related curves that a curve belongs to, by its name.

    Names are read as parts between slashes, spaces, hyphens, underscores, commas, semicolons and bars. The group is the
    text before the last part with a digit in it (the hyphen of 1e-3 is part of the number), once endings such as v0, rep3,
    seed1 and 5shot are off; a name without such a part, or with nothing before it, is a group of its own.

    Examples
    --------
    >>> [related_group(name) for name in ("bird_10/ViT/S/16", "minval_hyp3", "LM/1.07e+09", "pythia-70m-deduped", "SlimPajama")]
    ['bird_10/ViT/S', 'minval', 'LM', 'pythia', 'SlimPajama']
    """
    while (end := _REPLICATE.search(name)) and end.start():
        name = name[: end.start()]
    found = _LAST_NUMBERED_PART.match(_MINUS_OF_EXPONENT.sub("+", name))
    return name[: found.end(1)].rstrip(" /_,;|-") if found else name


def bootstrap_by_group(
    values: Array, groups: Sequence[str], weights: Array = None, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """Bootstrap replicates of weighted means over curves, with whole groups of related curves drawn with replacement.

    Parameters
    ----------
    values
        One row of figures per curve, shape (n, k).
    groups
        The group of each curve, length n. Curves of one group are drawn together, since they are not independent.
    weights
        Weight of each curve, shape (n,); by default all equal. With numbers of points the mean is that over all points.
    draws
        Number of replicates.
    seed
        Seed of the random numbers.

    Returns
    -------
    Array of shape (draws, k): sum(weight value) / sum(weight) over the curves of each replicate, as many groups as there
    are (Field and Welsh 2007, the cluster bootstrap). NaN where a drawn figure is not finite.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    members = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    count = int(members.max()) + 1
    # Not multiplied: 0 times an infinite figure that was not drawn would be NaN.
    finite = np.where(np.isfinite(values), values, 0.0)
    one_hot = (members == np.arange(count)[:, None]).astype(float)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=draws)
    means = times @ (one_hot @ (weights[:, None] * finite)) / (times @ (one_hot @ weights))[:, None]
    spoilt = times @ (one_hot @ ~np.isfinite(values)) > 0
    return np.where(spoilt, np.nan, means)


def standard_error(replicates: Array, groups: Sequence[str]) -> np.ndarray:
    """The standard error from bootstrap replicates (draws, ...), shape (...); NaN for one group or a spoilt replicate.

    Their standard deviation times sqrt(G / (G - 1)): replicates of G groups scatter as if the groups' variance had been divided
    by G (Davison and Hinkley 1997, section 2.3.2).
    """
    replicates, count = np.asarray(replicates, dtype=float), len(set(groups))
    if count < 2:
        return np.full(replicates.shape[1:], np.nan)
    return np.asarray(replicates.std(axis=0, ddof=1) * np.sqrt(count / (count - 1)))

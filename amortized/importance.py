"""Importance sampling: how far amortized draws can be trusted, and their correction where they can."""

import importlib
import math
from typing import Any

import numpy as np

Array = Any
FEWEST = 25  # draws; five of them are then the tail
TRUSTED_K = 0.7  # Vehtari, Simpson, Gelman, Yao and Gabry 2024, section 3.2.4


def trusted_k(draws: int) -> float:
    """The largest k-hat that estimates from so many draws, 2 or more, can be trusted with (Vehtari et al. 2024, section 3.2.4).

    .7 from 2,155 draws on, .697 for 2000, .5 for 100.
    """
    return min(1.0 - 1.0 / math.log10(max(draws, 2)), TRUSTED_K)


def pareto_k(log_joint: Array, log_proposal: Array) -> float:
    """The Pareto shape k-hat of the importance weights of draws.

    Parameters
    ----------
    log_joint
        Log of the unnormalised target density at the draws, any shape; -inf where a draw is impossible.
    log_proposal
        Log density that the draws come from, of the same shape.

    Returns
    -------
    k-hat. Below min(1 - 1 / log10(draws), .7) estimates from the weighted draws can be trusted; above 1 the weights have no
    mean (Vehtari, Simpson, Gelman, Yao and Gabry 2024, Pareto smoothed importance sampling, section 3.2.4). -inf where the
    largest weights are all equal; inf where there are fewer than 25 draws, too few to tell, or too few that are possible.
    """
    ratio = np.asarray(log_joint - log_proposal, dtype=float).reshape(-1)
    if ratio.size < FEWEST or vanishes(ratio):
        return float("inf")
    ratio = np.where(np.isfinite(ratio), ratio, -1e300)
    largest = _largest(ratio)
    if largest[1] == largest[-1]:
        return float("-inf")
    array_stats = importlib.import_module("arviz_stats.base").array_stats
    with np.errstate(all="ignore"):  # of weights that lie hundreds of nats apart
        return float(array_stats.psislw(-ratio)[1])  # it wants minus the log ratio


def _largest(ratio: Array) -> Array:
    """The tail that a Pareto distribution is fitted to, in increasing order, after the largest weight below it.

    Vehtari et al. 2024, algorithm 1.
    """
    tail = int(np.ceil(min(0.2 * ratio.size, 3.0 * np.sqrt(ratio.size))))
    found: Array = np.sort(ratio)[-(tail + 1) :]
    return found


def vanishes(log_ratio: Array) -> bool:
    """Whether so few of the weights are not 0 beside the largest that no Pareto distribution can be fitted to their tail.

    The fit divides by the quarter-quantile of what the tail's weights exceed the others by. Where that is 0 ArviZ gives the
    mean of k's prior distribution, which is small, for weights that are as bad as can be.

    Parameters
    ----------
    log_ratio
        Log of target over proposal density at each draw, shape (n,); what is not finite counts as impossible.
    """
    largest = _largest(np.where(np.isfinite(log_ratio), log_ratio, -np.inf))
    if not np.isfinite(largest[-1]):
        return True
    if largest[1] == largest[-1]:
        return False
    weight = np.exp(largest - largest[-1])
    return not weight[int((weight.size - 1) / 4 + 0.5)] - weight[0] > 0.0


def truncated_weights(log_ratio: Array) -> Array:
    """Importance weights that sum to 1, none of them above sqrt(draws) times the mean (Ionides 2008).

    Parameters
    ----------
    log_ratio
        Log of target over proposal density at each draw, shape (n,); what is not finite counts as impossible.
    """
    ratio = np.where(np.isfinite(log_ratio), log_ratio, -np.inf)
    top = ratio.max()
    if not np.isfinite(top):
        return np.full(ratio.size, 1.0 / ratio.size)
    weight = np.exp(ratio - top)
    weight = np.minimum(weight, np.sqrt(ratio.size) * weight.mean())
    return weight / weight.sum()


def surplus(weights: Array, count: int) -> float:
    """The share of so many draws that would have to be copies of others, were they chosen by these weights; in [0, 1).

    A draw whose weight is above 1 / count stands for more than itself.

    Parameters
    ----------
    weights
        Sum to 1, shape (n,).
    count
        Number of draws to be chosen.
    """
    return float(np.maximum(weights - 1.0 / count, 0.0).sum())


def resampled(weights: Array, count: int, rng: np.random.Generator) -> Array:
    """Indices of so many draws, in the order of the draws, each as often as its weight says to within one.

    Systematic sampling over the draws in random order: draw i is chosen floor(count w_i) times or once more, count w_i times
    on average. So no draw of at most the mean weight of those kept is copied, and unlike choice without replacement, which
    passes over heavy draws, this leaves no bias towards the proposal (Douc, Cappé and Moulines 2005).
    """
    order = rng.permutation(weights.size)
    ends = np.cumsum(weights[order])
    places = (np.arange(count) + rng.uniform()) / count
    return np.sort(order[np.searchsorted(ends, places * ends[-1], side="right").clip(max=weights.size - 1)])

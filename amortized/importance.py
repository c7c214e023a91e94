"""Importance sampling: how far amortized draws can be trusted, and their correction where they can."""

import importlib
from typing import Any

import numpy as np

Array = Any
TRUSTED_K = 0.7  # Vehtari, Simpson, Gelman, Yao and Gabry 2024, section 3.2.4


def smoothed_weights(log_joint: Array, log_proposal: Array) -> tuple[Array, float]:
    """Pareto-smoothed importance weights of draws, and the Pareto shape k-hat of their tail.

    Parameters
    ----------
    log_joint
        Log of the unnormalised target density at the draws, any shape; -inf where a draw is impossible.
    log_proposal
        Log density that the draws come from, of the same shape.

    Returns
    -------
    Weights that sum to 1, flat, and k-hat. Below min(1 - 1 / log10(draws), .7) weighted draws can be trusted;
    above 1 the weights have no mean (Vehtari, Simpson, Gelman, Yao and Gabry 2024, Pareto smoothed importance sampling,
    section 3.2.4). k-hat is -inf where the largest weights are all equal.
    """
    ratio = np.asarray(log_joint - log_proposal, dtype=float).reshape(-1)
    ratio = np.where(np.isfinite(ratio), ratio, -1e300)
    tail = int(np.ceil(min(0.2 * ratio.size, 3.0 * np.sqrt(ratio.size))))
    largest = np.sort(ratio)[-(tail + 1) :]
    log_weight, k = ratio, float("-inf")
    if largest[0] != largest[-1]:
        array_stats = importlib.import_module("arviz_stats.base").array_stats
        with np.errstate(all="ignore"):  # of weights that lie hundreds of nats apart
            log_weight, k = array_stats.psislw(-ratio)  # it wants minus the log ratio
    weight = np.exp(np.asarray(log_weight) - np.max(log_weight))
    return weight / weight.sum(), float(k)


def pareto_k(log_joint: Array, log_proposal: Array) -> float:
    """The Pareto shape k-hat of the importance weights of draws; see `smoothed_weights`."""
    return smoothed_weights(log_joint, log_proposal)[1]


def resampled(weights: Array, count: int, rng: np.random.Generator) -> Array:
    """Indices of so many draws, chosen by their weights without replacement, in the order of the draws.

    With several times as many draws as are kept this approximates the target (Rubin 1988; Skare, Bølviken and Holden 2003),
    and no draw stands for many.
    """
    possible = np.flatnonzero(weights > 0)
    if possible.size <= count:
        return np.sort(rng.choice(weights.size, count, p=weights))
    return np.sort(rng.choice(weights.size, count, replace=False, p=weights))

"""Importance sampling: how far amortized draws can be trusted."""

import importlib
from typing import Any

import numpy as np

Array = Any


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
    largest weights are all equal.
    """
    ratio = np.asarray(log_joint - log_proposal, dtype=float).reshape(-1)
    ratio = np.where(np.isfinite(ratio), ratio, -1e300)
    tail = int(np.ceil(min(0.2 * ratio.size, 3.0 * np.sqrt(ratio.size))))
    largest = np.sort(ratio)[-(tail + 1) :]
    if largest[0] == largest[-1]:
        return float("-inf")
    array_stats = importlib.import_module("arviz_stats.base").array_stats
    return float(array_stats.psislw(-ratio)[1])  # it wants minus the log ratio

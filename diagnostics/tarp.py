"""TARP: tests of accuracy with random points (Lemos, Coogan, Hezaveh and Perreault-Levasseur 2023, arXiv 2302.03026)."""

from typing import Any

import numpy as np

Array = Any


def tarp_ranks(draws: Array, truth: Array, references: Array, rng: np.random.Generator) -> Array:
    """The mass of each joint posterior that lies nearer to a reference point than the truth does.

    The credible region is the ball around the reference that the truth lies on; its expected coverage is uniform if the
    posterior is right, and if the references may depend on the data, then only if it is (their theorem 3).

    Parameters
    ----------
    draws
        Joint posterior draws, shape (simulations, draws, d), nearly independent.
    truth
        Shape (simulations, d).
    references
        Shape (simulations, d): random points. Let them depend on the data, or a posterior that equals the prior passes.
    rng
        Breaks ties.

    Returns
    -------
    Shape (simulations,): values in (0, 1), uniform where the joint posterior is right; NaN where truth or draws are.
    """
    draws, truth, references = (np.asarray(part, dtype=float) for part in (draws, truth, references))
    # Distances are in posterior sds, so that no coordinate rules; with the truth among the draws, so that it is one of them.
    scale = np.std(np.concatenate([draws, truth[:, None]], 1), axis=1, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    near = np.sum(((draws - references[:, None]) / scale) ** 2, -1)
    true = np.sum(((truth - references) / scale[:, 0]) ** 2, -1)[:, None]
    below, equal = np.sum(near < true, 1), np.sum(near == true, 1)
    rank = (below + rng.uniform(size=len(below)) * (equal + 1)) / (draws.shape[1] + 1)
    return np.where(np.isnan(true[:, 0]) | np.isnan(near).any(1), np.nan, rank)


def references_from_data(last: Array, spread: Array, width: int, rng: np.random.Generator) -> Array:
    """Reference points that depend on the data: around the last observed values, as far off as the observed curve moves.

    Parameters
    ----------
    last
        Last observed value of each simulation, shape (simulations,), on the scale of the draws.
    spread
        Standard deviation of the observed values, shape (simulations,).
    width
        Dimension d.
    rng
        Source of randomness.

    Returns
    -------
    Shape (simulations, width).
    """
    last, spread = (np.asarray(part, dtype=float)[:, None] for part in (last, spread))
    return last + spread * rng.standard_normal((len(last), width))

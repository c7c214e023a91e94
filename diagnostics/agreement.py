"""How well two engines agree on the same curve. Everything here takes plain arrays."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = Any
MOST_EPOCHS = 200  # of the classifier; stopped by a few held-out draws it would not learn that a posterior has two modes
LEVELS = np.linspace(0.005, 0.995, 100)  # where predictive distributions are compared and scored


def quantile_crps(quantiles: Array, levels: Array, y: Array) -> Array:
    """The continuous ranked probability score from quantiles: twice the mean pinball loss over evenly spaced levels.

    Parameters
    ----------
    quantiles
        Shape (levels, n), in units of y.
    levels
        Evenly spaced levels in (0, 1), shape (levels,).
    y
        Observations, shape (n,).

    Returns
    -------
    Array of shape (n,), in units of y; lower is better (Gneiting and Raftery 2007, section 4.2).
    """
    below = np.asarray(y) - quantiles
    return 2.0 * np.mean(np.where(below >= 0, levels[:, None] * below, (levels[:, None] - 1.0) * below), axis=0)


def cdf_differences(quantiles: Array, levels: Array, cdf: Callable[[Array], Array]) -> Array:
    """The absolute difference between the two cdfs at each of the first engine's quantiles.

    Parameters
    ----------
    quantiles, levels
        Of the first engine, shapes (levels, n) and (levels,).
    cdf
        The second engine's: y of shape (n,) to P(Y <= y).

    Returns
    -------
    Array of shape (levels, n), between 0 and 1. The largest over the levels is the distance of Kolmogorov and Smirnov up to
    their spacing; the median says nothing of half of them.
    """
    return np.abs(np.stack([cdf(row) for row in quantiles]) - levels[:, None])


def cdf_distance(quantiles: Array, levels: Array, cdf: Callable[[Array], Array]) -> Array:
    """The median over the first engine's quantiles of `cdf_differences`, shape (n,)."""
    return np.median(cdf_differences(quantiles, levels, cdf), axis=0)


def wasserstein(first: Array, second: Array) -> Array:
    """The Wasserstein-1 distance of two distributions from their quantiles at the same evenly spaced levels.

    Parameters
    ----------
    first, second
        Shape (levels, n), in units of y.

    Returns
    -------
    Array of shape (n,), in units of y: the mean absolute difference of the quantiles.
    """
    return np.mean(np.abs(np.asarray(first) - np.asarray(second)), axis=0)


def c2st(first: Mapping[str, Array], second: Mapping[str, Array], draws: int = 1000, folds: int = 2, seed: int = 0) -> float:
    """Classifier two-sample test: the held-out accuracy with which a network tells two sets of draws apart.

    .5 means that it cannot, 1 that it always can (Lopez-Paz and Oquab 2017; after Lueckmann et al. 2021, with fewer draws). It
    cannot exceed one half plus half the total variation distance: where one set leaves out a mode with a third of the mass,
    that is .67. Below .5 it is by chance, or because both sets hold the same draws.

    Parameters
    ----------
    first, second
        Draws by name, each of any shape; on the real line, best after the transformation to unconstrained parameters.
    draws
        How many of each set are used, evenly spaced.
    folds
        Of the cross-validation.
    seed
        Of the classifier and the folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = [name for name in first if name in second]
    sets = [np.stack([np.ravel(found[name]) for name in names], 1) for found in (first, second)]
    count = min(draws, *(len(s) for s in sets))
    picked = np.concatenate([s[np.linspace(0, len(s) - 1, count).round().astype(int)] for s in sets])
    label = np.repeat([0, 1], count)
    inner = 10 * len(names)
    network = MLPClassifier((inner, inner), max_iter=MOST_EPOCHS, random_state=seed)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is told after how many epochs to stop
        scores = cross_val_score(make_pipeline(StandardScaler(), network), picked, label, cv=split)
    return float(np.mean(scores))

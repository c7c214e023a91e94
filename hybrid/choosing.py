"""`next_points`: where to measure next."""

import math
import warnings
from typing import Any

import numpy as np

from hybrid.curve import Curve
from hybrid.fitting import fit
from hybrid.models.checks import as_floats, as_integer
from hybrid.models.errors import InvalidArgumentError, InvalidCurveError
from hybrid.models.prior import AbstractPrior

Array = Any
CURVES = 1000  # joint curves from which correlations are taken
LEAST_SHARE = 1e-9  # of a variance that stays unexplained by the points chosen


def next_points(
    curve: Curve,
    candidates: Array,
    k: int = 1,
    prior: str | AbstractPrior = "nsl",
    engine: str = "pfn",
    horizon: float | None = None,
    y_scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> np.ndarray:
    """The candidates where the next measurements of a curve tell most: those whose outcome is least certain.

    The first is the candidate of greatest predictive variance (uncertainty sampling, as in Lee et al. 2025, section 4.4). Each
    further one has the greatest variance that is left once the ones before are known, by the rank correlations of joint
    curves (`Fit.sample`) in Gaussian approximation: of two neighbours that tell the same the second counts for little.

    Parameters
    ----------
    curve
        What is observed, at least 3 points.
    candidates
        Positions where y could be measured, in the units of the curve's x, shape (n,): inside the context's range, beyond it,
        or both.
    k
        How many to choose, 1 to n.
    prior, engine, seed, progress, **options
        As for `hybrid.fit`. "pfn" takes milliseconds; its networks are trained on targets inside the context too.
    horizon
        The largest x that forecasts are about; None takes the largest candidate or last context x.
    y_scale
        As for `hybrid.fit`.

    Returns
    -------
    numpy.ndarray
        Shape (k,): the chosen candidates, the most telling first.

    Raises
    ------
    InvalidArgumentError
        If candidates are not positive finite numbers or repeat, k is not from 1 to their number, or the engine gives a point
        estimate.
    As `hybrid.fit`, for all else.

    Warns
    -----
    UserWarning
        If the fit that chooses needs review, with its verdict.

    Examples
    --------
    >>> import hybrid
    >>> curve = hybrid.load_example("cerebras_gpt_pile")
    >>> hybrid.next_points(curve, [1e22, 3e22, 1e23], k=1)  # doctest: +SKIP
    array([1.e+23])
    """
    if not isinstance(curve, Curve):
        raise InvalidCurveError(f"next_points takes a curve, got {type(curve).__name__}: build a hybrid.Curve(x, y)")
    x = _candidates(candidates)
    k = as_integer(k, "k", 1, x.size)
    if horizon is None:
        horizon = float(max(x.max(), np.max(curve.x)))
    if engine == "least_squares":
        raise InvalidArgumentError("a point estimate does not say where it is uncertain: use engine='pfn' or 'nuts'")
    fitted = fit(curve, prior, engine, horizon, y_scale, seed, progress, **options)
    if fitted.status != "ok":
        warnings.warn(fitted.verdict, stacklevel=2)
    sd = fitted.predict(x)["sd"].to_numpy()
    if not np.all(np.isfinite(sd)):
        raise InvalidArgumentError(f"the predictive variance is not finite at all candidates: {fitted.verdict}")
    first = int(np.argmax(sd))
    if k == 1:
        return x[[first]]
    draws = fitted.sample(x, CURVES).to_numpy()
    ranks = np.argsort(np.argsort(draws, axis=0, kind="stable"), axis=0)
    correlation = 2.0 * np.sin(np.pi / 6.0 * np.corrcoef(ranks, rowvar=False))  # that of a normal with such rank correlations
    return x[_greedy(correlation, sd, k)]


def _candidates(candidates: Array) -> np.ndarray:
    x = as_floats(candidates, "candidates", InvalidArgumentError, scalar=True)
    if x.size == 0 or not np.all(np.isfinite(x)) or not np.all(x > 0):
        raise InvalidArgumentError("candidates must be positive finite numbers, at least one")
    if np.unique(x).size < x.size:
        raise InvalidArgumentError("candidates repeat: give each position once")
    return x


def _greedy(correlation: Array, sd: Array, k: int) -> list[int]:
    """Indices by variance given those before: a Cholesky factorisation with pivots, stopped after k columns."""
    left = np.square(sd)
    columns: list[np.ndarray] = []
    chosen: list[int] = []
    for _ in range(k):
        score = left.copy()
        score[chosen] = -math.inf
        pick = int(np.argmax(score))
        chosen.append(pick)
        size = math.sqrt(max(left[pick], LEAST_SHARE * sd[pick] ** 2))
        explained = sum((column * column[pick] for column in columns), np.zeros_like(sd))
        column = (np.nan_to_num(correlation[pick]) * sd * sd[pick] - explained) / size
        columns.append(column)
        left = np.maximum(left - np.square(column), 0.0)
    return chosen

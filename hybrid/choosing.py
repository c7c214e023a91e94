"""`next_points`: where to measure next."""

import warnings
from typing import Any

import numpy as np

from hybrid.curve import Curve
from hybrid.fitting import fit
from hybrid.models.checks import as_floats, as_integer
from hybrid.models.errors import InvalidArgumentError, InvalidCurveError
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import get_prior
from hybrid.result import Fit

Array = Any
CURVES = 1000  # joint curves from which correlations are taken
LEVELS = np.linspace(0.005, 0.995, 100).tolist()  # of the quantiles that spread is taken from
NEAREST = 1.2  # times the last context x
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

    The first is the candidate of greatest predictive variance (uncertainty sampling, as in Lee et al. 2025, section 4.4), of
    log y where the prior's noise is multiplicative: it is then the same everywhere, so that what is not known of the curve
    decides. Each further one is where the curve is known least once those before are measured, their noise included, by the
    rank correlations of joint curves (`Fit.sample`) in Gaussian approximation: of two neighbours that tell the same the
    second counts for less. A network's joint curves know neighbours only roughly: where candidates are a few percent apart
    those after the first depend on the seed, so give candidates as far apart as you would measure.

    Parameters
    ----------
    curve
        What is observed, at least 3 distinct x.
    candidates
        Positions where y could be measured, in the units of the curve's x, shape (n,): inside the context's range, beyond it,
        or both.
    k
        How many to choose, 1 to n.
    prior, engine, seed, progress, **options
        As for `hybrid.fit`. "pfn" takes a fraction of a second, and for k above 1, which needs joint curves, seconds with tens
        of candidates; its networks are trained on targets inside the context too.
    horizon
        The largest x that forecasts are about; None takes the largest candidate or last context x, and where the prior scales x
        by the horizon at least 1.2 times the latter, as its network was trained on no nearer one.
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
        nearest = NEAREST if get_prior(prior).coordinates == "unit" else 1.0
        horizon = float(max(x.max(), nearest * np.max(curve.x)))
    if engine == "least_squares":
        raise InvalidArgumentError("a point estimate does not say where it is uncertain: use engine='pfn' or 'nuts'")
    fitted = fit(curve, prior, engine, horizon, y_scale, seed, progress, **options)
    if fitted.status != "ok":
        warnings.warn(fitted.verdict, stacklevel=2)
    at = fitted.positions(x, "candidates")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said a line above
        sd = spread(fitted, at)
        if not np.all(np.isfinite(sd)):
            raise InvalidArgumentError(f"the predictive variance is not finite at all candidates: {fitted.verdict}")
        if k == 1:
            return x[[int(np.argmax(sd))]]
        draws = fitted.sample(x, CURVES, progress=progress).to_numpy()
    ranks = np.argsort(np.argsort(draws, axis=0, kind="stable"), axis=0)
    correlation = 2.0 * np.sin(np.pi / 6.0 * np.corrcoef(ranks, rowvar=False))  # that of a normal with such rank correlations
    covariance = np.nan_to_num(correlation) * np.outer(sd, sd)
    np.fill_diagonal(covariance, np.square(sd))
    return x[_greedy(covariance, k)]


def spread(fitted: Fit, x: np.ndarray) -> np.ndarray:
    """Predictive sd of log y, or of y where the noise is additive; from quantiles, which outer tails leave alone."""
    y = fitted.predict(x, levels=LEVELS)["quantiles"].transpose("quantile", "x").to_numpy()
    prior = fitted.prior
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: np.ndarray = np.std(np.log(y) if isinstance(prior, Prior) and prior.noise.multiplicative else y, axis=0)
    return found


def _candidates(candidates: Array) -> np.ndarray:
    x = as_floats(candidates, "candidates", InvalidArgumentError, scalar=True)
    if x.size == 0 or not np.all(np.isfinite(x)) or not np.all(x > 0):
        raise InvalidArgumentError("candidates must be positive finite numbers, at least one")
    if np.unique(x).size < x.size:
        raise InvalidArgumentError("candidates repeat: give each position once")
    return x


def _greedy(covariance: Array, k: int) -> list[int]:
    """Indices by what is not known of y, whose covariance is (n, n), given measurements at those before.

    Noise that is the same everywhere adds the same to what is not known at each position: it does not choose.
    """
    left, chosen = covariance, list[int]()
    for _ in range(k):
        score = np.diag(left).copy()
        score[chosen] = -np.inf
        pick = int(np.argmax(score))
        chosen.append(pick)
        total = max(left[pick, pick], LEAST_SHARE * covariance[pick, pick])
        if total > 0.0:
            left = left - np.outer(left[:, pick], left[pick]) / total
    return chosen

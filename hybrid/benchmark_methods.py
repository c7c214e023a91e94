"""What a benchmark compares: an engine with a prior, and what it forecasts for a batch of curves."""

import dataclasses
import importlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybrid.amortized.cards import find_card
from hybrid.benchmark_cases import Case
from hybrid.curve import MIN_POINTS, Curve
from hybrid.diagnostics.agreement import LEVELS as CRPS_LEVELS
from hybrid.diagnostics.agreement import quantile_crps
from hybrid.diagnostics.scores import rmsle
from hybrid.fitting import fit_many, resolve_engine
from hybrid.models.errors import EngineUnavailableError, HybridError, InvalidArgumentError, UnknownNameError
from hybrid.models.identity import identity
from hybrid.models.prior import AbstractPrior
from hybrid.models.registry import get_prior
from hybrid.reading import read_prior
from hybrid.result import Fit, first_shown

Record = dict[str, np.ndarray]

BANDS = (0.05, 0.25, 0.5, 0.75, 0.95)
GRID = 48  # positions of the forecast that figures show
FIGURES, SHEETS = ("calibration.png", "cost.png"), "sheets"  # what is drawn, and the folder of contact sheets
FAILED = "failed"  # in the records of curves that could not be forecast
AUTO_BREAKS = "bnsl_auto"
BREAKS = ("bnsl", "bnsl2", "bnsl3")
TAIL = 0.2
QUICK = ("pfn", "least_squares")  # engines whose every batch can be run twice, to time it without loading and compiling
BATCH = {"pfn": 32, "least_squares": 16, "auto": 8, "nuts": 1}  # curves that are fitted and kept together


@dataclasses.dataclass(frozen=True)
class Method:
    """An engine with a prior, as "engine:prior".

    Attributes
    ----------
    name
        What tables call it.
    engine
        "pfn", "nuts", "least_squares" or "auto".
    priors
        The prior; for `least_squares:bnsl_auto` those with 1, 2 and 3 breaks, of which every curve takes one.
    """

    name: str
    engine: str
    priors: tuple[AbstractPrior, ...]

    @property
    def identity(self) -> str:
        """The identities of its priors, and the hash of the weights where the engine uses a network."""
        parts = [self.engine, *(identity(prior) for prior in self.priors)]
        if self.engine in ("pfn", "auto"):
            try:
                parts += [str(find_card(prior).content["weights_sha256"]) for prior in self.priors]
            except EngineUnavailableError:
                parts.append("no weights")
        return " ".join(parts)

    def fit(self, cases: Sequence[Case], seed: int) -> list[Fit]:
        """Fit the contexts of the cases; the horizon is theirs.

        The y scale is the largest context y, as users have it; but for priors in unit coordinates, the published ones, it is
        the unit of the scores, as in the NSL-PFN paper.

        Contexts have their repeated rows merged, so that the noise is not underestimated; but not for least squares, whose
        estimates repeat those of `benchmarks/least_squares.py` with rows as they stand.
        """
        raw = self.engine == "least_squares"
        curves = [case.raw_context if raw else case.context for case in cases]
        as_published = self.priors[0].coordinates == "unit"
        horizons, units = [case.horizon for case in cases], [case.unit if as_published else None for case in cases]
        if len(self.priors) == 1:
            return fit_many(curves, self.priors[0], self.engine, horizons, units, seed, progress=False)
        chosen = _choose_breaks(curves, self.priors, units, seed)
        fits: list[Fit | None] = [None] * len(cases)
        for k, prior in enumerate(self.priors):
            own = [i for i, choice in enumerate(chosen) if choice == k]
            scales = [horizons[i] for i in own], [units[i] for i in own]
            made = fit_many([curves[i] for i in own], prior, self.engine, *scales, seed, progress=False)
            for i, fit in zip(own, made, strict=True):
                fits[i] = fit
        return [fit for fit in fits if fit is not None]


def _choose_breaks(
    curves: Sequence[Curve], priors: Sequence[AbstractPrior], units: Sequence[float | None], seed: int
) -> list[int]:
    """The index of the prior that forecasts the last fifth of each context best, by RMSLE; the first where that is too short.

    Each prior is fitted to the other four fifths by least squares. At least one point is held out, and at least 3 distinct x
    stay.
    """
    cuts = [curve.x.size - max(1, round(TAIL * curve.x.size)) for curve in curves]
    able = [i for i, curve in enumerate(curves) if np.unique(curve.x[: cuts[i]]).size >= MIN_POINTS]
    heads = [dataclasses.replace(curves[i], x=curves[i].x[: cuts[i]], y=curves[i].y[: cuts[i]]) for i in able]
    ends, scales = [float(curves[i].x[-1]) for i in able], [units[i] for i in able]
    errors = np.zeros((len(priors), len(curves)))
    for k, prior in enumerate(priors):
        for i, fit in zip(able, fit_many(heads, prior, "least_squares", ends, scales, seed, progress=False), strict=True):
            error = rmsle(fit.predict(curves[i].x[cuts[i] :])["median"].to_numpy(), curves[i].y[cuts[i] :])
            errors[k, i] = error if np.isfinite(error) else np.inf
    return [int(best) for best in np.argmin(errors, axis=0)]


def as_method(method: str | tuple[str, str | AbstractPrior]) -> Method:
    """A method from "engine:prior", or from the pair of both; the prior a name, a JSON file, or a Prior object.

    Raises
    ------
    InvalidArgumentError
        If it is neither, or the JSON file cannot be read.
    UnknownNameError
        If there is no such engine or prior.
    EngineUnavailableError
        If the engine cannot serve the prior.
    """
    engine, named = method if isinstance(method, tuple) and len(method) == 2 else (None, None)
    if isinstance(method, str):
        engine, colon, named = method.partition(":")
        if not colon or not engine or not named:
            raise InvalidArgumentError(f"a method is ENGINE:PRIOR, such as pfn:nsl or least_squares:m4, got {method!r}")
    if not isinstance(engine, str) or not isinstance(named, (str, AbstractPrior)):
        raise InvalidArgumentError(f"a method is 'engine:prior' or a pair of both, got {method!r}")
    if named == AUTO_BREAKS:
        if engine != "least_squares":
            raise UnknownNameError(f"{AUTO_BREAKS!r} is chosen by least squares: use least_squares:{AUTO_BREAKS}")
        priors = tuple(get_prior(name) for name in BREAKS)
    else:
        priors = (read_prior(named),)
    for prior in priors:
        resolve_engine(prior, engine, {})
    label = named if isinstance(named, str) and not named.endswith(".json") else priors[0].name
    return Method(f"{engine}:{label}", engine, priors)


def _forecasts(fit: Fit, case: Case, milliseconds: float) -> Record:
    """What is kept of one fit but for its reasons; y and densities are in units of `case.unit`."""
    x, y, unit = case.curve.x_target, case.curve.y_target, case.unit
    begin = time.perf_counter()
    bands = fit.predict(x, levels=BANDS)["quantiles"].transpose("quantile", "x").to_numpy() / unit
    milliseconds += 1e3 * (time.perf_counter() - begin)
    begins = first_shown(fit, x)
    grid = np.geomspace(begins, case.horizon, GRID)
    grid[[0, -1]] = begins, case.horizon  # rounding must not leave the coordinates
    crps_quantiles = fit.predict(x, levels=list(CRPS_LEVELS))["quantiles"].transpose("quantile", "x").to_numpy() / unit
    with np.errstate(invalid="ignore", over="ignore"):
        crps = quantile_crps(crps_quantiles, CRPS_LEVELS, y / unit)
    return {
        "bands": bands,
        "log_density": fit.log_density(x, y).to_numpy() + np.log(unit),
        "pit": fit.prob_below(x, y).to_numpy(),
        "crps": crps,
        "grid": grid,
        "grid_bands": fit.predict(grid, levels=BANDS)["quantiles"].transpose("quantile", "x").to_numpy(),
        "needs_review": np.array(fit.status != "ok"),
        "milliseconds": np.array(milliseconds),
        "prior": np.array(fit.prior.name),
    }


def _full_name(case: Case) -> str:
    return f"{case.domain}/{case.name}"


_warmed: set[tuple[str, int]] = set()


def _warm_up(method: Method, cases: Sequence[Case], seed: int) -> None:
    """Fit and forecast once, so that loading and compiling are not timed; of NUTS once per program and process.

    What it compiles depends on the number of points. Engine `auto` may not come to it in its first batch.
    """
    shapes = [(method.identity, 0)] * len(cases)
    if method.engine not in QUICK:
        bucket = importlib.import_module("hybrid.models.nuts").bucket
        shapes = [(method.identity, bucket(case.context.x.size)) for case in cases]
    if method.engine in QUICK or not _warmed.issuperset(shapes):
        fits = method.fit(cases, seed)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits[0].predict(cases[0].context.x, levels=BANDS)
        _warmed.update(shape for shape, fit in zip(shapes, fits, strict=True) if fit.engine == "nuts")


def failed(method: Method, case: Case, error: HybridError) -> Record:
    """The record of a curve that could not be forecast: no figures, and why."""
    n = case.curve.x_target.size
    shapes = {"bands": (len(BANDS), n), "log_density": (n,), "pit": (n,), "crps": (n,)}
    shapes |= {"grid": (GRID,), "grid_bands": (len(BANDS), GRID), "milliseconds": ()}
    why = " ".join(str(error).removeprefix(f"{method.name} on {_full_name(case)}: ").split())
    words = {"prior": np.array(method.priors[0].name), "reasons": np.array(why)}
    flags = {"needs_review": np.array(True), FAILED: np.array(True)}
    return {**{name: np.full(shape, np.nan) for name, shape in shapes.items()}, **words, **flags}


def run_method(method: Method, cases: Sequence[Case], seed: int) -> list[Record]:
    """Fit and forecast a batch of curves; where that fails, each alone, so that one that cannot be forecast loses no other.

    Parameters
    ----------
    method, cases, seed
        As for `forecast_batch`.

    Returns
    -------
    One record per case; of a curve that cannot be forecast that of `failed`.

    Raises
    ------
    EngineUnavailableError
        If the method cannot forecast at all.
    """
    try:
        return forecast_batch(method, cases, seed)
    except EngineUnavailableError:
        raise
    except HybridError as error:
        if len(cases) == 1:
            return [failed(method, cases[0], error)]
    return [record for case in cases for record in run_method(method, [case], seed)]


def forecast_batch(method: Method, cases: Sequence[Case], seed: int) -> list[Record]:
    """Fit and forecast a batch of curves.

    Parameters
    ----------
    method
        The method.
    cases
        The curves.
    seed
        Seed of the engine.

    Returns
    -------
    One dictionary of arrays per case, for n targets, 5 levels `BANDS` and g positions between the first context x and the
    horizon. In units of the case: `bands` (5, n), quantiles at the targets; `log_density` (n,), in nats; `crps` (n,), from
    100 quantiles for every engine, since the closed form of bars over log y is not one of y. `pit` (n,), P(Y <= y). In
    the user's units: `grid` (g,) and `grid_bands` (5, g). Scalars: `needs_review`, `reasons`, `prior`, and `milliseconds`
    for the fit, shared over the batch, and the five quantiles, after weights are loaded and code is compiled.

    Raises
    ------
    HybridError
        Where a fit fails; the message names the method and a curve.
    """
    try:
        _warm_up(method, cases, seed)
        begin = time.perf_counter()
        fits = method.fit(cases, seed)
        milliseconds = 1e3 * (time.perf_counter() - begin) / len(cases)
    except HybridError as error:
        names = _full_name(cases[0]) + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")
        raise type(error)(f"{method.name} on {names}: {error}") from None
    found = []
    for fit, case in zip(fits, cases, strict=True):
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                record = _forecasts(fit, case, milliseconds)
        except HybridError as error:
            raise type(error)(f"{method.name} on {_full_name(case)}: {error}") from None
        warned = dict.fromkeys(str(each.message) for each in said if each.category is UserWarning)
        why = " ".join((*fit.reasons, *warned))
        if any(np.isnan(record[name]).any() for name in ("bands", "pit", "log_density")):
            record = failed(method, case, InvalidArgumentError(why or "the forecast of a held-out point is no number"))
        else:
            record["reasons"] = np.array(why)
        found.append(record)
    return found


def batches(method: Method, cases: Sequence[Case], seed: int) -> list[tuple[Any, ...]]:
    """The calls of `run_method` for all cases, curves of like length together; (indices, (method, cases, seed))."""
    order = sorted(range(len(cases)), key=lambda i: cases[i].curve.x.size)
    size = BATCH[method.engine]
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return [(part, (method, [cases[i] for i in part], seed)) for part in parts]

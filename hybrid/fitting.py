"""`fit` and `fit_many`: from curves to posteriors by any engine, and the table of what can be fitted how."""

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import platform
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from hybrid.amortized.cards import Card, find_card
from hybrid.curve import Curve
from hybrid.diagnostics.datatree import flat_draws
from hybrid.models.checks import LIMIT, as_integer, as_positive
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError, InvalidCurveError, UnknownNameError
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import PRIORS, get_prior
from hybrid.models.requirements import compiled_by_jax, without_curve, without_forecast
from hybrid.result import Fit, frame_of

if TYPE_CHECKING:
    import pandas as pd

HORIZON_FACTOR = 10.0
ENGINES = ("nuts", "least_squares", "pfn", "auto")
_RUNNERS = {
    "nuts": ("hybrid.models.nuts", "run_nuts"),
    "least_squares": ("hybrid.models.least_squares", "run_least_squares"),
    "pfn": ("hybrid.amortized.engine", "run_pfn"),
}
_PACKAGES = {
    "nuts": ("hybrid-scaling-laws", "numpy", "scipy", "xarray", "jax", "numpyro"),
    "least_squares": ("hybrid-scaling-laws", "numpy", "scipy", "xarray", "jax"),
    "pfn": ("hybrid-scaling-laws", "numpy", "scipy", "xarray", "torch", "zuko"),
}


def _gradient_based(prior: AbstractPrior) -> bool:
    return isinstance(prior, Prior) and prior.has_density and prior.is_continuous


def _card(prior: AbstractPrior) -> Card | None:
    """The card of the weights that serve a prior, if there are any."""
    try:
        return find_card(prior)
    except EngineUnavailableError:
        return None


def available_engines(prior: AbstractPrior) -> tuple[str, ...]:
    """The engines that can serve a prior, "auto" aside."""
    exact: tuple[str, ...] = ()
    if isinstance(prior, Prior) and _gradient_based(prior):
        point = not prior.law.linear and prior.noise.parameters == ("sigma",)
        exact = ("nuts", "least_squares") if point else ("nuts",)
    return (*exact, "pfn") if _card(prior) is not None else exact


def resolve_engine(prior: AbstractPrior, engine: str, options: Mapping[str, Any]) -> str:
    """The engine that will run, "auto" included, or an error that names one that could."""
    if engine not in ENGINES:
        raise UnknownNameError(f"no engine called {engine!r}; there are {', '.join(ENGINES)}")
    available = available_engines(prior)
    if engine == "pfn":
        try:
            find_card(prior, options.get("checkpoint"))
        except EngineUnavailableError as error:
            others = f", or use engine={available[0]!r}" if available else ""
            raise EngineUnavailableError(f"{error}{others}") from None
        return engine
    if engine in available or (engine == "auto" and available):
        return engine
    able = ", ".join(p.name for p in PRIORS if _gradient_based(p))
    remedy = f"use engine={available[0]!r}" if available else f"use a prior that engine='nuts' can fit: {able}"
    if engine == "auto":
        problem = f"no amortized weights for prior {prior.name!r} are installed, and no exact engine can serve it"
    elif not prior.has_density:
        problem = f"prior {prior.name!r} can only be simulated, and engine {engine!r} needs its density"
    elif isinstance(prior, Prior) and prior.law.constrained:
        problem = f"prior {prior.name!r} admits only some parameters, and engine {engine!r} needs a density without gaps"
    elif isinstance(prior, Prior) and prior.is_continuous:
        drifts = f"only its distribution keeps the drift of prior {prior.name!r} small, and"
        shaped = f"the noise of prior {prior.name!r} has parameters besides sigma, which"
        problem = f"{drifts if prior.law.linear else shaped} engine {engine!r} does not know"
    else:
        problem = f"prior {prior.name!r} has discrete parameters, which engine {engine!r} cannot fit"
    raise EngineUnavailableError(f"{problem}; {remedy}")


def _scales(curve: Curve, horizon: Any, y_scale: Any) -> tuple[float, float]:
    """The horizon and the y scale of a curve, with None replaced by their defaults."""
    last = float(curve.x[-1])
    horizon = min(HORIZON_FACTOR * last, LIMIT) if horizon is None else as_positive(horizon, "horizon")
    if horizon < last:
        raise InvalidArgumentError(f"horizon = {horizon:g} lies before the last context x = {last:g}: give one beyond it")
    return horizon, float(curve.y.max()) if y_scale is None else as_positive(y_scale, "y_scale")


def _per_curve(value: Any, n: int, name: str) -> list[Any]:
    """One value for each curve, from one value for all or a sequence of them."""
    if isinstance(value, Mapping):
        raise InvalidArgumentError(f"{name} must be one value, or a list with one per curve in their order, not a mapping")
    index: Any = getattr(value, "index", None)  # of a pandas Series; of a list it is a method
    if hasattr(index, "equals") and list(index) != list(range(n)):
        raise InvalidArgumentError(
            f"{name} is a Series with an index of its own, which says nothing of the curves' order: give a list with one value "
            f"per curve, as by {name}.loc[names].to_list()"
        )
    if value is None or np.ndim(value) == 0:
        return [value] * n
    values: list[Any] = np.asarray(value, dtype=object).tolist()
    if len(values) != n:
        raise InvalidArgumentError(f"{name} has {len(values)} values for {n} curves: give one value, or one per curve")
    return values


def _runner(engine: str, options: Mapping[str, Any]) -> Any:
    module, name = _RUNNERS[engine]
    runner = getattr(importlib.import_module(module), name)
    taken = list(inspect.signature(runner).parameters.values())[4:]  # after prior, problems, seed, progress
    known = [p.name for p in taken]
    unknown = [option for option in options if option not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken):
        raise InvalidArgumentError(f"engine {engine!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return runner


@functools.cache
def _versions(engine: str) -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES[engine]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return MappingProxyType(found)


def versions_of(engine: str) -> dict[str, str]:
    """The software that an engine runs on, by package."""
    return dict(_versions(engine))


def fit(
    curve: Curve,
    prior: str | AbstractPrior = "m4",
    engine: str = "nuts",
    horizon: float | None = None,
    y_scale: float | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Fit:
    """Fit one curve.

    Parameters
    ----------
    curve
        The curve; its context is fitted, its held-out points are not looked at.
    prior
        A name in `priors()`, or a prior object.
    engine
        "nuts": exact draws from the posterior. "least_squares": a point estimate. "pfn": amortized, in milliseconds, from
        weights that were trained on this very prior. "auto": amortized first, with forecasts by the draws where the network
        draws all parameters; exact where there are no weights, where the curve lies outside what they were trained on, or
        where importance sampling finds the draws wanting (k-hat of .697 or more, the limit for 2000 draws).
    horizon
        The largest x that the forecast is about, in the user's units, at least the last context x. None takes ten times the
        last context x. It is stored on the fit. Priors in unit coordinates depend on it and forecast no further.
    y_scale
        The unit of y in the prior's coordinates. None takes the largest context y, a convenience that peeks at the data.
    seed
        Seed of all random numbers of the engine and of the fit's predictions.
    progress
        Whether to show a progress bar.
    **options
        Of the engine. "nuts": `workers`, and fields of `hybrid.models.nuts.NutsSettings`, such as `draws` per chain. "pfn":
        `draws`, `forecast` ("network" or "draws"), `checkpoint` and `device`; see `hybrid.amortized.engine.run_pfn`.
        "least_squares": `starts` and `max_steps`. "auto": none.

    Raises
    ------
    InvalidCurveError
        If curve is not a `Curve`.
    FileFormatError
        If a checkpoint is damaged, or is none.
    InvalidArgumentError
        If horizon, y_scale, seed or an option is outside what it may be.
    UnknownNameError
        If there is no such prior or engine.
    EngineUnavailableError
        If the engine cannot serve the prior; the message says what to use instead.
    """
    return fit_many([curve], prior, engine, horizon, y_scale, seed, progress, **options)[0]


def fit_many(
    curves: Iterable[Curve] | Mapping[str, Curve],
    prior: str | AbstractPrior = "nsl",
    engine: str = "pfn",
    horizon: float | Sequence[float | None] | None = None,
    y_scale: float | Sequence[float | None] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Fit]:
    """Fit many curves in one batch; the order is kept.

    By "pfn" sums are rounded otherwise in a batch than for one curve: forecasts differ by parts in a million from those of
    `fit`, and of the same fit once it is saved and loaded. By "least_squares" so do the steps of the search: where a curve has
    hardly more points than the law has parameters, it can end elsewhere.

    Parameters
    ----------
    curves
        The curves, or a mapping such as `read_curves` returns.
    horizon, y_scale
        As for `fit`: one value for all curves, or one per curve.
    prior, engine, seed, progress, **options
        As for `fit`. By "nuts", ``workers=4`` spreads the curves over so many processes.

    Raises
    ------
    As `fit`.
    """
    if isinstance(curves, Curve):
        raise InvalidCurveError("fit_many takes several curves, and this is one: use hybrid.fit, or a list")
    if not isinstance(curves, Iterable):
        raise InvalidCurveError(f"fit_many takes a list or mapping of curves, got {type(curves).__name__}")
    curves = list(curves.values() if isinstance(curves, Mapping) else curves)
    for i, curve in enumerate(curves):
        if not isinstance(curve, Curve):
            raise InvalidCurveError(f"curve {i} is {type(curve).__name__}: build a hybrid.Curve(x, y) or use hybrid.read_csv")
    prior = get_prior(prior)
    engine = resolve_engine(prior, engine, options)
    seed = as_integer(seed, "seed", 0, 2**32 - 1)
    horizons, y_scales = _per_curve(horizon, len(curves), "horizon"), _per_curve(y_scale, len(curves), "y_scale")
    scales, frames = [], []
    for i, (curve, *given) in enumerate(zip(curves, horizons, y_scales, strict=True)):
        try:
            scales.append(_scales(curve, *given))
            frames.append(frame_of(prior, curve, *scales[-1]))
        except InvalidArgumentError as error:
            which = f"curve {i}" if curve.name is None else f"curve {i} ({curve.name})"
            raise InvalidArgumentError(f"{which}: {error}" if len(curves) > 1 else str(error)) from None
    problems = [Problem(frame.x_to(c.x), c.y / frame.y_scale, frame) for c, frame in zip(curves, frames, strict=True)]
    with compiled_by_jax(prior):
        if engine == "auto":
            return _fit_auto(curves, prior, problems, scales, seed, progress, options)
        results = _runner(engine, options)(prior, problems, seed, progress, **options)
    return _as_fits(curves, prior, engine, scales, seed, results)


def _as_fits(
    curves: Sequence[Curve],
    prior: AbstractPrior,
    engine: str,
    scales: Sequence[tuple[float, float]],
    seed: int,
    results: Sequence[EngineResult],
) -> list[Fit]:
    versions = versions_of(engine)
    if engine != "pfn" and curves:
        assert isinstance(prior, Prior)
        frames = [frame_of(prior, curve, *each) for curve, each in zip(curves, scales, strict=True)]
        doubts = [
            (
                *without_curve(prior, frame.x_to(curve.x), frame, seed),
                *without_forecast(prior, flat_draws(result.draws), frame),
            )
            for curve, frame, result in zip(curves, frames, results, strict=True)
        ]
        results = [
            dataclasses.replace(result, status="needs_review", reasons=(*result.reasons, *doubt)) if doubt else result
            for result, doubt in zip(results, doubts, strict=True)
        ]
    return [
        Fit(curve, prior, engine, *each, seed, result, versions)
        for curve, each, result in zip(curves, scales, results, strict=True)
    ]


def _fit_auto(
    curves: Sequence[Curve],
    prior: AbstractPrior,
    problems: Sequence[Problem],
    scales: Sequence[tuple[float, float]],
    seed: int,
    progress: bool,
    options: Mapping[str, Any],
) -> list[Fit]:
    """Amortized fits, and exact ones in place of those that should not be trusted, where an exact engine serves the prior."""
    if options:
        raise InvalidArgumentError(f"engine 'auto' has no option {next(iter(options))!r}; name the engine that has it")
    fits: list[Fit | None] = [None] * len(curves)
    trusted = [False] * len(curves)
    if _card(prior) is not None:
        results = _runner("pfn", {})(prior, problems, seed, progress)
        judged = _as_fits(curves, prior, "pfn", scales, seed, results)
        # Whether to trust the network is asked of its draws, where it draws all parameters: then forecasts come from these too.
        draws = importlib.import_module("hybrid.amortized.law_frame").frame_prior(prior) is prior
        bar = tqdm(judged, desc="draws", unit="curve", disable=not (progress and draws))
        trusted = [fit.is_trusted for fit in bar]
        if draws:
            by_draws = importlib.import_module("hybrid.amortized.engine").by_draws
            results = [by_draws(result) if yes else result for result, yes in zip(results, trusted, strict=True)]
            judged = _as_fits(curves, prior, "pfn", scales, seed, results)
        fits = [*judged]
    doubtful = [i for i, yes in enumerate(trusted) if not yes]
    if doubtful and _gradient_based(prior):
        chosen = [problems[i] for i in doubtful]
        made = _runner("nuts", {})(prior, chosen, seed, progress)
        results = [_chosen_by_auto(result, fits[i]) for i, result in zip(doubtful, made, strict=True)]
        exact = _as_fits([curves[i] for i in doubtful], prior, "nuts", [scales[i] for i in doubtful], seed, results)
        for i, fit in zip(doubtful, exact, strict=True):
            fits[i] = fit
    return [fit for fit in fits if fit is not None]


def _chosen_by_auto(result: EngineResult, amortized: Fit | None) -> EngineResult:
    """Exact draws that say why engine "auto" took them: in words in `info["auto"]`, with the network's own reasons beside."""
    if amortized is None:
        return dataclasses.replace(result, info={**result.info, "auto": "there is no network for this prior"})
    reasons = amortized.reasons
    why = "the network has reasons against it" if reasons else f"the network's draws have k-hat {amortized.pareto_k:.2f}"
    return dataclasses.replace(result, info={**result.info, "auto": why, "network_reasons": list(reasons)})


def priors() -> "pd.DataFrame":
    """The shipped priors.

    Returns
    -------
    pandas.DataFrame
        Indexed by name: the law's formula, the parameters, the engines available, and the amortized checkpoint ("-" where
        there is none).
    """
    import pandas as pd

    rows = [
        {
            "name": prior.name,
            "law": prior.law.formula if isinstance(prior, Prior) else "the released sampler of NSL-PFN",
            "parameters": ", ".join(p.name for p in prior.parameters),
            "engines": ", ".join(available_engines(prior)) or "-",
            "checkpoint": "-" if card is None else card.weights.name,
        }
        for prior, card in ((prior, _card(prior)) for prior in PRIORS)
    ]
    return pd.DataFrame(rows).set_index("name")

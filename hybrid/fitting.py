"""`fit` and `fit_many`: from curves to posteriors by any engine, and the table of what can be fitted how."""

import importlib
import importlib.metadata
import inspect
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.checks import as_integer, as_positive
from hybrid.curve import Curve
from hybrid.models.engine import Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError, InvalidCurveError, UnknownNameError
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import PRIORS, get_prior
from hybrid.result import Fit, frame_of

if TYPE_CHECKING:
    import pandas as pd

HORIZON_FACTOR = 10.0
ENGINES = ("nuts", "least_squares", "pfn", "auto")
_RUNNERS = {
    "nuts": ("hybrid.models.nuts", "run_nuts"),
    "least_squares": ("hybrid.models.least_squares", "run_least_squares"),
}
_PACKAGES = {
    "nuts": ("hybrid-scaling-laws", "numpy", "scipy", "xarray", "jax", "numpyro"),
    "least_squares": ("hybrid-scaling-laws", "numpy", "scipy", "xarray", "jax"),
}


def _gradient_based(prior: AbstractPrior) -> bool:
    return isinstance(prior, Prior) and prior.has_density and prior.is_continuous


def available_engines(prior: AbstractPrior) -> tuple[str, ...]:
    """The engines that can serve a prior, "auto" aside."""
    return tuple(_RUNNERS) if _gradient_based(prior) else ()


def _resolve(prior: AbstractPrior, engine: str) -> tuple[Prior, str]:
    """The prior and the engine that will run, or an error that names one that could."""
    if engine not in ENGINES:
        raise UnknownNameError(f"no engine called {engine!r}; there are {', '.join(ENGINES)}")
    available = available_engines(prior)
    chosen = "nuts" if engine == "auto" else engine
    if isinstance(prior, Prior) and chosen in available:
        return prior, chosen
    able = ", ".join(p.name for p in PRIORS if _gradient_based(p))
    remedy = f"use engine={available[0]!r}" if available else f"use a prior that engine='nuts' can fit: {able}"
    if engine in ("pfn", "auto"):
        problem = f"no amortized weights for prior {prior.name!r} are installed in this version"
    elif not prior.has_density:
        problem = f"prior {prior.name!r} can only be simulated, and engine {engine!r} needs its density"
    else:
        problem = f"prior {prior.name!r} has discrete parameters, which engine {engine!r} cannot fit"
    raise EngineUnavailableError(f"{problem}; {remedy}")


def _scales(curve: Curve, horizon: Any, y_scale: Any) -> tuple[float, float]:
    """The horizon and the y scale of a curve, with None replaced by their defaults."""
    last = float(curve.x[-1])
    horizon = HORIZON_FACTOR * last if horizon is None else as_positive(horizon, "horizon")
    if horizon < last:
        raise InvalidArgumentError(f"horizon = {horizon:g} lies before the last context x = {last:g}: give one beyond it")
    return horizon, float(curve.y.max()) if y_scale is None else as_positive(y_scale, "y_scale")


def _per_curve(value: Any, n: int, name: str) -> list[Any]:
    """One value for each curve, from one value for all or a sequence of them."""
    if value is None or np.ndim(value) == 0:
        return [value] * n
    values = list(value)
    if len(values) != n:
        raise InvalidArgumentError(f"{name} has {len(values)} values for {n} curves: give one value, or one per curve")
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _runner(engine: str, options: Mapping[str, Any]) -> Any:
    module, name = _RUNNERS[engine]
    runner = getattr(importlib.import_module(module), name)
    taken = list(inspect.signature(runner).parameters.values())[4:]  # after prior, problems, seed, progress
    known = [p.name for p in taken]
    unknown = [option for option in options if option not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken):
        raise InvalidArgumentError(f"engine {engine!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return runner


def _versions(engine: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES[engine]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
        "nuts": exact draws from the posterior. "least_squares": a point estimate. "pfn": amortized. "auto": amortized where
        weights for the prior are installed, else exact.
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
        Options of the engine, such as the number of draws.

    Raises
    ------
    InvalidCurveError
        If curve is not a `Curve`.
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

    Parameters
    ----------
    curves
        The curves, or a mapping such as `read_curves` returns.
    horizon, y_scale
        As for `fit`: one value for all curves, or one per curve.
    prior, engine, seed, progress, **options
        As for `fit`.

    Raises
    ------
    As `fit`.
    """
    curves = list(curves.values() if isinstance(curves, Mapping) else curves)
    for i, curve in enumerate(curves):
        if not isinstance(curve, Curve):
            raise InvalidCurveError(f"curve {i} is {type(curve).__name__}: build a hybrid.Curve(x, y) or use hybrid.read_csv")
    prior, engine = _resolve(get_prior(prior), engine)
    seed = as_integer(seed, "seed", 0, 2**32 - 1)
    horizons, y_scales = _per_curve(horizon, len(curves), "horizon"), _per_curve(y_scale, len(curves), "y_scale")
    scales = [_scales(*each) for each in zip(curves, horizons, y_scales, strict=True)]
    frames = [frame_of(prior, curve, *each) for curve, each in zip(curves, scales, strict=True)]
    problems = [Problem(frame.x_to(c.x), c.y / frame.y_scale, frame) for c, frame in zip(curves, frames, strict=True)]
    results = _runner(engine, options)(prior, problems, seed, progress, **options)
    versions = _versions(engine)
    return [
        Fit(curve, prior, engine, *each, seed, result, versions)
        for curve, each, result in zip(curves, scales, results, strict=True)
    ]


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
            "checkpoint": "-",
        }
        for prior in PRIORS
    ]
    return pd.DataFrame(rows).set_index("name")

"""Simulation-based calibration of an engine on a prior (Talts et al. 2018; with data-dependent quantities, Modrák et al. 2023).

Curves are drawn from the prior, each is fitted, and the truth is ranked among the posterior draws: for every parameter, the
law's break positions, the noise-free value at the horizon, and the log likelihood of the context. Held-out points of the same
curves give the predictive's PIT, joint ones TARP.
"""

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from hybrid.amortized.design import Design
from hybrid.amortized.law_frame import frame_prior
from hybrid.amortized.model import is_positive
from hybrid.diagnostics.simulate import Simulated, exact_draws, simulate
from hybrid.diagnostics.tarp import references_from_data, tarp_ranks
from hybrid.diagnostics.uniformity import FEWEST, contraction, normalised_rank
from hybrid.models.distributions import unconstrained, unconstrained_scale
from hybrid.models.engine import Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import AbstractPrior, Prior

Array = Any
DRAWS = 200  # of each posterior, at most; ranks are coarser where fewer are independent
JOINT = 4  # held-out positions of a joint target
JOINT_DRAWS = 100
JOINT_CURVES = 256  # at most: joint draws of the amortized engine take one pass per position
BREAK = re.compile(r"d\d+")
LOG_LIKELIHOOD, AT_HORIZON = "log_likelihood", "f_horizon"
FORMAT = "hybrid calibration 2"
ALWAYS = {"predictive": ("pit", "pit_one", "distance", "first", "width"), "tarp": ("y",)}  # groups and what they hold
# Posterior draws per curve, if there are any; predictives; which curves count; how many draws are nearly independent.
_Fitted = tuple[list[dict[str, Array]] | None, list[Any], Array, Array]


def _quantities(prior: Prior, theta: Mapping[str, Array], problem: Problem) -> dict[str, Array]:
    """Parameters and what depends on the data, for theta of shape (S,)."""
    with np.errstate(all="ignore"):
        level = np.asarray(prior.mean(theta, np.append(problem.x, problem.frame.horizon), problem.frame))
        each = prior.noise.log_prob(problem.y[:, None], level[:, :-1].T, theta)
        found = {p.name: theta[p.name] for p in prior.parameters}
        derived = prior.derived(theta, problem.frame)
    breaks = {name: np.asarray(value) for name, value in derived.items() if BREAK.fullmatch(name)}
    return {**found, **breaks, AT_HORIZON: level[:, -1], LOG_LIKELIHOOD: each.sum(0)}


def _spaced(draws: Mapping[str, Array], count: int) -> dict[str, Array]:
    size = len(next(iter(draws.values())))
    index = np.linspace(0, size - 1, min(count, size)).round().astype(int)
    return {name: value[index] for name, value in draws.items()}


def features_of(problems: list[Problem], positive: bool = True) -> dict[str, Array]:
    """What the posteriors knew, by name, each (n,): uniform ranks must not depend on it. y may be 0 or less unless positive."""
    return {
        "the last observed y": np.array([p.y[-1] for p in problems]),
        "the fall of the observed y": np.array([np.log(p.y[0] / p.y[-1]) if positive else p.y[0] - p.y[-1] for p in problems]),
        "the number of points": np.array([float(p.x.size) for p in problems]),
        "the range of x": np.array([np.log(p.x[-1] / p.x[0]) for p in problems]),
        "the horizon": np.array([float(p.frame.horizon / p.frame.last) for p in problems]),
    }


def run_sbc(
    prior: AbstractPrior,
    engine: str,
    simulations: int,
    design: Design,
    seed: int = 0,
    cache: Path | None = None,
    workers: int = 1,
    progress: bool = True,
    checkpoint: Any = None,
) -> xr.DataTree:
    """Calibrate an engine on curves of its own prior.

    Parameters
    ----------
    prior
        The prior.
    engine
        "nuts" or "pfn".
    simulations
        Number of curves n.
    design
        Where their points lie.
    seed
        Of the curves and of all ranks.
    cache
        File for the draws of NUTS, so that an interrupted run goes on; None keeps nothing.
    workers
        Processes for NUTS.
    progress
        Whether to show a progress bar.
    checkpoint
        Weights for "pfn", if not those that are found.

    Returns
    -------
    xarray.DataTree
        `prior_sbc`: normalised ranks (chain, draw), one draw per curve, as ArviZ's `plot_ecdf_pit` reads them. `truth`,
        `posterior_mean`, `posterior_sd` (draw) of the same quantities on the real line: log where positive, logit in an
        interval, as the attribute `scale` of `truth` says. `predictive`: PIT (draw, target) of the held-out points, their
        distance x over last context x, `first` (draw), that of the first context x, the width of the central 90 % interval
        over the median, and one PIT per curve.
        `tarp`: the ranks of joint targets. `features` (draw): what the posteriors knew. Curves whose fit by
        "nuts" needs review, mostly for chains that did not converge, are left out; the attribute `needs_review` is their share.
        Of "pfn" there are 200 draws each, resampled from 600 to 2400: fewer than a fit has, which is the harder case.

    Raises
    ------
    EngineUnavailableError
        If the engine cannot serve the prior.
    InvalidArgumentError
        If the design has contexts of the best so far and the engine looks at likelihoods, which are then others: if the law has
        no curve for some draws of the prior; or if too few fits are left to judge.
    """
    if engine not in ("nuts", "pfn"):
        raise EngineUnavailableError(f"engine {engine!r} gives no posterior to calibrate: use 'nuts' or 'pfn'")
    if engine == "nuts" and not (isinstance(prior, Prior) and prior.is_continuous):
        raise EngineUnavailableError(f"engine 'nuts' cannot serve prior {prior.name!r}: calibrate engine='pfn'")
    if design.best_so_far and (engine == "nuts" or frame_prior(prior) is prior):
        raise InvalidArgumentError(
            f"engine {engine!r} weighs parameters of prior {prior.name!r} by the likelihood of measurements as they are: set "
            "best_so_far of the design to 0"
        )
    simulated = simulate(prior, simulations, design, seed)
    rng = np.random.default_rng(seed + 1)
    if engine == "pfn":
        fitted = _amortized(prior, simulated, seed, checkpoint, progress)
    else:
        assert isinstance(prior, Prior)
        fitted = _exact(prior, simulated, cache, workers, progress)
    posteriors, predictives, ok, thin = fitted
    kept = np.flatnonzero(ok)
    if kept.size < FEWEST:
        raise InvalidArgumentError(
            f"{kept.size} of {simulations} fits do not need review, and {FEWEST} are needed to judge the engine: take more "
            "simulations, or a prior or design whose chains converge"
        )
    groups: dict[str, xr.Dataset] = {}
    if posteriors is not None:
        groups = _parameter_groups(prior, simulated, posteriors, kept, thin, rng)
    groups["predictive"] = _predictive_group(simulated, predictives, kept, rng, progress)
    groups["tarp"] = _tarp_group(simulated, predictives, kept, is_positive(prior), seed, rng, progress)
    features = features_of([simulated.problems[i] for i in kept], is_positive(prior))
    groups["features"] = xr.Dataset({name: ("draw", value) for name, value in features.items()})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {
        "format": FORMAT,
        "prior": prior.name,
        "fingerprint": prior.fingerprint,
        "engine": engine,
        "simulations": simulations,
        "needs_review": float(1.0 - ok.mean()),
        "seed": seed,
        "design": design.fingerprint,
    }
    return tree


def _exact(prior: Prior, simulated: Simulated, cache: Path | None, workers: int, progress: bool) -> _Fitted:
    found = exact_draws(prior, simulated.problems, 1000, cache, workers, progress)
    posteriors = [{name: value[i] for name, value in found.draws.items()} for i in range(len(found.status))]
    predictives = [MixturePredictive(prior, p, q.frame) for p, q in zip(posteriors, simulated.problems, strict=True)]
    return posteriors, predictives, found.status == "ok", np.minimum(found.ess, DRAWS).astype(int)


def _amortized(prior: AbstractPrior, simulated: Simulated, seed: int, checkpoint: Any, progress: bool) -> _Fitted:
    # Every curve is of the prior: what the network remarks on belongs to its calibration, and none is left out.
    run = importlib.import_module("hybrid.amortized.engine").run_pfn
    results = run(prior, simulated.problems, seed, checkpoint=checkpoint, draws=DRAWS)
    n = len(results)
    posteriors = None
    if results[0].draws:
        bar = tqdm(results, desc="parameter draws", unit="curve", disable=not progress)
        posteriors = [{name: np.asarray(value).reshape(-1) for name, value in r.draws.items()} for r in bar]
    return posteriors, [r.predictive for r in results], np.ones(n, dtype=bool), np.full(n, DRAWS)


def _parameter_groups(
    prior: AbstractPrior,
    simulated: Simulated,
    posteriors: list[dict[str, Array]],
    kept: Array,
    thin: Array,
    rng: np.random.Generator,
) -> dict[str, xr.Dataset]:
    """Ranks, truth, and posterior means and sds of every quantity."""
    truths: list[dict[str, Array]] = []
    tables: list[dict[str, Array]] = []
    for i in kept:
        problem, drawn = simulated.problems[i], _spaced(posteriors[i], int(thin[i]))
        true = {name: value[i : i + 1] for name, value in simulated.theta.items()}
        if isinstance(prior, Prior) and prior.is_continuous:
            truths.append(_quantities(prior, true, problem))
            tables.append(_quantities(prior, drawn, problem))
        else:
            truths.append(_classes(prior, true))
            tables.append({name: drawn[name] for name in truths[-1]})
    names = list(truths[0])
    truth, ranks, means, sds, scales = {}, {}, {}, {}, {}
    for name in names:
        wide: Array = np.full((len(kept), DRAWS), np.nan)
        for k, table in enumerate(tables):
            wide[k, : table[name].size] = table[name]
        values = np.array([row[name][0] for row in truths], dtype=float)
        ranks[name] = normalised_rank(wide, values, rng)
        line, scales[name] = _on_the_line(prior, name)
        truth[name], wide = line(values), line(wide)
        means[name], sds[name] = np.nanmean(wide, 1), np.nanstd(wide, 1)
    sample = {"chain": [0], "draw": np.arange(len(kept))}
    return {
        "prior_sbc": xr.Dataset({name: (("chain", "draw"), value[None]) for name, value in ranks.items()}, sample),
        "truth": xr.Dataset({name: ("draw", value, {"scale": scales[name]}) for name, value in truth.items()}),
        "posterior_mean": xr.Dataset({name: ("draw", value) for name, value in means.items()}),
        "posterior_sd": xr.Dataset({name: ("draw", value) for name, value in sds.items()}),
    }


def _on_the_line(prior: AbstractPrior, name: str) -> tuple[Callable[[Array], Array], str]:
    """The map of a quantity to the real line, where means and variances say something; and what it is called."""
    for p in prior.parameters:
        if p.name == name and not p.distribution.is_discrete:
            return functools.partial(unconstrained, p.distribution), unconstrained_scale(p.distribution)
    positive = name == AT_HORIZON or BREAK.fullmatch(name)
    return (lambda v: np.log(np.maximum(v, 1e-300)), "log") if positive else (np.asarray, "")


def _classes(prior: AbstractPrior, theta: Mapping[str, Array]) -> dict[str, Array]:
    """The class of a mixture's curve, under the names that the amortized engine gives."""
    if not isinstance(prior, Prior):
        return {"family": theta["family"]}
    namespace = importlib.import_module("hybrid.models.namespace").get_namespace("numpy")
    index = np.asarray(prior.law.class_of(namespace, theta)).astype(int)
    return {name: np.array([prior.law.classes[k][name] for k in index]) for name in prior.law.classes[0]}


def _predictive_group(
    simulated: Simulated, predictives: list[Any], kept: Array, rng: np.random.Generator, progress: bool
) -> xr.Dataset:
    pits, distances, firsts, widths = [], [], [], []
    for i in tqdm(kept, desc="held-out points", unit="curve", disable=not progress):
        frame = simulated.problems[i].frame
        x = frame.x_from(simulated.x_target[i])
        y = simulated.y_target[i] * frame.y_scale
        pits.append(predictives[i].cdf(x, y))
        low, middle, high = predictives[i].quantile(x, [0.05, 0.5, 0.95])
        widths.append((high - low) / middle)
        last = frame.x_from(frame.last)
        distances.append(x / last)
        firsts.append(float(frame.x_from(frame.first) / last))
    pit = np.stack(pits)
    one = np.take_along_axis(pit, rng.integers(pit.shape[1], size=(len(pit), 1)), 1)[:, 0]
    dims = ("draw", "target")
    return xr.Dataset(
        {
            "pit": (dims, pit),
            "distance": (dims, np.stack(distances)),
            "first": ("draw", firsts),
            "width": (dims, np.stack(widths)),
            "pit_one": ("draw", one),
        }
    )


def _tarp_group(
    simulated: Simulated,
    predictives: list[Any],
    kept: Array,
    positive: bool,
    seed: int,
    rng: np.random.Generator,
    progress: bool,
) -> xr.Dataset:
    """Ranks of the log of up to JOINT held-out values, or of the values themselves where they may be 0 or less."""

    def value(y: Array) -> Array:
        return np.log(np.maximum(y, 1e-12)) if positive else y

    chosen = kept[:JOINT_CURVES]
    columns = np.unique(np.linspace(0, simulated.x_target.shape[1] - 1, JOINT).round().astype(int))
    draws, truth, last, spread = [], [], [], []
    for i in tqdm(chosen, desc="joint targets", unit="curve", disable=not progress):
        problem = simulated.problems[i]
        x = problem.frame.x_from(simulated.x_target[i, columns])
        drawn = predictives[i].sample(x, JOINT_DRAWS, seed + int(i)) / problem.frame.y_scale
        draws.append(value(drawn))
        truth.append(value(simulated.y_target[i, columns]))
        last.append(value(problem.y[-1]))
        spread.append(max(float(np.std(value(problem.y))), 1e-6))
    references = references_from_data(np.array(last), np.array(spread), len(columns), rng)
    return xr.Dataset({"y": ("draw", tarp_ranks(np.stack(draws), np.stack(truth), references, rng))})


def contractions(tree: xr.DataTree) -> dict[str, float]:
    """Mean contraction of every quantity's posterior against the spread of its true values over the prior.

    The log likelihood is left out: it has no prior that is free of the data.
    """
    truth, sds = tree["truth"].to_dataset(), tree["posterior_sd"].to_dataset()
    names = [str(name) for name in truth.data_vars if name != LOG_LIKELIHOOD]
    return {k: float(np.mean(contraction(sds[k].values ** 2, float(np.var(truth[k].values))))) for k in names}

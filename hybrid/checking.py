"""Checks of one fit by either engine: health of the draws, leave-one-out, sensitivity to the prior, and replicated data."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.amortized.cards import find_card
from hybrid.amortized.importance import FEWEST as FEWEST_WEIGHTS
from hybrid.amortized.importance import trusted_k, vanishes
from hybrid.curve import MIN_POINTS
from hybrid.diagnostics.uniformity import ecdf_band
from hybrid.models.coordinates import get_coordinates
from hybrid.models.distributions import unconstrained
from hybrid.models.engine import Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.left_out import given_the_others
from hybrid.models.prior import Prior
from hybrid.models.residuals import FOLLOW_ONE_ANOTHER, OUTSIDE
from hybrid.models.thresholds import MAX_DIVERGENT, MAX_RHAT, MIN_ESS, MIN_FOLLOW, MIN_TRAINED
from hybrid.output import quiet

if TYPE_CHECKING:
    import pandas as pd

    from hybrid.result import Fit

Array = Any
MAX_MCSE = 0.05  # of the mean, in posterior sds: that of 400 independent draws
MIN_BFMI = 0.3
FEWEST_DRAWS = 100  # that k-hat is told by
PRIOR_CURVES = 1000
NARROW = 5  # labels that fit under a panel
WIDTH, HEIGHT = 11.0, 3.3  # inches of `plot_checks`
DIAGNOSES = {  # ArviZ's words, and what they are on curves that the prior itself drew, where the first is common
    "potential prior-data conflict": "sensitive to both",
    "potential strong prior / weak likelihood": "strong prior, weak likelihood",
}
LOO_DOUBT = (
    "k-hat is {} or more at x = {}: the draws cannot tell what the others say of these points, and their elpd and PIT may be "
    "far off; {}"
)


def _require_fit(fit: Fit) -> None:
    from hybrid.result import Fit

    if not isinstance(fit, Fit):
        raise InvalidArgumentError(f"this checks a fit by hybrid.fit, got {type(fit).__name__}")


def health(fit: Fit) -> pd.DataFrame:
    """Whether the draws of a fit can be trusted: each check with its value, its threshold and where that comes from.

    Parameters
    ----------
    fit
        A fit by "nuts" or "pfn".

    Returns
    -------
    pandas.DataFrame
        Indexed by check: `value` (the worst over parameters), `threshold`, `ok`, `source`, and `remedy`, which is empty where
        all is well. NUTS: rank-normalised R-hat, bulk and tail ESS (Vehtari et al. 2021), MCSE of the mean over the posterior
        sd, share of divergent transitions, BFMI (Betancourt 2016, section 3: the squared change of the energy at a new
        momentum, which is the number of parameters on average, over the energy's variance), the posterior predictive
        probability of residuals that follow one another as much (Gelman, Meng and Stern 1996), and the probability that
        independent ones keep to a line as much as those of the likeliest draw do. PFN: k-hat of the
        parameter draws (Vehtari et al. 2024), whether the curve lies inside what the network was trained on, whether its
        residuals scatter as those of the prior's own curves do, how many curves the network learnt from, and, where k-hat lets
        the draws be trusted and the forecasts are the network's, how far the two are apart: the largest difference of their
        predictive cdfs up to the horizon.

    Raises
    ------
    InvalidArgumentError
        If the fit is a point estimate.
    """
    import pandas as pd

    _require_fit(fit)
    if fit.engine == "least_squares":
        raise InvalidArgumentError("a point estimate has no draws to check: fit with engine='nuts' or 'pfn'")
    rows = _amortized_health(fit) if fit.engine == "pfn" else _chain_health(fit)
    table = pd.DataFrame(rows, columns=["check", "value", "threshold", "ok", "source", "remedy"]).set_index("check")
    table["remedy"] = table["remedy"].where(~table["ok"], "")
    return table


Row = tuple[str, float, str, bool, str, str]


def _amortized_health(fit: Fit) -> list[Row]:
    outside = [reason for reason in fit.reasons if reason.startswith(OUTSIDE)]
    scattered, inside, seen = FOLLOW_ONE_ANOTHER not in fit.reasons, not outside, fit.info["curves"]
    trained = "Li et al. 2026, step 1; ranges of the training curves"
    rows: list[Row] = [
        ("curve like those trained on", float(inside), "= 1", inside, trained, " ".join(outside)),
        ("residuals scatter", float(scattered), "= 1", scattered, "their range on the training curves", FOLLOW_ONE_ANOTHER),
        (
            "curves seen in training",
            float(seen),
            f">= {MIN_TRAINED}",
            seen >= MIN_TRAINED,
            "our choice",
            "train it further: hybrid train --prior NAME",
        ),
    ]
    if math.isnan(fit.pareto_k):
        return rows
    draws = fit.result.sample_stats["lp"].size
    name, source = "k-hat of the parameter draws", "Vehtari et al. 2024, section 3.2.4"
    if draws < FEWEST_DRAWS:
        rows.append((name, math.nan, f">= {FEWEST_DRAWS} draws", False, source, f"fit with draws={FEWEST_DRAWS} or more"))
        return rows
    limit = trusted_k(draws)
    remedy = "do not use the parameter draws as they are: fit with engine='nuts', or engine='auto', which does so"
    rows.append((name, fit.pareto_k, f"< {limit:.3g}", fit.pareto_k < limit, source, remedy))
    if fit.pareto_k < limit and not fit.by_draws:  # draws that can be trusted tell whether the forecasts can
        rows.append(_against_draws(fit))
    return rows


def _against_draws(fit: Fit) -> Row:
    """The largest difference of the network's predictive cdfs from those that follow from its draws of the parameters."""
    comparing = importlib.import_module("hybrid.comparing")
    by_draws = importlib.import_module("hybrid.amortized.engine").by_draws
    exact = dataclasses.replace(fit, result=by_draws(fit.result))
    apart = float(comparing.agreement(exact, fit).table["cdf_max"].max())
    most = comparing.MAX_ANYWHERE
    remedy = "the curve is not one that the network forecasts well: forecast='draws', or engine='nuts'"
    return "cdf of the network less that of its draws", apart, f"<= {most}", apart <= most, "as hybrid.agreement", remedy


def _chain_health(fit: Fit) -> list[Row]:
    arviz_stats = importlib.import_module("arviz_stats")
    assert isinstance(fit.prior, Prior)
    data, drawn = fit.data, fit.prior.integrable  # independently of one another, once the chains are there
    names = [p.name for p in fit.prior.parameters if p.name not in drawn]
    table = arviz_stats.summary(data, var_names=names, kind="diagnostics", round_to="none")
    sd = np.array([float(data["posterior"][name].std()) for name in names])
    mcse = float(np.max(table["mcse_mean"].to_numpy() / sd))
    stats = fit.result.sample_stats
    divergent = float(stats["diverging"].mean())
    # Not by differences from one draw to the next, as walks and jumps between them change the energy as well.
    bfmi = float(np.min(len(names) / stats["energy"].var(axis=1)))
    size = stats["diverging"].shape[1]
    rhat, bulk = table["r_hat"].max(), table["ess_bulk"].min()
    # By default ArviZ takes the tails of its intervals; these are the paper's, as in the fit's own verdict.
    tails = arviz_stats.ess(data, var_names=names, method="tail", prob=(0.05, 0.95))
    tail = min(float(tails[name]) for name in names)
    more = f"draw more: draws={4 * size}"
    corner = "the posterior has corners that NUTS cannot follow: a tighter prior with prior.replace(...), or another law"
    vehtari, gelman = "Vehtari et al. 2021, section 4", "Gelman, Meng and Stern 1996"
    likeliest = "our choice: of a line in white noise, at the likeliest draw"
    follow, trend = (float(fit.info.get(f"{name}_probability", math.nan)) for name in ("follow", "trend"))
    alike = FOLLOW_ONE_ANOTHER
    return [
        (
            "R-hat",
            float(rhat),
            f"< {MAX_RHAT}",
            rhat < MAX_RHAT,
            vehtari,
            f"the chains disagree; {more}, or a prior with fewer parameters",
        ),
        ("bulk ESS", float(bulk), f">= {MIN_ESS:.0f}", bulk >= MIN_ESS, vehtari, more),
        ("tail ESS", float(tail), f">= {MIN_ESS:.0f}", tail >= MIN_ESS, vehtari, more),
        ("MCSE of the mean over sd", mcse, f"<= {MAX_MCSE}", mcse <= MAX_MCSE, "that of 400 independent draws", more),
        ("divergent transitions", divergent, f"<= {MAX_DIVERGENT}", divergent <= MAX_DIVERGENT, "Betancourt 2017: 0", corner),
        ("BFMI", bfmi, f">= {MIN_BFMI}", bfmi >= MIN_BFMI, "Betancourt 2016, section 3", corner),
        ("probability of the residuals' autocorrelation", follow, f">= {MIN_FOLLOW}", not follow < MIN_FOLLOW, gelman, alike),
        ("probability of the residuals' trend", trend, f">= {MIN_FOLLOW}", not trend < MIN_FOLLOW, likeliest, alike),
    ]


def loo(fit: Fit) -> pd.DataFrame:
    """Each context point forecast from the others.

    Where forecasts follow from draws by Pareto-smoothed importance sampling of these (Vehtari, Gelman and Gabry 2017), a drift
    integrated out (Bürkner, Gabry and Vehtari 2020); where the network makes them, by asking it without the point. Coordinates
    then follow from the points that are left; the y scale stays that of the fit, as the prior is one thing for all points, also
    where it is the largest y by default and that is the point left out.

    Parameters
    ----------
    fit
        A fit by "nuts" or "pfn" of a curve with at least four points, of which at least three distinct x are left without any
        one of them.

    Returns
    -------
    pandas.DataFrame
        One row per point, indexed by x: `y`; `elpd`, its log density given the others, nats in the units of y; `pit`,
        P(Y <= y); `k_hat`, the Pareto shape of the weights, NaN where nothing was weighted; weights with .7 or more, or with
        1 - 1 / log10(draws) where that is less, cannot be trusted, of which a warning tells, and the elpd of a point that far
        from the others may be off by a nat before that. By a network
        that was not trained on targets before the first x the first point is NaN. Compare models by the sum of `elpd` over the
        same points, by one engine and one kind of forecast: the two ways differ by more than models do on short curves.

    Raises
    ------
    InvalidArgumentError
        If the fit is a point estimate, there are too few points, or, where draws are weighed, there are fewer than 25 of them
        or so many points that their log likelihoods are not kept.
    """
    import pandas as pd

    _require_posterior(fit)
    curve = fit.curve
    _, count = np.unique(curve.x, return_counts=True)
    if count.size - (count.min() == 1) < MIN_POINTS:
        raise InvalidArgumentError(
            f"leaving one out needs at least {MIN_POINTS} different x without any one point, and the curve has {count.size} x"
        )
    found = _smoothed_loo(fit) if fit.by_draws else _exact_loo(fit)
    limit = trusted_k(next(iter(fit.result.draws.values())).size) if fit.by_draws else math.inf
    doubtful = curve.x[found["k_hat"] >= limit]
    if doubtful.size:
        named = ", ".join(f"{x:.6g}" for x in doubtful)
        least = f"{limit:.3g}".removeprefix("0")
        warnings.warn(LOO_DOUBT.format(least, named, _without_weights(fit)), stacklevel=2)
    return pd.DataFrame({"y": curve.y, **found}, index=pd.Index(curve.x, name=curve.x_label))


def _without_weights(fit: Fit) -> str:
    """How to leave points out other than by weights."""
    if fit.engine == "pfn":
        return "by forecast='network' points are left out by asking again"
    try:
        find_card(fit.prior)
    except EngineUnavailableError:
        return "fit again without those points, and ask for log_density there"
    return "engine='pfn' leaves points out by asking again"


def _require_posterior(fit: Fit, what_for: str = "to leave points out of") -> None:
    _require_fit(fit)
    if fit.engine == "least_squares":
        raise InvalidArgumentError(f"a point estimate has no posterior {what_for}: fit with engine='nuts' or 'pfn'")


def _require_likelihood(fit: Fit) -> None:
    """Refuse a curve of more points than the log likelihoods of all draws are kept for."""
    if "log_likelihood" not in fit.data.children:
        raise InvalidArgumentError(
            f"the log likelihood of {fit.curve.x.size:,} points is not kept for each draw, as this needs: fit every k-th point"
        )


def _enough_draws(fit: Fit) -> None:
    """Refuse what ArviZ cannot smooth: the tail of the weights of so few draws."""
    draws = next(iter(fit.result.draws.values())).size
    if draws < FEWEST_WEIGHTS:
        raise InvalidArgumentError(
            f"importance weights need at least {FEWEST_WEIGHTS} draws, and the fit has {draws}: fit with more"
        )


def _smoothed_loo(fit: Fit) -> dict[str, Array]:
    """elpd, PIT and k-hat from the draws; log weights are minus the point's own log likelihood, drift integrated out."""
    _enough_draws(fit)
    _require_likelihood(fit)
    array_stats = importlib.import_module("arviz_stats.base").array_stats
    assert isinstance(fit.prior, Prior)
    arviz_stats = importlib.import_module("arviz_stats")
    frame, data = fit.frame, fit.data
    x, y = frame.x_to(fit.curve.x), fit.curve.y / frame.y_scale
    theta = {name: np.asarray(v, dtype=float).reshape(-1) for name, v in fit.result.draws.items()}
    likelihood = data["log_likelihood"]["y"].to_numpy()
    if fit.prior.integrable:
        density, below = given_the_others(fit.prior, theta, x, y, frame)
        likelihood = (density - np.log(frame.y_scale)).reshape(likelihood.shape)
        group = data["log_likelihood"].to_dataset()
        data = data.copy()
        data["log_likelihood"] = type(data)(group.assign(y=(group["y"].dims, likelihood)))
    else:
        below = fit.prior.noise.cdf(y[:, None], np.asarray(fit.prior.mean(theta, x, frame)).T, theta).T
    relative = _relative_efficiency(fit)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # k-hat is in the table
        pointwise = arviz_stats.loo(data, pointwise=True, reff=relative)
    likelihood = likelihood.reshape(-1, fit.curve.x.size)
    pit = np.empty(fit.curve.x.size)
    elpd, k_hat = (np.array(part, dtype=float) for part in (pointwise.elpd_i, pointwise.pareto_k))
    for i in range(pit.size):
        if vanishes(-likelihood[:, i]):  # one draw has all the weight, and nothing can be smoothed
            log_weight = -likelihood[:, i]
            k_hat[i], elpd[i] = np.inf, np.log(log_weight.size) - np.logaddexp.reduce(log_weight)
        else:
            log_weight = np.asarray(array_stats.psislw(likelihood[:, i], relative)[0])  # it wants minus the log ratio
        weight = np.exp(log_weight - np.logaddexp.reduce(log_weight))
        pit[i] = np.clip(np.sum(weight * below[:, i]), 0.0, 1.0)
    return {"elpd": elpd, "pit": pit, "k_hat": k_hat}


def _relative_efficiency(fit: Fit) -> float:
    """Effective over actual number of draws, which the length of the smoothed tail follows: by the prior's own parameters.

    By itself ArviZ takes the law's textbook parameters too, which depend on the unit of x and may overflow.
    """
    draws = next(iter(fit.result.draws.values()))
    if draws.shape[0] == 1 or not isinstance(fit.prior, Prior):
        return 1.0
    names = [p.name for p in fit.prior.parameters if p.name not in fit.prior.integrable]
    found = importlib.import_module("arviz_stats").ess(fit.data, var_names=names, method="mean")
    return float(np.mean([float(found[name]) for name in names])) / draws.size


def _exact_loo(fit: Fit) -> dict[str, Array]:
    x, y, coordinates = fit.curve.x, fit.curve.y, get_coordinates(fit.prior.coordinates)
    rest = []
    for i in range(x.size):
        others = np.delete(x, i)
        frame = coordinates.frame(others, fit.horizon, fit.y_scale)
        rest.append(Problem(frame.x_to(others), np.delete(y, i) / fit.y_scale, frame))
    found = importlib.import_module("hybrid.amortized.engine").by_the_same(fit.predictive, rest)
    elpd = np.full(x.size, np.nan)
    pit = np.full(x.size, np.nan)
    for i, other in enumerate(found):
        if x[i] >= np.delete(x, i).min() * fit.info.get("earliest", 1.0):  # the network was trained on no earlier targets
            elpd[i] = other.log_density(x[i : i + 1], y[i : i + 1])[0]
            pit[i] = other.cdf(x[i : i + 1], y[i : i + 1])[0]
    return {"elpd": elpd, "pit": pit, "k_hat": np.full(x.size, np.nan)}


def sensitivity(fit: Fit) -> pd.DataFrame:
    """How much the posterior of each parameter moves when prior or likelihood are raised to a power near 1.

    By ArviZ's `psense_summary` (Kallioinen et al. 2024, Statistics and Computing 34, 57), on the real line: of logs and logits,
    whose tails do not rule the distance. Above .05 a parameter is sensitive; to the prior and not to the likelihood: the prior
    dominates. To both, which ArviZ calls a potential conflict: the data do not outweigh the prior, as often on short curves,
    those that the prior itself drew too; a conflict shows only where prior and posterior lie far apart. What a drift is made
    of has a prior that others of its parameters set: it stays as it is, and is not listed.

    Parameters
    ----------
    fit
        A fit with draws of all parameters: by "nuts", or by "pfn" for a prior whose parameters are continuous.

    Returns
    -------
    pandas.DataFrame
        By parameter: `prior`, `likelihood`, `diagnosis` (✓, "sensitive to both" or "strong prior, weak likelihood").

    Raises
    ------
    InvalidArgumentError
        If the fit has no draws of all parameters, or fewer than 25.
    """
    _require_posterior(fit, "whose sensitivity could be told")
    if "log_prior" not in fit.data.children:
        raise InvalidArgumentError(
            f"engine {fit.engine!r} gives no draws of all parameters of {fit.prior.name!r}: fit a prior whose parameters are "
            "continuous with engine='nuts' or 'pfn'"
        )
    _enough_draws(fit)
    _require_likelihood(fit)
    inner = fit.prior.integrable if isinstance(fit.prior, Prior) else ()
    names = [p.name for p in fit.prior.parameters if p.name not in inner]
    summary = importlib.import_module("arviz_stats").psense_summary
    with quiet(summary.__module__, logging.ERROR):  # it says in the log what the table says
        found: pd.DataFrame = summary(_on_the_line(fit), var_names=names, prior_var_names=names)
    return found.assign(diagnosis=found["diagnosis"].replace(DIAGNOSES))


def _on_the_line(fit: Fit) -> Any:
    """The fit's data with the parameters unconstrained."""
    data = fit.data.copy()
    posterior = data["posterior"].to_dataset()
    moved = {p.name: (posterior[p.name].dims, unconstrained(p.distribution, posterior[p.name])) for p in fit.prior.parameters}
    data["posterior"] = type(data)(posterior.assign(moved))
    return data


def plot_checks(fit: Fit) -> Any:
    """Prior predictive, posterior predictive and leave-one-out PIT of a fit, as one figure.

    Left: bands of 50 and 90 % of curves drawn from the prior over the observed x, and the data. Middle: observed over
    median of replicated data (less the median, where noise makes some 0 or less), with bands of 50 and 90 % of the replicates.
    Right: ECDF of the leave-one-out PIT less that of the uniform, with the simultaneous 99 % band of independent values; or the
    reason why no point can be left out. The values of one fit are not independent: it goes through their middle, and they lie
    more evenly. So a line outside the band says that the law does not hold, and one inside says little.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidArgumentError
        If the subject is no fit, or a point estimate.
    """
    import matplotlib.pyplot as plt

    from hybrid.plotting import COLOURS, INK, MUTED, as_label, linear_axis, log_axis, wrapped

    _require_posterior(fit)
    curve = fit.curve
    draws = prior_predictive(fit)
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, HEIGHT), layout="constrained")
    replicated = fit.data["posterior_predictive"]["y"].to_numpy().reshape(-1, curve.x.size)
    scale = np.log if np.all(replicated > 0) else np.asarray
    middle = scale(np.median(replicated, axis=0))
    ratio, observed = scale(replicated) - middle, scale(curve.y) - middle
    for ax, values, points in ((axes[0], draws, curve.y), (axes[1], ratio, observed)):
        for mass, shade in ((0.9, 0.16), (0.5, 0.38)):
            low, high = np.quantile(values, [0.5 - mass / 2, 0.5 + mass / 2], axis=0)
            ax.fill_between(curve.x, low, high, color=COLOURS[0], alpha=shade, linewidth=0, label=f"{100 * mass:g} %")
        ax.scatter(curve.x, points, s=10, color=INK, zorder=3, label="observed")
        ax.set_xlabel(as_label(wrapped(curve.x_label, WIDTH / 4)))
        if curve.x[-1] / curve.x[0] > 20:
            log_axis(ax.xaxis, curve.x[0], curve.x[-1], most=NARROW)
        else:
            linear_axis(ax.xaxis, curve.x[0], curve.x[-1])
            ax.locator_params(axis="x", nbins=NARROW - 1)
    linear_axis(axes[1].yaxis, *axes[1].get_ylim())
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    if np.all(low > 0):
        log_axis(axes[0].yaxis, min(low.min(), curve.y.min()), max(high.max(), curve.y.max()))
    axes[0].set_ylabel(as_label(wrapped(curve.y_label, HEIGHT / 2)))
    axes[0].set_title("prior predictive", fontsize="medium", loc="left")
    axes[0].legend(fontsize="x-small", frameon=False)
    axes[1].set_ylabel(f"{'log of y over' if scale is np.log else 'y less'} the replicates' median")
    axes[1].set_title("posterior predictive", fontsize="medium", loc="left")
    axes[2].set_title("leave-one-out PIT", fontsize="medium", loc="left")
    try:
        pit = loo(fit)["pit"].to_numpy()
    except InvalidArgumentError as error:
        axes[2].text(0.5, 0.5, as_label(textwrap.fill(str(error), 36)), ha="center", va="center", fontsize="small", color=MUTED)
        axes[2].set_axis_off()
    else:
        points, difference, low, high = ecdf_band(pit[np.isfinite(pit)])
        axes[2].fill_between(points, low, high, color="#BBBBBB", alpha=0.5, linewidth=0, step="mid")
        axes[2].plot(points, difference, color=COLOURS[0])
        axes[2].axhline(0.0, color=INK, linewidth=0.6)
        axes[2].set_xlabel("PIT")
        axes[2].set_ylabel("ECDF difference")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def prior_predictive(fit: Fit, draws: int = PRIOR_CURVES) -> Array:
    """Noisy curves drawn from the prior at the context's x, in the user's units, shape (draws, n)."""
    frame = fit.frame
    backend = "torch" if fit.engine == "pfn" else "jax"
    y = fit.prior.draw(draws, frame.x_to(fit.curve.x), frame, fit.seed, backend)[2]
    return np.asarray(y) * frame.y_scale

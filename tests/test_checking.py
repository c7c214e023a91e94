"""Checks of one fit: ArviZ reads it, leave-one-out is what it says, and thresholds lead to remedies."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz_plots
import arviz_stats
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import logit

import hybrid
from hybrid import checking
from hybrid.amortized import release
from hybrid.checking import prior_predictive
from hybrid.models.thresholds import MAX_RHAT

mpl.use("agg")
# Of the weights of few points, by ArviZ and by us.
pytestmark = pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning", "ignore:k-hat is [.]:UserWarning")
ENGINES = ("nuts", "pfn")


@pytest.fixture(scope="module")
def fits() -> dict[str, hybrid.Fit]:
    curve = hybrid.load_example("cerebras_gpt_pile")
    return {engine: hybrid.fit(curve, "m4", engine, progress=False) for engine in ENGINES}


@pytest.mark.parametrize("engine", ENGINES)
def test_arviz_functions_run_on_the_datatree_as_it_is(fits: dict[str, hybrid.Fit], engine: str) -> None:
    data = fits[engine].data
    names = ["y_first", "sigma"]
    assert list(arviz_stats.summary(data, var_names=names, round_to="none").index) == names
    assert float(arviz_stats.ess(data, var_names=names)["sigma"]) > 100
    if engine == "nuts":
        assert float(arviz_stats.rhat(data, var_names=names)["sigma"]) < 1.05
        assert float(arviz_stats.bfmi(data)["energy"].min()) > 0.1
    assert np.isfinite(arviz_stats.loo(data).elpd)
    assert set(names) <= set(arviz_stats.psense_summary(data, var_names=names).index)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("plot", "options"),
    [
        ("plot_ppc_dist", {}),
        ("plot_ppc_pit", {}),
        ("plot_loo_pit", {}),
        ("plot_trace_dist", {"var_names": ["y_first", "sigma"]}),
        ("plot_forest", {"var_names": ["y_first", "sigma"]}),
        ("plot_pair", {"var_names": ["y_first", "sigma"]}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of ArviZ's own
def test_arviz_plots_run_on_the_datatree_as_it_is(
    fits: dict[str, hybrid.Fit], engine: str, plot: str, options: dict[str, Any]
) -> None:
    assert getattr(arviz_plots, plot)(fits[engine].data, backend="matplotlib", **options) is not None
    importlib.import_module("matplotlib.pyplot").close("all")


def test_health_of_chains_has_thresholds_sources_and_remedies(fits: dict[str, hybrid.Fit]) -> None:
    fit = fits["nuts"]
    table = hybrid.health(fit)
    assert table["ok"].all()
    assert (table["source"] != "").all()
    assert (table["remedy"] == "").all()
    assert table.loc["R-hat", "value"] == pytest.approx(fit.info["max_rhat"], abs=2e-3)
    stuck = {name: value.copy() for name, value in fit.result.draws.items()}
    stuck["sigma"][0] *= 3.0
    sick = dataclasses.replace(fit, result=dataclasses.replace(fit.result, draws=stuck))
    found = hybrid.health(sick)
    assert not found.loc["R-hat", "ok"]
    assert found.loc["R-hat", "value"] > MAX_RHAT
    assert "draws=" in found.loc["R-hat", "remedy"]


def changed(fit: hybrid.Fit, draws: Callable[[Any], Any] | None = None, **stats: Callable[[Any], Any]) -> hybrid.Fit:
    """A fit with other draws of sigma, or other statistics of its chains."""
    result = fit.result
    made = {name: value if draws is None else draws(value) for name, value in result.draws.items()}
    told = {name: stats[name](value) if name in stats else value for name, value in result.sample_stats.items()}
    return dataclasses.replace(fit, result=dataclasses.replace(result, draws=made, sample_stats=told))


def one_after_another(value: np.ndarray) -> np.ndarray:
    """The same draws, in an order in which neighbours are alike, each chain's spread over the whole posterior."""
    order = np.sort(value.reshape(-1))
    return np.concatenate([order[::2], order[1::2][::-1]]).reshape(value.shape[::-1]).T


def rare_tail(value: np.ndarray) -> np.ndarray:
    """Chains that visit the tails once, for a long time, and are independent elsewhere."""
    flat = value.copy()
    for chain in flat:
        low, high = np.quantile(chain, [0.06, 0.94])
        outside = (chain < low) | (chain > high)
        chain[:] = np.concatenate([np.sort(chain[outside]), chain[~outside]])
    return flat


def wide(energy: np.ndarray) -> np.ndarray:
    """Energies of which a new momentum changes a small part alone."""
    return 4.0 * energy


@pytest.mark.parametrize(
    ("check", "draws", "stats"),
    [
        ("bulk ESS", one_after_another, {}),
        ("tail ESS", rare_tail, {}),
        ("MCSE of the mean over sd", one_after_another, {}),
        ("divergent transitions", None, {"diverging": lambda value: np.arange(value.size).reshape(value.shape) % 20 == 0}),
        ("BFMI", None, {"energy": wide}),
    ],
)
def test_each_threshold_of_the_chains_is_judged(
    fits: dict[str, hybrid.Fit], check: str, draws: Callable[[Any], Any] | None, stats: dict[str, Callable[[Any], Any]]
) -> None:
    row = hybrid.health(changed(fits["nuts"], draws, **stats)).loc[check]
    assert not row["ok"]
    assert row["remedy"] != ""


def test_health_of_amortized_draws_is_k_hat_and_the_training_range(fits: dict[str, hybrid.Fit]) -> None:
    fit = fits["pfn"]
    table = hybrid.health(fit)
    assert table.loc["k-hat of the parameter draws", "value"] == pytest.approx(fit.pareto_k)
    assert bool(table.loc["curve like those trained on", "ok"]) == (fit.status == "ok")
    x = np.geomspace(1.0, 1000.0, 60)
    waves = hybrid.fit(hybrid.Curve(x, (0.5 + x**-0.5) * np.exp(0.005 * np.sin(4.0 * np.log(x)))), "m4", "pfn")
    table = hybrid.health(waves)
    assert table.loc["curve like those trained on", "ok"]  # but for its residuals
    assert not table.loc["residuals scatter", "ok"]
    assert "'m4_drift'" in table.loc["residuals scatter", "remedy"]
    with pytest.raises(hybrid.InvalidArgumentError, match="point estimate"):
        hybrid.health(hybrid.fit(fit.curve, "m1", "least_squares", progress=False))


def test_leave_one_out_by_weights_is_that_of_arviz(fits: dict[str, hybrid.Fit]) -> None:
    fit = fits["nuts"]
    table = hybrid.loo(fit)
    alone = fit.data.copy()
    alone["posterior"] = type(alone)(alone["posterior"].to_dataset()[[p.name for p in fit.prior.parameters]])
    reference = arviz_stats.loo(alone, pointwise=True)
    np.testing.assert_allclose(table["elpd"], reference.elpd_i, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(table["k_hat"], reference.pareto_k, rtol=1e-6, atol=1e-6)
    assert table["pit"].between(0, 1).all()
    assert list(table["y"]) == list(fit.curve.y)


def test_leave_one_out_does_not_depend_on_what_overflows(fits: dict[str, hybrid.Fit]) -> None:
    """A textbook parameter does in some unit of x; ArviZ would reckon with it, and take another tail of the weights."""
    fit = dataclasses.replace(fits["nuts"])
    posterior = fits["nuts"].data["posterior"].to_dataset()
    vars(fit)["data"] = fits["nuts"].data.copy()
    fit.data["posterior"] = type(fit.data)(posterior.assign(beta=posterior["beta"].where(posterior["draw"] > 3, np.inf)))
    pd.testing.assert_frame_equal(hybrid.loo(fit), hybrid.loo(fits["nuts"]))


def test_leave_one_out_of_the_network_is_a_forecast_from_the_rest(fits: dict[str, hybrid.Fit]) -> None:
    fit = fits["pfn"]
    table = hybrid.loo(fit)
    x, y = fit.curve.x, fit.curve.y
    rest = hybrid.Curve(np.delete(x, 2), np.delete(y, 2))
    other = hybrid.fit(rest, "m4", "pfn", fit.horizon, fit.y_scale)
    assert table["elpd"].iloc[2] == pytest.approx(float(other.log_density(x[2], y[2])[0]), abs=1e-3)
    assert table["pit"].iloc[2] == pytest.approx(float(other.prob_below(x[2], y[2])[0]), abs=1e-3)
    assert table["k_hat"].isna().all()


def test_leave_one_out_is_by_the_weights_of_the_fit(fits: dict[str, hybrid.Fit], tmp_path: Path) -> None:
    curve = fits["pfn"].curve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "EVALUATED", 256)
        card = hybrid.train("m4", "small", tmp_path, device="cpu", progress=False, steps=1, batch=8)
    assert card is not None
    other = hybrid.loo(hybrid.fit(curve, "m4", "pfn", checkpoint=card.path))
    assert np.abs(other["elpd"] - hybrid.loo(fits["pfn"])["elpd"]).max() > 0.01


def test_few_draws_have_no_k_hat(fits: dict[str, hybrid.Fit]) -> None:
    table = hybrid.health(hybrid.fit(fits["pfn"].curve, "m4", "pfn", draws=1))
    row = table.loc["k-hat of the parameter draws"]
    assert np.isnan(row["value"])
    assert not row["ok"]
    assert "draws=100" in row["remedy"]


def test_leave_one_out_needs_points(fits: dict[str, hybrid.Fit]) -> None:
    del fits
    few = hybrid.Curve([1.0, 2.0, 4.0], [1.0, 0.8, 0.7])
    with pytest.raises(hybrid.InvalidArgumentError, match="at least 3 different x without any one point, and the curve has 3"):
        hybrid.loo(hybrid.fit(few, "m4", "pfn"))
    twice = hybrid.Curve(np.repeat([1.0, 2.0, 4.0], 2), [1.0, 1.01, 0.8, 0.81, 0.7, 0.69])
    assert np.all(np.isfinite(hybrid.loo(hybrid.fit(twice, "m4", "pfn"))["elpd"]))


def test_a_figure_that_cannot_be_made_is_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    plt = importlib.import_module("matplotlib.pyplot")
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    monkeypatch.setattr(checking, "prior_predictive", lambda _: 1 / 0)
    before = plt.get_fignums()
    with pytest.raises(ZeroDivisionError):
        hybrid.plot_checks(fit)
    assert plt.get_fignums() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_sensitivity_is_that_of_arviz_and_says_what_dominates(fits: dict[str, hybrid.Fit], engine: str) -> None:
    fit = fits[engine]
    table = hybrid.sensitivity(fit)
    names = [p.name for p in fit.prior.parameters]
    assert list(table.index) == names
    data, posterior = fit.data.copy(), fit.data["posterior"].to_dataset()
    real = {"y_first": np.log, "y_ratio": logit, "floor": logit, "saturation": logit, "alpha": np.log, "sigma": np.log}
    assert set(real) == set(names)
    data["posterior"] = xr.DataTree(posterior.assign({name: real[name](posterior[name]) for name in names}))
    reference = arviz_stats.psense_summary(data, var_names=names)
    for column in ("prior", "likelihood"):
        np.testing.assert_allclose(table[column], reference[column], atol=2e-3)
    said = {"✓": "✓", "potential prior-data conflict": "sensitive to both"}  # which fits of the prior's own curves are too
    said["potential strong prior / weak likelihood"] = "strong prior, weak likelihood"
    assert list(table["diagnosis"]) == [said[word] for word in reference["diagnosis"]]
    # seven points tell the level, and next to nothing of where an upper plateau is
    assert float(table.loc["y_first", "likelihood"]) > 0.05
    assert float(table.loc["saturation", "prior"]) > float(table.loc["y_first", "prior"])


def test_sensitivity_needs_draws_of_all_parameters(fits: dict[str, hybrid.Fit]) -> None:
    fit = hybrid.fit(fits["pfn"].curve, "nsl", "pfn", progress=False)
    with pytest.raises(hybrid.InvalidArgumentError, match="no draws of all parameters"):
        hybrid.sensitivity(fit)
    point = hybrid.fit(fit.curve, "m4", "least_squares", progress=False)
    with pytest.raises(hybrid.InvalidArgumentError, match="a point estimate has no posterior whose sensitivity could be told"):
        hybrid.sensitivity(point)
    other = hybrid.fit(fit.curve, "m4", "pfn", progress=False)
    with pytest.raises(hybrid.InvalidArgumentError, match="and these are under 'm4' and 'nsl': fit one of them again"):
        hybrid.agreement(other, fit)
    with pytest.raises(hybrid.InvalidArgumentError, match="and these are of different curves"):
        hybrid.agreement(other, hybrid.fit(fit.curve.hold_out(1), "m4", "pfn", progress=False))


@pytest.mark.parametrize("engine", ENGINES)
def test_figure_of_checks(fits: dict[str, hybrid.Fit], engine: str) -> None:
    figure = hybrid.plot_checks(fits[engine])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["prior predictive", "posterior predictive", "leave-one-out PIT"]
    importlib.import_module("matplotlib.pyplot").close(figure)


@pytest.mark.parametrize("engine", ENGINES)
def test_prior_predictive_is_in_the_units_of_y(fits: dict[str, hybrid.Fit], engine: str) -> None:
    fit = fits[engine]
    draws = prior_predictive(fit, 400)
    assert draws.shape == (400, fit.curve.x.size)
    assert np.median(draws[:, 0]) == pytest.approx(fit.y_scale, rel=0.2)  # y_first has median 1 in coordinates


@pytest.mark.parametrize("draws", [1, 7, 24])
def test_few_draws_are_said_to_be_too_few(draws: int) -> None:
    """ArviZ smooths the tail of the weights, which must have five."""
    curve = hybrid.load_example("cerebras_gpt_pile")
    fit = hybrid.fit(curve, "m4", "pfn", draws=draws, forecast="draws", progress=False)
    assert fit.pareto_k == np.inf
    assert not fit.is_trusted
    assert "k-hat inf" in fit.verdict
    for check in (hybrid.loo, hybrid.sensitivity):
        with pytest.raises(hybrid.InvalidArgumentError, match="25 draws"):
            check(fit)


def test_bands_of_checks_are_whole_where_noise_makes_y_negative() -> None:
    shared = hybrid.get_prior("m1")
    prior = hybrid.Prior("additive", shared.law, shared.parameters, "normal").replace(sigma={"loc": -1.0, "scale": 0.1})
    x = np.geomspace(1.0, 1000.0, 12)
    y = np.abs(x**-0.5 + 0.3 * np.random.default_rng(0).standard_normal(12)) + 0.01
    fit = hybrid.fit(hybrid.Curve(x, y), prior, "nuts", draws=200)
    assert float(fit.data["posterior_predictive"]["y"].min()) < 0
    figure = hybrid.plot_checks(fit)
    assert figure.axes[1].get_ylabel().startswith("y less")
    for band in (*figure.axes[0].collections[:2], *figure.axes[1].collections[:2]):
        assert len(band.get_paths()[0].vertices) == 2 * 12 + 3

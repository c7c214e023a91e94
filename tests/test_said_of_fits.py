"""What is said of a fit and of its evidence: whether its forecasts follow from its draws, what is of what, and what to do."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpyro.distributions import biject_to
from synthetic import few_joint_curves

import hybrid
from hybrid import ReportError, calibrating, checking, reporting
from hybrid.amortized.engine import _doubt
from hybrid.amortized.importance import pareto_k, trusted_k
from hybrid.cli import main
from hybrid.models.engine import EngineResult
from hybrid.models.least_squares import _free, _solver
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior
from hybrid.models.residuals import FOLLOW_ONE_ANOTHER, RISES
from hybrid.result import Fit

CURVE = hybrid.load_example("cerebras_gpt_pile")
AGAINST = "cdf of the network less that of its draws"


class Ending(hybrid.Law):
    """A line in log x, which falls below 0 somewhere beyond the data."""

    name = "ending"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["a"] - theta["b"] * xp.log(x)


ENDING = [
    hybrid.Parameter("a", hybrid.Distribution("LogNormal", loc=0.0, scale=0.3)),
    hybrid.Parameter("b", hybrid.Distribution("LogNormal", loc=-2.0, scale=0.3)),
    hybrid.Parameter("sigma", hybrid.Distribution("LogNormal", loc=-4.0, scale=1.0)),
]


def test_health_holds_the_network_against_its_draws() -> None:
    sound = hybrid.health(hybrid.fit(CURVE, "m4", "pfn")).loc[AGAINST]
    assert sound["ok"]
    assert 0.0 < sound["value"] <= 0.1
    rising = hybrid.fit(hybrid.load_example("pythia_truthfulqa_inverse", holdout=2), "m4", "pfn")
    assert rising.reasons[:2] == (FOLLOW_ONE_ANOTHER, RISES)
    assert "rises by 4 %, as no curve of prior 'm4' does" in rising.reasons[2]
    table = hybrid.health(rising)
    assert not table.loc[AGAINST, "ok"]
    assert "forecast='draws'" in table.loc[AGAINST, "remedy"]
    by_draws = hybrid.fit(rising.curve, "m4", "pfn", forecast="draws")
    difference = hybrid.agreement(by_draws, rising).table["cdf_max"].max()
    assert table.loc[AGAINST, "value"] == pytest.approx(difference, abs=0.02)
    assert AGAINST not in hybrid.health(by_draws).index
    assert AGAINST not in hybrid.health(hybrid.fit(CURVE, "nsl", "pfn")).index


def test_statistics_of_proposals_are_said_to_be_so() -> None:
    stats = hybrid.fit(CURVE, "m4", "pfn", draws=50).data["sample_stats"]
    assert "not of the draws beside it" in stats["log_ratio"].attrs["meaning"]
    assert "nats" in stats["lp"].attrs["meaning"]
    assert "meaning" not in stats["log_q"].attrs


@pytest.fixture(scope="module")
def drifting() -> Fit:
    """Draws of the prior in place of a posterior."""
    prior = get_prior("m4_drift")
    frame = hybrid.fit(CURVE, "m4", "least_squares").frame
    drawn = prior.sample(60, frame.x_to(CURVE.x), seed=0)
    draws = {p.name: np.asarray(drawn[p.name].to_numpy(), dtype=float)[None] for p in prior.parameters}
    return Fit(CURVE, prior, "nuts", 10 * CURVE.x[-1], frame.y_scale, 0, EngineResult(draws, {}, "ok", (), {}))


def test_what_a_drift_is_made_of_has_no_prior_of_its_own_to_be_sensitive_to(
    drifting: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    said = pd.DataFrame({"diagnosis": ["✓"]})
    monkeypatch.setattr("arviz_stats.psense_summary", lambda _, **options: asked.append(options) or said)
    hybrid.sensitivity(drifting)
    assert isinstance(drifting.prior, hybrid.Prior)
    inner = set(drifting.prior.integrable)
    assert len(inner) > 5
    expected = [p.name for p in drifting.prior.parameters if p.name not in inner]
    assert asked == [{"var_names": expected, "prior_var_names": expected}]


def test_densities_given_the_drift_are_said_to_be_so(drifting: Fit) -> None:
    assert "hybrid.loo" in drifting.data["log_likelihood"].attrs["meaning"]
    assert "meaning" not in hybrid.fit(CURVE, "m4", "pfn", draws=50).data["log_likelihood"].attrs


def test_the_remedy_for_weights_that_cannot_be_trusted_can_be_followed(drifting: Fit) -> None:
    by_draws = hybrid.fit(CURVE, "m4", "pfn", forecast="draws", draws=50)
    assert "forecast='network'" in checking._without_weights(by_draws)
    assert "engine='pfn'" in checking._without_weights(dataclasses.replace(by_draws, engine="nuts"))
    assert "fit again without those points" in checking._without_weights(drifting)


def test_fewer_draws_ask_for_better_weights() -> None:
    assert trusted_k(10**6) == 0.7
    assert trusted_k(1200) == pytest.approx(0.6752, abs=1e-4)
    assert trusted_k(100) == 0.5


@pytest.fixture(scope="module")
def few() -> hybrid.Calibration:
    """A calibration of few curves."""
    with few_joint_curves():
        return hybrid.calibrate("m4", "pfn", 24, progress=False)


def test_evidence_outlives_a_report_that_fails(
    few: hybrid.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise ReportError("the kernel did not start")

    monkeypatch.setattr(reporting, "_page", fail)
    monkeypatch.setattr(calibrating, "calibrate", lambda *_: few)
    result = CliRunner().invoke(main, ["calibrate", "--prior", "m4", "--simulations", "24", "--out", str(tmp_path / "m4.html")])
    assert result.exit_code == 2
    assert f"the kernel did not start; the evidence is in {tmp_path / 'm4.evidence.nc'}: `hybrid report" in result.output
    assert hybrid.load_calibration(tmp_path / "m4.evidence.nc").data["predictive"].sizes["draw"] == 24


def test_least_squares_rounds_alike_whatever_threads_there_are() -> None:
    """XLA's matrix products depend on whether it may use threads, as it may here and not in the workers of a benchmark."""
    prior = get_prior("bnsl")
    free = tuple(_free(p) for p in prior.parameters if p.name != "sigma")
    solver = _solver(prior.law, free, None)
    u, x, size = np.zeros((1, 2, len(free))), np.ones((1, 16)), np.ones(len(free))
    data = (u, x, x, x, np.ones((1, 6)), -size, size)
    lowered = jax.jit(lambda *arrays: solver.improve(*arrays, steps=3, tol=1e-9)).lower(*data).as_text()
    assert "stablehlo.while" in lowered
    assert "dot_general" not in lowered


@pytest.mark.parametrize("plot", ["plot_coverage", "plot_recovery"])
def test_figures_of_a_calibration_of_few_curves(few: hybrid.Calibration, plot: str) -> None:
    table = few.coverage()
    assert isinstance(table, pd.DataFrame)
    assert table.loc["all", "curves"] == 24
    assert 0.0 < table.loc["all", "error"] < 0.1
    draw: Callable[[], Any] = getattr(few, plot)
    figure = draw()
    figure.canvas.draw()
    assert all(ax.get_position().width > 0.14 for ax in figure.axes if ax.get_visible())
    if plot == "plot_coverage":
        shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        rare = [name for name, row in table.iterrows() if row["curves"] < 20]
        assert rare
        assert not [label for label in shown if label.split(" (")[0] in rare]


@pytest.mark.parametrize("name", ["m4", "bnsl"])
def test_both_engines_mean_the_same_by_lp(name: str) -> None:
    """The joint log density of the parameters' unconstrained values, whatever the sampler rescales."""
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    for engine in ("nuts", "pfn"):
        fit = hybrid.fit(CURVE, prior, engine)
        draws = {k: np.ravel(v) for k, v in fit.result.draws.items()}
        with jax.enable_x64():
            joint = np.asarray(prior.log_density(draws, fit.frame.x_to(CURVE.x), CURVE.y / fit.y_scale, fit.frame))
            for parameter in prior.parameters:
                bijection = biject_to(parameter.distribution.numpyro().support)
                joint = joint + np.asarray(
                    bijection.log_abs_det_jacobian(bijection.inv(draws[parameter.name]), draws[parameter.name])
                )
        np.testing.assert_allclose(np.ravel(fit.result.sample_stats["lp"]), joint, atol=1e-6, err_msg=engine)


def test_few_draws_are_trusted_as_far_as_their_number_allows() -> None:
    fit = hybrid.fit(CURVE, "m4", "pfn", draws=100)
    for k, trusted in ((0.45, True), (0.55, False)):  # the limit for 100 draws is .5
        vars(fit)["pareto_k"] = k
        assert fit.is_trusted is trusted
        assert hybrid.health(fit).loc["k-hat of the parameter draws", "ok"] == trusted
    ratio = {"log_ratio": np.sort(np.random.default_rng(0).pareto(1.5, 100))[None]}
    assert 0.5 < pareto_k(np.log(ratio["log_ratio"]), 0.0) < 0.7
    assert "0.5 or more cannot be trusted" in _doubt({"log_ratio": np.log(ratio["log_ratio"])})[0]


def test_a_warning_names_the_line_that_asked() -> None:
    """Of an x beyond which the law of some draws has no value."""
    ending = hybrid.fit(CURVE, Prior("ending", Ending(), ENDING), "least_squares", progress=False)
    for ask in (
        lambda: ending.predict([1e30]),
        lambda: ending.log_density([1e30], [1.0]),
        lambda: ending.prob_below([1e30], 1.0),
    ):
        with pytest.warns(UserWarning, match="forecast is NaN") as told:
            ask()
        (undefined,) = [w for w in told if "forecast is NaN" in str(w.message)]
        assert (undefined.filename, undefined.lineno) == (__file__, ask.__code__.co_firstlineno)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"design": "x"}, "design must be a hybrid.Design"),
        ({"cache": "draws.npz"}, "cache and workers are for engine 'nuts'"),
        ({"workers": 2}, "cache and workers are for engine 'nuts'"),
        ({"engine": "nuts", "cache": 5}, "cache must be the path"),
    ],
)
def test_calibration_refuses_what_it_does_not_take(options: dict[str, Any], words: str) -> None:
    with pytest.raises(hybrid.InvalidArgumentError, match=words):
        hybrid.calibrate("m4", **{"engine": "pfn", "simulations": 16, **options})

"""Forecasts of the amortized engine by its parameter draws instead of its network."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import power_law_curve

import hybrid
from hybrid import fitting
from hybrid.amortized import engine
from hybrid.cli import main
from hybrid.diagnostics.datatree import flat_draws
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.predictive import MixturePredictive
from hybrid.models.registry import get_prior
from hybrid.result import Fit

X = np.array([150.0, 400.0])
SCALES = {"horizon": 500.0, "y_scale": 1.0}


@pytest.fixture(scope="module")
def fit() -> Fit:
    return hybrid.fit(power_law_curve(), "m4", "pfn", forecast="draws", progress=False, **SCALES)


def test_forecasts_are_averages_over_the_draws(fit: Fit) -> None:
    prior = get_prior("m4")
    mixture = MixturePredictive(prior, flat_draws(fit.result.draws), fit.frame)
    np.testing.assert_array_equal(fit.predict(X, [0.1, 0.9])["quantiles"], mixture.quantile(X, [0.1, 0.9]))
    np.testing.assert_array_equal(fit.log_density(X, [0.4, 0.36]), mixture.log_density(X, np.array([0.4, 0.36])))
    np.testing.assert_array_equal(fit.sample(X, 5), mixture.sample(X, 5, fit.seed))
    assert fit.by_draws
    assert "2000 draws by a network" in fit.verdict


def test_they_are_near_those_of_the_network(fit: Fit) -> None:
    network = hybrid.fit(power_law_curve(), "m4", "pfn", **SCALES)
    assert not network.by_draws
    found, other = (f.predict(X, [0.05, 0.5, 0.95])["quantiles"].to_numpy() for f in (fit, network))
    np.testing.assert_allclose(found, other, atol=0.15 * (other[2] - other[0]).max())


def test_a_saved_fit_needs_no_weights(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit.save(tmp_path / "fit.nc")
    monkeypatch.setattr(engine, "cards", list)
    loaded = hybrid.load_fit(tmp_path / "fit.nc")
    np.testing.assert_allclose(loaded.predict(X)["quantiles"], fit.predict(X)["quantiles"], rtol=1e-9)
    assert loaded.verdict == fit.verdict


def test_leaving_one_out_weighs_the_draws(fit: Fit) -> None:
    with pytest.warns(UserWarning, match=r"k-hat is \.697 or more at x = 1: "):  # the end point's, and no other
        smoothed = hybrid.loo(fit)
    exact = hybrid.loo(hybrid.fit(power_law_curve(), "m4", "pfn", **SCALES))
    assert np.all(np.isfinite(smoothed["k_hat"]))
    assert np.all(np.isnan(exact["k_hat"]))
    reliable = (smoothed["k_hat"] < 0.7).to_numpy()
    assert reliable.mean() > 0.5
    apart = np.abs(smoothed["elpd"] - exact["elpd"]).to_numpy()
    inner = reliable & (np.arange(reliable.size) > 0) & (np.arange(reliable.size) < reliable.size - 1)
    assert apart[inner].max() < 0.3
    assert np.max(apart[reliable]) < 1.0  # without an end point the anchors of the levels lie elsewhere: it is another prior


def test_draws_that_cannot_be_trusted_are_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pareto_k", lambda *_: 0.83)
    doubtful = hybrid.fit(power_law_curve(), "m4", "pfn", forecast="draws", progress=False, **SCALES)
    assert doubtful.status == "needs_review"
    assert "k-hat 0.83" in doubtful.reasons[-1]
    assert "engine='nuts'" in doubtful.reasons[-1]
    monkeypatch.setattr(engine, "pareto_k", lambda *_: 1 / 0)  # the network's own forecasts do not ask for it
    assert hybrid.fit(power_law_curve(), "m4", "pfn", **SCALES).status == "ok"


def test_auto_forecasts_by_the_draws_it_judges_by() -> None:
    assert hybrid.fit(power_law_curve(), "m4", "auto", progress=False, **SCALES).by_draws
    assert not hybrid.fit(power_law_curve(), "nsl", "auto", progress=False).by_draws


def test_auto_draws_no_parameters_of_curves_that_lie_outside_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_draw_posterior", lambda *_: 1 / 0)
    monkeypatch.setattr(engine, "_verdict", lambda *_: ("It lies outside.",))
    monkeypatch.setattr(fitting, "_gradient_based", lambda _: False)  # else NUTS would take over
    fit = hybrid.fit(power_law_curve(), "m4", "auto", progress=False, **SCALES)
    assert fit.reasons == ("It lies outside.",)
    assert not fit.by_draws


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="forecast must be 'network' or 'draws', got 'both'"):
        hybrid.fit(power_law_curve(), "m4", "pfn", forecast="both")
    with pytest.raises(InvalidArgumentError, match=r"'nsl' draws no parameters.*forecast='network'"):
        hybrid.fit(power_law_curve(), "nsl", "pfn", forecast="draws")


def test_the_command_takes_options_of_the_engine() -> None:
    call = ["fit", "example:cerebras_gpt_pile", "--holdout", "2", "--prior", "m4", "--engine", "pfn"]
    result = CliRunner().invoke(main, [*call, "--set", "forecast=draws", "--set", "draws=500"])
    assert result.exit_code == 0, result.output
    assert "m4 on cerebras_gpt_pile by pfn: 500 draws by a network" in result.stdout
    for setting, words in (("seed=1", "'seed' is none"), ("draft=1", "no option 'draft'"), ("draws", "NAME=VALUE")):
        result = CliRunner().invoke(main, [*call, "--set", setting])
        assert result.exit_code == 2
        assert words in result.stderr

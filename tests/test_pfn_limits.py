"""Where the amortized engine's answers end, and that it says so: few draws, early positions, unit coordinates, threads."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import power_law_curve

import hybrid
from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.design import Design
from hybrid.amortized.predictive import Contexts
from hybrid.amortized.sampler import sample_curves
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.registry import get_prior


def test_a_few_joint_curves_hang_together_as_many_do() -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    x = fit.curve.x[-1] * np.array([3.0, 3.3])
    many = np.log(fit.sample(x, 400, seed=0).to_numpy())
    few = np.log(np.concatenate([fit.sample(x, 2, seed=seed).to_numpy() for seed in range(1, 41)]))
    assert few.shape == (80, 2)
    assert np.corrcoef(many.T)[0, 1] > 0.5
    assert np.corrcoef(few.T)[0, 1] == pytest.approx(np.corrcoef(many.T)[0, 1], abs=0.25)
    assert few[:, 0].std() == pytest.approx(many[:, 0].std(), rel=0.35)


def test_families_are_named_in_the_data() -> None:
    data = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "nsl", "pfn").data
    assert "4 Up" in data["posterior"]["family"].attrs["meaning"]


def test_positions_before_all_that_was_trained_on_are_warned_of() -> None:
    curve = hybrid.load_example("cerebras_gpt_pile")
    fit = hybrid.fit(curve, "m4", "pfn")
    assert fit.info["earliest"] == 1.0 / 300.0
    with pytest.warns(UserWarning, match=r"lies before .*, the earliest x that the network was trained for.*engine='nuts'"):
        fit.predict(curve.x[0] / 301.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.predict(np.append(curve.x[0] / 300.0, curve.x))


def test_positions_beyond_all_that_a_fit_was_judged_for_are_warned_of() -> None:
    curve = hybrid.load_example("cerebras_gpt_pile")
    fit = hybrid.fit(curve, "m4", "pfn")
    with pytest.warns(UserWarning, match=r"lies beyond .*, the farthest x that the fit was judged for.*engine='nuts'"):
        fit.predict(curve.x[-1] * 301.0)
    far = hybrid.fit(curve, "m4", "pfn", horizon=400.0 * curve.x[-1])
    assert "the horizon" in " ".join(far.reasons)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.predict(curve.x[-1] * 300.0)
        far.predict(curve.x[-1] * 400.0)


def test_the_verdict_counts_the_curves_of_all_runs_that_led_to_the_weights() -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    content = find_card(get_prior("m4")).content
    assert fit.info["curves"] == content["curves"] + content["origin"]["curves"]
    assert f"{fit.info['curves']:,} curves" in fit.verdict


@pytest.mark.parametrize("prior", ["m4", "bnsl", "nsl"])
def test_forecasts_before_the_first_point_are_calibrated(prior: str) -> None:
    model, _ = load_checkpoint(get_prior(prior))
    curves = sample_curves(get_prior(prior), 256, Design(context=(3, 40), before=1.0), 0, dtype=torch.float64)
    assert bool((curves.x_target < curves.x_context[:, :1]).all())
    bars = Contexts(model, curves.x_context, curves.y_context, curves.mask, curves.frame).bars(curves.x_target)
    pit = bars.cdf(curves.y_target.log()).numpy()
    assert np.mean(np.abs(pit - 0.5) < 0.25) == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.abs(pit - 0.5) < 0.45) == pytest.approx(0.9, abs=0.05)


def test_leave_one_out_is_about_the_first_point_where_the_network_was_trained_for_it() -> None:
    curve = hybrid.load_example("cerebras_gpt_pile")
    for prior, trained in (("m4", True), ("nslpfn", False)):
        elpd = hybrid.loo(hybrid.fit(curve, prior, "pfn"))["elpd"].to_numpy()
        assert np.isfinite(elpd[0]) == trained
        assert np.all(np.isfinite(elpd[1:]))
    x, y = np.array([1.0, 1.0, 2.0, 4.0, 8.0, 16.0]), np.array([3.0, 3.1, 2.6, 2.3, 2.1, 2.0])
    assert np.all(np.isfinite(hybrid.loo(hybrid.fit(hybrid.Curve(x, y), "nslpfn", "pfn"))["elpd"]))


@pytest.mark.parametrize(
    ("x", "factor", "said"),
    [
        (np.linspace(1.0, 4.0, 8), None, ""),
        (np.linspace(1.0, 4.0, 8), 9.0, ""),
        (np.linspace(1.0, 50.0, 12), 10.8, "the horizon (10.8 times"),
        (np.geomspace(1.0, 1e9, 20), None, "the width of the context in log x (9 decades; at most 2"),
    ],
)
def test_unit_coordinates_are_judged_in_the_users_units(x: np.ndarray, factor: float | None, said: str) -> None:
    noise = np.exp(0.02 * np.random.default_rng(0).standard_normal(x.size))
    curve = hybrid.Curve(x, (0.3 + 0.6 * x**-0.4) * noise)
    fit = hybrid.fit(curve, "nslpfn", "pfn", horizon=None if factor is None else factor * x[-1])
    assert said in " ".join(fit.reasons)
    if not said:
        assert "horizon" not in " ".join(fit.reasons)


def test_forecasts_beyond_all_measure_are_infinite_not_undefined() -> None:
    rng = np.random.default_rng(0)
    curve = hybrid.Curve(np.linspace(1.0, 10.0, 12), np.exp(0.1 * rng.standard_normal(12)))
    fit = hybrid.fit(curve, "bnsl", "pfn", horizon=2e17)
    found = fit.predict(1e17)
    assert not np.isnan(found["sd"])
    assert not np.any(np.isnan(fit.sample([1e17, 2e17], 20)))


def test_draws_of_a_prior_by_torch_are_the_same_in_threads() -> None:
    prior = get_prior("m4")

    def drawn(seed: int) -> np.ndarray:
        return prior.sample(3, np.array([0.1, 1.0]), seed=seed % 3, backend="torch")["y"].to_numpy()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(drawn, range(24)))
    for seed, draws in enumerate(found):
        np.testing.assert_array_equal(draws, drawn(seed))


@pytest.mark.parametrize("change", [{"targets": 2.5}, {"context": (3.5, 10)}, {"context": (3, 10.0)}, {"context": (2, 10)}])
def test_sizes_of_a_design_are_integers(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="must be"):
        Design(**change)
    with pytest.raises((InvalidArgumentError, FileFormatError), match="must be"):
        Design.from_dict({**Design().to_dict(), **change})


def test_agreement_is_judged_at_the_horizon_too() -> None:
    curve = power_law_curve()
    fit = hybrid.fit(curve, "m4", "pfn", horizon=2.9 * curve.x[-1])
    found = hybrid.agreement(fit, fit)
    assert list(found.table["x_ratio"]) == pytest.approx([1, 1.5, 2, 2.9])
    assert "where they differ most" in found.verdict


def test_sensitivity_is_of_parameters_on_the_real_line() -> None:
    """Where the data say next to nothing of alpha, its posterior is as wide as its prior, and no conflict."""
    fit = hybrid.fit(power_law_curve(), "m4", "pfn")
    found = hybrid.sensitivity(fit)
    assert set(found.index) == {p.name for p in fit.prior.parameters}
    assert float(found.loc["alpha", "prior"]) < 0.3

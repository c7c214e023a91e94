"""Agreement of engines and importance sampling, on distributions whose answers are known."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import scoringrules
from scipy import stats

import hybrid
from hybrid.amortized.importance import pareto_k
from hybrid.diagnostics.agreement import LEVELS, c2st, cdf_differences, cdf_distance, quantile_crps, wasserstein


def test_crps_from_quantiles_is_that_of_the_normal() -> None:
    mean, sd, y = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.1, 3.0]), np.array([0.3, 1.25, 4.0])
    quantiles = stats.norm.ppf(LEVELS[:, None], mean, sd)
    np.testing.assert_allclose(quantile_crps(quantiles, LEVELS, y), scoringrules.crps_normal(y, mean, sd), rtol=0.01)


def test_crps_from_quantiles_prefers_the_truth() -> None:
    y = np.random.default_rng(0).standard_normal(4000)
    scores = [quantile_crps(np.repeat(stats.norm.ppf(LEVELS, 0, s)[:, None], 4000, 1), LEVELS, y).mean() for s in (0.7, 1, 1.4)]
    assert scores[1] < min(scores[0], scores[2])


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (0.5, None), (50.0, 0.5)])
def test_distance_of_cdfs(shift: float, expected: float | None) -> None:
    quantiles = np.repeat(stats.norm.ppf(LEVELS)[:, None], 2, 1)
    found = cdf_distance(quantiles, LEVELS, lambda y: stats.norm.cdf(y, shift))
    exact = np.median(np.abs(stats.norm.cdf(stats.norm.ppf(LEVELS), shift) - LEVELS))
    np.testing.assert_allclose(found, exact if expected is None else expected, atol=1e-9)


def test_classifier_cannot_tell_equal_draws_apart_and_can_tell_others() -> None:
    rng = np.random.default_rng(1)
    first = {"a": rng.standard_normal((4, 500)), "b": rng.standard_normal((4, 500))}
    same = {"b": rng.standard_normal(3000), "a": rng.standard_normal(3000), "extra": rng.standard_normal(3000)}
    far = {"a": rng.standard_normal(3000) + 6.0, "b": rng.standard_normal(3000)}
    assert c2st(first, same) == pytest.approx(0.5, abs=0.05)
    assert c2st(first, far) > 0.98


def test_classifier_nears_the_best_possible_accuracy() -> None:
    rng = np.random.default_rng(2)
    first, second = ({"a": rng.normal(m, 1.0, 4000)} for m in (0.0, 1.0))
    assert c2st(first, second, draws=3000) == pytest.approx(stats.norm.cdf(0.5), abs=0.03)


@pytest.mark.parametrize(("scale", "low", "high"), [(1.1, -5.0, 0.4), (1.3, -5.0, 0.4), (0.4, 0.7, 5.0)])
def test_k_hat_of_a_normal_proposal(scale: float, low: float, high: float) -> None:
    """The ratio of N(0, 1) to N(0, s) is bounded for s >= 1, and has tails of shape 1 - s^2 below that."""
    draws = np.random.default_rng(3).normal(0.0, scale, (1, 4000))
    target, proposal = stats.norm.logpdf(draws), stats.norm.logpdf(draws, 0.0, scale)
    assert low < pareto_k(target + 7.0 * (scale > 1.0), proposal) < high


def test_k_hat_counts_impossible_draws_as_weight_zero() -> None:
    draws = np.random.default_rng(4).normal(0.0, 1.0, 4000)
    target = np.where(draws > -1.0, stats.norm.logpdf(draws), -np.inf)
    assert pareto_k(target, stats.norm.logpdf(draws)) == -np.inf
    assert pareto_k(target, stats.norm.logpdf(draws, 0.0, 1.2)) < 0.5


@pytest.mark.parametrize("x", [[np.nan], [-1.0], [], "far"])
def test_agreement_refuses_positions_that_predict_refuses(x: object) -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    with pytest.raises(hybrid.InvalidArgumentError, match=r"^x "):
        hybrid.agreement(fit, fit, x)
    with pytest.raises(hybrid.InvalidArgumentError, match="two fits"):
        hybrid.agreement(fit, None)  # type: ignore[arg-type]


def test_classifier_sees_two_modes_where_mean_and_variance_are_those_of_one() -> None:
    rng = np.random.default_rng(3)
    first, second = ({k: rng.standard_normal(1000) for k in "abcde"} for _ in range(2))
    second["a"] = rng.normal(0.95 * rng.choice([-1.0, 1.0], 1000), np.sqrt(1.0 - 0.95**2))
    assert c2st(first, second) > 0.57


def test_engines_do_not_agree_where_there_is_no_forecast() -> None:
    """A forecast that is not a number at some x is named, and is no agreement."""
    curve = hybrid.load_example("cerebras_gpt_pile")
    one, other = (hybrid.fit(curve, "m4", "pfn", seed=seed) for seed in (0, 1))
    found = hybrid.agreement(one, other)
    assert found.ok
    found.table.loc[found.x[-1], "cdf"] = np.nan
    assert not found.ok
    assert found.verdict.startswith(
        f"the second pfn and the first pfn differ: there is no forecast to compare at x = {found.x[-1]:.4g}"
    )
    found.table["cdf"] = np.nan
    assert not found.ok
    assert "predictive cdfs" not in found.verdict


def altered(fit: hybrid.Fit, change: Callable[[np.ndarray], np.ndarray]) -> hybrid.Fit:
    """The fit with its forecasts' log, in sds around their median, changed."""

    class Changed:
        def quantile(self, x: np.ndarray, levels: np.ndarray) -> np.ndarray:
            middle = np.log(fit.predictive.quantile(x, [0.5])[0])
            return np.exp(middle + change(np.log(fit.predictive.quantile(x, levels)) - middle))

        def cdf(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
            levels = np.linspace(0.0005, 0.9995, 1000)
            found = self.quantile(x, levels)
            wanted = np.broadcast_to(y, np.shape(x))
            return np.array([np.interp(v, column, levels, 0.0, 1.0) for v, column in zip(wanted, found.T, strict=True)])

    result = dataclasses.replace(fit.result, predictive=Changed())
    return dataclasses.replace(fit, result=result)


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        (lambda v: 1.0 * v, True),
        (lambda v: 0.97 * v, True),
        (lambda v: np.where(v > 0, 3.0 * v, v), False),  # the upper half is elsewhere, at the median level nothing is
        (lambda v: np.where(v < 0, 0.4 * v, v), False),
        (lambda v: 0.75 * v, False),  # 90 % intervals that hold 78 %
    ],
    ids=["same", "nearly the same", "upper half", "lower half", "narrow"],
)
def test_agreement_is_judged_at_all_levels(change: Callable[[np.ndarray], np.ndarray], agrees: bool) -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    found = hybrid.agreement(fit, altered(fit, change))
    assert found.ok == agrees, found.verdict
    assert ("agree:" in found.verdict) == agrees
    if not agrees:
        assert float(found.table["cdf_max"].max()) > 0.1 or float((found.table["inside"] - 0.9).abs().max()) > 0.05


def test_two_fits_by_one_engine_are_told_apart() -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    assert hybrid.agreement(fit, fit).verdict.startswith("the second pfn and the first pfn agree: ")
    by_draws = hybrid.fit(fit.curve, "m4", "pfn", forecast="draws")
    said = hybrid.agreement(by_draws, fit).verdict
    assert said.startswith("pfn by its network and pfn by draws agree: ")
    assert "90 % intervals of pfn by draws hold" in said


def test_two_runs_by_nuts_are_not_trusted_over_one_another() -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    one, other = (dataclasses.replace(each, engine="nuts") for each in (fit, altered(fit, lambda v: 0.6 * v)))
    assert hybrid.agreement(one, other).verdict.endswith("chains of one of them missed something: draw more")
    assert hybrid.agreement(fit, other).verdict.endswith("the chains converged: trust nuts")


def test_largest_difference_of_cdfs_is_that_of_kolmogorov_and_smirnov() -> None:
    quantiles = stats.norm.ppf(LEVELS)[:, None]

    def far(y: np.ndarray) -> np.ndarray:  # the upper 45 % of another distribution lie elsewhere
        return np.minimum(stats.norm.cdf(y), 0.55)

    assert cdf_distance(quantiles, LEVELS, far)[0] == pytest.approx(0.0, abs=1e-12)
    assert cdf_differences(quantiles, LEVELS, far).max(0)[0] == pytest.approx(0.445)


def test_draws_that_both_hold_are_no_difference() -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    assert hybrid.agreement(fit, fit).c2st == 0.5


def test_wasserstein_is_the_mean_distance_of_the_quantiles() -> None:
    one, other = (stats.norm.ppf(LEVELS, 3.0, sd)[:, None] for sd in (1.0, 2.0))
    np.testing.assert_allclose(wasserstein(one, other), np.sqrt(2.0 / np.pi), rtol=0.02)
    np.testing.assert_allclose(wasserstein(one, other + 50.0), 50.0, rtol=1e-9)


def test_figures_of_an_agreement_are_of_the_second_over_the_first() -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", "pfn")
    table = hybrid.agreement(fit, altered(fit, lambda v: 2.0 * v + np.log(1.1))).table
    quantiles = fit.predictive.quantile(table.index.to_numpy(), LEVELS)
    low, middle, high = fit.predictive.quantile(table.index.to_numpy(), [0.05, 0.5, 0.95])
    np.testing.assert_allclose(table["x_ratio"], table.index / fit.curve.x[-1])
    np.testing.assert_allclose(table["median"], 1.1, rtol=1e-6)
    np.testing.assert_allclose(table["width"], 1.1 * (high**2 - low**2) / middle / (high - low), rtol=1e-6)
    apart = np.abs(1.1 * quantiles**2 / middle - quantiles).mean(0)
    np.testing.assert_allclose(table["wasserstein"], apart / quantiles.std(0), rtol=1e-6)


def test_agreement_warns_of_positions_that_either_fit_was_not_trained_on() -> None:
    curve = hybrid.load_example("cerebras_gpt_pile")
    by_network = hybrid.fit(curve, "m4", "pfn")
    other = hybrid.fit(curve, "m4", "least_squares")
    early = by_network.trained_for[0] / 100.0
    for pair in ((by_network, other), (other, by_network), (by_network, by_network)):
        with pytest.warns(UserWarning, match="lies before") as told:
            hybrid.agreement(*pair, x=[early, float(curve.x[-1])])
        assert len(told) == 1
        assert told[0].filename == __file__

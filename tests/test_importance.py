"""Importance sampling: weights are corrected where they can be, and draws are left alone where they cannot."""

import numpy as np
import pytest
from scipy import stats

from hybrid.amortized.importance import pareto_k, resampled, surplus, truncated_weights


def test_surplus_is_the_share_that_would_be_copies() -> None:
    assert surplus(np.full(100, 0.01), 50) == 0.0
    assert surplus(np.array([0.5, *np.full(50, 0.01)]), 10) == pytest.approx(0.4)
    assert surplus(np.array([1.0, *np.zeros(9)]), 5) == pytest.approx(0.8)


def test_truncated_weights_sum_to_one_and_none_is_out_of_proportion() -> None:
    ratio = np.random.default_rng(0).normal(0, 4, 900)
    weights = truncated_weights(ratio)
    raw = np.exp(ratio - ratio.max())
    assert weights.sum() == pytest.approx(1.0)
    cut = np.minimum(raw, 30.0 * raw.mean())
    np.testing.assert_allclose(weights, cut / cut.sum())
    np.testing.assert_allclose(truncated_weights(np.full(5, -np.inf)), 0.2)
    assert truncated_weights(np.array([0.0, np.nan, -np.inf]))[1:].sum() == 0.0


@pytest.mark.parametrize(("loc", "scale", "proposals"), [(0.5, 1.0, 3), (0.5, 0.8, 24), (0.0, 1.1, 3)])
def test_resampling_moves_draws_all_the_way_to_the_target(loc: float, scale: float, proposals: int) -> None:
    rng = np.random.default_rng(1)
    means, sds, copies = [], [], []
    for _ in range(50):
        z = rng.normal(size=proposals * 1000)
        weights = truncated_weights(-0.5 * ((z - loc) / scale) ** 2 + 0.5 * z**2)
        assert surplus(weights, 1000) < 0.05
        kept = resampled(weights, 1000, rng)
        copies.append(1000 - len(set(kept.tolist())) - 1000 * surplus(weights, 1000))
        means.append(z[kept].mean())
        sds.append(z[kept].std())
    assert np.mean(means) == pytest.approx(loc, abs=0.02)
    assert np.mean(sds) == pytest.approx(scale, abs=0.015)
    assert np.mean(copies) == pytest.approx(0.0, abs=0.5)


def test_resampling_takes_each_draw_as_often_as_its_weight_says() -> None:
    weights = np.array([0.5, 0.25, 0.15, 0.1, 0.0])
    rng = np.random.default_rng(2)
    counts = np.array([np.bincount(resampled(weights, 8, rng), minlength=5) for _ in range(400)])
    assert np.all(counts >= np.floor(8 * weights))
    assert np.all(counts <= np.ceil(8 * weights))
    np.testing.assert_allclose(counts.mean(0), 8 * weights, atol=0.08)


@pytest.mark.parametrize("sd", [0.03, 0.01, 0.001, 0.0001])
def test_k_hat_of_weights_that_are_all_but_0_is_large(sd: float) -> None:
    """Exceedances that underflow gave the mean of k-hat's own prior, .05."""
    draws = np.random.default_rng(0).standard_normal(1000)
    assert pareto_k(stats.norm.logpdf(draws, 0.0, sd), stats.norm.logpdf(draws)) > 1.0


@pytest.mark.parametrize("possible", [1, 2, 5, 12])
def test_k_hat_where_few_draws_are_possible_is_infinite(possible: int) -> None:
    ratio = np.full(400, -np.inf)
    ratio[:possible] = np.random.default_rng(1).standard_normal(possible)
    assert pareto_k(ratio, 0.0) == np.inf


def test_k_hat_of_equal_largest_weights_is_minus_infinite() -> None:
    assert pareto_k(np.repeat([1.0, 0.0], [60, 340]), 0.0) == -np.inf
    assert pareto_k(np.zeros(400), 0.0) == -np.inf
    assert pareto_k(np.full(400, -np.inf), 0.0) == np.inf

"""Importance sampling: weights are corrected where they can be, and draws are left alone where they cannot."""

import numpy as np
import pytest

from hybrid.amortized.importance import resampled, surplus, truncated_weights


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


def test_resampling_moves_draws_to_the_target() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=24_000)
    weights = truncated_weights(-0.5 * ((z - 0.5) / 0.8) ** 2 + 0.5 * z**2)
    assert surplus(weights, 1000) < 0.02
    kept = resampled(weights, 1000, rng)
    assert len(set(kept.tolist())) == 1000
    assert z[kept].mean() == pytest.approx(0.5, abs=0.1)
    assert z[kept].std() == pytest.approx(0.8, abs=0.08)

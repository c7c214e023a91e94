import numpy as np
import pytest
from arviz_stats.base import array_stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.models import convergence
from hybrid.models.thresholds import MAX_RHAT


def chains(seed, correlation, shift=0.0):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((4, 500))
    found = np.empty_like(noise)
    found[:, 0] = noise[:, 0]
    for t in range(1, 500):
        found[:, t] = correlation * found[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    found[0] += shift
    return np.exp(found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.95), st.floats(0.0, 1.0))
def test_equals_arviz(seed, correlation, shift):
    draws = chains(seed, correlation, shift)
    assert convergence.rhat(draws) == pytest.approx(float(array_stats.rhat(draws, method="rank")), rel=1e-8)
    bulk = float(array_stats.ess(draws, method="bulk"))
    tail = float(array_stats.ess(draws, method="tail", prob=(0.05, 0.95)))
    assert convergence.ess_bulk(draws) == pytest.approx(bulk, rel=0.06)
    assert convergence.ess_tail(draws) == pytest.approx(tail, rel=0.06)


def test_a_shifted_chain_is_noticed():
    assert convergence.rhat(chains(0, 0.0)) < MAX_RHAT
    assert convergence.rhat(chains(0, 0.0, shift=0.5)) > MAX_RHAT


def test_constant_draws():
    flat = np.ones((4, 100))
    assert convergence.rhat(flat) == 1.0
    assert convergence.ess_bulk(flat) == 400.0


@pytest.mark.parametrize("rho", [-0.5, -0.7, -0.9])
def test_antithetic_chains_count_for_no_more_than_arviz_says(rho: float) -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        z = rng.standard_normal((4, 300))
        for k in range(1, 300):
            z[:, k] = rho * z[:, k - 1] + np.sqrt(1 - rho**2) * z[:, k]
        assert 1200 < convergence.ess_bulk(z) <= 1200 * np.log10(1200)

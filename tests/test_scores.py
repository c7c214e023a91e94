"""Scores against hand-computed values, brute force and scoringrules."""

import itertools

import numpy as np
import pytest
import scoringrules
from numpy.testing import assert_allclose

from hybrid.diagnostics.scores import (
    MSCE_LEVELS,
    bootstrap_by_group,
    coverage,
    coverage_error,
    interval_score,
    msce,
    related_group,
    rmsle,
    standard_error,
)


def test_rmsle_by_hand() -> None:
    assert_allclose(rmsle(np.array([np.e, 1.0]), np.array([1.0, np.exp(7.0)])), 5.0)  # sqrt((1 + 49) / 2)
    assert rmsle(np.array([0.5]), np.array([0.5])) == 0.0
    assert rmsle(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == np.inf
    assert rmsle(np.array([-0.1, 1.0]), np.array([1.0, 1.0])) == np.inf


def test_standard_error_of_coverage_goes_by_curve() -> None:
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.uniform(size=(4000, 300)), 8, axis=1)  # 8 points of each of 300 curves, all alike
    curve = np.repeat(np.arange(300), 8)
    found = np.array([coverage_error(pit, curve, [0.5, 0.9]) for pit in shared])
    actual = np.std([coverage(pit, [0.5, 0.9]) for pit in shared], axis=0)
    assert_allclose(found.mean(0), actual, rtol=0.05)
    apart = rng.uniform(size=(4000, 2400))
    found = np.array([coverage_error(pit, curve, [0.9]) for pit in apart[:400]])
    assert_allclose(found.mean(0), np.std([coverage(pit, [0.9]) for pit in apart], axis=0), rtol=0.05)
    assert np.isnan(coverage_error(np.array([0.2, 0.4]), np.zeros(2), [0.5])).all()


def test_coverage_equals_counting_quantile_intervals() -> None:
    rng = np.random.default_rng(0)
    forecasts = rng.normal(size=(50, 20_001))  # many draws per point, so that quantiles and ranks agree
    y = rng.normal(size=50)
    pit = np.mean(forecasts <= y[:, None], axis=1)
    for level, found in zip(MSCE_LEVELS, coverage(pit), strict=True):
        low, high = np.quantile(forecasts, [0.5 - level / 2, 0.5 + level / 2], axis=1)
        assert_allclose(found, np.mean((low <= y) & (y <= high)), atol=1e-12)
    assert_allclose(coverage(np.array([0.5, 0.74, 0.76, 1.0]), [0.5]), [0.5])


def test_msce_by_hand() -> None:
    assert_allclose(msce(np.array([0.4, 1.0]), [0.5, 0.8]), (0.01 + 0.04) / 2)
    assert_allclose(msce(np.ones(7)), 0.0789, atol=1e-4)  # as published for intervals that always cover
    assert msce(np.zeros((5, 7))).shape == (5,)


def test_msce_of_a_calibrated_forecast_has_the_stated_floor() -> None:
    n = 4
    pit = np.random.default_rng(1).uniform(size=(20_000, n))
    assert_allclose(np.mean([msce(coverage(row)) for row in pit]), 0.144 / n, rtol=0.02)


def test_interval_score_equals_scoringrules() -> None:
    rng = np.random.default_rng(2)
    y, centre, width = rng.normal(size=(3, 30))
    low, high = centre - abs(width), centre + abs(width)
    assert_allclose(interval_score(low, high, y, 0.9), scoringrules.interval_score(y, low, high, 0.1), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("bird_10/ViT/S/16", "bird_10/ViT/S"),
        ("c_25/MiX/B/16", "c_25/MiX/B"),
        ("minval_hyp10", "minval"),
        ("LM/1.07e+09", "LM"),
        ("LM/1.07e-09", "LM"),
        ("gpt/lr=1e-3", "gpt"),
        ("sweep-2e-5-B", "sweep"),
        ("base-3-large", "base"),
        ("NMT/6 Enc, 28 Dec", "NMT/6 Enc"),
        ("NMT/Dec-only", "NMT/Dec-only"),
        ("cifar10-mcnn-p20-sgd-rep2", "cifar10-mcnn"),
        ("cifar10-mcnn-p20-sgd", "cifar10-mcnn"),
        ("pythia-1.4b-deduped-5shot-v0", "pythia"),
        ("llama run 3", "llama"),
        ("v2", "v2"),
        ("GPT2-4.20B-c4-14.0", "GPT2-4.20B-c4"),
        ("pythia-70m-deduped", "pythia"),
        ("SlimPajama", "SlimPajama"),
        ("10", "10"),
        ("", ""),
    ],
)
def test_related_group(name: str, group: str) -> None:
    assert related_group(name) == group


def test_bootstrap_equals_all_resamples() -> None:
    """Three groups have 27 equally likely resamples: their mean and sd are exact, and many replicates come near."""
    values = np.array([[1.0, 2.0], [3.0, 0.0], [5.0, 7.0], [2.0, 2.0]])
    groups, weights = ["a", "a", "b", "c"], np.array([1.0, 2.0, 3.0, 1.0])
    members = {g: [i for i, own in enumerate(groups) if own == g] for g in "abc"}
    exact = []
    for chosen in itertools.product("abc", repeat=3):
        rows = [i for g in chosen for i in members[g]]
        exact.append(np.average(values[rows], axis=0, weights=weights[rows]))
    found = bootstrap_by_group(values, groups, weights, draws=40_000, seed=3)
    assert {tuple(row) for row in found.round(9).tolist()} == {tuple(row) for row in np.round(exact, 9).tolist()}
    assert_allclose(found.mean(0), np.mean(exact, 0), rtol=0.01)
    assert_allclose(standard_error(found, groups), np.std(exact, 0) * np.sqrt(3 / 2), rtol=0.02)


def test_bootstrap_of_independent_curves_is_the_usual_standard_error() -> None:
    values = np.random.default_rng(4).normal(size=(200, 1))
    groups = [str(i) for i in range(200)]
    found = standard_error(bootstrap_by_group(values, groups, draws=20_000), groups)
    assert_allclose(found, values.std() / np.sqrt(200), rtol=0.02)
    twice = standard_error(bootstrap_by_group(np.repeat(values, 2, 0), np.repeat(groups, 2).tolist(), draws=20_000), groups)
    assert_allclose(twice, found, rtol=0.02)  # copies inside a group add nothing


@pytest.mark.parametrize("count", [2, 4, 10])
def test_standard_error_of_few_groups_is_not_too_small(count: int) -> None:
    """The mean of its square is the variance of the mean over data sets; without the factor it is (G - 1) / G of that."""
    rng, groups = np.random.default_rng(5), [str(i) for i in range(count)]
    found = [standard_error(bootstrap_by_group(rng.normal(size=(count, 1)), groups, seed=k), groups) for k in range(1500)]
    assert np.mean(np.square(found)) * count == pytest.approx(1.0, rel=0.12)


def test_no_standard_error_from_one_group_or_infinite_figures() -> None:
    values = np.array([[1.0, 1.0], [2.0, -np.inf]])
    assert np.all(np.isnan(standard_error(bootstrap_by_group(values, ["a", "a"]), ["a", "a"])))
    found = standard_error(bootstrap_by_group(values, ["a", "b"]), ["a", "b"])
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_coverage_and_its_error_agree_on_what_is_missing() -> None:
    pit, curve = np.array([0.5, np.nan, 0.4]), np.array([0, 1, 1])
    assert np.all(np.isnan(coverage(pit, [0.9])))
    assert np.all(np.isnan(coverage_error(pit, curve, [0.9])))


def test_no_error_of_coverage_where_all_or_none_are_inside() -> None:
    curve = np.repeat([0, 1, 2], 4)
    for pit in (np.full(12, 0.5), np.full(12, 0.999)):
        assert np.all(np.isnan(coverage_error(pit, curve, [0.9])))
    assert np.all(coverage_error(np.linspace(0.01, 0.99, 12), curve, [0.5, 0.9]) > 0)

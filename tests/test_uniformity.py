"""Uniformity of ranks and PIT: right posteriors pass, and each way of being wrong is found and named."""

from types import SimpleNamespace

import numpy as np
import pytest
from arviz_stats.ecdf_utils import ecdf_pit
from matplotlib.axes import Axes
from scipy import stats

from hybrid.calibration_plots import plot_ranks
from hybrid.diagnostics.tarp import references_from_data, tarp_ranks
from hybrid.diagnostics.uniformity import (
    LEVEL,
    MOST,
    check_uniform,
    contraction,
    ecdf_band,
    normalised_rank,
    thinned,
)
from hybrid.models.errors import InvalidArgumentError

NOISE = 0.5
DRAWS = 200
SIMULATIONS = 256  # what `hybrid.calibrate` takes for NUTS
WRONG = {"prior": "the ranks depend on y", "narrow": "too narrow", "wide": "too wide", "shift": "shifted down"}


def conjugate(error: str, seed: int, size: int = SIMULATIONS, width: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A normal mean seen once with noise: posterior draws (size, DRAWS, width), truth and data (size, width)."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((size, width))
    y = truth + NOISE * rng.standard_normal((size, width))
    mean, sd = y / (1 + NOISE**2), np.sqrt(NOISE**2 / (1 + NOISE**2))
    if error == "prior":
        mean, sd = 0.0 * y, 1.0
    sd = sd * {"narrow": 0.8, "wide": 1.25}.get(error, 1.0)
    mean = mean + (0.3 * sd if error == "shift" else 0.0)
    return mean[:, None] + sd * rng.standard_normal((size, DRAWS, width)), truth, y


def failures(error: str, tarp: bool, runs: int = 40, width: int = 1) -> list[str]:
    """The diagnosis of each run; empty where it passes."""
    found = []
    for seed in range(runs):
        draws, truth, y = conjugate(error, seed, width=width)
        rng = np.random.default_rng(1000 + seed)
        if tarp:
            # the data themselves: what the posterior should have taken in
            references = references_from_data(y[:, 0], np.full(len(y), NOISE), width, rng)
            ranks = tarp_ranks(draws, truth, references, rng)
        else:
            ranks = normalised_rank(draws[..., 0], truth[:, 0], rng)
        found.append(check_uniform(ranks, {"y": y[:, 0]}).diagnosis)
    return found


@pytest.mark.parametrize("tarp", [False, True], ids=["ranks", "TARP"])
def test_right_posteriors_pass(tarp: bool) -> None:
    assert sum(bool(d) for d in failures("", tarp, 200)) <= 7  # at 1 % in all 2 are expected, and 8 or more in one of 900


@pytest.mark.parametrize("error", WRONG)
def test_a_wrong_posterior_is_found_and_named(error: str) -> None:
    found = failures(error, tarp=False)
    assert sum(bool(d) for d in found) >= 34
    assert sum(WRONG[error] in d for d in found) >= 34


@pytest.mark.parametrize("error", ["prior", "narrow", "shift"])
def test_tarp_finds_a_wrong_joint_posterior(error: str) -> None:
    assert sum(bool(d) for d in failures(error, tarp=True, width=4)) >= 34


def pit_diagnosis(error: str, seed: int) -> str:
    """Of the PIT of a new noisy measurement per simulation, by the cdf of the forecast: no draws are needed."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(SIMULATIONS)
    y = truth + NOISE * rng.standard_normal(SIMULATIONS)
    new = truth + NOISE * rng.standard_normal(SIMULATIONS)
    mean, sd = y / (1 + NOISE**2), np.sqrt(NOISE**2 / (1 + NOISE**2) + NOISE**2)
    if error == "prior":
        mean, sd = 0.0 * y, np.sqrt(1 + NOISE**2)
    sd *= {"narrow": 0.8, "wide": 1.25}.get(error, 1.0)
    mean = mean + (0.3 * sd if error == "shift" else 0.0)
    return check_uniform(stats.norm.cdf((new - mean) / sd), {"y": y}).diagnosis


def test_the_pit_of_right_forecasts_passes() -> None:
    assert sum(bool(pit_diagnosis("", seed)) for seed in range(200)) <= 7  # 2 are expected


@pytest.mark.parametrize("error", WRONG)
def test_the_pit_of_wrong_forecasts_is_found_and_named(error: str) -> None:
    found = [pit_diagnosis(error, seed) for seed in range(40)]
    assert sum(WRONG[error] in d for d in found) >= 34


def test_tarp_without_references_from_the_data_passes_the_prior() -> None:
    """Why the references depend on the data, and why ranks are compared with what was known."""
    draws, truth, y = conjugate("prior", 0, width=2)
    rng = np.random.default_rng(1)
    blind = tarp_ranks(draws, truth, rng.standard_normal(truth.shape), rng)
    assert check_uniform(blind).ok
    seeing = tarp_ranks(draws, truth, references_from_data(y[:, 0], np.full(len(y), NOISE), 2, rng), rng)
    assert not check_uniform(seeing, {"y": y[:, 0]}).ok


def test_ranks_count_draws_below_and_break_ties_at_random() -> None:
    draws = np.array([[1.0, 2.0, 3.0, np.nan], [1.0, 1.0, 1.0, 1.0], [5.0, 6.0, 7.0, 8.0]])
    ranks = np.stack([normalised_rank(draws, np.array([2.5, 1.0, 0.0]), np.random.default_rng(k)) for k in range(2000)])
    for column, (low, high) in enumerate(((0.5, 0.75), (0.0, 1.0), (0.0, 0.2))):
        assert ranks[:, column].min() == pytest.approx(low, abs=0.01)
        assert ranks[:, column].max() == pytest.approx(high, abs=0.01)
        assert stats.kstest(ranks[:, column], stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_ranks_without_a_truth_or_draws_are_no_numbers() -> None:
    rng = np.random.default_rng(0)
    draws = np.array([[1.0, 2.0], [1.0, np.nan], [np.nan, np.nan]])
    ranks = normalised_rank(draws, np.array([np.nan, 0.5, 0.5]), rng)
    assert np.isnan(ranks).tolist() == [True, False, True]
    joint, truth = rng.standard_normal((3, 20, 2)), rng.standard_normal((3, 2))
    truth[0, 1], joint[1, 3, 0] = np.nan, np.nan
    assert np.isnan(tarp_ranks(joint, truth, np.zeros((3, 2)), rng)).tolist() == [True, True, False]


def test_ranks_of_discrete_quantities_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet((1, 1, 1), 4000)
    index = np.array([rng.choice(3, DRAWS + 1, p=row) for row in p])
    ranks = normalised_rank(index[:, 1:], index[:, 0], rng)
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("size", [30, 256, 1000])
def test_band_is_that_of_arviz(size: int) -> None:
    values = np.random.default_rng(size).uniform(size=size)
    points, ecdf, low, high = ecdf_pit(values, LEVEL, 4000)
    mine = ecdf_band(values)
    np.testing.assert_allclose(mine[0], points)
    np.testing.assert_allclose(mine[1] + points, ecdf, atol=1e-12)
    # Both bands are simulated, and their edges are steps of 1 / size.
    np.testing.assert_allclose(mine[2] + points, low, atol=2.1 / size)
    np.testing.assert_allclose(mine[3] + points, high, atol=2.1 / size)


def test_band_holds_99_percent_of_uniform_samples() -> None:
    rng = np.random.default_rng(0)
    out = 0
    for _ in range(400):
        _, difference, low, high = ecdf_band(rng.uniform(size=200))
        out += bool(np.any((difference < low) | (difference > high)))
    assert out <= 12


def test_the_drawn_band_is_the_one_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    found = {f"q{i}": rng.beta(0.92, 0.92, size=500) for i in range(24)}
    checks = {name: check_uniform(ranks) for name, ranks in found.items()}
    bands: list[tuple[np.ndarray, ...]] = []
    monkeypatch.setattr(Axes, "fill_between", lambda _, *band, **style: bands.append(band))
    figure = plot_ranks(SimpleNamespace(ranks=found, checks=checks, failed={}))  # type: ignore[arg-type]
    outside = []
    for ax, (_, low, high), check in zip(figure.axes, bands, checks.values(), strict=True):
        line = np.asarray(ax.lines[1].get_ydata())
        outside.append(bool(np.any((line < low) | (line > high))))
        assert outside[-1] == (check.excess > 0)
    assert 0 < sum(outside) < 24  # some of each


def test_scores_are_standard_normal_where_ranks_are_uniform() -> None:
    rng = np.random.default_rng(1)
    found = [check_uniform(rng.uniform(size=300), {"f": rng.uniform(size=300)}) for _ in range(500)]
    for name in ("shift", "spread", "dependence"):
        assert stats.kstest([getattr(check, name) for check in found], "norm").pvalue > 1e-3, name
    assert np.mean([check.p < 0.05 for check in found]) < 0.09


def test_values_at_the_very_edge_do_not_break_the_scores() -> None:
    check = check_uniform(np.concatenate([np.zeros(50), np.ones(50)]), {"constant": np.ones(100)})
    assert np.isfinite([check.shift, check.spread, check.dependence, check.p]).all()
    assert check.diagnosis == "too narrow"


def test_many_values_are_thinned_evenly() -> None:
    assert thinned(np.arange(10.0)).tolist() == list(range(10))
    few = thinned(np.arange(50_001.0))
    assert few.size == MOST
    assert few[0] == 0
    assert few[-1] == 50_000
    assert np.ptp(np.diff(few)) <= 1


def test_contraction() -> None:
    np.testing.assert_allclose(contraction([0.25, 1.0], 1.0), [0.75, 0.0])


def test_a_right_posterior_fails_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(6)
    runs = 600
    features = {"f": rng.standard_normal(256)}
    failed = sum(not check_uniform(rng.uniform(size=256), features, 0.9).ok for _ in range(runs))
    assert failed <= 0.1 * runs + 3.0 * np.sqrt(0.09 * runs)
    assert failed >= 0.03 * runs


def test_joint_ranks_of_heavy_tailed_posteriors_are_uniform() -> None:
    rng = np.random.default_rng(7)
    draws = rng.standard_cauchy((20_000, 100, 2))
    truth = rng.standard_cauchy((20_000, 2))
    ranks = tarp_ranks(draws, truth, np.zeros((20_000, 2)), rng)
    assert np.mean(ranks > 0.99) == pytest.approx(0.01, abs=0.003)


def test_values_that_are_not_numbers_fail() -> None:
    """Those that are numbers are judged as if the others were not there, but the quantity does not pass."""
    rng = np.random.default_rng(3)
    good, feature = rng.uniform(size=256), rng.standard_normal(257)
    found = check_uniform(np.append(good, np.nan), {"a feature": feature})
    alone = check_uniform(good, {"a feature": feature[:-1]})
    assert alone.ok
    assert not found.ok
    assert (found.diagnosis, found.p, found.shift) == ("1 of 257 values are not numbers", alone.p, alone.shift)
    shifted = stats.norm.cdf(stats.norm.ppf(good) + 0.5)
    assert check_uniform(np.append(shifted, np.nan)).p == check_uniform(shifted).p < 1e-6
    with pytest.raises(InvalidArgumentError, match="7 of 20 ranks or PIT are numbers, and 8 are needed"):
        check_uniform(np.append(good[:7], np.full(13, np.nan)))


def test_a_feature_that_is_no_number_somewhere_is_still_looked_at() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.uniform(size=200)
    feature = np.where(np.arange(200) == 7, np.nan, ranks)
    found = check_uniform(ranks, {"f": feature})
    assert found.dependence > 10.0
    assert not found.ok
    assert check_uniform(ranks, {"f": np.full(200, np.nan)}).dependence == 0.0

import numpy as np
import pytest
from scipy import stats

import hybrid
from hybrid.models import residuals
from hybrid.models.coordinates import Ratio
from hybrid.models.distributions import Distribution
from hybrid.models.engine import Problem
from hybrid.models.law import Law
from hybrid.models.nuts import run_nuts
from hybrid.models.prior import Parameter, Prior
from hybrid.models.residuals import FOLLOW_ONE_ANOTHER, RISES, follow_probability, trend_probability

SIGMA = 0.05


class Level(Law):
    name = "level"

    def mean(self, xp, x, theta, frame):
        return xp.exp(theta["level"]) + 0.0 * x


@pytest.fixture(scope="module")
def prior():
    noise = Parameter("sigma", Distribution("LogNormal", loc=float(np.log(SIGMA)), scale=0.5))
    return Prior("level", Level(), [Parameter("level", Distribution("Normal", loc=0.0, scale=1.0)), noise])


def problem(x, log_y):
    return Problem(x, np.exp(log_y), Ratio().frame(x, 10.0, 1.0))


def truth(size=1):
    return {"level": np.zeros((1, size)), "sigma": np.full((1, size), SIGMA)}


def test_uniform_where_the_parameters_are_known(prior):
    rng = np.random.default_rng(1)
    x = np.geomspace(0.01, 1, 30)
    found = [follow_probability(prior, truth(), problem(x, SIGMA * rng.standard_normal(30))) for _ in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_a_wave_is_seen_and_white_noise_of_the_same_size_is_not(prior):
    x = np.geomspace(0.01, 1, 40)
    wave = SIGMA * np.sqrt(2) * np.sin(6 * np.linspace(0, np.pi, 40))
    assert follow_probability(prior, truth(), problem(x, wave)) < 0.001
    shuffled = np.random.default_rng(0).permutation(wave)
    assert follow_probability(prior, truth(), problem(x, shuffled)) > 0.05


def test_repeats_that_come_in_order_do_not_follow_one_another(prior):
    rng = np.random.default_rng(2)
    x = np.repeat(np.geomspace(0.01, 1, 8), 20)
    y = np.sort(SIGMA * rng.standard_normal((8, 20)), axis=1).ravel()
    assert follow_probability(prior, truth(), problem(x, y)) > 0.05


def test_three_places_are_too_few_to_tell(prior):
    x = np.array([0.1, 0.1, 0.3, 1.0])
    assert follow_probability(prior, truth(), problem(x, np.array([1.0, 1.0, 0.0, -1.0]))) == 1.0


def test_one_outlier_does_not_hide_the_others(prior):
    x = np.geomspace(0.01, 1, 60)
    wave = SIGMA * np.sqrt(2) * np.sin(6 * np.linspace(0, np.pi, 60))
    wave[30] = 3.0
    assert follow_probability(prior, truth(), problem(x, wave)) < 0.01


def test_exact_inference_says_that_the_model_does_not_hold(prior):
    rng = np.random.default_rng(3)
    x = np.geomspace(0.01, 1, 30)
    flat, step = SIGMA * rng.standard_normal(30), -0.3 * (x > 0.1)
    good, bad = run_nuts(prior, [problem(x, flat), problem(x, step + 0.2 * flat)], seed=1)
    assert good.status == "ok"
    assert good.info["follow_probability"] > 0.01
    assert bad.status == "needs_review"
    assert bad.reasons == (FOLLOW_ONE_ANOTHER,)
    assert bad.info["follow_probability"] < 0.01
    assert bad.info["max_rhat"] < 1.01


def test_correlations_of_many_are_those_of_the_normal_limit() -> None:
    simulated, limit = residuals._replicated(residuals.SIMULATED), residuals._replicated(residuals.SIMULATED + 1)
    at = [20, 200, 2_000, 10_000, 18_000, 19_800]
    np.testing.assert_allclose(simulated[at], limit[at], atol=0.004)
    assert residuals._replicated(100_000).size == residuals.REPLICATES  # without that many numbers each


def test_draws_without_a_curve_say_nothing(prior):
    x = np.geomspace(0.01, 1.0, 20)
    waves = problem(x, 4.0 * SIGMA * np.sin(np.arange(20.0)))
    draws = {"level": np.zeros(50), "sigma": np.full(50, SIGMA)}
    known = follow_probability(prior, draws, waves)
    half = {"level": np.where(np.arange(50) < 25, np.nan, 0.0), "sigma": draws["sigma"]}
    assert follow_probability(prior, half, waves) == known < 0.01
    assert np.isnan(follow_probability(prior, {**draws, "level": np.full(50, np.nan)}, waves))


def test_the_trend_is_uniform_where_the_parameters_are_known(prior):
    rng = np.random.default_rng(5)
    x = np.geomspace(0.01, 1, 6)
    found = [trend_probability(prior, truth(), problem(x, SIGMA * rng.standard_normal(6))) for _ in range(1000)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


@pytest.mark.parametrize("count", [5, 6, 8])
def test_a_line_of_few_points_is_seen_by_its_trend_alone(prior, count):
    line = problem(np.geomspace(0.01, 1, count), 2 * SIGMA * np.linspace(-1, 1, count))
    assert trend_probability(prior, truth(), line) < 0.001
    assert follow_probability(prior, truth(), line) > 0.01


def test_what_draws_differ_by_from_points_without_noise_is_no_trend(prior):
    """The likeliest of draws that lie about such points leaves a smooth curve, far smaller than its noise."""
    x, line = np.geomspace(0.01, 1.0, 9), SIGMA * np.linspace(-1.0, 1.0, 9)
    for size, expected in ((0.3, 1.0), (1.8, 0.0)):
        assert trend_probability(prior, truth(20), problem(x, size * line)) == pytest.approx(expected, abs=1e-6)
    assert trend_probability(prior, truth(1), problem(x, 0.3 * line)) < 1e-6  # the noise of a point estimate says nothing


def test_three_places_have_no_trend(prior):
    assert trend_probability(prior, truth(), problem(np.array([0.1, 0.3, 1.0]), np.array([-1.0, 0.0, 1.0]))) == 1.0


@pytest.mark.parametrize("engine", ["pfn", "least_squares", "nuts"])
def test_accuracies_in_place_of_errors_are_told(engine: str) -> None:
    """Eight points that rise, under a law that only falls: nothing but the trend of the residuals shows it."""
    rising = hybrid.Curve(np.geomspace(10, 1e8, 8), np.linspace(0.2, 0.9, 8))
    fit = hybrid.fit(rising, "m4", engine=engine, horizon=1e9)
    assert fit.status == "needs_review"
    first = fit.reasons.index(FOLLOW_ONE_ANOTHER)
    assert fit.reasons[first + 1] == RISES
    falling = hybrid.Curve(rising.x, 1.0 - rising.y)
    assert RISES not in hybrid.fit(falling, "m4", engine=engine, horizon=1e9).reasons


@pytest.mark.parametrize("count", [4, 5, 6])
def test_exact_inference_sees_that_few_points_rise(count: int) -> None:
    """Averaged over draws, whose noise has grown to cover them, a line is no rare thing; under the nearest one it is."""
    rising = hybrid.Curve(np.logspace(3, 6, count), np.linspace(0.3, 0.7, count))
    fit = hybrid.fit(rising, "m4", "nuts", progress=False)
    assert fit.reasons[-2:] == (FOLLOW_ONE_ANOTHER, RISES)
    assert fit.info["trend_probability"] < 0.002


def test_curves_of_the_prior_itself_are_hardly_ever_remarked_on() -> None:
    x = np.geomspace(0.01, 1.0, 6)
    y = hybrid.get_prior("m4").sample(300, x, seed=3)["y"].to_numpy()
    for engine in ("pfn", "least_squares"):
        fits = hybrid.fit_many([hybrid.Curve(x, row) for row in y], "m4", engine=engine, progress=False)
        assert np.mean([FOLLOW_ONE_ANOTHER in fit.reasons for fit in fits]) < 0.02, engine


def test_a_curve_without_noise_leaves_least_squares_no_residuals() -> None:
    x = np.geomspace(1.0, 1e4, 20)
    fit = hybrid.fit(hybrid.Curve(x, 2.0 * x**-0.3), "m1", engine="least_squares")
    assert fit.result.draws["sigma"].item() < 1e-6
    assert fit.status == "ok"


def test_repeats_at_one_x_make_one_standard_normal_score(prior):
    x = np.repeat([0.1, 0.3, 1.0], [1, 4, 9])
    draws = {"level": np.zeros(1), "sigma": np.full(1, SIGMA)}
    found, _ = residuals._scores(prior, draws, problem(x, np.full(14, SIGMA)))
    np.testing.assert_allclose(found, [[1.0, 2.0, 3.0]], rtol=1e-6)  # a sum of n, over the root of n


def test_draws_of_all_chains_are_looked_at(prior):
    x = np.geomspace(0.01, 1.0, 30)
    data = problem(x, SIGMA * np.random.default_rng(4).standard_normal(30))
    sigma = np.full((4, 200), SIGMA)
    known = follow_probability(prior, {"level": np.zeros((4, 200)), "sigma": sigma}, data)
    off = np.repeat([[0.0], [4.0], [4.0], [4.0]], 200, axis=1) * SIGMA  # all residuals on one side
    assert known > 0.2
    assert follow_probability(prior, {"level": off, "sigma": sigma}, data) == pytest.approx(known / 4, abs=0.01)

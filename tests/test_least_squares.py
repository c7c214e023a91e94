"""Least squares: exact curves are recovered, from any seed and in any units."""

from typing import Any

import numpy as np
import pytest

import hybrid
from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.law import Law, Theta
from hybrid.models.least_squares import run_least_squares
from hybrid.models.m1 import SIGMA
from hybrid.models.m4 import solve_logit
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import Parameter, Prior
from hybrid.models.registry import PRIORS, get_prior
from hybrid.models.residuals import FOLLOW_ONE_ANOTHER

X = np.geomspace(0.004, 1, 30)
BEYOND = np.geomspace(1, 3, 5)
BREAK = {"break_1": 0.35, "slope_change_1": 0.4, "sharpness_1": 0.25}
TRUTH: dict[str, dict[str, float]] = {
    "m1": {"y_first": 0.9, "y_ratio": 0.4},
    "m2": {"y_first": 0.9, "y_ratio": 0.4, "floor": 0.6},
    "m3": {"y_first": 0.9, "y_ratio": 0.4, "gamma": 3.0},
    "m4": {"y_first": 0.9, "y_ratio": 0.4, "floor": 0.6, "saturation": 0.8, "alpha": 0.4},
    "bnsl": {"y_first": 0.9, "y_ratio": 0.4, "floor": 0.5, **BREAK},
    "bnsl2": {
        "y_first": 0.9,
        "y_ratio": 0.6,
        "floor": 0.5,
        **{"break_1": 0.25, "slope_change_1": -0.5, "sharpness_1": 0.15},
        **{"break_2": 0.35, "slope_change_2": 0.9, "sharpness_2": 0.2},
    },
}


def explicit(name: str) -> Prior:
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    return prior


def problem(prior: Prior, theta: dict[str, float], x: np.ndarray = X, noise: float = 0.0, seed: int = 0) -> Problem:
    frame = get_coordinates("ratio").native_frame(x)
    mean = prior.mean({k: np.asarray(v) for k, v in theta.items()}, x, frame)
    return Problem(x, mean * np.exp(noise * np.random.default_rng(seed).standard_normal(x.size)), frame)


def predicted(prior: Prior, result: EngineResult, x: np.ndarray, frame: Frame) -> np.ndarray:
    return np.asarray(prior.mean({k: v[0, 0] for k, v in result.draws.items()}, x, frame))


@pytest.mark.parametrize("name", TRUTH)
def test_recovers_exact_curves(name: str) -> None:
    prior = explicit(name)
    exact = problem(prior, TRUTH[name])
    (result,) = run_least_squares(prior, [exact])
    assert result.status == "ok", result.reasons
    assert set(result.draws) == {p.name for p in prior.parameters}
    assert all(v.shape == (1, 1) for v in result.draws.values())
    x = np.append(X, BEYOND)
    expected = prior.mean({k: np.asarray(v) for k, v in TRUTH[name].items()}, x, exact.frame)
    np.testing.assert_allclose(predicted(prior, result, x, exact.frame), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["m4", "bnsl"])
def test_seeds_agree(name: str) -> None:
    prior = explicit(name)
    noisy = problem(prior, TRUTH[name], noise=0.01)
    found = [run_least_squares(prior, [noisy], seed=s)[0] for s in range(4)]
    rss = np.array([r.info["rss"] for r in found])
    np.testing.assert_allclose(rss, rss.min(), rtol=1e-3)
    sigma = np.array([r.draws["sigma"][0, 0] for r in found])
    np.testing.assert_allclose(sigma, np.sqrt(rss / (X.size - len(TRUTH[name]))), rtol=1e-6)
    assert all(r.info["starts_agreeing"] >= 1 for r in found)


@pytest.mark.parametrize("name", ["m4", "bnsl"])
def test_units_do_not_matter(name: str) -> None:
    prior = explicit(name)
    plain = problem(prior, TRUTH[name], noise=0.01)
    x, y = 7e20 * plain.x, 50 * plain.y
    frame = get_coordinates("ratio").frame(x, x.max(), 1.0)  # y far from the y scale: the level is 50 times the prior's
    other = Problem(frame.x_to(x), y, frame)
    (one,), (two,) = run_least_squares(prior, [plain]), run_least_squares(prior, [other])
    at = np.append(X, BEYOND)
    np.testing.assert_allclose(predicted(prior, two, at, frame), 50 * predicted(prior, one, at, plain.frame), rtol=1e-3)
    np.testing.assert_allclose(two.draws["sigma"], one.draws["sigma"], rtol=1e-3)


def test_the_density_of_the_prior_does_not_matter() -> None:
    prior = explicit("m4")
    noisy = problem(prior, TRUTH["m4"], noise=0.01)
    other = prior.replace(y_first={"loc": 0.7, "scale": 0.2}, alpha={"loc": -2.0}, sigma={"loc": -9.0})
    (one,), (two,) = run_least_squares(prior, [noisy]), run_least_squares(other, [noisy])
    assert two.info["rss"] == pytest.approx(one.info["rss"], rel=1e-4)


def test_order_is_kept_for_curves_of_many_lengths() -> None:
    prior = explicit("m2")
    sizes = [40, 5, 9, 33, 12]
    curves = [problem(prior, {**TRUTH["m2"], "y_first": 0.5 + 0.1 * k}, np.geomspace(0.01, 1, n)) for k, n in enumerate(sizes)]
    for k, result in enumerate(run_least_squares(prior, curves)):
        assert result.draws["y_first"][0, 0] == pytest.approx(0.5 + 0.1 * k, rel=1e-4)
        assert result.info["n"] == sizes[k]
    assert run_least_squares(prior, []) == []


class Exponential(Law):
    """y = a + b exp(-k x)."""

    name = "exponential"

    def mean(self, xp: Any, x: Any, theta: Theta, frame: Frame) -> Any:
        del frame
        return theta["a"] + theta["b"] * xp.exp(-theta["k"] * x)


def exponential_prior(noise: str = "lognormal") -> Prior:
    free = [Parameter(k, Distribution("LogNormal", loc=0.0, scale=1.0)) for k in ("b", "k")]
    bounded = Parameter("a", Distribution("Uniform", low=0.1, high=0.9))
    return Prior("exponential", Exponential(), [bounded, *free, SIGMA], noise=noise)


@pytest.mark.parametrize("noise", ["lognormal", "normal"])
def test_a_law_of_ones_own(noise: str) -> None:
    prior = exponential_prior(noise)
    truth = {"a": 0.4, "b": 2.0, "k": 3.0}
    noisy = problem(prior, truth, noise=0.01)
    (result,) = run_least_squares(prior, [noisy])
    assert result.status == "ok"
    for k, v in truth.items():
        assert result.draws[k][0, 0] == pytest.approx(v, rel=0.1)
    residual = noisy.y - predicted(prior, result, X, noisy.frame)
    if noise == "normal":
        assert result.draws["sigma"][0, 0] == pytest.approx(np.sqrt(residual @ residual / 27))


def test_a_parameter_at_its_bound_is_no_error() -> None:
    prior = exponential_prior()
    (result,) = run_least_squares(prior, [problem(prior, {"a": 0.0, "b": 2.0, "k": 1.0})])
    assert result.reasons == (FOLLOW_ONE_ANOTHER,)  # as a curve without a floor must under one with a floor
    assert result.draws["a"][0, 0] == pytest.approx(0.1, rel=1e-3)


def test_too_few_points_need_review() -> None:
    prior = explicit("m4")
    few = problem(prior, TRUTH["m4"], np.geomspace(0.1, 1, 5))
    repeated = problem(prior, TRUTH["m4"], np.repeat(np.geomspace(0.1, 1, 4), 3))
    for result in (run_least_squares(prior, [curve])[0] for curve in (few, repeated)):
        assert result.status == "needs_review"
        assert "distinct x cannot fix 5 parameters" in result.reasons[0]
        assert all(np.isfinite(v).all() for v in result.draws.values())
        assert result.draws["sigma"][0, 0] > 0


def test_replicates_at_as_many_x_as_parameters_fix_them() -> None:
    prior = explicit("m2")
    truth = {"y_first": 1.0, "y_ratio": 0.6, "floor": 0.5}
    (result,) = run_least_squares(prior, [problem(prior, truth, np.repeat(np.geomspace(0.1, 1, 3), 50), noise=0.02)])
    assert result.reasons == ()
    assert result.draws["sigma"][0, 0] == pytest.approx(0.02, rel=0.15)
    (alone,) = run_least_squares(prior, [problem(prior, truth, np.geomspace(0.1, 1, 3), noise=0.02)])
    assert "3 points at 3 distinct x cannot fix 3 parameters" in alone.reasons[0]


def test_curves_that_fit_alike_and_forecast_otherwise_are_told() -> None:
    """Nine points of a smooth curve, which breaks anywhere at its end do not change: seeds end at forecasts hundreds apart."""
    curve = hybrid.load_example("porian_optimal_loss", holdout=3)
    told = [hybrid.fit(curve, "bnsl", "least_squares", seed=seed, progress=False) for seed in (0, 1)]
    for fit in told:
        assert fit.status == "needs_review"
        assert "Curves that fit alike forecast y = " in fit.reasons[0]
        assert "use engine='nuts', which averages over them" in fit.reasons[0]
    low, high = (float(word) for word in told[1].reasons[0].split(" = ")[1].split(" at the horizon")[0].split(" to "))
    assert low < float(told[1].predict([told[1].horizon])["median"].item()) * (1 + 1e-3)
    assert high > 100.0 * low
    assert hybrid.fit(curve, "m4", "least_squares", progress=False).status == "ok"


def test_no_convergence_needs_review() -> None:
    prior = explicit("m4")
    (result,) = run_least_squares(prior, [problem(prior, TRUTH["m4"], noise=0.01)], max_steps=1)
    assert result.status == "needs_review"
    assert "max_steps" in result.reasons[0]


class Nowhere(Exponential):
    """A law that is not finite anywhere."""

    name = "nowhere"

    def mean(self, xp: Any, x: Any, theta: Theta, frame: Frame) -> Any:
        return super().mean(xp, x, theta, frame) * float("nan")


def test_no_finite_curve_needs_review() -> None:
    usual = exponential_prior()
    prior = Prior("nowhere", Nowhere(), usual.parameters)
    (result,) = run_least_squares(prior, [problem(usual, {"a": 0.4, "b": 2.0, "k": 3.0})])
    assert result.status == "needs_review"
    assert "No start gave a finite curve" in result.reasons[0]
    assert all(np.isfinite(v).all() for v in result.draws.values())


@pytest.mark.parametrize(
    "prior", [p for p in PRIORS if not (isinstance(p, Prior) and p.is_continuous and not p.law.linear)], ids=lambda p: p.name
)
def test_other_priors_are_refused(prior: Any) -> None:
    with pytest.raises(EngineUnavailableError, match=r"continuous|admits only some|drift"):
        run_least_squares(prior, [])


def test_bad_arguments_are_refused() -> None:
    prior = explicit("m1")
    good = problem(prior, TRUTH["m1"])
    for starts, max_steps in ((0, 10), (10**6, 10), (4, 0)):
        with pytest.raises(InvalidArgumentError):
            run_least_squares(prior, [good], starts=starts, max_steps=max_steps)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InvalidArgumentError, match="positive and finite"):
            run_least_squares(prior, [Problem(good.x, np.append(good.y[1:], bad), good.frame)])


def test_m4_is_not_searched_where_it_cannot_be_computed() -> None:
    """Data that pull alpha to infinity: what comes back lies on the law of its parameters."""
    curve = hybrid.load_example("lcdb_lda_mfeat_pixel_double_descent")
    fit = hybrid.fit(curve, "m4", "least_squares", progress=False)
    theta = {name: value.ravel() for name, value in fit.result.draws.items()}
    assert 0.02 <= theta["alpha"][0] <= 50.0 * (1 + 1e-9)
    law, frame = fit.prior.law, fit.frame  # type: ignore[attr-defined]
    xp = get_namespace("numpy")
    _, log_f, c = law._shape(xp, theta, frame)
    target = log_f - c * np.log(frame.x_to(curve.x))
    u = solve_logit(xp, theta["alpha"], target)
    left = (theta["alpha"] - 1.0) * np.logaddexp(0.0, u) + u
    np.testing.assert_allclose(left, target, atol=1e-9)


@pytest.mark.parametrize("option", [{"starts": 2.5}, {"starts": "5"}, {"max_steps": None}, {"max_steps": 20.5}])
def test_options_are_integers(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(option))} must be an integer"):
        hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m1", "least_squares", progress=False, **option)

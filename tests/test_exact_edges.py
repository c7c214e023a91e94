"""The exact side at the edges: bounded supports, edges of a law, overflow, and descriptions that are none."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import hybrid
from hybrid.models.coordinates import Frame
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.noise import get_noise
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior, prior_from_dict, prior_from_json
from hybrid.models.unconstrained import Unconstrained

X = np.array([0.01, 0.1, 1.0])
Y = np.array([1.1, 0.9, 0.8])


def changed(name: str, **changes: Any) -> Prior:
    prior = get_prior(name).replace(**changes)
    assert isinstance(prior, Prior)
    return prior


@pytest.mark.parametrize("name", ["bnsl", "bnsl2", "bnsl_drift"])
@pytest.mark.parametrize("first", [1e-6, 0.5])
def test_a_bounded_slope_reaches_all_of_its_support_and_no_more(name: str, first: float) -> None:
    bounds = hybrid.Distribution("Uniform", low=-1.0, high=2.0)
    exact = Unconstrained(changed(name, slope_change_1=bounds))
    frame = Frame(0.0, 1.0, 1.0, first, 1.0, 10.0)
    at = exact.names.index("slope_change_1")
    z = np.random.default_rng(0).normal(size=(3, 50, exact.size))
    z[0, :, at], z[1, :, at] = -40.0, 40.0
    slope = np.asarray(exact.constrain(z, frame)["slope_change_1"])
    np.testing.assert_allclose(slope[0], -1.0, atol=1e-6)
    np.testing.assert_allclose(slope[1], 2.0, atol=1e-6)
    assert np.all(np.abs(slope - 0.5) <= 1.5)
    import jax

    drawn = np.asarray(exact.draw(jax.random.key(0), 2000, frame))
    assert np.all(np.isfinite(drawn))
    back = np.asarray(exact.constrain(drawn, frame)["slope_change_1"])
    assert np.quantile(back, [0.1, 0.5, 0.9]) == pytest.approx([-0.7, 0.5, 1.7], abs=0.12)


@pytest.mark.parametrize(
    "alpha",
    [
        hybrid.Distribution("Uniform", low=0.1, high=5.0),
        hybrid.Distribution("Uniform", low=0.01, high=5.0),
        hybrid.Distribution("Uniform", low=0.1, high=60.0),
        hybrid.Distribution("Beta", concentration1=2.0, concentration0=2.0),
    ],
)
def test_least_squares_within_a_support_inside_what_the_law_can_compute(alpha: hybrid.Distribution) -> None:
    x = np.geomspace(1.0, 1e4, 12)
    curve = hybrid.Curve(x, 0.3 + 0.7 * x**-0.3)
    fit = hybrid.fit(curve, changed("m4", alpha=alpha), "least_squares")
    found = float(fit.data["posterior"]["alpha"].item())
    assert alpha.supports(np, np.array(found))[0]
    assert float(fit.predict(1e5)["median"].item()) == pytest.approx(0.3 + 0.7 * 1e5**-0.3, rel=0.05)


@pytest.mark.parametrize("name", ["m1", "m2", "m4", "bnsl", "m4_drift"])
def test_both_libraries_say_the_same_at_the_edges_and_spare_the_other_rows(name: str) -> None:
    prior = get_prior(name)
    inside = {k: v.to_numpy().copy() for k, v in prior.sample(3, X, seed=0).data_vars.items() if k not in ("mean", "y")}
    edges = {"y_ratio": (0.0, 1.0), "floor": (1.0,), "saturation": (0.0, 1.0)}

    def density(theta: dict[str, np.ndarray]) -> np.ndarray:
        tensors = {k: torch.as_tensor(v) for k, v in theta.items()}
        found = np.asarray(prior.log_density(theta, X, Y))
        np.testing.assert_allclose(prior.log_density(tensors, torch.as_tensor(X), torch.as_tensor(Y)).numpy(), found, rtol=1e-9)
        return found

    expected = density(inside)
    assert np.all(np.isfinite(expected))
    for parameter, values in edges.items():
        for value in values if parameter in inside else ():
            theta = {**inside, parameter: inside[parameter].copy()}
            theta[parameter][1] = value
            found = density(theta)
            np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
            assert not np.isnan(found[1])
            if parameter != "y_ratio" or value == 0.0:
                assert found[1] == -math.inf


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_draws_without_a_curve_are_refused_with_a_remedy(backend: str) -> None:
    prior = changed("m4", saturation={"high": 3.0})
    with pytest.raises(InvalidArgumentError, match=r"% of the draws of prior 'm4' have no curve .*change the distributions"):
        prior.sample(100, X, backend=backend)
    assert np.all(np.isfinite(get_prior("m1").sample(20_000, [0.1, 1.0, 1e100], backend=backend)["mean"]))


def test_moments_that_overflow_are_infinite() -> None:
    x = np.array([1.0, 10.0, 100.0])
    fit = hybrid.fit(hybrid.Curve(x, [1.0, 0.8, 0.7]), "m1", "least_squares")
    noisy = fit.predictive
    noisy._theta = {name: np.repeat(value, 2) for name, value in noisy._theta.items()}
    noisy._size = 2
    noisy._theta["sigma"] = np.array([0.01, 40.0])
    assert np.all(np.isposinf(noisy.sd(x)))
    theta = {"sigma": np.array(1.0), "noise_slope": np.array(0.7), "outliers": np.array(0.1)}
    with np.errstate(all="ignore"):  # as in a predictive
        mean, variance = get_noise("contaminated_lognormal").moments(np.array(1e6), theta)
    assert np.isposinf(mean)
    assert np.isposinf(variance)


def test_the_released_sampler_is_described_in_full_or_not_at_all() -> None:
    prior = get_prior("nslpfn")
    assert prior_from_json(prior.to_json()) == prior
    assert hash(prior_from_json(prior.to_json())) == hash(prior)
    whole = json.loads(prior.to_json())
    uniform = {"family": "Uniform", "low": 0.0, "high": 1.0}
    for change in ({"foo": 1}, {"format": 7}, {"law_version": 9}, {"name": 3}, {"sigma": uniform}):
        with pytest.raises(FileFormatError, match=r"description of (a prior|prior 'nslpfn')"):
            prior_from_dict({**whole, **change})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": hybrid.Distribution("Categorical", probs=(0.5, 0.5))}, "sigma is a scale"),
        ({"name": 3}, "must be text"),
        ({"sigma": {1: 2}}, "takes the hyperparameters"),
    ],
)
def test_changes_that_make_no_prior_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        get_prior("m4").replace(**changes)


@pytest.mark.parametrize(("points", "exponent", "height"), [(10, 0.1, 3.0), (30, 1.0, 0.5), (12, 1.0, 0.5)])
def test_least_squares_on_points_without_noise_is_not_led_by_rounding(points: int, exponent: float, height: float) -> None:
    """Where several optima fit to 15 digits, the least sum of squares is chance: forecasts were off by up to 1e285, as "ok"."""

    def truth(x: np.ndarray) -> np.ndarray:
        return 0.5 + height * (x / 1e18) ** -exponent

    x = np.geomspace(1e18, 1e21, points)
    fit = hybrid.fit(hybrid.Curve(x, truth(x)), "bnsl", "least_squares")
    np.testing.assert_allclose(fit.predict(1e22)["median"], truth(np.array([1e22])), rtol=0.02)


def test_least_squares_says_where_exact_fits_forecast_otherwise() -> None:
    x = np.geomspace(1e18, 1e21, 10)
    fit = hybrid.fit(hybrid.Curve(x, 0.5 + 3.0 * (x / 1e18) ** -0.1), "bnsl", "least_squares")
    assert fit.status == "needs_review"
    assert "Curves that fit alike forecast y = 1.69" in fit.reasons[0]


@pytest.mark.parametrize("y", [[90.0, 60.0, 40.0], [0.003, 0.002, 0.0014, 0.001]])
def test_points_that_are_taken_for_noise_are_not_ok(y: list[float]) -> None:
    """Three or four points cannot tell by their scatter that the level is not what the prior expects of the y scale."""
    curve = hybrid.Curve(np.geomspace(1e18, 1e21, len(y)), y)
    fit = hybrid.fit(curve, "m4", "nuts", y_scale=1.0)
    assert fit.status == "needs_review"
    assert "The points are taken for noise" in fit.reasons[0]
    assert "State a y_scale near the observed y" in fit.reasons[0]
    assert not any("taken for noise" in reason for reason in hybrid.fit(curve, "m4", "nuts").reasons)


def test_the_order_in_which_replicates_come_changes_no_draw() -> None:
    x, y = np.repeat(np.geomspace(1.0, 1e3, 5), 2), np.linspace(3.0, 2.0, 10)
    swapped = y.reshape(5, 2)[:, ::-1].ravel()
    one, other = (hybrid.fit(hybrid.Curve(x, values), "m4", "pfn") for values in (y, swapped))
    assert hybrid.agreement(one, other).ok
    np.testing.assert_allclose(one.data["posterior"]["alpha"], other.data["posterior"]["alpha"], rtol=1e-6)

"""The mixture predictive against scipy and against its own samples."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, stats

from hybrid.models.coordinates import get_coordinates
from hybrid.models.m1 import PRIOR as M1
from hybrid.models.noise import get_noise
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import Frame, Prior
from hybrid.models.registry import get_prior

CONTEXT = np.geomspace(1e18, 1e21, 8)
X = np.array([1e18, 3e20, 1e21, 1e23])
Y_SCALE = 2.5
LEVELS = np.array([0.001, 0.05, 0.5, 0.9, 0.999])
NOISES = ("lognormal", "normal", "truncated_normal")


def frame(y_scale: float = Y_SCALE) -> Frame:
    return get_coordinates("ratio").frame(CONTEXT, 1e24, y_scale)


def draws(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "y_first": np.exp(rng.normal(0, 0.1, n)),
        "y_ratio": rng.beta(20, 10, n),
        "sigma": np.exp(rng.normal(-2, 1, n)),
    }


def predictive(noise: str = "lognormal", n: int = 50, y_scale: float = Y_SCALE) -> MixturePredictive:
    return MixturePredictive(Prior("m1", M1.law, M1.parameters, noise), draws(n), frame(y_scale))


def components(noise: str, n: int = 50) -> list[list[Any]]:
    """scipy's distribution for every x and draw, in the user's units."""
    theta = draws(n)
    exponent = np.log(theta["y_ratio"]) / np.log(CONTEXT[-1] / CONTEXT[0])
    level = Y_SCALE * theta["y_first"] * (X[:, None] / CONTEXT[0]) ** exponent
    scale = theta["sigma"] * Y_SCALE
    if noise == "lognormal":
        return [[stats.lognorm(s, scale=f) for f, s in zip(row, theta["sigma"], strict=True)] for row in level]
    if noise == "normal":
        return [[stats.norm(f, s) for f, s in zip(row, scale, strict=True)] for row in level]
    return [[stats.truncnorm(-f / s, np.inf, f, s) for f, s in zip(row, scale, strict=True)] for row in level]


@pytest.mark.parametrize("noise", NOISES)
def test_moments_cdf_and_density_agree_with_scipy(noise: str) -> None:
    p, mixture = predictive(noise), components(noise)
    y = np.array([2.4, 1.9, 1.5, 0.8])
    means = np.array([[d.mean() for d in row] for row in mixture])
    variances = np.array([[d.var() for d in row] for row in mixture])
    assert_allclose(p.mean(X), means.mean(1), rtol=1e-10)
    assert_allclose(p.sd(X), np.sqrt(variances.mean(1) + means.var(1)), rtol=1e-10)
    assert_allclose(p.cdf(X, y), [np.mean([d.cdf(v) for d in row]) for row, v in zip(mixture, y, strict=True)], rtol=1e-9)
    density = [np.mean([d.pdf(v) for d in row]) for row, v in zip(mixture, y, strict=True)]
    assert_allclose(p.log_density(X, y), np.log(density), rtol=1e-9)


@pytest.mark.parametrize("noise", NOISES)
def test_quantiles_invert_the_cdf(noise: str) -> None:
    p = predictive(noise)
    q = p.quantile(X, LEVELS)
    assert q.shape == (5, 4)
    assert np.all(np.diff(q, axis=0) > 0)
    for level, row in zip(LEVELS, q, strict=True):
        assert_allclose(p.cdf(X, row), level, rtol=1e-8)


@pytest.mark.parametrize("noise", NOISES)
def test_density_integrates_to_one_in_the_users_units(noise: str) -> None:
    p = predictive(noise)
    x = X[1:2]
    edges = p.quantile(x, [1e-9, 0.01, 0.5, 0.99, 1 - 1e-9])[:, 0]
    pieces = [
        integrate.quad(lambda y: float(np.exp(p.log_density(x, y)[0])), low, high, limit=200)[0]
        for low, high in itertools.pairwise(edges)
    ]
    assert_allclose(sum(pieces), 1.0, atol=1e-6)
    assert_allclose(pieces[1], 0.49, atol=1e-6)


def test_y_scale_is_a_change_of_units() -> None:
    """Coordinates with another y scale, and data in other units, are the same distribution: nats differ by the Jacobian."""
    one, other = predictive(y_scale=1.0), predictive(y_scale=1000.0)
    y = np.array([0.9, 0.8, 0.6, 0.4])
    assert_allclose(other.log_density(X, 1000 * y), one.log_density(X, y) - np.log(1000), rtol=1e-12)
    assert_allclose(other.quantile(X, LEVELS), 1000 * one.quantile(X, LEVELS), rtol=1e-9)
    assert_allclose(other.sd(X), 1000 * one.sd(X), rtol=1e-12)
    assert_allclose(other.cdf(X, 1000 * y), one.cdf(X, y), rtol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_samples_have_the_moments_and_quantiles(noise: str) -> None:
    p, n = predictive(noise), 40_000
    y = p.sample(X, n, seed=1)
    assert_allclose(y.mean(0), p.mean(X), atol=5 * (p.sd(X) / np.sqrt(n)).max())
    for level in (0.05, 0.5, 0.95):
        below = (y <= p.quantile(X, [level])[0]).mean(0)
        assert_allclose(below, level, atol=5 * np.sqrt(level * (1 - level) / n))


def test_sampled_curves_are_coherent() -> None:
    """With little noise every sampled curve is one draw's curve, across all x."""
    theta = {**draws(7), "sigma": np.full(7, 1e-9)}
    p = MixturePredictive(M1, theta, frame())
    same = np.all(np.abs(p.sample(X, 14, seed=0)[:, None] / p.curves(X)[None] - 1) < 1e-6, axis=-1)
    assert same.sum(1).tolist() == [1] * 14
    assert same.sum(0).tolist() == [2] * 7


def test_no_forecast_depends_on_another_x() -> None:
    p = predictive(n=300)
    more = np.append(X, np.geomspace(1e17, 1e25, 33))
    assert np.array_equal(p.quantile(more, LEVELS)[:, :4], p.quantile(X, LEVELS))
    assert np.array_equal(p.quantile(more[::-1], LEVELS)[:, ::-1], p.quantile(more, LEVELS))
    assert np.array_equal(p.quantile(X, LEVELS[2:3])[0], p.quantile(X, LEVELS)[2])
    assert_allclose(p.mean(more)[:4], p.mean(X), rtol=1e-14)
    assert_allclose(p.sd(more)[:4], p.sd(X), rtol=1e-14)
    assert np.array_equal(p.sample(more, 20, seed=3)[:, :4], p.sample(X, 20, seed=3))


LOGNORMAL = np.exp(0.1 * stats.norm.ppf(LEVELS))


def test_point_estimate_and_far_tails() -> None:
    p = MixturePredictive(M1, {"y_first": np.ones(1), "y_ratio": np.full(1, 0.5), "sigma": np.full(1, 0.1)}, frame())
    assert_allclose(p.quantile(X, LEVELS), Y_SCALE * 0.5 ** (np.log(X / 1e18) / np.log(1e3)) * LOGNORMAL[:, None])
    assert p.log_density(X, 0.0).tolist() == [-np.inf] * 4
    assert p.log_density(X, -1.0).tolist() == [-np.inf] * 4
    wide = predictive(n=400)
    q = wide.quantile(X, [1e-7, 1 - 1e-7])
    assert_allclose(wide.cdf(X, q[0]), 1e-7, rtol=1e-6)
    assert_allclose(1 - wide.cdf(X, q[1]), 1e-7, rtol=1e-6)


def test_draws_that_overflow_leave_the_quantiles_of_the_others() -> None:
    theta = draws(100)
    theta["y_ratio"] = np.where(np.arange(100) < 2, 1e200, theta["y_ratio"])
    p = MixturePredictive(M1, theta, frame())
    q = p.quantile(np.array([1e40]), [0.05, 0.5, 0.9])
    assert np.all(np.isfinite(q))
    assert_allclose(p.cdf(np.array([1e40]), q[1]), 0.5, rtol=1e-8)


@pytest.mark.parametrize("name", ["nsl", "nsl_paper", "lcpfn"])
def test_any_prior_with_a_density(name: str) -> None:
    """The mixture takes draws with discrete parameters, with other noise, or that a law admits."""
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    coordinates, x = get_coordinates(prior.coordinates), np.linspace(1e18, 1e21, 5)
    theta, _, _ = prior.draw(20, np.linspace(0.01, 1, 5), coordinates.native_frame(np.ones(1)), 0, "torch")
    p = MixturePredictive(prior, {k: v.numpy() for k, v in theta.items()}, coordinates.frame(x, 1e21, 2.0))
    assert_allclose(p.cdf(x, p.quantile(x, [0.3])[0]), 0.3, rtol=1e-7)


def test_fewer_curves_than_draws_are_from_all_of_them() -> None:
    """Draws come chain by chain: the first of them would be of one chain."""
    theta = {"y_first": np.repeat([1.0, 2.0], 200), "y_ratio": np.full(400, 0.5), "sigma": np.full(400, 1e-9)}
    y = MixturePredictive(M1, theta, frame()).sample(X[:1], 100, seed=0)[:, 0]
    assert 0.3 < np.mean(y > 1.5 * Y_SCALE) < 0.7


def test_truncation_of_nearly_all_leaves_the_rest() -> None:
    """A law may go below 0, where nearly all of the untruncated normal is cut off."""
    noise, f, p = (
        get_noise("truncated_normal"),
        np.array([-1e-9, -3.0, -8.5, -40.0])[:, None],
        np.array([1e-6, 0.05, 0.5, 0.999]),
    )
    theta = {"sigma": np.ones((4, 1))}
    y = noise.icdf(p, f, theta)
    np.testing.assert_allclose(y, stats.truncnorm.ppf(p, -f, np.inf, loc=f), rtol=1e-6)
    np.testing.assert_allclose(noise.cdf(y, f, theta), np.broadcast_to(p, y.shape), rtol=1e-6)
    np.testing.assert_allclose(stats.truncnorm.cdf(y, -f, np.inf, loc=f), noise.cdf(y, f, theta), rtol=1e-6)
    assert (noise.cdf(np.array([-1.0, 0.0, np.inf]), f, theta) == [0.0, 0.0, 1.0]).all()
    assert_allclose(noise.icdf(np.array([0.0, 1.0]), f, theta), [[0.0, np.inf]] * 4, atol=1e-12)

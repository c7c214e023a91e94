"""Observation noise: NumPy's formulas against NumPyro, torch and quadrature."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from hybrid.models.errors import UnknownNameError
from hybrid.models.noise import NOISES, Noise, get_noise
from hybrid.models.prior import double_precision

F = np.array([0.05, 0.4, 1.0, 2.5])
SIGMA = np.array([0.02, 0.1, 0.3, 0.8])
LEVELS = np.array([1e-6, 0.01, 0.25, 0.5, 0.75, 0.99, 1 - 1e-6])
GRID_F, GRID_SIGMA = (a.ravel() for a in np.meshgrid(F, SIGMA))
SLOPES, SHARES = np.tile([-0.2, 0.0, 0.3], 6)[:16], np.tile([0.02, 0.2], 8)
pytestmark = pytest.mark.parametrize("noise", NOISES.values(), ids=lambda n: n.name)


def theta_of(noise: Noise) -> dict[str, np.ndarray]:
    """Parameters of the cases; outliers five times as wide have no moments to speak of unless sigma is smaller."""
    if noise.name != "contaminated_lognormal":
        return {"sigma": GRID_SIGMA}
    return {"sigma": GRID_SIGMA / 8.0, "noise_slope": SLOPES, "outliers": SHARES}


def on_torch(theta: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in theta.items()}


def quantiles(noise: Noise) -> np.ndarray:
    """Shape (level, case)."""
    return np.asarray(noise.icdf(LEVELS[:, None], GRID_F, theta_of(noise)))


def test_log_prob_agrees(noise: Noise) -> None:
    y = quantiles(noise)
    expected = noise.log_prob(y, GRID_F, theta_of(noise))
    with double_precision():
        np.testing.assert_allclose(
            np.asarray(noise.numpyro(GRID_F, theta_of(noise)).log_prob(y)), expected, rtol=1e-8, atol=1e-8
        )
    found = noise.torch(torch.as_tensor(GRID_F), on_torch(theta_of(noise)))
    np.testing.assert_allclose(found.log_prob(torch.as_tensor(y)).numpy(), expected, rtol=1e-8, atol=1e-8)


def test_icdf_inverts_cdf(noise: Noise) -> None:
    np.testing.assert_allclose(
        noise.cdf(quantiles(noise), GRID_F, theta_of(noise)), np.broadcast_to(LEVELS[:, None], (7, 16)), rtol=1e-6
    )


def test_density_is_the_slope_of_the_cdf(noise: Noise) -> None:
    y = quantiles(noise)[1:-1]
    h = 1e-5 * np.maximum(np.abs(y), 1e-3 * GRID_SIGMA)
    slope = (noise.cdf(y + h, GRID_F, theta_of(noise)) - noise.cdf(y - h, GRID_F, theta_of(noise))) / (2 * h)
    np.testing.assert_allclose(slope, np.exp(noise.log_prob(y, GRID_F, theta_of(noise))), rtol=1e-4)


def test_moments_agree_with_quadrature(noise: Noise) -> None:
    mean, variance = noise.moments(GRID_F, theta_of(noise))
    for k, f in enumerate(GRID_F):
        theta = {name: float(value[k]) for name, value in theta_of(noise).items()}

        def density(y: float, f: float = f, theta: dict[str, float] = theta) -> float:
            return float(np.exp(noise.log_prob(np.asarray(y), f, theta)))

        low, middle, high = (float(noise.icdf(np.asarray(p), f, theta)) for p in (1e-13, 0.5, 1 - 1e-13))
        total, first, second = (
            sum(
                integrate.quad(lambda y, j=j: y**j * density(y), *ends, limit=200)[0]
                for ends in ((low, middle), (middle, high))
            )
            for j in range(3)
        )
        assert total == pytest.approx(1.0, abs=1e-7)
        assert first == pytest.approx(mean[k], rel=1e-6)
        assert second - first**2 == pytest.approx(variance[k], rel=1e-5)


def test_samples_have_these_moments(noise: Noise) -> None:
    torch.manual_seed(0)
    drawn = noise.torch(torch.as_tensor(GRID_F), on_torch(theta_of(noise))).sample((20_000,)).numpy()
    mean, variance = noise.moments(GRID_F, theta_of(noise))
    error = np.sqrt(variance / drawn.shape[0])
    assert np.all(np.abs(drawn.mean(0) - mean) < 5 * error)
    rank = noise.cdf(drawn, GRID_F, theta_of(noise))
    assert np.all(np.abs(rank.mean(0) - 0.5) < 5 / np.sqrt(12 * drawn.shape[0]))
    if noise.name != "normal":
        assert np.all(drawn > 0)


def test_positive_noise_gives_no_mass_to_negative_y(noise: Noise) -> None:
    below = noise.cdf(np.asarray(-0.1), 0.05, {"sigma": np.asarray(0.5), "noise_slope": 0.5, "outliers": 0.1})
    assert (below > 0) == (noise.name == "normal")


def test_found_by_name(noise: Noise) -> None:
    assert get_noise(noise.name) is noise
    with pytest.raises(UnknownNameError, match=noise.name):
        get_noise("poisson")


def test_a_curve_that_underflows_to_0_stays_there(noise: Noise) -> None:
    if not noise.multiplicative:
        pytest.skip("its noise does not shrink with the curve")
    theta = {"sigma": 0.1, "noise_slope": 0.3, "outliers": 0.1}
    y = np.array([-np.inf, -1.0, 0.0, 1e-300, 1.0])
    np.testing.assert_array_equal(noise.cdf(y, np.array(0.0), theta), [0.0, 0.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(noise.cdf(y[:3], np.array(1.0), theta), [0.0, 0.0, 0.0])
    assert np.isnan(noise.cdf(np.array([np.nan]), np.array(1.0), theta)).all()


@pytest.mark.parametrize(("level", "taper"), [(1e-3, -5.0), (1e3, 5.0), (10.0, np.log(10.0))])
def test_a_level_changes_the_noise_no_more_than_by_the_stated_factor(noise: Noise, level: float, taper: float) -> None:
    """By exp(5) at most, up and down, with a slope; not at all without one."""
    sloped = noise.name == "contaminated_lognormal"
    extra = {"noise_slope": np.array(1.0), "outliers": np.array(0.0)} if sloped else {}
    sigma = 0.01 * np.exp(taper) if sloped else 0.01
    if noise.multiplicative:
        expected = stats.lognorm(sigma, scale=level)
    else:
        expected = stats.truncnorm(-level / sigma, np.inf, level, sigma) if noise.positive else stats.norm(level, sigma)
    theta, y = {"sigma": np.array(0.01), **extra}, expected.ppf([0.01, 0.5, 0.9])
    np.testing.assert_allclose(noise.cdf(y, np.array(level), theta), [0.01, 0.5, 0.9], rtol=1e-8)
    np.testing.assert_allclose(noise.log_prob(y, np.array(level), theta), expected.logpdf(y), rtol=1e-8)


def test_the_cdf_of_rows_is_the_cdf(noise: Noise) -> None:
    f = np.stack([GRID_F, 2.0 * GRID_F, np.where(GRID_F > 1.0, 0.0, np.nan)])
    y, rows = np.array([0.3, 0.0, 1.1, -0.2, 0.7]), np.array([2, 2, 1, 0, 0])
    with np.errstate(all="ignore"):
        found = noise.cdf_of_rows(f, theta_of(noise))
        np.testing.assert_allclose(found(y, rows), noise.cdf(y[:, None], f[rows], theta_of(noise)), rtol=1e-12)
        above = y > 0
        expected = noise.cdf(y[above][:, None], f[rows[above]], theta_of(noise))
        np.testing.assert_allclose(found(y[above], rows[above]), expected, rtol=1e-12)

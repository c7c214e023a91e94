"""The positive part of a bar distribution, where little of it is left above 0 too."""

import numpy as np
import pytest
import torch

import hybrid
from hybrid.amortized.bar_distribution import BarDistribution
from hybrid.amortized.positive import Positive

EDGES = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
LOGITS = torch.tensor([0.1, 0.4, 1.0, 1.4, 1.5, 1.1, 0.8, 0.3, 0.0, -0.7], dtype=torch.float64)


def bars_at(loc: float) -> BarDistribution:
    return BarDistribution(LOGITS, EDGES, torch.tensor(loc, dtype=torch.float64), 0.5, torch.tensor([0.3, -0.4]))


@pytest.mark.parametrize("loc", [3.0, 0.4, 0.0, -0.6, -0.95, -1.5])
def test_density_cdf_and_quantiles_belong_together(loc: float) -> None:
    found = Positive(bars_at(loc))
    y = torch.linspace(1e-9, 40.0, 400_001, dtype=torch.float64)
    density = found.log_prob(y).exp()
    assert float(torch.trapezoid(density, y)) == pytest.approx(1.0, abs=2e-3)
    cdf = found.cdf(y)
    torch.testing.assert_close(torch.cumulative_trapezoid(density, y), cdf[1:] - cdf[0], rtol=0, atol=2e-3)
    levels = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(found.cdf(found.icdf(levels)), levels, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loc", [3.0, 0.9, 0.4, 0.0, -0.6, -0.95, -1.5])
def test_mean_and_sd_are_those_of_the_density(loc: float) -> None:
    found = Positive(bars_at(loc))
    y = torch.linspace(1e-9, 60.0, 600_001, dtype=torch.float64)
    density = found.log_prob(y).exp()
    mean = torch.trapezoid(y * density, y)
    sd = torch.trapezoid((y - mean).square() * density, y).sqrt()
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.stddev, sd, rtol=0, atol=2e-3)


def test_moments_where_next_to_nothing_of_a_tail_lies_above_zero() -> None:
    """The left tail is cut off a hair's breadth below the bins: uniform, not 0 over 0."""
    for depth in (0.0, 1e-12, 1e-6, 1e-3):
        found = Positive(bars_at(1.0 + depth))
        torch.testing.assert_close(found.mean, Positive(bars_at(1.0)).mean, rtol=0, atol=2 * depth + 1e-9)
        torch.testing.assert_close(found.stddev, Positive(bars_at(1.0)).stddev, rtol=0, atol=2 * depth + 1e-9)


def test_moments_of_many_positions_are_those_of_few_and_of_draws() -> None:
    x = np.linspace(1.0, 100.0, 30)
    fit = hybrid.fit(hybrid.Curve(x, 0.2 + 0.8 / x), "nslpfn", "pfn", horizon=500.0)
    some, many = np.array([110.0, 400.0]), np.linspace(110.0, 400.0, 5001)
    np.testing.assert_allclose(fit.predict(many)["mean"][[0, -1]], fit.predict(some)["mean"], rtol=1e-6)
    draws = fit.sample(some, 1000, progress=False)
    np.testing.assert_allclose(fit.predict(some)["mean"], draws.mean("draw"), rtol=0.02)
    np.testing.assert_allclose(fit.predict(some)["sd"], draws.std("draw"), rtol=0.1)


def test_it_is_the_distribution_itself_where_nothing_lies_below_zero() -> None:
    bars, y = bars_at(400.0), torch.linspace(399.0, 401.0, 11, dtype=torch.float64)
    found = Positive(bars)
    torch.testing.assert_close(found.log_prob(y), bars.log_prob(y))
    torch.testing.assert_close(found.cdf(y), bars.cdf(y))


def test_what_is_left_of_a_distribution_far_below_zero_is_exponential() -> None:
    bars = bars_at(-1e4)
    found, length = Positive(bars), float(bars.scale * bars.tail_scales[1])
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(found.icdf(levels), -length * torch.log1p(-levels))
    assert bool(torch.isfinite(found.log_prob(found.icdf(levels))).all())


def test_mirrored() -> None:
    bars, y = bars_at(0.3), torch.linspace(-3.0, 3.0, 31, dtype=torch.float64)
    torch.testing.assert_close(bars.mirrored().log_prob(-y), bars.log_prob(y))
    torch.testing.assert_close(bars.mirrored().cdf(-y), 1.0 - bars.cdf(y))


@pytest.mark.parametrize("prior", ["nslpfn", "lcpfn"])
def test_forecasts_of_a_line_that_falls_to_zero_are_finite(prior: str) -> None:
    x = np.linspace(1.0, 100.0, 30)
    fit = hybrid.fit(hybrid.Curve(x, 1.0 - 0.0099 * x), prior, "pfn", horizon=500.0, progress=False)
    at = np.array([110.0, 200.0, 500.0])
    found = fit.predict(at)
    assert all(np.all(np.isfinite(found[name])) for name in ("quantiles", "mean", "sd"))
    assert np.all(np.isfinite(fit.sample(at, 50)))
    assert np.all(np.isfinite(fit.log_density(at, [0.01, 0.01, 0.01])))
    assert np.all((fit.prob_below(at, 0.3) >= 0) & (fit.prob_below(at, 0.3) <= 1))

"""The smoother: exact Bayesian linear regression, the same in any units, and finite whatever the context."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hybrid.amortized.smoother import (
    BEND_SCALES,
    EVEN_KNOTS,
    NOISE_SCALES,
    POINT_KNOTS,
    WEAK,
    Smooth,
    forecast,
    smooth,
    smoothed,
)

QUICK = settings(max_examples=40, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


def positions(width: float, size: int) -> Tensor:
    return torch.linspace(-width, 0.0, size, dtype=torch.float64)


def fit(xi: Tensor, v: Tensor) -> Smooth:
    """The smoother for contexts (n,) or (B, n) without padding."""
    xi, v = torch.broadcast_tensors(torch.atleast_2d(xi), torch.atleast_2d(v))
    return smooth(xi, v, torch.ones_like(xi, dtype=torch.bool))


def in_v(fitted: Smooth, xi: Tensor) -> Tensor:
    return fitted.centre + fitted.spread * smoothed(fitted, xi)


@st.composite
def contexts(draw: st.DrawFn, least: int = 20, most: int = 60) -> tuple[Tensor, Tensor]:
    """A falling curve with noise at irregular positions, shape (n,) each; the noise is not much below the spread.

    With fewer points than weights the curve may go through all of them: then the smallest noise sds are as likely as
    others, and rounding shows.
    """
    size, width = draw(st.integers(least, most)), draw(st.floats(0.2, 16.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    xi = np.sort(rng.uniform(-width, 0.0, size))
    xi[0], xi[-1] = -width, 0.0
    v = np.log(draw(st.floats(0.01, 1.0)) + np.exp(-draw(st.floats(0.05, 1.0)) * xi))
    v += draw(st.floats(1e-2, 1.0)) * max(np.std(v), 0.01) * rng.standard_normal(size)
    return torch.from_numpy(xi), torch.from_numpy(v)


@pytest.mark.parametrize("width", [0.2, 2.0, 16.0])
@pytest.mark.parametrize(("size", "tolerance"), [(3, 0.01), (20, 1e-6), (200, 1e-6)])
def test_a_straight_line_is_reproduced_and_extrapolated(size: int, tolerance: float, width: float) -> None:
    xi = positions(width, size)
    fitted = fit(xi, 2.0 - 0.7 * xi)
    at = torch.linspace(-width, 0.5 * width, 31, dtype=torch.float64)[None]
    error = (in_v(fitted, at) - (2.0 - 0.7 * at)) / fitted.spread
    assert float(error.abs().max()) < tolerance
    if size > 3:  # three points leave room for noise
        assert float(fitted.noise()) < 2e-6


@pytest.mark.parametrize(("floor", "exponent"), [(0.1, 0.3), (0.5, 0.5), (0.9, 1.0)])
@pytest.mark.parametrize(("size", "tolerance"), [(8, 1e-3), (20, 1e-4), (100, 1e-5)])
def test_a_power_law_with_a_floor_is_reproduced(floor: float, exponent: float, size: int, tolerance: float) -> None:
    def law(at: Tensor) -> Tensor:
        return (floor + (1 - floor) * torch.exp(-exponent * at)).log()

    xi = positions(7.0, size)
    fitted = fit(xi, law(xi))
    inside, beyond = positions(7.0, 300)[None], torch.tensor([[0.7]], dtype=torch.float64)
    assert float(((in_v(fitted, inside) - law(inside)) / fitted.spread).abs().max()) < tolerance
    assert float(((in_v(fitted, beyond) - law(beyond)) / fitted.spread).abs().max()) < 0.02


@pytest.mark.parametrize("relative", [1e-4, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("size", [30, 100])
def test_noise_is_estimated(size: int, relative: float) -> None:
    generator = torch.Generator().manual_seed(0)
    step = math.log(NOISE_SCALES[1] / NOISE_SCALES[0])
    xi = positions(6.0, size)
    curve = (0.3 + torch.exp(-0.5 * xi)).log()
    off_grid = step * (torch.rand(300, 1, dtype=torch.float64, generator=generator) - 0.5)
    sd = relative * curve.std() * off_grid.exp()
    fitted = fit(xi, curve + sd * torch.randn(300, size, dtype=torch.float64, generator=generator))
    ratio = (fitted.noise() * fitted.spread / sd).log()
    assert fitted.noise().shape == (300, 1)
    assert abs(float(ratio.mean())) < math.log(1.15)
    assert float(ratio.abs().quantile(0.95)) < 0.75 * step


def test_new_observations_lie_where_the_forecast_says() -> None:
    xi = positions(6.0, 25)
    generator = torch.Generator().manual_seed(1)
    at = torch.tensor([[-5.1, -2.6, -0.9, 0.5]], dtype=torch.float64)
    for sd in (0.003, 0.1, 1.0):
        sds = sd * 10.0 ** (0.4 * torch.rand(1000, 1, dtype=torch.float64, generator=generator))
        v = -xi + sds * torch.randn(1000, 25, dtype=torch.float64, generator=generator)
        new = -at + sds * torch.randn(1000, 4, dtype=torch.float64, generator=generator)
        fitted = fit(xi, v)
        mean, total = forecast(fitted, at.expand(1000, 4))
        z = ((new - fitted.centre) / fitted.spread - mean) / total
        assert float((z[:, :3].abs() < 1.645).double().mean()) == pytest.approx(0.9, abs=0.03)
        # Beyond the context the prior admits bends that a straight line does not have: the sd is on the safe side.
        assert 0.88 < float((z[:, 3].abs() < 1.645).double().mean()) <= 1.0


@QUICK
@given(contexts())
def test_forecast_has_the_mean_of_the_smoother(context: tuple[Tensor, Tensor]) -> None:
    xi, v = context
    fitted = fit(xi, v)
    at = torch.linspace(2 * float(xi[0]), -3 * float(xi[0]), 40, dtype=torch.float64)[None]
    mean, sd = forecast(fitted, at)
    assert mean.shape == sd.shape == (1, 40)
    torch.testing.assert_close(mean, smoothed(fitted, at), rtol=1e-9, atol=1e-9)
    assert bool((sd >= (1 - 1e-9) * fitted.noise()).all())  # a geometric mean is below the root of the mean square


@QUICK
@given(contexts(), st.integers(1, 30), st.floats(-1e6, 1e6), st.floats(0.1, 5.0))
def test_padding_changes_nothing(context: tuple[Tensor, Tensor], extra: int, junk: float, other_slope: float) -> None:
    xi, v = context
    size = len(xi)
    padded = torch.zeros(2, size + extra, dtype=torch.float64)
    padded[0, :size], padded[1] = xi, positions(5.0, size + extra)
    values = torch.full_like(padded, junk)
    values[0, :size], values[1] = v, -other_slope * padded[1]
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[0, size:] = False
    together, alone = smooth(padded, values, mask), fit(xi, v)
    for name in ("knots", "widths", "width", "centre", "spread", "probability"):
        torch.testing.assert_close(getattr(together, name)[:1], getattr(alone, name), rtol=1e-6, atol=1e-9)
    at = torch.linspace(float(xi[0]), 3.0, 20, dtype=torch.float64)[None]
    for one, other in zip(forecast(together, at.expand(2, 20)), forecast(alone, at), strict=True):
        torch.testing.assert_close(one[:1], other, rtol=1e-6, atol=1e-6)


def check_units(context: tuple[Tensor, Tensor], seed: int, stretch: float, a: float, b: float, tolerance: float) -> None:
    """The smoother of stretched positions and of a v + b, in another order, agrees with the original up to the tolerance."""
    xi, v = context
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(xi)))
    at = torch.linspace(float(xi[0]), 2.0, 20, dtype=torch.float64)[None]
    base, moved = fit(xi, v), fit(stretch * xi[order], a * v[order] + b)
    torch.testing.assert_close(moved.spread, abs(a) * base.spread, rtol=1e-7, atol=0)
    torch.testing.assert_close(moved.centre, a * base.centre + b, rtol=1e-9, atol=1e-9 * abs(a))
    torch.testing.assert_close(moved.noise(), base.noise(), rtol=10 * tolerance, atol=0)
    (mean, sd), (moved_mean, moved_sd) = forecast(base, at), forecast(moved, stretch * at)
    assert float(((math.copysign(1.0, a) * moved_mean - mean) / sd).abs().max()) < tolerance
    torch.testing.assert_close(moved_sd, sd, rtol=tolerance, atol=0)


units = (
    st.integers(0, 2**32 - 1),
    st.floats(0.1, 10.0),
    st.tuples(st.floats(-6.0, 6.0), st.booleans()).map(lambda e: (-1.0) ** e[1] * 10.0 ** e[0]),
)


@QUICK
@given(contexts(), *units, st.floats(-1e3, 1e3))
def test_order_and_units_do_not_matter(
    context: tuple[Tensor, Tensor], seed: int, stretch: float, a: float, level: float
) -> None:
    check_units(context, seed, stretch, a, level * a, 1e-6)


@QUICK
@given(contexts(3, 19), *units)
def test_order_and_units_hardly_matter_for_few_points(
    context: tuple[Tensor, Tensor], seed: int, stretch: float, a: float
) -> None:
    check_units(context, seed, stretch, a, 0.0, 0.05)


@pytest.mark.parametrize("width", [0.2, 1.0, 4.0, 16.0])
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(lambda n: torch.full((n,), 3.0), id="constant"),
        pytest.param(lambda n: torch.zeros(n), id="zero"),
        pytest.param(lambda n: 1e8 + torch.linspace(1, 0, n, dtype=torch.float64), id="high"),
        pytest.param(lambda n: torch.linspace(1, 0, n, dtype=torch.float64), id="line"),
        pytest.param(lambda n: (-1.0) ** torch.arange(n), id="alternating"),
        pytest.param(lambda n: 1e6 * (torch.arange(n) == n // 2), id="outlier"),
    ],
)
@pytest.mark.parametrize("places", ["three", "two with repeats", "one far off", "many"])
def test_everything_is_finite(places: str, values: Callable[[int], Tensor], width: float) -> None:
    shares = {
        "three": [-1.0, -0.5, 0.0],
        "two with repeats": [-1.0] * 7 + [0.0] * 4,
        "one far off": [-1.0, *[-1e-6 * k for k in range(9, -1, -1)]],
        "many": np.linspace(-1.0, 0.0, 500).tolist(),
    }[places]
    xi = width * torch.tensor(shares, dtype=torch.float64)
    v = values(len(shares)).double()
    fitted = fit(xi, v)
    at = torch.linspace(-2 * width, 10 * width, 60, dtype=torch.float64)[None]
    mean, sd = forecast(fitted, at)
    for part in (*fitted, fitted.noise(), mean, sd, smoothed(fitted, xi[None])):
        assert bool(torch.isfinite(part).all())
    assert bool((sd > 0).all())
    assert float(fitted.spread) > 0
    assert float(fitted.probability.sum()) == pytest.approx(1.0, abs=1e-9)
    assert bool((fitted.shrinkage > 0).all() & (fitted.shrinkage <= 1).all())
    if bool((v == v[0]).all()):
        torch.testing.assert_close(in_v(fitted, at), v[0].expand(1, 60), rtol=1e-8, atol=1e-8)


@QUICK
@given(contexts())
def test_uncertainty_grows_away_from_the_data(context: tuple[Tensor, Tensor]) -> None:
    xi, v = context
    fitted = fit(xi, v)
    steps = torch.arange(1, 41, dtype=torch.float64)[None] * 0.25 * -xi[0]
    _, ahead = forecast(fitted, steps)
    _, behind = forecast(fitted, xi[0] - steps)
    _, inside = forecast(fitted, xi[None])
    assert bool((ahead.diff() > 0).all())
    assert bool((behind.diff() > 0).all())
    assert float(ahead[0, -1]) > float(inside.max())
    assert float(ahead[0, -1]) > 2 * float(ahead[0, 3])


def reference(xi: np.ndarray, v: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Predictive mean and sd, and the geometric mean of the noise, from dense Gaussian conditioning in function space."""
    width = -xi.min()
    at_points = np.quantile(xi, np.arange(1, POINT_KNOTS + 1) / (POINT_KNOTS + 1))
    everything = np.concatenate([[-width], at_points, [0.0]])
    mean_gap = np.array([(everything[i + 2] - everything[i]) / 2 for i in range(POINT_KNOTS)])
    knots = np.concatenate([np.linspace(-width, 0.0, EVEN_KNOTS), at_points])
    widths = np.concatenate([np.full(EVEN_KNOTS, width / EVEN_KNOTS), np.maximum(mean_gap, width / 64)])

    def basis(x: np.ndarray) -> np.ndarray:
        bends = [f / width * np.logaddexp(0.0, (x - d) / f) for d, f in zip(knots, widths, strict=True)]
        return np.stack([np.ones_like(x), x / width, *bends], 1)

    target = (v - v.mean()) / v.std()
    seen, new = basis(xi), basis(at)
    evidence, means, variances, noises = [], [], [], []
    for bend in BEND_SCALES:
        prior = np.diag([WEAK**2, WEAK**2, *[bend**2] * len(knots)])
        function = seen @ prior @ seen.T
        for noise in NOISE_SCALES:
            values, vectors = np.linalg.eigh(function)
            spectrum = (np.maximum(values, 0.0) + noise**2, vectors)
            covariance = stats.Covariance.from_eigendecomposition(spectrum)
            evidence.append(stats.multivariate_normal(np.zeros(len(xi)), covariance).logpdf(target))
            inverse = (vectors / spectrum[0]) @ vectors.T
            gain = new @ prior @ seen.T @ inverse
            means.append(gain @ target)
            variances.append(np.diag(new @ prior @ new.T - gain @ seen @ prior @ new.T) + noise**2)
            noises.append(noise)
    weight = np.exp(np.array(evidence) - max(evidence))
    weight /= weight.sum()
    mean = weight @ np.array(means)
    variance = weight @ (np.array(variances) + (np.array(means) - mean) ** 2)
    return mean, np.sqrt(variance), float(np.exp(weight @ np.log(noises)))


@pytest.mark.parametrize(
    ("size", "sd", "tolerance"),
    [
        (5, 0.5, 5e-3),  # fewer points than weights: the evidence of the smallest noise sds is rounded
        (9, 0.05, 1e-6),
        (12, 0.2, 1e-6),
        (40, 0.1, 1e-6),
    ],
)
def test_predictive_is_that_of_dense_gaussian_conditioning(size: int, sd: float, tolerance: float) -> None:
    rng = np.random.default_rng(size)
    xi = np.sort(rng.uniform(-5.0, 0.0, size))
    xi[-1] = 0.0
    v = np.log(0.3 + np.exp(-0.6 * xi)) + sd * rng.standard_normal(size)
    at = np.concatenate([xi, [-6.0, -1.234, 0.5, 2.0, 6.0]])
    fitted = fit(torch.from_numpy(xi), torch.from_numpy(v))
    mean, total, noise = reference(xi, v, at)
    found = forecast(fitted, torch.from_numpy(at)[None])
    np.testing.assert_allclose(found[0][0].numpy(), mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found[1][0].numpy(), total, rtol=tolerance)
    assert float(fitted.noise()) == pytest.approx(noise, rel=4 * tolerance)
    assert float(fitted.centre) == pytest.approx(v.mean(), rel=1e-12)
    assert float(fitted.spread) == pytest.approx(v.std(), rel=1e-12)

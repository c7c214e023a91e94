"""The bar distribution: density, cdf, quantiles, moments, entropy and CRPS describe one and the same distribution."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.amortized.bar_distribution import BarDistribution
from hybrid.amortized.network import LONGEST
from hybrid.amortized.predictive import DEEPEST, _exponential_moment
from hybrid.models.errors import InvalidArgumentError

QUICK = settings(max_examples=40, deadline=None)
LN2 = math.log(2.0)


@st.composite
def bars(draw: st.DrawFn, spread: float = 4.0) -> BarDistribution:
    """A random bar distribution in float64, batch shape ()."""
    count = draw(st.integers(1, 12))
    widths = torch.tensor(draw(st.lists(st.floats(1e-3, 5.0), min_size=count, max_size=count)), dtype=torch.float64)
    start = draw(st.floats(-10.0, 10.0))
    edges = start + torch.cat([torch.zeros(1, dtype=torch.float64), widths.cumsum(0)])
    logits = draw(st.lists(st.floats(-spread, spread), min_size=count + 2, max_size=count + 2))
    loc, scale = draw(st.floats(-5.0, 5.0)), draw(st.floats(0.01, 20.0))
    tails = torch.tensor(draw(st.lists(st.floats(-2.0, 3.0), min_size=2, max_size=2)), dtype=torch.float64)
    return BarDistribution(torch.tensor(logits, dtype=torch.float64), edges, loc, scale, tails)


def pieces(bar: BarDistribution, nodes: int = 40, also: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on every bin and on 60 scales of each tail, so that kinks fall between panels."""
    edges, (left, right) = bar.edges, bar.tail_scales
    reach = torch.tensor([60.0, 30.0, 14.0, 6.0, 2.0, 0.0], dtype=torch.float64)
    panels = torch.cat([edges[0] - reach[:-1] * left, edges, (edges[-1] + reach * right).flip(0)[1:]])
    panels = bar.loc + bar.scale * panels
    if also is not None:
        panels = torch.cat([panels, also[None]]).sort().values
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    half, middle = panels.diff()[:, None] / 2, (panels[1:] + panels[:-1])[:, None] / 2
    return (middle + half * node).flatten(), (half * weight).flatten()


@QUICK
@given(bars())
def test_density_integrates_to_one_and_gives_moments_and_entropy(bar: BarDistribution) -> None:
    y, weight = pieces(bar)
    log_density = bar.log_prob(y)
    mass = weight * log_density.exp()
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(mass.sum(), torch.ones((), dtype=torch.float64), **close)
    torch.testing.assert_close((mass * y).sum(), bar.mean, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close((mass * (y - bar.mean) ** 2).sum(), bar.variance, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(-(mass * log_density).sum(), bar.entropy(), rtol=1e-8, atol=1e-8)


@QUICK
@given(bars())
def test_cdf_is_the_integral_of_the_density(bar: BarDistribution) -> None:
    y, _ = pieces(bar, nodes=3)
    step = 1e-6 * float(bar.scale * bar.edges.diff().min())
    slope = (bar.cdf(y + step) - bar.cdf(y - step)) / (2 * step)
    torch.testing.assert_close(slope, bar.log_prob(y).exp(), rtol=1e-3, atol=1e-9 / step)
    assert bool((bar.cdf(y).diff() >= 0).all())
    ends = bar.cdf(torch.tensor([-math.inf, math.inf], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=0)


@QUICK
@given(bars(), st.sampled_from([torch.float32, torch.float64]))
def test_icdf_inverts_cdf_also_far_in_the_tails(bar: BarDistribution, dtype: torch.dtype) -> None:
    bar = BarDistribution(bar.logits.to(dtype), bar.edges.to(dtype), validate_args=False)
    eps = torch.finfo(dtype).eps
    lower = torch.cat([torch.logspace(-30, -2, 15), torch.linspace(0.02, 0.98, 49)])
    p = torch.cat([lower.to(dtype), 1 - torch.logspace(math.log10(4 * eps), -2, 10, dtype=dtype)])
    y = bar.icdf(p)
    # y is rounded like the largest number it is made from, perhaps into the neighbouring bin, and p by its own.
    rounding = 8 * eps * torch.maximum(y.abs(), bar.edges.abs().max())
    density = torch.stack([bar.log_prob(y + shift) for shift in (-rounding, 0 * rounding, rounding)]).amax(0).exp()
    assert bool(((bar.cdf(y) - p).abs() <= 40 * eps * p + rounding * density).all())
    assert bool((bar.icdf(p.sort().values).diff() >= 0).all())
    ends = bar.icdf(torch.tensor([0.0, 1.0], dtype=dtype))
    assert ends.tolist() == [-math.inf, math.inf]
    assert bool(bar.icdf(torch.tensor([-0.1, 1.1], dtype=dtype)).isnan().all())


@QUICK
@given(bars(), st.floats(-1.5, 2.5))
def test_crps_matches_quadrature(bar: BarDistribution, share: float) -> None:
    at = bar.loc + bar.scale * (bar.edges[0] + share * (bar.edges[-1] - bar.edges[0]))
    y, weight = pieces(bar, also=at)
    f = bar.cdf(y)
    exact = (weight * torch.where(y < at, f, 1 - f) ** 2).sum()
    torch.testing.assert_close(bar.crps(at), exact, rtol=1e-8, atol=1e-9)


def test_crps_matches_the_score_of_a_large_sample() -> None:
    torch.manual_seed(0)
    edges = torch.tensor([-1.0, -0.5, 0.2, 0.25, 2.0], dtype=torch.float64)
    bar = BarDistribution(torch.randn(6, dtype=torch.float64), edges, 3.0, 0.5)
    draws = bar.sample((200_000,))
    for at in (-4.0, 2.4, 2.6, 2.9, 3.11, 3.7, 9.0):
        y = torch.tensor(at, dtype=torch.float64)
        ensemble = float(scoringrules.crps_ensemble(at, draws.numpy()))
        assert float(bar.crps(y)) == pytest.approx(ensemble, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(bars(spread=2.0))
def test_sample_moments_match(bar: BarDistribution) -> None:
    torch.manual_seed(1)
    draws = bar.sample((40_000,))
    z = (draws - bar.mean) / bar.stddev
    assert abs(float(z.mean())) < 6 / math.sqrt(40_000)
    fourth = float((z**4).mean())
    assert abs(float((z**2).mean()) - 1) < 6 * math.sqrt(max(fourth - 1, 1e-3) / 40_000) + 1e-3
    pit = bar.cdf(draws).sort().values
    uniform = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    assert float((pit - uniform).abs().max()) < 2.5 / math.sqrt(40_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_extreme_logits_stay_finite_and_consistent(dtype: torch.dtype, size: float) -> None:
    edges = torch.linspace(-3, 3, 11, dtype=dtype)
    for hot in (0, 5, 11):
        logits = torch.full((12,), -size, dtype=dtype)
        logits[hot] = size
        logits.requires_grad_(True)
        bar = BarDistribution(logits, edges)
        y = torch.tensor([-1e6, -3.0, -0.2, 0.0, 2.9, 3.0, 1e6], dtype=dtype)
        loss = bar.log_prob(y).sum() + bar.crps(y).sum() + bar.entropy() + bar.mean + bar.variance + bar.cdf(y).sum()
        assert bool(torch.isfinite(loss))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(torch.isfinite(gradient).all())
        assert bool(torch.isfinite(bar.sample((1000,))).all())
        p = torch.tensor([0.01, 0.5, 0.99], dtype=dtype)
        torch.testing.assert_close(bar.cdf(bar.icdf(p)), p, rtol=1e-5, atol=1e-5)
    impossible = BarDistribution(torch.tensor([-math.inf, 0.0, 0.0, -math.inf], dtype=dtype), edges[:3])
    assert impossible.entropy().item() == pytest.approx(math.log(1.2), rel=1e-5)
    assert impossible.log_prob(torch.tensor([-10.0, 10.0], dtype=dtype)).tolist() == [-math.inf, -math.inf]
    assert bool(torch.isfinite(impossible.sample((1000,))).all())


def test_a_thousand_bins_in_single_precision() -> None:
    torch.manual_seed(2)
    logits, edges = 3 * torch.randn(16, 1002), torch.linspace(-4, 4, 1001)
    single, double = BarDistribution(logits, edges), BarDistribution(logits.double(), edges.double())
    y = torch.linspace(-6, 6, 301)[:, None]
    for name in ("log_prob", "cdf", "crps"):
        torch.testing.assert_close(getattr(single, name)(y), getattr(double, name)(y.double()).float(), rtol=2e-4, atol=2e-5)
    assert bool((single.cdf(y).diff(dim=0) >= 0).all())
    p = torch.linspace(0.001, 0.999, 101)[:, None]
    torch.testing.assert_close(single.cdf(single.icdf(p)), p.expand(101, 16), rtol=0, atol=1e-5)


def test_affine_map_carries_every_quantity() -> None:
    torch.manual_seed(3)
    logits, edges = torch.randn(5, 1, 7, dtype=torch.float64), torch.linspace(-2, 2, 6, dtype=torch.float64)
    tails = torch.randn(5, 1, 2, dtype=torch.float64)
    loc, scale = torch.randn(5, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1
    base, moved = BarDistribution(logits, edges, tails=tails), BarDistribution(logits, edges, loc, scale, tails)
    assert moved.batch_shape == (5, 4)
    assert base.batch_shape == (5, 1)
    u = 3 * torch.randn(9, 5, 4, dtype=torch.float64)
    y = loc + scale * u
    torch.testing.assert_close(moved.log_prob(y), base.log_prob(u) - scale.log())
    torch.testing.assert_close(moved.cdf(y), base.cdf(u))
    torch.testing.assert_close(moved.crps(y), scale * base.crps(u))
    torch.testing.assert_close(moved.mean, loc + scale * base.mean)
    torch.testing.assert_close(moved.variance, scale**2 * base.variance)
    torch.testing.assert_close(moved.entropy(), base.entropy() + scale.log())
    p = torch.rand(9, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(moved.icdf(p), loc + scale * base.icdf(p))
    assert moved.sample((3,)).shape == (3, 5, 4)
    wider = base.expand((2, 5, 4))
    torch.testing.assert_close(wider.cdf(u[:2]), base.cdf(u[:2]))


def test_rows_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(4)
    logits, edges, tails = torch.randn(6, 9), torch.linspace(0, 1, 8), torch.randn(6, 2)
    together = BarDistribution(logits, edges, torch.arange(6.0), tails=tails)
    p, y = torch.rand(4, 6), 6 * torch.rand(4, 6)
    for row in range(6):
        alone = BarDistribution(logits[row], edges, float(row), tails=tails[row])
        torch.testing.assert_close(together.icdf(p)[:, row], alone.icdf(p[:, row]))
        torch.testing.assert_close(together.crps(y)[:, row], alone.crps(y[:, row]))
        torch.testing.assert_close(together.log_prob(y)[:, row], alone.log_prob(y[:, row]))


def test_a_longer_tail_keeps_its_mass_and_the_bins() -> None:
    edges, longer = torch.linspace(-2, 2, 6, dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    logits = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    base, long = BarDistribution(logits, edges), BarDistribution(logits, edges, tails=longer)
    y = torch.linspace(-9.0, 2.0, 50, dtype=torch.float64)
    torch.testing.assert_close(long.cdf(y), base.cdf(y))
    torch.testing.assert_close(long.log_prob(y[:-1]), base.log_prob(y[:-1]))
    above = torch.linspace(0.0, 9.0, 20, dtype=torch.float64)
    beyond = base.edges[-1] + above
    torch.testing.assert_close(1.0 - long.cdf(base.edges[-1] + math.exp(3.0) * above), 1.0 - base.cdf(beyond))


def test_half_precision_logits_are_raised() -> None:
    bar = BarDistribution(torch.randn(3, 6, dtype=torch.bfloat16), torch.linspace(0, 1, 5))
    assert bar.log_prob(torch.zeros(3)).dtype == torch.float32


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"strictly.*entries 1 and 2"):
        BarDistribution(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0]))
    with pytest.raises(InvalidArgumentError, match="strictly"):  # they coincide in the precision of the logits
        BarDistribution(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0 + 1e-12], dtype=torch.float64))
    with pytest.raises(InvalidArgumentError, match="finite"):
        BarDistribution(torch.zeros(4), torch.tensor([0.0, 1.0, math.inf]))
    with pytest.raises(InvalidArgumentError, match="need 4 logits"):
        BarDistribution(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(InvalidArgumentError, match="one-dimensional"):
        BarDistribution(torch.zeros(2), torch.zeros(1))
    with pytest.raises(InvalidArgumentError, match=r"two tails.*\(3,\)"):
        BarDistribution(torch.zeros(4), torch.tensor([0.0, 1.0, 2.0]), tails=torch.zeros(3))
    with pytest.raises(ValueError, match="scale"):
        BarDistribution(torch.zeros(4), torch.tensor([0.0, 1.0, 2.0]), scale=0.0)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_moments_of_exp_match_quadrature_up_to_the_last_of_the_tails(power: float) -> None:
    edges = torch.linspace(-1, 1, 5, dtype=torch.float64)
    logits = torch.tensor([0.1, 1.0, 0.3, 0.2, 0.5, -0.4], dtype=torch.float64)
    bar = BarDistribution(logits, edges, 0.7, 0.3, tails=torch.tensor([0.4, 1.2], dtype=torch.float64))
    left, right = bar.tail_scales
    ends = (edges[0] - DEEPEST * left)[None], (edges[-1] + DEEPEST * right)[None]
    panels = torch.cat([torch.lerp(*ends, torch.linspace(0, 1, 400, dtype=torch.float64)), edges]).sort().values
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12))
    half, middle = panels.diff()[:, None] / 2, (panels[1:] + panels[:-1])[:, None] / 2
    u, mass = (middle + half * node).flatten(), (half * weight).flatten() * bar.scale
    mass = mass * bar.log_prob(bar.loc + bar.scale * u).exp()
    kept = torch.where((u < edges[0]) | (u > edges[-1]), 1 / (1 - math.exp(-DEEPEST)), 1.0)
    exact = (mass * kept * (power * bar.scale * u).exp()).sum()
    torch.testing.assert_close(_exponential_moment(bar, power), exact, rtol=1e-8, atol=0)


def test_moments_of_exp_stay_finite_however_long_a_tail_is() -> None:
    edges = torch.linspace(-1, 1, 5, dtype=torch.float64)
    bar = BarDistribution(torch.zeros(6, dtype=torch.float64), edges, 0.0, 3.0, tails=torch.full((2,), LONGEST).double())
    first, second = (float(_exponential_moment(bar, power)) for power in (1.0, 2.0))
    assert 0 < first**2 < second < math.inf


@pytest.mark.parametrize("shape", [{"loc": (4, 3)}, {"scale": (3,)}, {"tails": (3, 2)}, {"logits": (4, 1, 5), "tails": (3, 2)}])
def test_all_moments_and_scores_have_the_shape_of_the_batch(shape: dict[str, tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"logits": (5,), "loc": (), "scale": (), "tails": (2,), **shape}
    logits, loc, scale, tails = (torch.randn(shapes[name], generator=generator) for name in ("logits", "loc", "scale", "tails"))
    bar = BarDistribution(logits, torch.arange(4.0), loc, scale.exp(), tails)
    y = torch.full(bar.batch_shape, 0.7)
    for found in (bar.mean, bar.variance, bar.entropy(), bar.log_prob(y), bar.cdf(y), bar.icdf(0.5 + 0.0 * y), bar.crps(y)):
        assert found.shape == bar.batch_shape
    index = tuple(size - 1 for size in bar.batch_shape)
    whole = bar.expand(bar.batch_shape)
    one = BarDistribution(whole.logits[index], bar.edges, whole.loc[index], whole.scale[index], whole.tails[index])
    for many, single in ((bar.variance, one.variance), (bar.entropy(), one.entropy()), (bar.crps(y), one.crps(y[index]))):
        torch.testing.assert_close(many[index], single)
    joint = torch.distributions.Independent(bar, 1)
    torch.testing.assert_close(joint.entropy(), bar.entropy().sum(-1))
    torch.testing.assert_close(joint.variance, bar.variance)


def test_what_is_expanded_still_checks_values() -> None:
    bar = BarDistribution(torch.zeros(4), torch.arange(3.0), validate_args=True)
    for checked in (bar, bar.expand((2,))):
        with pytest.raises(ValueError, match="support"):
            checked.log_prob(torch.tensor(torch.nan))
    unchecked = BarDistribution(torch.zeros(4), torch.arange(3.0), validate_args=False).expand((2,))
    assert bool(unchecked.log_prob(torch.tensor(torch.nan)).isnan().all())


def test_quantiles_at_the_ends_have_gradients_without_nan() -> None:
    logits, tails = torch.zeros(4, requires_grad=True), torch.zeros(2, requires_grad=True)
    found = BarDistribution(logits, torch.arange(3.0), tails=tails).icdf(torch.tensor([0.0, 0.01, 0.5, 1.0]))
    assert found[0] == -torch.inf
    assert found[3] == torch.inf
    for gradient in torch.autograd.grad(
        found[1:3].sum() + 0.0 * found[[0, 3]].nan_to_num(0.0, 0.0, 0.0).sum(), (logits, tails)
    ):
        assert bool(gradient.isfinite().all())
    assert bool(BarDistribution(torch.zeros(4), torch.arange(3.0)).icdf(torch.tensor([-0.1, 1.1])).isnan().all())

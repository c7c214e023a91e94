"""The law as a frame of reference: the mode that an independent optimiser finds, its curvature, and forecasts that follow."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from contexts import QUICK, TRUTHS, extremes, falling, frame_of, in_units, law_of, modes_of, noisy, shipped, truth
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import Tensor

from hybrid.amortized.coordinates import MOST_TOKENS
from hybrid.amortized.groups import group
from hybrid.amortized.law_frame import (
    COARSE,
    CONVERGED,
    DISTINCT,
    LEAST_FREE,
    LEAST_SIGMA,
    MODES,
    LawFrame,
    Modes,
    frame_prior,
)
from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law
from hybrid.models.prior import Parameter, Prior
from hybrid.models.registry import PRIORS, get_prior

pytestmark = pytest.mark.usefixtures("one_thread")
# Where a descent stops there is still this much to go, in sds of the Laplace approximation.
TO_GO = 2 * math.sqrt(2 * CONVERGED)
LAWS = [("m2", True), ("m4", True), ("bnsl", True), ("bnsl", False)]


class Flat(Law):
    """A constant, whose logarithm is linear in the unconstrained parameter."""

    name = "flat"

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Frame) -> Any:
        return theta["level"] + 0.0 * x


class Tossed(Flat):
    """The same, with a parameter that is discrete."""

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Frame) -> Any:
        return super().mean(xp, x, theta, frame) + 0.0 * theta["coin"]


LEVEL = Parameter("level", Distribution("LogNormal", loc=0.3, scale=0.8))
SIGMA = Parameter("sigma", Distribution("LogNormal", loc=-3.0, scale=1.0))
COIN = Parameter("coin", Distribution("Categorical", probs=(0.5, 0.5)))
FLAT = Prior("flat", Flat(), [LEVEL, SIGMA])


FITTED = Modes._fields[:-1]  # the last is what they were fitted to


def sds_apart(modes: Modes, s: Tensor) -> Tensor:
    """How far s (B, M, d) is from the modes, in sds of the Laplace approximation, shape (B, M)."""
    return (modes.root.mT @ (s - modes.s)[..., None])[..., 0].norm(dim=-1)


def check_same(one: Modes, other: Modes, sds: float, rows: slice = slice(None)) -> None:
    """The modes are as far apart as two descents may end, and where the second has no weight, it has none in both."""
    other = Modes(*(part[rows] for part in other[:-1]), other.data)
    counts = one.weight > 1e-4
    assert torch.equal(counts, other.weight > 1e-4)
    assert float(sds_apart(one, other.s)[counts].max()) < sds
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=10 * sds)
    torch.testing.assert_close(one.log_sigma[counts], other.log_sigma[counts], rtol=0, atol=sds)


def objective(law: LawFrame, x: np.ndarray, v: np.ndarray) -> Any:
    """F of the module's docstring as a function of (s, log sigma), by NumPy and the law itself."""
    loc, scale, (mu, tau) = law.loc.numpy(), law.scale.numpy(), law.noise.tolist()
    free = max(len(x) - law.size, LEAST_FREE)
    frame = Frame(0.0, 1.0, 1.0, float(x[0]), 1.0, 1.0)

    def found(both: np.ndarray) -> float:
        s, log_sigma = both[:-1], both[-1]
        theta: dict[str, Any] = {"sigma": np.ones(())}
        for name, real, parameter in zip(law.names, s * scale + loc, law.prior.parameters, strict=False):
            family = parameter.distribution.family
            assert parameter.name == name
            if family == "LogNormal":
                theta[name] = np.exp(real)
            else:
                theta[name] = real if family == "Normal" else 1.0 / (1.0 + np.exp(-real))
        with np.errstate(all="ignore"):
            mean = np.asarray(
                law.prior.mean(
                    {k: torch.tensor(float(t), dtype=torch.float64) for k, t in theta.items()}, torch.from_numpy(x), frame
                )
            )
            residual = v - (np.log(mean) if law.logarithmic else mean)
            value = 0.5 * np.sum(residual**2) * np.exp(-2 * log_sigma) + free * log_sigma
        value += 0.5 * np.sum(s**2) + 0.5 * ((log_sigma - mu) / tau) ** 2
        return float(value) if np.isfinite(value) else 1e12

    return found


def least(f: Callable[[float], float]) -> tuple[float, float]:
    """Where a function of log sigma is least, and its value there."""
    found = optimize.minimize_scalar(f, bounds=(-14.0, 3.0), method="bounded", options={"xatol": 1e-9})
    return float(found.x), float(found.fun)


def along_sigma(f: Callable[[np.ndarray], float], s: Tensor) -> tuple[float, float]:
    """log sigma at which F is least for s (d,), and F there."""
    return least(lambda log_sigma: f(np.append(s.numpy(), log_sigma)))


@pytest.mark.parametrize("size", [12, MOST_TOKENS, 300])
@pytest.mark.parametrize("name", TRUTHS)
def test_a_curve_without_noise_is_recovered(name: str, size: int) -> None:
    law = law_of(name)
    x, v = noisy(law, name, size, 0.0, 1)
    modes = modes_of(law, x, v)
    at = torch.cat([x, torch.tensor([1.2, 2.0, 4.0], dtype=torch.float64)])[None]
    expected = law.curve(truth(law, name), at, frame_of(x[None]))
    found, sd, _ = law.forecast(modes, at, frame_of(x[None]))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-4)
    assert float((found[0] - expected).abs().div(sd[0]).max()) < 3.0
    assert float(modes.log_sigma[0, 0]) < math.log(1e-4)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_curve_without_additive_noise_is_recovered(name: str) -> None:
    law = law_of(name, False)
    x, v = noisy(law, name, 25, 0.0, 1)
    modes = modes_of(law, x, v)
    at = torch.cat([x, torch.tensor([1.2, 2.0, 4.0], dtype=torch.float64)])[None]
    expected = law.curve(truth(law, name), at, frame_of(x[None]))
    torch.testing.assert_close(law.along(modes, at, frame_of(x[None]))[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "logarithmic"), [("m2", True), ("m4", True), ("m2", False)])
def test_the_mode_is_that_of_an_independent_optimiser(name: str, logarithmic: bool) -> None:
    law = law_of(name, logarithmic)
    rng = np.random.default_rng(0)
    for seed, (size, noise) in enumerate([(6, 0.02), (COARSE, 0.05), (25, 0.01)]):
        x, values = noisy(law, name, size, noise, 3)
        v = values[seed]
        modes = modes_of(law, x, v)
        f = objective(law, x.numpy(), v.numpy())
        # sigma that is reported has other degrees of freedom: here it is where F is least along it.
        log_sigma, value = along_sigma(f, modes.s[0, 0])
        starts = [np.append(modes.s[0, 0].numpy(), log_sigma)] + [
            np.append(rng.standard_normal(law.size), -3.0) for _ in range(4)
        ]
        found = [optimize.minimize(f, start, method="BFGS", options={"gtol": 1e-7}) for start in starts]
        lowest = min(result.fun for result in found)
        assert value < lowest + 2 * CONVERGED
        nearest = found[0].x[:-1]  # a descent from the mode stays in its valley
        assert float(sds_apart(modes, torch.from_numpy(nearest).expand(1, MODES, -1))[0, 0]) < TO_GO


def test_of_one_level_everything_is_known() -> None:
    """log y is normal around s, whose prior is normal: ridge regression, with F over sigma in one dimension."""
    law = LawFrame(FLAT, True)
    scale, loc, (mu, tau) = float(law.scale), float(law.loc), law.noise.tolist()
    assert (loc, scale, mu, tau) == pytest.approx((0.3, 0.8, -3.0, 1.0), abs=0.03)
    for size in (3, 10, 200):
        rng = np.random.default_rng(size)
        v = 1.1 + 0.1 * rng.standard_normal(size)
        x = torch.linspace(-4.0, 0.0, size, dtype=torch.float64).exp()
        modes = modes_of(law, x, torch.from_numpy(v))
        free = size - 1

        def profile(log_sigma: float, v: np.ndarray = v, free: int = free) -> tuple[float, float, float]:
            """F at the best s, that s, and the curvature there."""
            precision = len(v) * scale**2 * math.exp(-2 * log_sigma) + 1.0
            s = float((v - loc).sum()) * scale * math.exp(-2 * log_sigma) / precision
            squares = float(((v - loc - scale * s) ** 2).sum())
            value = 0.5 * squares * math.exp(-2 * log_sigma) + free * log_sigma + 0.5 * s**2
            return value + 0.5 * ((log_sigma - mu) / tau) ** 2, s, precision

        at, _ = least(lambda log_sigma, f=profile: f(log_sigma)[0])
        _, s, precision = profile(at)
        assert float(modes.s[0, 0, 0]) == pytest.approx(s, abs=TO_GO / math.sqrt(precision))
        assert float(modes.root[0, 0, 0, 0]) == pytest.approx(math.sqrt(precision), rel=1e-3)
        # One parameter, of which the data fix 1 - 1 / precision.
        squares = float(((v - loc - scale * s) ** 2).sum())
        degrees = size - 1 + 1 / precision
        at, _ = least(lambda t, n=degrees, q=squares: n * t + 0.5 * q * math.exp(-2 * t) + 0.5 * ((t - mu) / tau) ** 2)
        assert float(modes.log_sigma[0, 0]) == pytest.approx(at, abs=1e-3)
        assert float(modes.log_sigma_sd[0, 0]) == pytest.approx(1 / math.sqrt(2 * degrees + 1 / tau**2), rel=1e-3)
        assert modes.weight[0].tolist() == [1.0, 0.0]  # there is one mode
        query = torch.tensor([[0.2, 1.0, 9.0]], dtype=torch.float64)
        curve, sd, bend = law.forecast(modes, query, frame_of(x[None]))
        expected = math.sqrt(scale**2 / precision + math.exp(2 * at))
        torch.testing.assert_close(curve[0], torch.full_like(query, loc + scale * float(modes.s[0, 0, 0])))
        torch.testing.assert_close(sd[0], torch.full_like(query, expected), rtol=1e-3, atol=0)
        assert float(bend.abs().max()) < 1e-9


@pytest.mark.parametrize(("name", "logarithmic"), [("m2", True), ("m4", True), ("bnsl", True), ("bnsl", False)])
def test_curvature_is_that_of_the_objective(name: str, logarithmic: bool) -> None:
    """Gauss-Newton is the Hessian where residuals are small; sigma is held."""
    law = law_of(name, logarithmic)
    x, v = noisy(law, name, 30, 1e-4, 1)
    modes = modes_of(law, x, v[0])
    f = objective(law, x.numpy(), v[0].numpy())
    mode, d = modes.s[0, 0].numpy(), law.size
    at, _ = along_sigma(f, modes.s[0, 0])
    spread = modes.spread[0, 0].numpy()  # in whose columns the Hessian is the identity
    step = 0.05

    def along(z: np.ndarray) -> float:
        return float(f(np.append(mode + spread @ z, at)))

    eye = np.eye(d) * step
    hessian = np.array([[along(a + b) - along(a - b) - along(b - a) + along(-a - b) for a in eye] for b in eye]) / (4 * step**2)
    np.testing.assert_allclose(hessian, np.eye(d), atol=0.02)
    both = modes.root[0, 0] @ modes.root[0, 0].mT
    torch.testing.assert_close(torch.linalg.inv(both), modes.spread[0, 0] @ modes.spread[0, 0].mT, rtol=1e-5, atol=1e-12)
    assert bool((modes.root.triu(1) == 0).all())
    assert float(both.diagonal().min()) >= 1.0  # the prior


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_sigma_is_close_to_the_truth_with_many_points(name: tuple[str, bool], noise: float) -> None:
    law = law_of(*name)
    x, v = noisy(law, name[0], 400, noise, 30)
    modes = modes_of(law, x, v)
    z = (modes.log_sigma[:, 0] - math.log(noise)) / modes.log_sigma_sd[:, 0]
    assert float(z.abs().max()) < 4.0
    assert float(z.mean()) == pytest.approx(0.0, abs=4 / math.sqrt(30))
    assert float(z.std()) == pytest.approx(1.0, abs=0.45)
    torch.testing.assert_close(
        modes.log_sigma_sd[:, 0], torch.full((30,), 1 / math.sqrt(800), dtype=torch.float64), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("name", LAWS)
def test_few_points_do_not_make_the_noise_look_small(name: tuple[str, bool]) -> None:
    """Eight points, of which the parameters eat up to seven: without the degrees of freedom sigma would come out too small."""
    law = law_of(*name)
    x, v = noisy(law, name[0], 8, 0.05, 100)
    modes = modes_of(law, x, v)
    shrunk = modes.log_sigma[:, 0] - math.log(0.05)
    assert abs(float(shrunk.mean())) < 0.35
    truth_sds = (
        law.curve(truth(law, name[0]), x[None], frame_of(x[None])) - law.along(modes, x[None], frame_of(x[None]))[0]
    ) / 0.05
    assert float(truth_sds.square().mean()) < 1.0  # the law is nearer to the truth than the points are


@pytest.mark.parametrize("name", LAWS)
def test_rows_of_a_batch_and_padding_do_not_mix(name: tuple[str, bool]) -> None:
    law = law_of(*name)
    sizes = (4, 9, COARSE + 1, MOST_TOKENS, 90)
    xi = torch.zeros(len(sizes), 100, dtype=torch.float64)
    v = torch.zeros_like(xi)
    mask = torch.arange(100) < torch.tensor(sizes)[:, None]
    first = torch.ones(len(sizes), 1, dtype=torch.float64)
    for row, size in enumerate(sizes):
        x, values = noisy(law, name[0], size, 0.02, 1, width=2.0 + row)
        xi[row, :size], v[row, :size], first[row] = x.log(), values[0], x[0]
    one = torch.ones_like(first)
    together = law(xi, v, mask, group(xi, v, mask, MOST_TOKENS), Frame(0 * one, one, one, first, one, one))
    for row, size in enumerate(sizes):
        alone = modes_of(law, xi[row, :size].exp(), v[row, :size])
        for field in FITTED:
            found, expected = getattr(together, field)[row, 0], getattr(alone, field)[0, 0]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        if float(alone.weight[0, 1]) > 1e-6:
            torch.testing.assert_close(together.s[row], alone.s[0], rtol=1e-6, atol=1e-6)


@QUICK
@given(st.integers(10, 60), st.floats(0.3, 6.0), st.floats(0.01, 0.3), st.integers(0, 2**32 - 1), st.floats(-5.0, 5.0))
def test_units_of_y_shift_the_level_alone(size: int, width: float, noise: float, seed: int, shift: float) -> None:
    """Where the prior of the level is shifted as y is, s is the same, and so is the law but for the shift."""
    (x, y), law = falling(size, width, noise, seed), law_of("m4")
    other = in_units(law, math.exp(shift))
    assert float(other.loc[0] - law.loc[0]) == pytest.approx(shift)
    torch.testing.assert_close(other.loc[1:], law.loc[1:])
    torch.testing.assert_close(other.scale, law.scale)
    base, moved = modes_of(law, x, y.log()), modes_of(other, x, y.log() + shift)
    for field in FITTED:
        one, same = getattr(base, field), getattr(moved, field)
        torch.testing.assert_close(same[:, 0], one[:, 0], rtol=1e-6, atol=1e-6)
    query = torch.tensor([[0.1, 1.0, 5.0]], dtype=torch.float64)
    expected, found = (one.forecast(own, query, frame_of(x[None])) for one, own in ((law, base), (other, moved)))
    for one, same, off in zip(expected, found, (shift, 0.0, 0.0), strict=True):
        torch.testing.assert_close(same[0], one[0] + off, rtol=1e-5, atol=1e-6)


def test_the_level_follows_the_units_under_one_prior() -> None:
    """With precise points the prior of the level hardly matters: y_first takes the whole of the shift."""
    law = law_of("m2")
    x, v = noisy(law, "m2", 30, 1e-3, 4)
    base, moved = modes_of(law, x, v), modes_of(law, x, v + 0.5)
    difference = moved.s[:, 0] - base.s[:, 0]
    torch.testing.assert_close(difference[:, 0] * law.scale[0], torch.full((4,), 0.5, dtype=torch.float64), rtol=0, atol=1e-3)
    assert float(difference[:, 1:].abs().max()) < 0.02
    torch.testing.assert_close(moved.log_sigma[:, 0], base.log_sigma[:, 0], rtol=0, atol=1e-2)


@QUICK
@given(extremes(), st.sampled_from([("m1", True), ("m3", True), *LAWS, ("bnsl3", True), ("m4", False)]))
def test_modes_are_finite_whatever_the_context(context: tuple[Tensor, Tensor], name: tuple[str, bool]) -> None:
    (x, y), law = context, law_of(*name)
    modes = modes_of(law, x, y.log() if law.logarithmic else y)
    d = law.size
    shapes = {"s": (1, 2, d), "root": (1, 2, d, d), "spread": (1, 2, d, d)}
    for field in FITTED:
        part = getattr(modes, field)
        assert part.shape == shapes.get(field, (1, 2)), field
        assert part.dtype == torch.float64
        assert bool(torch.isfinite(part).all()), field
    assert float(modes.weight.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(modes.weight[0, 0]) >= float(modes.weight[0, 1]) >= 0.0
    assert bool((modes.log_sigma >= math.log(LEAST_SIGMA) - 1e-12).all())
    assert bool((modes.log_sigma_sd > 0).all())
    inside = law.along(modes, x[None], frame_of(x[None]))
    assert bool(torch.isfinite(inside).all())


def two_modes(law: LawFrame) -> tuple[Tensor, Tensor, Modes]:
    """Short noisy contexts, many of which have two modes."""
    x, v = noisy(law, "bnsl", 20, 0.2, 60)
    return x, v, modes_of(law, x, v)


def test_weights_are_those_of_the_laplace_evidence() -> None:
    law = law_of("bnsl")
    x, v, modes = two_modes(law)
    weight = modes.weight
    torch.testing.assert_close(weight.sum(1), torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((weight[:, 0] >= weight[:, 1]).all())
    real = torch.nonzero(weight[:, 1] > 0.01)[:, 0]
    assert len(real) >= 2
    for row in real.tolist():
        f = objective(law, x.numpy(), v[row].numpy())
        volume = torch.linalg.slogdet(modes.root[row])[1].tolist()
        first, second = (along_sigma(f, modes.s[row, k])[1] + volume[k] for k in range(MODES))
        assert float(weight[row, 0]) == pytest.approx(
            1 / (1 + math.exp(first - second)), abs=0.05
        )  # sigma's few Newton steps end early above .2
        assert float((modes.s[row, 0] - modes.s[row, 1]).abs().max()) >= 0.1 * DISTINCT


def test_a_mode_that_is_the_first_again_has_no_weight() -> None:
    law = law_of("m2")
    x, v = noisy(law, "m2", 30, 1e-3, 10)
    modes = modes_of(law, x, v)
    assert modes.weight.tolist() == [[1.0, 0.0]] * 10
    # Where both descents begin at one place, or in one valley, they end at one mode.
    for away in (0.0, 0.05):
        starts = torch.stack([modes.s[:, 0], modes.s[:, 0] + away])
        again = modes_of(law, x, v, starts=starts)
        assert again.weight.tolist() == [[1.0, 0.0]] * 10
        assert float(sds_apart(modes, again.s)[:, 0].max()) < TO_GO


@pytest.mark.parametrize("name", LAWS)
def test_starts_at_the_modes_give_the_same_modes(name: tuple[str, bool]) -> None:
    law = law_of(*name)
    x, v = noisy(law, name[0], 20, 0.02, 20)
    modes = modes_of(law, x, v)
    check_same(modes, modes_of(law, x, v, starts=modes.s.transpose(0, 1)), TO_GO)
    swapped = modes_of(law, x, v, starts=modes.s.transpose(0, 1).flip(0))
    check_same(modes, swapped, TO_GO)  # the likelier is first whichever the order of the starts


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("noise", [0.005, 0.05])
def test_merged_points_have_the_modes_of_all_points(name: tuple[str, bool], noise: float) -> None:
    """Nearly: derivatives are taken at the groups' mean positions. A few of the 40 may go to another mode."""
    law = law_of(*name)
    x, v = noisy(law, name[0], 500, noise, 40)
    alone, merged = modes_of(law, x, v, most=500), modes_of(law, x, v)
    apart = sds_apart(alone, merged.s)[:, 0]
    assert float(apart.median()) < 0.3
    assert float(apart.quantile(0.9)) < 0.6
    noises = (merged.log_sigma - alone.log_sigma)[:, 0].abs()
    assert float(noises.quantile(0.9)) < 0.01
    sds = [part.spread.square().sum(-1).sqrt()[:, 0] for part in (alone, merged)]
    assert float((sds[1] / sds[0]).log().abs().amax(-1).quantile(0.9)) < 0.25


@pytest.mark.parametrize("crowded", [1.0, 4.0])
@pytest.mark.parametrize("size", [COARSE, COARSE + 1, 500])
def test_groups_hold_neighbours_and_every_point_once(size: int, crowded: float) -> None:
    x, y = falling(size)
    xi, v = (-6.0 * (-x.log() / 6.0) ** crowded)[None], y.log()[None]
    groups = group(xi, v, torch.ones_like(xi, dtype=torch.bool), COARSE)
    assert bool((groups.token.diff(dim=1) >= 0).all())
    assert int(groups.token.max()) < COARSE
    assert float(groups.number.sum()) == size
    if size == COARSE:
        assert torch.equal(groups.token[0], torch.arange(COARSE))
    for k in range(COARSE):
        own = groups.token[0] == k
        assert float(groups.number[0, k]) == float(own.sum())
        if bool(own.any()):
            assert float(groups.x[0, k]) == pytest.approx(math.exp(float(xi[0, own].mean())))
            assert float(groups.v[0, k]) == pytest.approx(float(v[0, own].mean()))


@pytest.mark.parametrize(("name", "logarithmic"), [("m2", True), ("m4", True), ("m2", False)])
def test_forecast_sd_is_that_of_draws_from_the_laplace_approximation(name: str, logarithmic: bool) -> None:
    law = law_of(name, logarithmic)
    x, v = noisy(law, name, 40, 1e-3, 2)
    modes = modes_of(law, x, v)
    query = torch.tensor([[0.02, 0.3, 1.0, 1.5, 3.0]], dtype=torch.float64).expand(2, -1)
    frame = frame_of(x[None].expand(2, -1))
    curve, sd, bend = law.forecast(modes, query, frame)
    draws = 20_000
    z = torch.randn(draws, 2, law.size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curves = law.curve(modes.s[:, 0] + (modes.spread[:, 0] @ z)[..., 0], query, frame)
    sigma = modes.log_sigma[:, :1].exp()
    expected = (curves.var(0) + sigma.square()).sqrt()
    torch.testing.assert_close(sd[0], expected, rtol=0.05, atol=0)  # steps both ways count the larger
    torch.testing.assert_close(curve[0], curves.mean(0), rtol=0, atol=float(0.1 * sd[0].max()))
    # To second order the mean of the draws is off the middle by the bend.
    off = (curves.mean(0) - curve[0] - bend[0]).abs() / (curves.std(0) / math.sqrt(draws))
    assert float(off.max()) < 5.0
    torch.testing.assert_close(law.along(modes, query, frame), curve)


def test_forecasts_are_calibrated_where_the_law_is_nearly_linear() -> None:
    law = law_of("m2")
    x, v = noisy(law, "m2", 30, 0.01, 200)
    modes = modes_of(law, x, v)
    query = torch.tensor([[0.1, 1.0, 2.0, 5.0]], dtype=torch.float64)
    frame = frame_of(x[None])
    curve, sd, _ = law.forecast(modes, query.expand(200, -1), frame_of(x.expand(200, -1)))
    fresh = 0.01 * torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = (law.curve(truth(law, "m2"), query, frame) + fresh - curve[0]) / sd[0]
    p = stats.norm.cdf(z.numpy())
    for column in range(4):
        assert stats.kstest(p[:, column], "uniform").pvalue > 1e-4
        assert float(z[:, column].std()) == pytest.approx(1.0, abs=0.2)


def test_units_of_x_do_not_matter() -> None:
    law = law_of("m4")
    x, v = noisy(law, "m4", 20, 0.02, 3)
    base = modes_of(law, x, v)
    xi = x.log().expand(3, -1)
    mask = torch.ones_like(xi, dtype=torch.bool)
    frame = frame_of(x[None].expand(3, -1) * 1e20)
    moved = law(xi, v, mask, group(xi, v, mask, MOST_TOKENS), frame)
    for one, other in zip(base[:-1], moved[:-1], strict=True):
        torch.testing.assert_close(other[:, 0], one[:, 0], rtol=1e-6, atol=1e-6)
    query = torch.tensor([[0.5, 2.0]], dtype=torch.float64).expand(3, -1)
    torch.testing.assert_close(
        law.along(moved, query, frame)[0], law.along(base, query, frame_of(x[None].expand(3, -1)))[0], rtol=1e-6, atol=1e-6
    )


def test_standardisation_is_that_of_the_prior_and_leaves_the_global_random_state_alone() -> None:
    for name in ("m2", "m4", "bnsl2"):
        prior = shipped(name)
        state = torch.get_rng_state()
        law, same = LawFrame(prior, True), LawFrame(prior, False)
        assert torch.equal(torch.get_rng_state(), state)
        for buffer, value in law.named_buffers():
            assert torch.equal(same.get_buffer(buffer), value)
            assert value.dtype == torch.float64
        assert law.names == tuple(p.name for p in prior.parameters if p.name != "sigma")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            theta = prior.draw_torch(5000, torch.float64)
        s = (law.unconstrain(theta) - law.loc) / law.scale
        torch.testing.assert_close(s.mean(0), torch.zeros(law.size, dtype=torch.float64), rtol=0, atol=0.06)
        torch.testing.assert_close(s.std(0), torch.ones(law.size, dtype=torch.float64), rtol=0, atol=0.06)
        for key, value in law.constrain(s).items():
            torch.testing.assert_close(value, theta[key])
        log_sigma = theta["sigma"].log()
        assert law.noise.tolist() == pytest.approx([float(log_sigma.mean()), float(log_sigma.std())], abs=0.08)


def test_the_law_of_a_prior_with_continuous_parameters_is_its_own() -> None:
    for prior in PRIORS:
        fitted = frame_prior(prior)
        assert (fitted is prior) == (prior.name not in ("nsl", "nsl_paper", "nslpfn", "lcpfn"))
        if fitted is not prior:
            assert fitted is get_prior("bnsl")
    narrow = shipped("m4").replace(name="mine", sigma={"loc": -6.0})
    assert frame_prior(narrow) is narrow
    assert frame_prior(FLAT) is FLAT
    for noise in ("normal", "truncated_normal"):
        additive = Prior("additive", Flat(), [LEVEL, SIGMA], noise)
        assert frame_prior(additive) is additive
    assert frame_prior(Prior("mixed", Tossed(), [LEVEL, SIGMA, COIN])) is get_prior("bnsl")

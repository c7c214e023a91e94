"""Relative coordinates: finite for any curve, free of units, and with every point counted once."""

import math

import pytest
import torch
from contexts import QUICK, extremes, falling, frame_of, in_units, law_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.amortized.coordinates import (
    CONTEXT_FEATURES,
    MOST_TOKENS,
    QUERY_FEATURES,
    SHARED_FEATURES,
    Described,
    Tokens,
    _wander,
    ask,
    curve_features,
    describe,
    mode_features,
    to_value,
)
from hybrid.amortized.law_frame import COARSE, MODES, LawFrame
from hybrid.amortized.smoother import forecast, smooth, smoothed
from hybrid.models.coordinates import Frame

pytestmark = pytest.mark.usefixtures("one_thread")
# Places of features that the tests single out.
SHARE, VALUE, RESIDUAL, SQUARE, NUMBER = 1, 3, 4, 6, 7
OF_LAW, OF_LAW_IN_QUERY = CONTEXT_FEATURES - 2 * MODES, QUERY_FEATURES - 6
WIDTH, NOISE, SPREAD, LEVEL, LAST, FIRST = 1, 3, 4, 5, 10, 11
FALLS = (6, 7, 8, 9)
LAWS = [("m4", True), ("m2", True), ("bnsl3", True), ("bnsl", False)]
HORIZON = torch.tensor([[0.5, 1.0, 2.0, 30.0]], dtype=torch.float64)


def described_of(x: Tensor, y: Tensor, law: LawFrame) -> Described:
    """Contexts (n,) or (B, n) without padding, described."""
    x, y = torch.broadcast_tensors(torch.atleast_2d(x), torch.atleast_2d(y))
    return describe(x, y, torch.ones_like(x, dtype=torch.bool), frame_of(x), law)


def tokens_of(x: Tensor, y: Tensor, query: Tensor = HORIZON, law: LawFrame | None = None) -> Tokens:
    """Tokens of contexts (n,) or (B, n) without padding; queries as multiples of the last context x."""
    law = law or law_of()
    return ask(described_of(x, y, law), query * torch.atleast_2d(x)[:, -1:], law)


@QUICK
@given(extremes(), st.sampled_from(LAWS))
def test_features_are_finite_and_no_point_is_lost(context: tuple[Tensor, Tensor], name: tuple[str, bool]) -> None:
    (x, y), law = context, law_of(*name)
    query = torch.tensor([[1e-8, float(x[0]), 0.999, 1.0, 1.001, 10.0, 1e6]], dtype=torch.float64)
    tokens = tokens_of(x, y, query, law)
    size = min(len(x), MOST_TOKENS)
    assert tokens.context.shape == (1, size, CONTEXT_FEATURES)
    assert tokens.mask.shape == (1, size)
    assert tokens.query.shape == (1, 7, QUERY_FEATURES)
    assert tokens.curve.shape == (1, curve_features(law.size))
    assert tokens.loc.shape == tokens.scale.shape == (1, 7, 2)
    for part in tokens:
        assert bool(torch.isfinite(part).all())
    for part in (tokens.context, tokens.query, tokens.curve):
        assert part.dtype == torch.float32
    for part in (tokens.loc, tokens.scale):
        assert part.dtype == torch.float64
    assert bool((tokens.scale > 0).all())
    number = tokens.context[..., NUMBER].exp()[tokens.mask]
    assert float(number.sum()) == pytest.approx(len(x), rel=1e-5)
    assert bool(tokens.mask[:, 0].all() & tokens.mask[:, -1].all())  # the two ends are always there


@pytest.mark.parametrize("size", [3, 17, MOST_TOKENS])
def test_few_points_stand_alone(size: int) -> None:
    x, y = falling(size)
    tokens = tokens_of(x, y)
    xi, v = x.log()[None], y.log()[None]
    fitted = smooth(xi, v, torch.ones_like(xi, dtype=torch.bool))
    fit, last = smoothed(fitted, xi), smoothed(fitted, torch.zeros(1, 1, dtype=torch.float64))
    value = (v - fitted.centre) / fitted.spread
    residual = (value - fit) / fitted.noise()
    assert bool(tokens.mask.all())
    expected = {
        0: xi / 4,
        SHARE: xi / 6,
        2: x[None],
        VALUE: torch.asinh(2 * (value - last)),
        RESIDUAL: torch.asinh(residual),
        5: torch.asinh(residual),
        SQUARE: torch.log1p(residual**2),
        NUMBER: 0 * xi,
        8: torch.asinh(2 * (fit - last)),
    }
    for place, feature in expected.items():
        torch.testing.assert_close(tokens.context[..., place].double(), feature, rtol=1e-5, atol=1e-5)
    law = law_of()
    modes = described_of(x, y, law).modes
    from_law = (v - law.along(modes, x[None], frame_of(x[None]))) / modes.log_sigma.exp().T[..., None]
    for k in range(MODES):
        for place in (OF_LAW + 2 * k, OF_LAW + 2 * k + 1):
            torch.testing.assert_close(tokens.context[..., place].double(), torch.asinh(from_law[k]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("crowded", [1.0, 4.0])
@pytest.mark.parametrize("size", [MOST_TOKENS + 1, 100, 500])
def test_many_points_are_merged_with_their_neighbours(size: int, crowded: float) -> None:
    x, y = falling(size)
    xi = -6.0 * (-x.log() / 6.0) ** crowded  # most of the points near the last
    x = xi.exp()
    tokens = tokens_of(x, y)
    number = tokens.context[0, :, NUMBER].exp().round().long()[tokens.mask[0]]
    assert int(number.sum()) == size
    assert int(number.max()) <= math.ceil(2 * size / MOST_TOKENS)  # half of the place is the rank
    assert int(tokens.mask.sum()) > MOST_TOKENS // 2
    groups = torch.arange(len(number)).repeat_interleave(number)
    means = torch.zeros(len(number), dtype=torch.float64).scatter_reduce_(0, groups, xi, "mean", include_self=False)
    torch.testing.assert_close(4 * tokens.context[0, :, 0].double()[tokens.mask[0]], means, rtol=1e-5, atol=1e-5)
    spans = torch.stack([part.max() - part.min() for part in xi.split(number.tolist())])
    assert float(spans.max()) <= 2 * 6.0 / MOST_TOKENS * (1 + 1e-9)


def test_merged_tokens_tell_the_mean_and_the_size_of_the_residuals() -> None:
    x, y = falling(400, noise=0.1)
    tokens = tokens_of(x, y)
    xi, v = x.log()[None], y.log()[None]
    fitted = smooth(xi, v, torch.ones_like(xi, dtype=torch.bool))
    residual = (((v - fitted.centre) / fitted.spread - smoothed(fitted, xi)) / fitted.noise())[0]
    known = tokens.mask[0]
    number = tokens.context[0, known, NUMBER].double().exp()
    parts = residual.split(number.round().long().tolist())
    mean = torch.stack([part.mean() for part in parts])
    square = torch.stack([part.square().mean() for part in parts])
    features = tokens.context[0, known].double()
    torch.testing.assert_close(features[:, RESIDUAL].sinh(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[:, 5].sinh(), mean * number.sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[:, SQUARE].expm1(), square, rtol=1e-4, atol=1e-4)
    law, sizes = law_of(), number.round().long().tolist()
    modes = described_of(x, y, law).modes
    middle = torch.stack([part.mean().exp() for part in xi[0].split(sizes)])[None]
    means = torch.stack([part.mean() for part in v[0].split(sizes)])[None]
    from_law = (means - law.along(modes, middle, frame_of(x[None]))) / modes.log_sigma.exp().T[..., None]
    for k in range(MODES):
        found = features[:, OF_LAW + 2 * k : OF_LAW + 2 * k + 2].sinh()
        expected = torch.stack([from_law[k, 0], from_law[k, 0] * number.sqrt()], -1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_padding_changes_nothing(name: tuple[str, bool]) -> None:
    sizes, law = {20: 3.0, MOST_TOKENS - 1: 9.0, MOST_TOKENS: 6.0, MOST_TOKENS + 1: 6.0, 150: 2.0}, law_of(*name)
    curves = [falling(size, width, seed=size) for size, width in sizes.items()]
    most = max(len(x) for x, _ in curves)
    x = torch.full((5, most), 123.0, dtype=torch.float64)
    y = torch.full((5, most), 1e7, dtype=torch.float64)
    mask = torch.zeros(5, most, dtype=torch.bool)
    for row, (one_x, one_y) in enumerate(curves):
        x[row, : len(one_x)], y[row, : len(one_x)], mask[row, : len(one_x)] = one_x, one_y, True
    units = torch.logspace(-3, 5, 5, dtype=torch.float64)[:, None]
    x, one = units * x, torch.ones_like(units)
    frame = Frame(0 * one, one, one, x[:, :1], units, units)
    together = ask(describe(x, y, mask, frame, law), HORIZON * units, law)
    for row, (one_x, one_y) in enumerate(curves):
        alone = tokens_of(units[row] * one_x, one_y, law=law)
        size = alone.mask.shape[1]
        assert torch.equal(together.mask[row, :size], alone.mask[0])
        assert not bool(together.mask[row, size:].any())
        torch.testing.assert_close(together.context[row, :size], alone.context[0], rtol=1e-4, atol=1e-5)
        for name in ("query", "curve", "loc", "scale"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], rtol=1e-5, atol=1e-6)


def settled(tokens: Tokens) -> Tokens:
    """One curve's tokens without what is said of a second mode that has no weight: its descent may still be under way."""
    if float(tokens.curve[0, SHARED_FEATURES]) > 1e-6:
        return tokens
    context, query, curve = (part.clone() for part in (tokens.context, tokens.query, tokens.curve))
    context[..., OF_LAW + 2 :] = 0.0
    query[..., -1] = 0.0
    curve[..., -(curve.shape[1] - SHARED_FEATURES - 2) // MODES :] = 0.0
    return tokens._replace(context=context, query=query, curve=curve)


def changed(one: Tensor, other: Tensor) -> set[int]:
    """Which features of the curve differ."""
    return set(torch.nonzero((one - other).abs().amax(0) > 1e-4).flatten().tolist())


@settings(QUICK, derandomize=True)  # in one context of thousands a descent magnifies rounding beyond the bounds
@given(st.integers(20, 100), st.floats(0.3, 16.0), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1), st.floats(-15.0, 15.0))
def test_units_of_y_shift_the_level_alone(size: int, width: float, noise: float, seed: int, shift: float) -> None:
    x, y = falling(size, width, noise, seed)
    factor = math.exp(shift)
    base, moved = (settled(t) for t in (tokens_of(x, y), tokens_of(x, factor * y, law=in_units(law_of(), factor))))
    torch.testing.assert_close(moved.context, base.context, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.query, base.query, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.loc, base.loc + shift, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(moved.scale, base.scale, rtol=1e-6, atol=0)
    assert changed(base.curve, moved.curve) <= {LEVEL}
    assert float(moved.curve[0, LEVEL] - base.curve[0, LEVEL]) == pytest.approx(shift, abs=1e-4)


@QUICK
@given(st.integers(20, 100), st.floats(0.3, 16.0), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_units_of_y_with_additive_noise(size: int, width: float, noise: float, seed: int, factor: float) -> None:
    """Of what the smoother says: these contexts are far from any additive law, and a descent there magnifies rounding."""
    (x, y), law = falling(size, width, noise, seed), law_of("bnsl", False)
    base, moved = tokens_of(x, y, law=law), tokens_of(x, factor * y, law=in_units(law, factor))
    torch.testing.assert_close(moved.context[..., :OF_LAW], base.context[..., :OF_LAW], rtol=1e-4, atol=1e-4)
    own = slice(0, OF_LAW_IN_QUERY)
    torch.testing.assert_close(moved.query[..., own], base.query[..., own], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.loc[..., 1], factor * base.loc[..., 1], rtol=1e-7, atol=1e-9 * factor)
    torch.testing.assert_close(moved.scale[..., 1], factor * base.scale[..., 1], rtol=1e-6, atol=0)
    assert changed(base.curve[:, :SHARED_FEATURES], moved.curve[:, :SHARED_FEATURES]) <= {SPREAD, LEVEL, *FALLS}
    assert float(4 * (moved.curve[0, SPREAD] - base.curve[0, SPREAD])) == pytest.approx(math.log(factor), abs=1e-4)


@settings(QUICK, derandomize=True)  # in one context of thousands a descent magnifies rounding beyond the bounds
@given(st.integers(20, 100), st.floats(0.3, 6.0), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_units_of_y_with_noise_that_is_additive(size: int, width: float, noise: float, seed: int, factor: float) -> None:
    (x, y), law = falling(size, width, 0.0, seed), law_of("bnsl", False)
    y = y + noise * y.std() * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    base, moved = (settled(t) for t in (tokens_of(x, y, law=law), tokens_of(x, factor * y, law=in_units(law, factor))))
    torch.testing.assert_close(moved.context, base.context, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.query, base.query, rtol=1e-4, atol=1e-4)
    assert float(((moved.loc - factor * base.loc) / moved.scale).abs().max()) < 1e-4
    torch.testing.assert_close(moved.scale, factor * base.scale, rtol=1e-4, atol=0)
    first = SHARED_FEATURES + 2 + 2 * law.size
    sigmas = {first + k * mode_features(law.size) for k in range(MODES)}
    assert changed(base.curve, moved.curve) <= {SPREAD, LEVEL, *FALLS, *sigmas}
    for place in (SPREAD, first):
        assert float(4 * (moved.curve[0, place] - base.curve[0, place])) == pytest.approx(math.log(factor), abs=1e-4)


@QUICK
@given(st.integers(20, 100), st.floats(0.3, 16.0), st.integers(0, 2**32 - 1), st.floats(-20.0, 20.0))
def test_units_of_x_enter_through_the_frame_alone(size: int, width: float, seed: int, shift: float) -> None:
    x, y = falling(size, width, seed=seed)
    base, moved = (settled(t) for t in (tokens_of(x, y), tokens_of(math.exp(shift) * x, y)))
    for name in ("context", "query", "loc", "scale"):
        torch.testing.assert_close(getattr(moved, name), getattr(base, name), rtol=1e-4, atol=1e-4)
    assert changed(base.curve, moved.curve) <= {LAST, FIRST}
    assert float(moved.curve[0, LAST] - base.curve[0, LAST]) == pytest.approx(shift, abs=1e-4)
    assert float(8 * (moved.curve[0, FIRST] - base.curve[0, FIRST])) == pytest.approx(shift, abs=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_loc_and_scale_are_the_forecasts_of_law_and_smoother(name: tuple[str, bool]) -> None:
    (x, y), law = falling(30), law_of(*name)
    query = torch.cat([x[None, ::5], HORIZON], 1)
    tokens, described = tokens_of(x, y, query, law), described_of(x, y, law)
    v = to_value(y, law.logarithmic)[None]
    fitted = smooth(x.log()[None], v, torch.ones_like(v, dtype=torch.bool))
    mean, sd = forecast(fitted, query.log())
    torch.testing.assert_close(tokens.loc[..., 1], fitted.centre + fitted.spread * mean)
    torch.testing.assert_close(tokens.scale[..., 1], fitted.spread * sd)
    modes = described.modes
    curves, sds, bends = (part[:, 0] for part in law.forecast(modes, query, described.frame))
    loc = modes.weight[0] @ curves  # the first two moments of the mixture of both modes
    square = modes.weight[0] @ (sds.square() + curves.square())
    torch.testing.assert_close(tokens.loc[0, :, 0], loc)
    torch.testing.assert_close(tokens.scale[0, :, 0], (square - loc.square()).sqrt(), rtol=1e-5, atol=0)
    seen = (v[..., ::5, None] - tokens.loc[:, :6]) / tokens.scale[:, :6]
    assert float(seen.abs().max()) < 4.0
    xi, last = query.log(), smoothed(fitted, torch.zeros(1, 1, dtype=torch.float64))
    expected = {
        0: xi / 4,
        1: torch.asinh(xi / 6),
        4: torch.asinh(2 * (mean - last)),
        5: (sd / fitted.noise()).log() / 4,
        7: (query > 1).double(),
        OF_LAW_IN_QUERY: torch.asinh(2 * ((loc - fitted.centre) / fitted.spread - last)),
        OF_LAW_IN_QUERY + 1: torch.asinh((tokens.loc[..., 1] - loc) / tokens.scale[..., 0]),
        OF_LAW_IN_QUERY + 2: (tokens.scale[..., 0] / tokens.scale[..., 1]).log() / 4,
        OF_LAW_IN_QUERY + 3: (sds[None, 0] / modes.log_sigma[0, 0].exp()).log() / 4,
        OF_LAW_IN_QUERY + 4: torch.asinh(bends[None, 0] / sds[0]),
        OF_LAW_IN_QUERY + 5: torch.asinh((curves[None, 1] - curves[0]) / sds[0]),
    }
    for place, feature in expected.items():
        torch.testing.assert_close(tokens.query[..., place].double(), feature, rtol=1e-5, atol=1e-5)


def test_a_law_that_breaks_down_yields_to_the_smoother() -> None:
    """Where one of the modes has no finite forecast, or one of absurd size, the law forecasts what the smoother does."""
    (x, y), law = falling(30), law_of()
    described = described_of(x, y, law)
    s = described.modes.s.clone()
    s[:, 1, 0] = torch.nan
    for modes in (
        described.modes._replace(s=s),
        described.modes._replace(log_sigma=described.modes.log_sigma + 60.0),
        described.modes._replace(spread=described.modes.spread * torch.nan),
    ):
        tokens = ask(described._replace(modes=modes), HORIZON, law)
        torch.testing.assert_close(tokens.loc[..., 0], tokens.loc[..., 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tokens.scale[..., 0], tokens.scale[..., 1], rtol=1e-12, atol=0)
        assert bool(torch.isfinite(tokens.query).all())


def test_a_row_of_a_description_is_the_context_alone() -> None:
    parts, law = [falling(50, seed=seed) for seed in range(3)], law_of()
    x, y = (torch.stack(part) for part in zip(*parts, strict=True))
    described = described_of(x, y, law)
    for row in range(3):
        one, alone = described.row(row), described_of(x[row], y[row], law)
        assert torch.equal(one.mask, alone.mask)
        torch.testing.assert_close(one.context, alone.context, rtol=1e-5, atol=1e-5)
        for name in ("query", "curve", "loc", "scale"):
            found = getattr(ask(one, HORIZON, law), name)
            among = getattr(ask(described, HORIZON.expand(3, -1), law), name)[row : row + 1]
            torch.testing.assert_close(found, among, rtol=1e-12, atol=1e-12)  # torch rounds the last few of many otherwise
            assert name == "scale" or torch.equal(found, among)
            torch.testing.assert_close(found, getattr(ask(alone, HORIZON, law), name), rtol=1e-5, atol=1e-5)


def test_curve_features_say_what_all_points_share() -> None:
    x, y = falling(50, noise=0.05)
    tokens = tokens_of(x, y)
    v = y.log()[None]
    fitted = smooth(x.log()[None], v, torch.ones_like(v, dtype=torch.bool))
    ends = fitted.centre + fitted.spread * smoothed(fitted, torch.tensor([[-6.0, 0.0]], dtype=torch.float64))
    curve = tokens.curve[0].double()
    assert float(curve[0]) == pytest.approx(math.log(50) / 3, rel=1e-5)
    assert float(curve[WIDTH]) == pytest.approx(math.log(6), rel=1e-5)
    assert float(curve[2]) == pytest.approx(6 / 8, rel=1e-5)
    assert float(curve[NOISE]) == pytest.approx(float(fitted.noise().log()) / 4, rel=1e-5)
    assert float(curve[SPREAD]) == pytest.approx(float(v.std(correction=0).log()) / 4, rel=1e-5)
    assert float(curve[LEVEL]) == pytest.approx(float(ends[0, 1]), rel=1e-5)
    fall = float(ends[0, 0] - ends[0, 1])
    assert curve[list(FALLS)].tolist() == pytest.approx(
        [fall, math.asinh(fall), math.log(fall), math.log(math.expm1(fall))], rel=1e-5
    )
    assert float(curve[FIRST]) == pytest.approx(-6 / 8, rel=1e-5)
    torch.testing.assert_close(curve[12:SHARED_FEATURES], fitted.probability.sum(-1)[0, 1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_curve_features_describe_the_modes_of_the_law(name: tuple[str, bool]) -> None:
    (x, y), law = falling(50, noise=0.05), law_of(*name)
    described = described_of(x, y, law)
    modes, fitted = described.modes, described.smooth
    assert described.curve.shape == (1, curve_features(law.size))
    assert described.by_mode.shape == (1, MODES, mode_features(law.size))
    rest = described.curve[0, SHARED_FEATURES:]
    second = float(modes.weight[0, 1])
    assert rest[:2].tolist() == pytest.approx([second, math.log(max(second, 1e-6)) / 4], rel=1e-5)
    assert torch.equal(rest[2:], described.by_mode.flatten())
    covariance = torch.linalg.inv(modes.root @ modes.root.mT)
    sds = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    log_sigma = modes.log_sigma[..., None]
    against = torch.asinh(log_sigma - (fitted.spread * fitted.noise()).log()[..., None])
    expected = torch.cat([modes.s / 2, sds.log() / 4, log_sigma / 4, against], -1)
    assert float(modes.s.abs().max()) < 8.0  # none is cut off
    torch.testing.assert_close(described.by_mode.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "close"), [(8, 1e-4), (COARSE, 1e-4), (MOST_TOKENS, 3e-3)])
def test_order_of_repeated_measurements_does_not_matter(size: int, close: float) -> None:
    """Where the law's first fit merges points, it may part those of a pair: its mode is the same to convergence alone."""
    x, y = falling(size // 2, noise=0.2)
    x = x.repeat_interleave(2)
    y = torch.stack([y, 1.1 * y], 1)
    base, swapped = tokens_of(x, y.flatten()), tokens_of(x, y.flip(1).flatten())
    for name in ("query", "curve", "loc", "scale"):
        torch.testing.assert_close(getattr(swapped, name), getattr(base, name), rtol=close, atol=close)
    pairs = swapped.context.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
    torch.testing.assert_close(pairs, base.context, rtol=close, atol=10 * close)
    own = slice(0, OF_LAW)
    torch.testing.assert_close(pairs[..., own], base.context[..., own], rtol=1e-4, atol=1e-3)
    for name in ("loc", "scale"):
        torch.testing.assert_close(getattr(swapped, name)[..., 1], getattr(base, name)[..., 1], rtol=1e-4, atol=1e-4)


def test_residuals_of_merged_tokens_count_by_how_precise_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 30, dtype=torch.float64, generator=generator)
    number = torch.randint(1, 60, (2000, 30), generator=generator).double()
    found = _wander(noise / number.sqrt(), number)
    torch.testing.assert_close(found, _wander(noise, torch.ones_like(number)))
    half = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.975))  # of independent noise half a standard normal
    assert float((found > half).double().mean()) == pytest.approx(0.025, abs=0.01)
    beyond = torch.cat([noise / number.sqrt(), torch.full((2000, 5), 7.0, dtype=torch.float64)], 1)  # padding
    torch.testing.assert_close(_wander(beyond, torch.cat([number, torch.zeros(2000, 5)], 1)), found)

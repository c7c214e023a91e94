"""Relative coordinates: finite for any curve, free of units, and with every point counted once."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.amortized.coordinates import (
    CONTEXT_FEATURES,
    CURVE_FEATURES,
    MOST_TOKENS,
    QUERY_FEATURES,
    Tokens,
    to_value,
    tokenize,
)
from hybrid.amortized.smoother import forecast, smooth, smoothed
from hybrid.models.coordinates import Frame

QUICK = settings(max_examples=40, deadline=None)
# Places of features that the tests single out.
SHARE, VALUE, RESIDUAL, SQUARE, NUMBER = 1, 3, 4, 6, 7
WIDTH, NOISE, SPREAD, LEVEL, FALL, LAST, FIRST = 1, 3, 4, 5, 6, 10, 11
FALLS = (6, 7, 8, 9)
HORIZON = torch.tensor([[0.5, 1.0, 2.0, 30.0]], dtype=torch.float64)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frame_of(x: Tensor) -> Frame:
    """The ratio frame of sorted contexts (B, n) without padding, left in the units of x."""
    zero, one = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
    return Frame(zero, one, one, x[:, :1], x[:, -1:], x[:, -1:])


def tokens_of(x: Tensor, y: Tensor, query: Tensor = HORIZON, logarithmic: bool = True) -> Tokens:
    """Tokens of contexts (n,) or (B, n) without padding; queries as multiples of the last context x."""
    x, y = torch.broadcast_tensors(torch.atleast_2d(x), torch.atleast_2d(y))
    return tokenize(x, y, torch.ones_like(x, dtype=torch.bool), query * x[:, -1:], frame_of(x), logarithmic)


def falling(size: int, width: float = 6.0, noise: float = 0.03, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Irregular positions up to 1 over `width` nats, and a falling curve with multiplicative noise, shape (size,)."""
    rng = np.random.default_rng(seed)
    xi = np.sort(rng.uniform(-width, 0.0, size))
    xi[0], xi[-1] = -width, 0.0
    v = np.log(0.3 + 0.7 * np.exp(-0.4 * xi)) + noise * rng.standard_normal(size)
    return torch.from_numpy(np.exp(xi)), torch.from_numpy(np.exp(v))


@st.composite
def extremes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Contexts of any size, width, level and noise, with or without repeats."""
    size = draw(st.integers(3, 200))
    width = draw(st.floats(0.01, 16.0))
    noise = draw(st.sampled_from([0.0, 1e-9, 1e-3, 0.3, 10.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    xi = np.sort(rng.uniform(-width, 0.0, size))
    xi[0], xi[-1] = -width, 0.0
    if draw(st.booleans()):
        xi = np.round(xi / width * draw(st.integers(2, 10))) / 10.0 * width
        xi += 0.0 - xi[-1]
    level = math.log(10.0) * draw(st.floats(-8.0, 8.0))
    v = level - draw(st.floats(-2.0, 2.0)) * xi + noise * rng.standard_normal(size)
    return torch.from_numpy(np.exp(xi)), torch.from_numpy(np.exp(np.clip(v, math.log(1e-8), math.log(1e8))))


@QUICK
@given(extremes(), st.booleans())
def test_features_are_finite_and_no_point_is_lost(context: tuple[Tensor, Tensor], logarithmic: bool) -> None:
    x, y = context
    query = torch.tensor([[1e-8, float(x[0]), 0.999, 1.0, 1.001, 10.0, 1e6]], dtype=torch.float64)
    tokens = tokens_of(x, y, query, logarithmic)
    size = min(len(x), MOST_TOKENS)
    assert tokens.context.shape == (1, size, CONTEXT_FEATURES)
    assert tokens.mask.shape == (1, size)
    assert tokens.query.shape == (1, 7, QUERY_FEATURES)
    assert tokens.curve.shape == (1, CURVE_FEATURES)
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


@pytest.mark.parametrize("logarithmic", [True, False])
def test_padding_changes_nothing(logarithmic: bool) -> None:
    curves = [falling(size, width, seed=size) for size, width in ((20, 3.0), (40, 9.0), (64, 6.0), (65, 6.0), (150, 2.0))]
    most = max(len(x) for x, _ in curves)
    x = torch.full((5, most), 123.0, dtype=torch.float64)
    y = torch.full((5, most), 1e7, dtype=torch.float64)
    mask = torch.zeros(5, most, dtype=torch.bool)
    for row, (one_x, one_y) in enumerate(curves):
        x[row, : len(one_x)], y[row, : len(one_x)], mask[row, : len(one_x)] = one_x, one_y, True
    units = torch.logspace(-3, 5, 5, dtype=torch.float64)[:, None]
    x, one = units * x, torch.ones_like(units)
    frame = Frame(0 * one, one, one, x[:, :1], units, units)
    together = tokenize(x, y, mask, HORIZON * units, frame, logarithmic)
    for row, (one_x, one_y) in enumerate(curves):
        alone = tokens_of(units[row] * one_x, one_y, logarithmic=logarithmic)
        size = alone.mask.shape[1]
        assert torch.equal(together.mask[row, :size], alone.mask[0])
        assert not bool(together.mask[row, size:].any())
        torch.testing.assert_close(together.context[row, :size], alone.context[0], rtol=1e-4, atol=1e-5)
        for name in ("query", "curve", "loc", "scale"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], rtol=1e-5, atol=1e-6)


def changed(one: Tensor, other: Tensor) -> set[int]:
    """Which features of the curve differ."""
    return set(torch.nonzero((one - other).abs().amax(0) > 1e-4).flatten().tolist())


@QUICK
@given(st.integers(20, 100), st.floats(0.3, 16.0), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1), st.floats(-15.0, 15.0))
def test_units_of_y_shift_the_level_alone(size: int, width: float, noise: float, seed: int, shift: float) -> None:
    x, y = falling(size, width, noise, seed)
    base, moved = tokens_of(x, y), tokens_of(x, math.exp(shift) * y)
    torch.testing.assert_close(moved.context, base.context, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.query, base.query, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.loc, base.loc + shift, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(moved.scale, base.scale, rtol=1e-6, atol=0)
    assert changed(base.curve, moved.curve) <= {LEVEL}
    assert float(moved.curve[0, LEVEL] - base.curve[0, LEVEL]) == pytest.approx(shift, abs=1e-4)


@QUICK
@given(st.integers(20, 100), st.floats(0.3, 16.0), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_units_of_y_with_additive_noise(size: int, width: float, noise: float, seed: int, factor: float) -> None:
    x, y = falling(size, width, noise, seed)
    base, moved = tokens_of(x, y, logarithmic=False), tokens_of(x, factor * y, logarithmic=False)
    torch.testing.assert_close(moved.context, base.context, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.query, base.query, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.loc, factor * base.loc, rtol=1e-7, atol=1e-9 * factor)
    torch.testing.assert_close(moved.scale, factor * base.scale, rtol=1e-6, atol=0)
    assert changed(base.curve, moved.curve) <= {SPREAD, LEVEL, *FALLS}
    assert float(4 * (moved.curve[0, SPREAD] - base.curve[0, SPREAD])) == pytest.approx(math.log(factor), abs=1e-4)


@QUICK
@given(st.integers(20, 100), st.floats(0.3, 16.0), st.integers(0, 2**32 - 1), st.floats(-20.0, 20.0))
def test_units_of_x_enter_through_the_frame_alone(size: int, width: float, seed: int, shift: float) -> None:
    x, y = falling(size, width, seed=seed)
    base, moved = tokens_of(x, y), tokens_of(math.exp(shift) * x, y)
    for name in ("context", "query", "loc", "scale"):
        torch.testing.assert_close(getattr(moved, name), getattr(base, name), rtol=1e-4, atol=1e-4)
    assert changed(base.curve, moved.curve) <= {LAST, FIRST}
    assert float(moved.curve[0, LAST] - base.curve[0, LAST]) == pytest.approx(shift, abs=1e-4)
    assert float(8 * (moved.curve[0, FIRST] - base.curve[0, FIRST])) == pytest.approx(shift, abs=1e-4)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_loc_and_scale_are_the_smoothers_forecast(logarithmic: bool) -> None:
    x, y = falling(30)
    query = torch.cat([x[None, ::5], HORIZON], 1)
    tokens = tokens_of(x, y, query, logarithmic)
    v = to_value(y, logarithmic)[None]
    fitted = smooth(x.log()[None], v, torch.ones_like(v, dtype=torch.bool))
    mean, sd = forecast(fitted, query.log())
    torch.testing.assert_close(tokens.loc, fitted.centre + fitted.spread * mean)
    torch.testing.assert_close(tokens.scale, fitted.spread * sd)
    seen = (v[:, ::5] - tokens.loc[:, :6]) / tokens.scale[:, :6]
    assert float(seen.abs().max()) < 4.0
    xi, last = query.log(), smoothed(fitted, torch.zeros(1, 1, dtype=torch.float64))
    expected = {
        0: xi / 4,
        1: torch.asinh(xi / 6),
        4: torch.asinh(2 * (mean - last)),
        5: (sd / fitted.noise()).log() / 4,
        7: (query > 1).double(),
    }
    for place, feature in expected.items():
        torch.testing.assert_close(tokens.query[..., place].double(), feature, rtol=1e-5, atol=1e-5)


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
    torch.testing.assert_close(curve[-2:], fitted.probability.sum(-1)[0, 1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [8, MOST_TOKENS])
def test_order_of_repeated_measurements_does_not_matter(size: int) -> None:
    x, y = falling(size // 2, noise=0.2)
    x = x.repeat_interleave(2)
    y = torch.stack([y, 1.1 * y], 1)
    base, swapped = tokens_of(x, y.flatten()), tokens_of(x, y.flip(1).flatten())
    for name in ("query", "curve", "loc", "scale"):
        torch.testing.assert_close(getattr(swapped, name), getattr(base, name), rtol=1e-4, atol=1e-4)
    pairs = swapped.context.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
    torch.testing.assert_close(pairs, base.context, rtol=1e-4, atol=1e-3)

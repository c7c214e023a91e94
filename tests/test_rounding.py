"""Values that were rounded, to a network that takes repeats for best results so far."""

import numpy as np
import pytest

import hybrid
from hybrid.amortized.rounding import step, with_error

X = np.geomspace(1e18, 1e21, 16)
LEVEL = 0.2 + 0.3 * (X / X[0]) ** -1.0


@pytest.mark.parametrize(("decimals", "found"), [(0, 0.0), (1, 0.1), (2, 0.01)])
def test_the_step_of_rounded_values_is_found(decimals: int, found: float) -> None:
    assert step(np.round(LEVEL, decimals)) == pytest.approx(found)  # to no decimals there is nothing but zeros
    assert step(1000.0 * np.round(LEVEL, decimals)) == pytest.approx(1000.0 * found)


@pytest.mark.parametrize(
    "y",
    [
        LEVEL,
        np.round(LEVEL, 6),  # no two are equal
        np.minimum.accumulate(np.round(LEVEL * (1.0 + 0.2 * np.sin(9.0 * np.arange(16))), 4)),  # the best so far moves by more
        np.minimum.accumulate(np.random.default_rng(0).uniform(0.2, 0.9, 16)),  # nor is it a multiple of anything
        np.full(16, 0.25),
        np.repeat([0.75, 0.25], 8),
    ],
    ids=["plain", "fine", "best of rounded", "best", "level", "two levels"],
)
def test_no_step_is_found_where_nothing_tells_of_one(y: np.ndarray) -> None:
    assert step(y) == 0.0


def test_the_error_is_as_large_as_the_rounding_and_always_the_same() -> None:
    y = np.full(4000, 0.25)
    moved = with_error(y, 0.01)
    assert np.abs(moved - y).max() <= 0.005
    assert (moved - y).std() == pytest.approx(0.01 / 12**0.5, rel=0.03)
    np.testing.assert_array_equal(moved, with_error(y, 0.01))
    np.testing.assert_array_equal(with_error(y, 0.0), y)


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_a_rounded_plateau_is_forecast_as_what_it_is(scale: float) -> None:
    """Read as best results so far, what follows would be expected at .216, and the plateau itself below nearly all of it."""
    curve = hybrid.Curve(X, scale * np.round(LEVEL, 2))
    fit = hybrid.fit(curve, "nsl", "pfn", progress=False)
    low, middle, high = fit.predict(X[-1], levels=[0.05, 0.5, 0.95])["quantiles"].to_numpy().ravel() / scale
    assert abs(middle - 0.2) < 0.005
    assert low < 0.2 < high < 0.22
    assert fit.info["rounded_to"] == pytest.approx(0.01 * scale)
    again = hybrid.fit_many([hybrid.load_example("cerebras_gpt_pile"), curve], "nsl", "pfn", progress=False)[1]
    np.testing.assert_allclose(again.predict(X[-1])["median"], fit.predict(X[-1])["median"], rtol=1e-5)


def test_only_a_network_that_reads_repeats_is_given_it() -> None:
    curve = hybrid.Curve(X, np.round(LEVEL, 2))
    assert "rounded_to" not in hybrid.fit(curve, "m4", "pfn", progress=False).info
    assert "rounded_to" not in hybrid.fit(hybrid.Curve(X, LEVEL), "nsl", "pfn", progress=False).info

"""Fits and the front door: what they answer, and that bad arguments raise documented errors only."""

import contextlib
import dataclasses
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from synthetic import HORIZON, X, make_curve, make_fit, make_result

import hybrid
from hybrid import (
    Curve,
    EngineUnavailableError,
    Fit,
    HybridError,
    InvalidArgumentError,
    InvalidCurveError,
    UnknownNameError,
)
from hybrid.models.distributions import Distribution
from hybrid.models.engine import EngineResult
from hybrid.models.law import Law
from hybrid.models.prior import Parameter, Prior
from hybrid.models.registry import get_prior

mpl.use("Agg")
X_NEW = np.array([1e19, 1e22, 1e23])


@pytest.fixture(scope="module")
def fit() -> Fit:
    return make_fit()


QUIET_NSL = hybrid.get_prior("nsl").replace(sigma={"loc": -6.0})
M2 = get_prior("m2")
assert isinstance(M2, Prior)
OUTLIERS = Prior(
    "outliers",
    M2.law,
    [
        *M2.parameters,
        Parameter("noise_slope", Distribution("Normal", loc=0.0, scale=1.0)),
        Parameter("outliers", Distribution("Beta", concentration1=1.0, concentration0=30.0)),
    ],
    "contaminated_lognormal",
)


def test_predict(fit: Fit) -> None:
    found = fit.predict(X_NEW, levels=(0.25, 0.75))
    assert isinstance(found, xr.Dataset)
    assert found["quantiles"].dims == ("quantile", "x")
    assert set(found.data_vars) == {"mean", "median", "sd", "quantiles"}
    assert found["mean"].dims == found["median"].dims == found["sd"].dims == ("x",)
    assert_allclose(found["x"], X_NEW)
    assert_allclose(found["quantile"], [0.25, 0.75])
    assert_allclose(fit.prob_below(X_NEW, found["median"].to_numpy()), 0.5, atol=1e-8)
    assert_allclose(fit.predict(X_NEW)["quantiles"].sel(quantile=0.5), found["median"])
    assert found["x"].attrs["long_name"] == "training FLOPs"
    assert fit.predict(1e22).sizes["x"] == 1
    assert fit.predict(np.float64(1e22)).identical(fit.predict([1e22]))


def test_the_forecast_is_near_the_held_out_points(fit: Fit) -> None:
    found = fit.predict(fit.curve.x_target, levels=(0.01, 0.99))
    assert np.all(found["quantiles"][0] < fit.curve.y_target)
    assert np.all(found["quantiles"][1] > fit.curve.y_target)


def test_no_forecast_depends_on_another_x(fit: Fit) -> None:
    alone = fit.predict(1e22)
    among = fit.predict(np.append(np.geomspace(1e17, 1e26, 30), 1e22)).isel(x=slice(30, 31))
    for name in alone.data_vars:
        assert_allclose(among[name], alone[name], rtol=1e-13)
    assert_allclose(fit.log_density([1e22, 1e25], [1.5, 1.0])[0], fit.log_density(1e22, 1.5)[0], rtol=1e-13)


def test_sample(fit: Fit) -> None:
    y = fit.sample(X_NEW, draws=4000)
    assert y.dims == ("draw", "x")
    assert y.shape == (4000, 3)
    assert_allclose(y.mean("draw"), fit.predict(X_NEW)["mean"], atol=5 * float(y.std()) / 4000**0.5)
    assert fit.sample(X_NEW).identical(fit.sample(X_NEW, seed=fit.seed))
    assert not fit.sample(X_NEW).equals(fit.sample(X_NEW, seed=1))


def test_log_density_and_prob_below(fit: Fit) -> None:
    y = np.linspace(0.5, 3, 2001)
    density = np.exp(fit.log_density(np.full(y.size, 1e22), y))
    assert_allclose(np.trapezoid(density, y), 1, atol=1e-6)
    assert fit.log_density(1e22, -1.0).item() == -np.inf
    assert fit.prob_below(X_NEW, [-1.0, 100.0, 1.5]).to_numpy()[:2].tolist() == [0, 1]


def test_series_of_different_index_are_not_asked_about_by_position(fit: Fit) -> None:
    table = pd.DataFrame({"x": X_NEW, "y": [1.4, 1.5, 1.6]})
    assert_allclose(fit.prob_below(table["x"], table["y"]), fit.prob_below(X_NEW, [1.4, 1.5, 1.6]))
    for ask in (fit.prob_below, fit.log_density):
        with pytest.raises(InvalidArgumentError, match=r"x_new and .* are Series of different index: align them"):
            ask(table["x"], table["y"].sort_values(ascending=False))


def test_plot(fit: Fit) -> None:
    ax = plt.figure().add_subplot()
    assert fit.plot(ax=ax) is ax
    plt.close("all")


def test_verdict() -> None:
    fit = make_fit()
    assert repr(fit) == fit.verdict
    assert fit.verdict == (
        "m4 on synthetic by nuts: 4 x 250 draws, worst R-hat 1.004, lowest bulk ESS 812, tail ESS 741, 3 divergences: ok"
    )
    point = EngineResult(make_result(1, 1).draws, {}, "needs_review", ("Too few points: add some.",), {"method": "by hand"})
    verdict = make_fit(result=point, engine="least_squares").verdict
    assert verdict == "m4 on synthetic by least_squares: a point estimate: needs review - Too few points: add some."
    assert "\n" not in verdict


def test_unit_coordinates_end_at_the_horizon() -> None:
    class Line(Law):
        name = "line"

        def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
            return theta["level"] * (2 - x)

    m4 = get_prior("m4").parameters
    prior = Prior("line", Line(), (Parameter("level", m4[0].distribution), m4[-1]), coordinates="unit")
    draws = {"level": np.ones((2, 5)), "sigma": np.full((2, 5), 0.01)}
    fit = make_fit(prior=prior, result=EngineResult(draws))
    assert np.isfinite(fit.predict([X[0], HORIZON])["mean"]).all()
    with pytest.raises(InvalidArgumentError, match=r"beyond the horizon 1e\+23.*horizon=2e\+23"):
        fit.predict([1e22, 2e23])
    with pytest.raises(InvalidArgumentError, match="before the first context x"):
        fit.sample(1e17)


numbers = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=2), st.complex_numbers())
anything = st.one_of(numbers, st.lists(numbers, max_size=4), st.lists(st.lists(st.floats(), max_size=2), max_size=2))


@given(anything, anything, anything)
@settings(max_examples=200, deadline=None)
def test_any_arguments_give_an_answer_or_a_hybrid_error(x: Any, other: Any, count: Any) -> None:
    fit = make_fit(result=make_result(1, 3))
    for ask in (
        lambda: fit.predict(x),
        lambda: fit.predict(1e22, levels=other),
        lambda: fit.log_density(x, other),
        lambda: fit.log_density(1e22, other),
        lambda: fit.prob_below(1e22, other),
        lambda: fit.sample(x, draws=3),
        lambda: fit.sample(1e22, draws=count if not isinstance(count, int) else count % 100),
        lambda: fit.sample(1e22, draws=2, seed=other),
    ):
        with contextlib.suppress(HybridError):
            assert ask() is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"horizon": 1e20}, InvalidArgumentError, "before the last context"),
        ({"horizon": np.nan}, InvalidArgumentError, "horizon"),
        ({"horizon": "far"}, InvalidArgumentError, "horizon"),
        ({"horizon": [1e23, 1e24]}, InvalidArgumentError, "2 values for 1 curves"),
        ({"y_scale": 0}, InvalidArgumentError, "y_scale"),
        ({"y_scale": True}, InvalidArgumentError, "y_scale"),
        ({"y_scale": 10**400}, InvalidArgumentError, "y_scale"),
        ({"seed": -1}, InvalidArgumentError, "seed"),
        ({"seed": 1.5}, InvalidArgumentError, "seed"),
        ({"engine": "magic"}, UnknownNameError, "nuts, least_squares, pfn, auto"),
        ({"prior": "m5"}, UnknownNameError, "m4"),
        ({"engine": "least_squares", "speed": 3}, InvalidArgumentError, "no option 'speed'; it has starts"),
        ({"engine": "nuts", "speed": 3}, InvalidArgumentError, "speed"),
        (
            {"prior": "m2", "engine": "pfn"},
            EngineUnavailableError,
            r"no amortized weights.*hybrid train --prior m2, or use engine='nuts'",
        ),
        ({"prior": OUTLIERS, "engine": "least_squares"}, EngineUnavailableError, "noise.*besides sigma.*use engine='nuts'"),
        ({"prior": "m4_drift", "engine": "least_squares"}, EngineUnavailableError, "drift.*use engine='nuts'"),
        ({"prior": "nsl"}, EngineUnavailableError, "discrete parameters.*use "),
        ({"prior": QUIET_NSL, "engine": "auto"}, EngineUnavailableError, "no amortized weights.*m4"),
        (
            {"prior": QUIET_NSL, "engine": "pfn"},
            EngineUnavailableError,
            r"hybrid\.train\(prior\) or, .*FILE\.json` with what prior\.to_json\(\) gives$",
        ),
        ({"prior": "nslpfn"}, EngineUnavailableError, "can only be simulated.*use "),
        ({"prior": "nslpfn", "engine": "least_squares"}, EngineUnavailableError, "can only be simulated.*use "),
    ],
)
def test_bad_arguments_of_fit(options: dict[str, Any], error: type[HybridError], message: str) -> None:
    with pytest.raises(error, match=message):
        hybrid.fit(make_curve(), **options)


def test_not_a_curve() -> None:
    with pytest.raises(InvalidCurveError, match=r"hybrid\.Curve"):
        hybrid.fit([1, 2, 3], engine="least_squares")  # type: ignore[arg-type]
    with pytest.raises(InvalidCurveError, match=r"use hybrid\.fit, or a list"):
        hybrid.fit_many(make_curve(), prior="m2", engine="least_squares")  # type: ignore[arg-type]
    with pytest.raises(InvalidCurveError, match="curve 1"):
        hybrid.fit_many([make_curve(), None], prior="m2", engine="least_squares")  # type: ignore[list-item]


def test_fit_many_by_least_squares() -> None:
    """A real engine end to end: order kept, defaults filled in and stored, one horizon and y scale per curve."""
    curves = [hybrid.load_example(name, holdout=1) for name in ("porian_optimal_loss", "routing_S-Base_1.3B_vs_experts")]
    fits = hybrid.fit_many(curves, prior="m2", engine="least_squares", progress=False)
    assert [f.curve.name for f in fits] == [c.name for c in curves]
    assert [f.horizon for f in fits] == [10 * c.x[-1] for c in curves]
    assert [f.y_scale for f in fits] == [c.y.max() for c in curves]
    for f in fits:
        assert f.curve.y_target == pytest.approx(f.predict(f.curve.x_target)["median"].to_numpy(), rel=0.02)
        assert {"python", "numpy", "jax"} <= set(f.versions)
    by_name = dict(zip("ab", curves, strict=True))
    again = hybrid.fit_many(by_name, "m2", "least_squares", [1e22, None], 1, progress=False)
    assert [f.horizon for f in again] == [1e22, 10 * curves[1].x[-1]]
    assert [f.y_scale for f in again] == [1, 1]
    assert_allclose(again[0].predict(1e21)["median"], fits[0].predict(1e21)["median"], rtol=1e-3)
    assert hybrid.fit_many([], "m2", "least_squares", progress=False) == []


def test_fit_hides_the_targets_from_the_engine() -> None:
    curve = make_curve()
    bare = Curve(curve.x, curve.y, curve.x_label, curve.y_label)
    with_targets = hybrid.fit(curve, "m2", "least_squares", progress=False)
    without = hybrid.fit(bare, "m2", "least_squares", progress=False)
    assert_allclose(with_targets.predict(X_NEW)["median"], without.predict(X_NEW)["median"], rtol=1e-12)


def test_priors() -> None:
    table = hybrid.priors()
    assert list(table.columns) == ["law", "parameters", "engines", "checkpoint"]
    assert table.loc["m4", "engines"] == "nuts, least_squares, pfn"
    assert table.loc["m4", "checkpoint"] == "m4.safetensors"
    assert table.loc["bnsl3", "engines"] == "nuts, least_squares"
    assert table.loc["bnsl3", "checkpoint"] == "-"
    assert "alpha" in table.loc["m4", "parameters"]


def test_the_curve_of_a_batch_that_cannot_be_fitted_is_named() -> None:
    curves = [dataclasses.replace(make_curve(), name=name) for name in ("short", "long")]
    with pytest.raises(InvalidArgumentError, match=r"curve 1 \(long\): horizon = .* lies before the last context x"):
        hybrid.fit_many(curves, "m1", "least_squares", horizon=[None, 0.5 * curves[0].x[-1]])
    with pytest.raises(InvalidArgumentError, match=r"^horizon = .* lies before"):
        hybrid.fit(curves[0], "m1", "least_squares", horizon=0.5 * curves[0].x[-1])
    with pytest.raises(InvalidArgumentError, match="horizon must be one value, or a list with one per curve in their order"):
        hybrid.fit_many(curves, "m1", "least_squares", horizon={"short": 1e9, "long": 1e9})  # type: ignore[arg-type]

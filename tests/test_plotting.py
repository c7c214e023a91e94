"""Plots: scales, bands, points, labels and headers."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection

import hybrid
from hybrid.curve import Curve
from hybrid.models.engine import EngineResult
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.registry import get_prior
from hybrid.plotting import as_label, figure_settings, plot_compare, plot_fit
from hybrid.result import Fit


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def make_fit(
    x: np.ndarray, y_ratio: float = 0.3, engine: str = "nuts", status: str = "ok", draws: int = 50, holdout: int = 0
) -> Fit:
    """A fit of power laws with an asymptote whose draws are made up, around the curve that they fit."""
    rng = np.random.default_rng(0)
    posterior = {
        "y_first": np.exp(0.01 * rng.normal(size=(1, draws))),
        "y_ratio": y_ratio * np.exp(0.02 * rng.normal(size=(1, draws))),
        "floor": np.clip(0.4 + 0.1 * rng.normal(size=(1, draws)), 0.05, 0.9),
        "sigma": np.full((1, draws), 0.02),
    }
    slope = np.log(y_ratio) / np.log(x[-1] / x[0])
    curve = Curve(x, 3.0 * (x / x[0]) ** slope, x_label="training FLOPs", y_label="loss", name="made up").hold_out(holdout)
    result = EngineResult(posterior, status="ok" if status == "ok" else "needs_review", reasons=())
    prior = get_prior("m2")
    return Fit(curve, prior, engine, 10.0 * float(curve.x[-1]), 3.0, 0, result)  # type: ignore[arg-type]


def bands(ax: Axes) -> list[PolyCollection]:
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_plot_shows_what_it_names() -> None:
    ax = plot_fit(make_fit(np.geomspace(1e18, 1e22, 9), holdout=2))
    assert ax.get_xlabel() == "training FLOPs"
    assert ax.get_ylabel() == "loss"
    assert labels(ax) == ["context", "held out", "median", "50 % interval", "90 % interval"]
    assert ax.get_title(loc="left") == "made up: prior m2, engine nuts, ok"
    assert len(bands(ax)) == 2
    points = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert [len(np.asarray(c.get_offsets())) for c in points] == [7, 2]
    assert {t.get_text() for t in ax.texts} == {"observed", "forecast"}


def test_bands_are_nested_and_reach_the_horizon() -> None:
    fit = make_fit(np.geomspace(1e18, 1e22, 9))
    narrow, wide = (np.asarray(band.get_paths()[0].vertices) for band in bands(plot_fit(fit)))
    assert wide[:, 0].max() == narrow[:, 0].max() == fit.horizon
    assert wide[:, 1].max() > narrow[:, 1].max()
    assert wide[:, 1].min() < narrow[:, 1].min()
    expected = fit.predict(fit.horizon, levels=[0.05, 0.95])["quantiles"].to_numpy()[:, 0]
    at_horizon = wide[wide[:, 0] == fit.horizon, 1]
    np.testing.assert_allclose([at_horizon.min(), at_horizon.max()], expected)


def test_x_max_ends_the_plot_and_drops_later_points() -> None:
    fit = make_fit(np.geomspace(1e18, 1e22, 9), holdout=2)
    ax = plot_fit(fit, x_max=float(fit.curve.x[-1]))
    assert "held out" not in labels(ax)
    assert np.asarray(bands(ax)[0].get_paths()[0].vertices)[:, 0].max() == fit.curve.x[-1]


@pytest.mark.parametrize(
    ("x", "y_ratio", "scales"),
    [
        (np.geomspace(1e18, 1e22, 9), 0.1, ("log", "log")),
        (np.geomspace(1e18, 1e22, 9), 0.8, ("log", "linear")),
        (np.linspace(10.0, 15.0, 9), 0.8, ("linear", "linear")),
        (np.linspace(10.0, 15.0, 9), 0.1, ("linear", "log")),
    ],
)
def test_scales_follow_the_spans(x: np.ndarray, y_ratio: float, scales: tuple[str, str]) -> None:
    ax = plot_fit(make_fit(x, y_ratio), x_max=float(1.2 * x[-1]))
    assert (ax.get_xscale(), ax.get_yscale()) == scales
    assert ax.figure.get_axes() == [ax]


def test_every_point_is_in_view() -> None:
    fit = make_fit(np.geomspace(1e18, 1e22, 9), holdout=2)
    ax = plot_fit(fit)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert fit.curve.x_target is not None
    assert fit.curve.y_target is not None
    x, y = np.append(fit.curve.x, fit.curve.x_target), np.append(fit.curve.y, fit.curve.y_target)
    assert np.all((left < x) & (x < right) & (bottom < y) & (y < top))


def test_legend_lies_outside_the_axes() -> None:
    for width in (3.5, 7.0):
        figure, ax = plt.subplots(figsize=(width, 4.0), layout="constrained")
        plot_fit(make_fit(np.geomspace(1e18, 1e22, 9), holdout=2), ax)
        figure.canvas.draw()
        legend = ax.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y0 >= ax.get_window_extent().y1 - 1.0
        assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_needs_review_and_point_estimates_say_so() -> None:
    ax = plot_fit(make_fit(np.geomspace(1e18, 1e22, 9), engine="least_squares", status="needs_review", draws=1))
    assert ax.get_title(loc="left").endswith("engine least_squares, needs review")
    assert "90 % noise interval" in labels(ax)


def test_plots_on_given_axes_with_other_levels() -> None:
    _, ax = plt.subplots()
    assert plot_fit(make_fit(np.geomspace(1.0, 100.0, 5)), ax, levels=(0.8,)) is ax
    assert labels(ax)[-1] == "80 % interval"
    assert len(bands(ax)) == 1


def test_compare_overlays_engines() -> None:
    x = np.geomspace(1e18, 1e22, 9)
    fits = [make_fit(x, holdout=2), make_fit(x, engine="least_squares", status="needs_review", draws=1, holdout=2)]
    ax = plot_compare(fits)
    assert labels(ax) == [
        "context",
        "held out",
        "nuts: median, 90 % interval",
        "least_squares: median, 90 % noise interval",
    ]
    assert ax.get_title(loc="left") == "made up: prior m2, least_squares needs review"
    assert len(bands(ax)) == 2


def test_compare_names_fits_by_what_differs() -> None:
    x = np.geomspace(1e18, 1e22, 9)
    one, two = make_fit(x), make_fit(x, status="needs_review")
    ax = plot_compare([one, two])
    assert labels(ax)[1:] == ["nuts (1): median, 90 % interval", "nuts (2): median, 90 % interval"]
    assert ax.get_title(loc="left") == "made up: prior m2, nuts (2) needs review"
    other = dataclasses.replace(two, prior=two.prior.replace("other"))
    ax = plot_compare([one, other])
    assert labels(ax)[1:] == ["nuts, m2: median, 90 % interval", "nuts, other: median, 90 % interval"]
    assert ax.get_title(loc="left") == "made up: priors m2, other; nuts, other needs review"


def test_long_labels_are_broken_and_linear_x_says_all_of_a_number() -> None:
    fit = make_fit(np.linspace(1e24, 4e24, 9))
    long = " ".join(["cross-entropy"] * 12)
    curve = dataclasses.replace(fit.curve, x_label=long, y_label=long)
    figure, ax = plt.subplots(**figure_settings())
    plot_fit(dataclasses.replace(fit, curve=curve), ax, x_max=4e24)
    figure.canvas.draw()
    space = figure.get_window_extent()
    for label in (ax.xaxis.label, ax.yaxis.label):
        assert label.get_text().replace("\n", " ") == long
        box = label.get_window_extent()
        assert space.x0 <= box.x0 < box.x1 <= space.x1
        assert space.y0 <= box.y0 < box.y1 <= space.y1
    assert ax.xaxis.get_offset_text().get_text() == ""
    assert {text.get_text() for text in ax.get_xticklabels()} >= {"1e+24", "2e+24"}


@pytest.mark.parametrize("levels", [(), (0.0,), (1.0,), (0.5, 1.5), (float("nan"),), "0.9", None])
def test_bad_levels_are_refused(levels: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="levels"):
        plot_fit(make_fit(np.geomspace(1.0, 100.0, 5)), levels=levels)


def test_one_level_and_a_forecast_without_bounds() -> None:
    x = np.geomspace(1.0, 100.0, 8)
    fit = make_fit(x)
    (only,) = (a.get_label() for a in plot_fit(fit, levels=0.8).collections if "80 %" in str(a.get_label()))
    assert only
    rising = hybrid.fit(hybrid.Curve(x, np.exp(0.02 * x)), "bnsl", "least_squares", horizon=1e90, progress=False)
    with np.errstate(all="ignore"):
        plot_fit(rising).figure.canvas.draw()


@pytest.mark.parametrize("x_max", [0.5, -1.0, float("inf"), float("nan"), "3"])
def test_bad_x_max_is_refused(x_max: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="x_max"):
        plot_fit(make_fit(np.geomspace(1.0, 100.0, 5)), x_max=x_max)


def test_compare_refuses_what_it_cannot_overlay() -> None:
    fit = make_fit(np.geomspace(1.0, 100.0, 5))
    with pytest.raises(InvalidArgumentError, match="same curve"):
        plot_compare([fit, make_fit(np.geomspace(1.0, 200.0, 5))])
    for fits in ([], [fit] * 5):
        with pytest.raises(InvalidArgumentError, match="1 to 4"):
            plot_compare(fits)


def test_held_out_points_beyond_the_horizon_show() -> None:
    fit = make_fit(np.geomspace(1e18, 1e22, 9), holdout=3)
    assert fit.curve.x_target is not None
    assert fit.horizon < fit.curve.x_target[-1]
    ax = plot_fit(fit)
    assert ax.get_xlim()[1] > fit.curve.x_target[-1]
    assert np.asarray(bands(ax)[0].get_paths()[0].vertices)[:, 0].max() == fit.horizon


def test_labels_of_narrow_panels_do_not_overlap() -> None:
    x = np.geomspace(1e18, 1e20, 5)
    figure = hybrid.plot_checks(hybrid.fit(hybrid.Curve(x, 2.0 * (x / 1e18) ** -0.1), "nsl", "pfn"))
    figure.canvas.draw()
    for ax in figure.axes[:2]:
        boxes = [text.get_window_extent() for text in ax.get_xticklabels() if text.get_text()]
        boxes = [box for box in sorted(boxes, key=lambda box: box.x0) if 0 <= box.x0 <= figure.bbox.x1]
        assert len(boxes) > 2
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_a_word_without_room_is_left_out() -> None:
    def words(x: np.ndarray) -> set[str]:
        return {text.get_text() for text in plot_fit(make_fit(x)).texts}

    assert {"observed", "forecast"} <= words(np.geomspace(1e3, 1e6, 8))
    linear = words(np.arange(10.0, 20.0))
    assert "forecast" in linear
    assert "observed" not in linear


def test_long_titles_take_two_lines() -> None:
    _, axes = plt.subplots(1, 2, figsize=(8.0, 4.0), layout="constrained")
    fit = make_fit(np.geomspace(1e18, 1e22, 9), status="needs_review")
    assert plot_fit(fit, axes[0]).get_title(loc="left") == "made up\nprior m2, engine nuts, needs review"


@pytest.mark.parametrize(
    ("label", "shown"), [("cost ($)", r"cost (\$)"), ("FLOP ($^$)", r"FLOP (\$^\$)"), ("$10^{21}$", "$10^{21}$")]
)
def test_dollars_in_labels_are_formulas_only_where_they_can_be(label: str, shown: str, tmp_path: Path) -> None:
    curve = hybrid.Curve([1.0, 2.0, 4.0, 8.0], [3.0, 2.5, 2.2, 2.0], x_label=label, name=label)
    ax = hybrid.fit(curve, "m2", "least_squares", progress=False).plot()
    assert ax.get_xlabel() == shown
    ax.figure.savefig(tmp_path / "labels.png")


def test_labels_of_several_lines_are_taken_quietly(caplog: pytest.LogCaptureFixture) -> None:
    for text in ("a title\nof two lines", "$10^3$\nruns", "plain"):
        assert as_label(text) == text
    assert as_label("cost ($)\nand more") == r"cost (\$)" + "\nand more"
    assert not caplog.records

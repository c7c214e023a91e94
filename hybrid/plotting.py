"""Plots of a fit and of several fits of one curve, on matplotlib axes."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.mathtext import MathTextParser

from hybrid.models.checks import as_floats, as_positive
from hybrid.models.errors import InvalidArgumentError
from hybrid.result import first_shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hybrid.result import Fit

Array = np.ndarray[Any, Any]

# Okabe and Ito's palette: told apart under every common colour blindness, and by lightness in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MORE_COLOURS = (*COLOURS, "#E69F00", "#56B4E9")  # its yellow aside, which is too light for lines
STYLES = ("-", "--", "-.", ":")
WARNING = "#D55E00"
INK = "#222222"
MUTED = "#6B6B6B"
MANY = 200  # points of a context, beyond which they are drawn faintly, and below the forecast
_GRID_POINTS = 128
_FARTHEST = 1e100  # y beyond which an axis does not follow
_LOG_X_DECADES = 1.3
ROOM, HIGH = 0.14, 0.09  # of the width and height of a plot, which the word "observed" takes
_USUAL = (1e-3, 1e5)  # sizes of numbers that are written out
_LOG_Y_RATIO = 3.0
_SIZE_INCHES = (5.0, 3.2)  # where axes belong to no figure
_LETTER_INCHES = 0.068  # width of a letter of the legend, on average
_TITLE_LETTER_INCHES = 0.078
SHORTEST_LINE = 20  # letters


class _Band(NamedTuple):
    """One engine's forecast on a grid: median (x,), and lower and upper edges (level, x), widest level last."""

    x: Array
    median: Array
    lower: Array
    upper: Array


def _levels(levels: Any) -> tuple[float, ...]:
    found = np.sort(as_floats(levels, "levels", InvalidArgumentError, scalar=True))
    if not found.size or not np.all((found > 0.0) & (found < 1.0)):
        raise InvalidArgumentError(f"levels must be probabilities strictly between 0 and 1, got {levels!r}")
    return tuple(found.tolist())


def _end(fit: Fit, x_max: float | None) -> float:
    """The right end of the forecast: x_max, or else the horizon, in the curve's units."""
    if x_max is None:
        return float(fit.horizon)
    end = as_positive(x_max, "x_max")
    if not end > float(np.min(fit.curve.x)):
        raise InvalidArgumentError(f"x_max must be finite and beyond the first context x, got {x_max}")
    return end


def _forecast(fit: Fit, end: float, levels: tuple[float, ...]) -> _Band:
    first, last = first_shown(fit, fit.curve.x_target), float(np.max(fit.curve.x))
    space = np.geomspace if _is_log_x(first, end) else np.linspace
    grid = np.unique(np.concatenate([space(first, end, _GRID_POINTS), [x for x in (last,) if x < end]]))
    grid = np.clip(grid, first, end)
    edges = [0.5 - level / 2 for level in levels] + [0.5] + [0.5 + level / 2 for level in levels]
    quantiles = np.asarray(fit.predict(grid, levels=sorted(edges))["quantiles"].transpose("quantile", "x"))
    n = len(levels)
    return _Band(grid, quantiles[n], quantiles[:n][::-1], quantiles[n + 1 :])


def _is_log_x(low: float, high: float) -> bool:
    return low > 0 and math.log10(high / low) > _LOG_X_DECADES


def is_log_y(values: Array) -> bool:
    """Whether the data and the medians, all positive, span more than a factor of three."""
    return bool(np.min(values) > 0 and np.max(values) / np.min(values) > _LOG_Y_RATIO)


def _tick_label(value: float, powers: bool) -> str:
    """A tick label: 0.05 or 3000, or a power of ten where the axis reaches far."""
    if not powers:
        return f"{value:.10g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    power = rf"10^{{{exponent}}}"
    return f"${power}$" if abs(mantissa - 1.0) < 1e-6 else rf"${mantissa:.3g}\times{power}$"


def as_label(text: str) -> str:
    """The text as matplotlib takes it: formulas between dollars stay, and dollars that begin none are dollars.

    What begins or ends with a space, as between two prices, is no formula.
    """
    if any(inside != inside.strip() for inside in re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", text)):
        return text.replace("$", r"\$")
    try:
        for line in text.splitlines() if "$" in text else ():  # as matplotlib draws it: line by line
            MathTextParser("agg").parse(line)
    except ValueError:
        return text.replace("$", r"\$")
    return text


def wrapped(text: str, inches: float) -> str:
    """The text in lines that fit so many inches of a title or an axis' label."""
    return textwrap.fill(text, max(int(inches / _TITLE_LETTER_INCHES), SHORTEST_LINE))


def _inches(ax: Axes) -> tuple[float, float]:
    """About the width and height of the axes."""
    figure, place = ax.get_figure(root=True), ax.get_position()
    if figure is None:
        return _SIZE_INCHES
    width, height = figure.get_size_inches()
    return max(place.width * width, 1.0), max(place.height * height, 1.0)


def log_axis(axis: Any, low: float, high: float, most: int = 12) -> None:
    """A log scale whose ticks stay readable: 1, 2, 3, 5, 7 or 1, 2, 5 over few decades, powers of ten over many.

    On a narrow axis `most` says how many labels there is room for.
    """
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    decades = math.log10(high / low)
    subs: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.0) if decades < 1.2 else (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    while len(subs) > 1 and math.ceil(decades * len(subs)) > most:
        subs = (1.0, 3.0) if len(subs) > 2 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
    axis.set_minor_locator(ticker.LogLocator(subs=tuple(range(2, 10)), numticks=24))
    powers = low < 1e-3 or high > 2e4
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _tick_label(value, powers)))
    axis.set_minor_formatter(ticker.NullFormatter())


def linear_axis(axis: Any, low: float, high: float) -> None:
    """Ticks that say all of a number: matplotlib puts a common factor, or what all share, above the axis, where it is lost."""
    size = max(abs(low), abs(high))
    if _USUAL[0] <= size < _USUAL[1]:
        axis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))
        return
    digits = 3 + max(0, math.ceil(math.log10(size / (high - low)))) if high > low else 6
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.{min(digits, 15)}g}"))


def figure_settings() -> dict[str, Any]:
    """Size and layout of a figure with one plot, for matplotlib's `Figure` or pyplot's `subplots`."""
    return {"figsize": (7.2, 4.6), "layout": ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)}


def _new_axes() -> Axes:
    import matplotlib.pyplot as plt

    ax: Axes = plt.subplots(**figure_settings())[1]
    return ax


def _set_axes(ax: Axes, fit: Fit, x_max: float | None, bands: Sequence[_Band]) -> None:
    """Scales, limits, labels, and the mark where observations end."""
    curve = fit.curve
    held_x, held_y = _held_out(fit, x_max)
    x = np.concatenate([curve.x, held_x, *(b.x for b in bands)])
    inner = np.concatenate([curve.y, held_y, *(b.median for b in bands)])
    inner = inner[np.abs(inner) < _FARTHEST]  # a point estimate far out may be infinite
    outer = np.concatenate([inner, *(b.lower[-1] for b in bands), *(b.upper[-1] for b in bands)])
    outer = outer[np.abs(outer) < _FARTHEST]
    low, high = float(np.min(x)), float(np.max(x))
    if _is_log_x(low, high):
        log_axis(ax.xaxis, low, high)
        margin = (high / low) ** 0.03
        ax.set_xlim(low / margin, high * margin)
    else:
        ax.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        linear_axis(ax.xaxis, low, high)
    if is_log_y(inner):
        # A vague band can reach many decades down; a view of the data matters more than its last corner.
        reach = float(np.max(inner) / np.min(inner)) ** 0.75
        bottom = max(float(np.min(outer)), float(np.min(inner)) / reach)
        top = min(float(np.max(outer)), float(np.max(inner)) * reach)
        log_axis(ax.yaxis, bottom, top)
        margin = (top / bottom) ** 0.05
        ax.set_ylim(bottom / margin, top * margin)
    else:
        reach = max(float(np.ptp(inner)), 1e-3 * float(np.max(np.abs(inner))))
        bottom = max(float(np.min(outer)), float(np.min(inner)) - reach)
        top = min(float(np.max(outer)), float(np.max(inner)) + reach)
        margin = 0.05 * (top - bottom)
        ax.set_ylim(bottom - margin, top + margin)
        linear_axis(ax.yaxis, bottom, top)
    width, height = _inches(ax)
    ax.set_xlabel(as_label(wrapped(curve.x_label, width)))
    ax.set_ylabel(as_label(wrapped(curve.y_label, height)))
    ax.grid(True, color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _mark_last(ax, bands[0], float(np.max(curve.x)), np.append(curve.x, held_x), np.append(curve.y, held_y))


def _mark_last(ax: Axes, band: _Band, last: float, x: Array, y: Array) -> None:
    """A vertical line at the last context x, with a word on either side at that end of it where no point (x, y) lies."""
    ax.axvline(last, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
    level = float(np.interp(last, band.x, band.median))
    places = ax.transAxes.inverted().transform(
        ax.transData.transform(np.column_stack([np.append(last, x), np.append(level, y)]))
    )
    (edge, height), points = places[0], places[1:]
    ends = (1.0, 0.0) if height < 0.6 else (0.0, 1.0)
    for word, side in (("observed", -1), ("forecast", 1)):
        if (side < 0 and edge <= ROOM) or (side > 0 and band.x[-1] <= last):
            continue
        beside = points[(side * (points[:, 0] - edge) > -0.01) & (side * (points[:, 0] - edge) < ROOM)]
        free = [end for end in ends if not np.any(np.abs(beside[:, 1] - end) < HIGH)]
        if free:
            ax.annotate(
                word,
                (last, 0.985 if free[0] else 0.015),
                (5 * side, 0),
                ha="left" if side > 0 else "right",
                va="top" if free[0] else "bottom",
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                fontsize="small",
                color=MUTED,
            )


def _held_out(fit: Fit, x_max: float | None) -> tuple[Array, Array]:
    """The held-out points, up to x_max where it is given; empty where there are none."""
    x = np.asarray([] if fit.curve.x_target is None else fit.curve.x_target, dtype=float)
    y = np.asarray([] if fit.curve.y_target is None else fit.curve.y_target, dtype=float)
    shown = np.full(x.shape, True) if x_max is None else x <= x_max
    return x[shown], y[shown]


def _draw_points(ax: Axes, fit: Fit, x_max: float | None) -> None:
    curve, count = fit.curve, len(fit.curve.x)
    size = 30 if count <= 30 else 14
    # Many points must not hide what was fitted to them.
    many: dict[str, Any] = (
        {"alpha": max(0.15, MANY / count), "zorder": 1.8, "rasterized": True} if count > MANY else {"zorder": 4}
    )
    ax.scatter(curve.x, curve.y, s=size, color=INK, linewidths=0, label="context", **many)
    x, y = _held_out(fit, x_max)
    if len(x):
        ax.scatter(x, y, s=size + 6, facecolors="white", edgecolors=INK, linewidths=1.3, zorder=5, label="held out")


def _header(ax: Axes, name: str | None, title: str, colour: str) -> None:
    """The title and, in rows between it and the axes, the legend: there it cannot cover data."""
    handles, labels = ax.get_legend_handles_labels()
    points = [i for i, label in enumerate(labels) if label in ("context", "held out")]
    order = points + [i for i in range(len(labels)) if i not in points]
    width = _inches(ax)[0]
    letters = sum(len(label) + 7 for label in labels)
    rows = min(len(labels), math.ceil(letters * _LETTER_INCHES / width))
    legend = ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=math.ceil(len(labels) / rows),
        frameon=False,
        fontsize="small",
        borderaxespad=0.2,
        borderpad=0.2,
        handlelength=1.5,
        columnspacing=1.4,
        handletextpad=0.6,
    )
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        if text.get_text() == "context" and handle is not None:
            handle.set_alpha(1.0)  # many points are faint each
    if name:
        fits_in_a_line = (len(name) + len(title) + 2) * _TITLE_LETTER_INCHES <= width
        title = f"{name}: {title}" if fits_in_a_line else f"{wrapped(name, width)}\n{title}"
    ax.set_title(as_label(title), loc="left", pad=8 + 14 * rows, fontsize="medium", color=colour)


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def _interval_name(fit: Fit) -> str:
    """What the band of this engine covers: a point estimate has no parameter uncertainty in it."""
    return "noise interval" if fit.engine == "least_squares" else "interval"


def _status_text(fit: Fit) -> str:
    return str(fit.status).replace("_", " ")


def plot_fit(fit: Fit, ax: Axes | None = None, *, levels: Sequence[float] = (0.5, 0.9), x_max: float | None = None) -> Axes:
    """Draw a curve with its forecast: points, median and central intervals out to the horizon.

    The x axis is logarithmic where it spans more than 1.3 decades, the y axis where data and median are positive and span
    more than a factor of 3. A dashed line marks the last context x. Bands are those of a new measurement, observation noise
    included; those of a point estimate hold the noise alone, and the legend says so.

    Parameters
    ----------
    fit
        A fit.
    ax
        Axes to draw on; by default those of a new pyplot figure.
    levels
        Probabilities of the central intervals, strictly between 0 and 1.
    x_max
        Right end of the forecast in the units of x, and of the held-out points; the context always shows. By default the
        forecast ends at the horizon, and all held-out points show.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    InvalidArgumentError
        If a level is not a probability, or x_max is not beyond the first context x.
    """
    masses = _levels(levels)
    band = _forecast(fit, _end(fit, x_max), masses)
    ax = _new_axes() if ax is None else ax
    ax.plot(band.x, band.median, color=COLOURS[0], linewidth=1.8, zorder=3, label="median")
    shades = np.linspace(0.38, 0.16, len(masses)) if len(masses) > 1 else [0.25]
    for mass, lower, upper, shade in zip(masses, band.lower, band.upper, shades, strict=True):
        style: dict[str, Any] = {"color": COLOURS[0], "alpha": float(shade), "linewidth": 0, "zorder": 2.5 - mass}
        ax.fill_between(band.x, lower, upper, label=f"{_percent(mass)} {_interval_name(fit)}", **style)
    _draw_points(ax, fit, x_max)
    _set_axes(ax, fit, x_max, [band])
    title = f"prior {fit.prior.name}, engine {fit.engine}, {_status_text(fit)}"
    _header(ax, fit.curve.name, title, INK if fit.status == "ok" else WARNING)
    return ax


def plot_compare(fits: Sequence[Fit], ax: Axes | None = None, *, level: float = 0.9, x_max: float | None = None) -> Axes:
    """Draw the forecasts of several engines for one curve over one another: medians and one central interval each.

    Parameters
    ----------
    fits
        Fits of the same curve, at most four.
    ax
        Axes to draw on; by default those of a new pyplot figure.
    level
        Probability of the central interval, strictly between 0 and 1.
    x_max
        Right end of the forecasts in the units of x, and of the held-out points; the context always shows. By default
        forecasts end at the horizons, and all held-out points show.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    InvalidArgumentError
        If there are no fits or more than four, they are not of the same curve, or level or x_max are out of range.
    """
    if not 1 <= len(fits) <= len(COLOURS):
        raise InvalidArgumentError(f"plot_compare draws 1 to {len(COLOURS)} fits, got {len(fits)}")
    first = fits[0].curve
    if not all(fit.curve.has_points_of(first) for fit in fits):
        raise InvalidArgumentError("plot_compare needs fits of the same curve")
    priors = list(dict.fromkeys(fit.prior.name for fit in fits))
    masses = _levels([level])
    bands = [_forecast(fit, _end(fit, x_max), masses) for fit in fits]
    ax = _new_axes() if ax is None else ax
    names = [fit.engine if len(priors) == 1 else f"{fit.engine}, {fit.prior.name}" for fit in fits]
    if len(set(names)) < len(names):  # as of several seeds
        names = [f"{name} ({k})" for k, name in enumerate(names, 1)]
    for fit, named, band, colour, style in zip(fits, names, bands, COLOURS, STYLES, strict=False):
        label = f"{named}: median, {_percent(level)} {_interval_name(fit)}"
        ax.fill_between(band.x, band.lower[0], band.upper[0], color=colour, alpha=0.14, linewidth=0, zorder=2)
        for edge in (band.lower[0], band.upper[0]):
            ax.plot(band.x, edge, color=colour, linestyle=style, linewidth=0.8, alpha=0.8, zorder=2.5)
        ax.plot(band.x, band.median, color=colour, linestyle=style, linewidth=1.8, zorder=3, label=label)
    _draw_points(ax, fits[0], x_max)
    _set_axes(ax, fits[0], x_max, bands)
    review = [named for named, fit in zip(names, fits, strict=True) if fit.status != "ok"]
    verdict = f"{'; '.join(review)} needs review" if review else "ok"
    of_priors = f"priors {', '.join(priors)};" if len(priors) > 1 else f"prior {priors[0]},"
    _header(ax, first.name, f"{of_priors} {verdict}", WARNING if review else INK)
    return ax

"""Figures of a benchmark: every forecast on contact sheets, calibration, and accuracy against cost."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hybrid.benchmark_cases import Case
from hybrid.benchmark_methods import FAILED, FIGURES, SHEETS, Record
from hybrid.benchmark_scores import score_curve
from hybrid.diagnostics.scores import MSCE_LEVELS
from hybrid.models.files import replacing
from hybrid.plotting import COLOURS, INK, MORE_COLOURS, MUTED, WARNING, as_label, is_log_y, linear_axis, log_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLOURS = (*MORE_COLOURS, "#222222")
_MARKERS = "osD^vP*X<>"
_COLUMNS, _ROWS = 4, 6
_NARROW = 3.0  # ratio of the ends of x below which a logarithmic axis needs ticks of its own
_LEAST_COLUMNS = 3  # the legend needs the room
_TITLE_LETTERS = 33
_MOST_POINTS = 150  # of a context or of targets in one panel: more are thinned
_SHIFT = 0.004  # of a line of coverage beside the next
_LEAST_LL = -1000.0  # what is worse would leave no room for the rest
_WIDE_LL, _LINEAR_LL = 200, 10  # nats: an axis that spans more than the first is logarithmic beyond the second


def _style(index: int) -> dict[str, Any]:
    """Colour and marker of a method: no pair comes twice among the first seventy."""
    return {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot, with a grid of axes of the given size in inches each."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(columns * width, rows * height + 0.6), layout=layout)
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def _sheet(columns: int, rows: int) -> tuple[Figure, list[Axes]]:
    """Panels with room of fixed size around them: to measure the labels of 24 panels would take seconds."""
    width, height, aside, above, below = 2.8, 2.05, 0.55, 0.65, 0.6
    across, down = columns * width + 0.1, rows * height + above + below - 0.45
    figure = Figure(figsize=(across, down))
    FigureCanvasAgg(figure)
    edges = {"left": aside / across, "right": 1 - 0.1 / across, "bottom": below / down, "top": 1 - above / down}
    spaces = {"wspace": aside / (width - aside), "hspace": 0.5 / (height - 0.5)}
    return figure, list(np.atleast_1d(figure.subplots(rows, columns, gridspec_kw={**edges, **spaces})).flat)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _plain(ax: Axes) -> None:
    ax.grid(True, color="#E6E6E6", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7)


def _short(name: str) -> str:
    """A name that fits over a panel; what is left out is in the middle."""
    half = (_TITLE_LETTERS - 1) // 2
    return name if len(name) <= _TITLE_LETTERS else f"{name[:half]}…{name[-half:]}"


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, x.size - 1, min(x.size, _MOST_POINTS)).round().astype(int))
    return x[keep], y[keep]


def _limits(ax: Axes, case: Case, record: Record) -> None:
    """A y axis that shows the data and the median; a vague band or a wild median may leave it."""
    low, _, median, _, high = record["grid_bands"]
    data = np.concatenate([case.curve.y, case.curve.y_target])
    if is_log_y(data):
        reach = (data.max() / data.min()) ** 0.5
        drawn = np.clip(np.concatenate([median, low, high]), data.min() / reach, data.max() * reach)
        bottom, top = min(data.min(), np.nanmin(drawn)) / 1.03, max(data.max(), np.nanmax(drawn)) * 1.03
        log_axis(ax.yaxis, bottom, top)
    else:
        reach = max(float(np.ptp(data)), 1e-3 * float(data.max()))
        drawn = np.clip(np.concatenate([median, low, high]), data.min() - 0.6 * reach, data.max() + 0.6 * reach)
        bottom = min(data.min(), np.nanmin(drawn)) - 0.05 * reach
        top = max(data.max(), np.nanmax(drawn)) + 0.05 * reach
        linear_axis(ax.yaxis, bottom, top)
    ax.set_ylim(bottom, top)


def _panel(ax: Axes, case: Case, record: Record) -> None:
    """One curve: points, median and central 50 and 90 % intervals, and where the context ends."""
    curve, x = case.curve, record["grid"]
    low, lower, median, upper, high = record["grid_bands"]
    _plain(ax)
    ax.fill_between(x, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
    ax.fill_between(x, lower, upper, color=COLOURS[0], alpha=0.32, linewidth=0)
    ax.plot(x, median, color=COLOURS[0], linewidth=1.3)
    size = 9 if curve.x.size <= 30 else 3
    ax.scatter(*_thin(curve.x, curve.y), s=size, color=INK, linewidths=0, zorder=3)
    ax.scatter(*_thin(curve.x_target, curve.y_target), s=size, color=COLOURS[1], linewidths=0, zorder=4)
    ax.axvline(curve.x[-1], color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    log_axis(ax.xaxis, float(x[0]), float(x[-1]))
    if x[-1] / x[0] > 10:
        ax.xaxis.set_major_locator(ticker.LogLocator(numticks=5))
    elif x[-1] / x[0] < _NARROW:  # labels of 1, 2, 5 do not lie in it, and those of tenths would cover one another
        ax.xaxis.set_major_locator(ticker.FixedLocator(np.geomspace(x[0], x[-1], 3).tolist()))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    _limits(ax, case, record)
    scores = score_curve(case, record)
    ll = f"{scores['ll']:.2f}" if abs(scores["ll"]) < 1e4 else f"{scores['ll']:.1e}"
    remark = " (needs review)" if record["needs_review"] else ""
    title = f"{_short(case.name)}\nRMSLE {scores['rmsle']:.3g}, LL {ll}{remark}"
    ax.set_title(as_label(title), fontsize=7, loc="left", color=WARNING if remark else INK, pad=3)


def _labelled(cases: Sequence[Case]) -> str:
    """What x and y are, where all curves agree on it."""
    labels = [{getattr(case.curve, name) for case in cases} for name in ("x_label", "y_label")]
    x, y = (found.pop() if len(found) == 1 else None for found in labels)
    return f": {y} against {x}" if x and y else f": against {x}" if x else ""


def plot_sheet(cases: Sequence[Case], records: Sequence[Record], title: str, noise_only: bool = False) -> Figure:
    """A page of forecasts, one panel per curve: 24 panels and more make the page taller.

    Parameters
    ----------
    cases, records
        The curves, and what a method forecast for them; see `hybrid.benchmark_methods.run_method`.
    title
        What stands above, such as domain and method.
    noise_only
        Whether the legend says that intervals hold the observation noise alone, as those of point estimates do.

    Returns
    -------
    matplotlib.figure.Figure
        x is logarithmic. Dots are context (black) and held-out points (orange), thinned where there are more than 150.
    """
    columns = max(_LEAST_COLUMNS, min(_COLUMNS, len(cases)))
    figure, axes = _sheet(columns, math.ceil(len(cases) / columns))
    for ax, case, record in zip(axes, cases, records, strict=False):
        _panel(ax, case, record)
    for ax in axes[len(cases) :]:
        ax.set_axis_off()
    for ax in axes[: len(cases)]:
        ax.minorticks_off()
    interval = "noise interval" if noise_only else "interval"
    dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4}
    handles = [
        Line2D([], [], color=INK, label="context", **dots),
        Line2D([], [], color=COLOURS[1], label="held out", **dots),
        Line2D([], [], color=COLOURS[0], label="median"),
        Patch(color=COLOURS[0], alpha=0.45, linewidth=0, label=f"50 % {interval}"),
        Patch(color=COLOURS[0], alpha=0.18, linewidth=0, label=f"90 % {interval}"),
    ]
    figure.suptitle(as_label(title + _labelled(cases)), x=0.01, y=0.995, ha="left", va="top", fontsize=10)
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def plot_calibration(table: pd.DataFrame) -> Figure:
    """Observed coverage of central intervals over all points of a domain against the nominal one, a panel per domain.

    Parameters
    ----------
    table
        What `hybrid.benchmark_scores.summarise` gives.

    Returns
    -------
    matplotlib.figure.Figure
        Below the diagonal intervals are too narrow, above it too wide. Bars are standard errors either way, by groups of
        related curves; where a share is 1, or there is one group, there is no telling.
    """
    domains, methods = (list(dict.fromkeys(table[column])) for column in ("domain", "method"))
    columns = min(_COLUMNS, len(domains))
    figure, axes = _figure(columns, math.ceil(len(domains) / columns), 2.9, 2.9)
    names = [f"pooled_coverage_{level:g}" for level in MSCE_LEVELS]
    for ax, domain in zip(axes, domains, strict=False):
        _plain(ax)
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for k, method in enumerate(methods):
            row = table[(table["domain"] == domain) & (table["method"] == method)]
            if row.empty:
                continue
            shares, errors = row[names].to_numpy(dtype=float)[0], row[[f"{n}_se" for n in names]].to_numpy(dtype=float)[0]
            shifted = np.array(MSCE_LEVELS) + _SHIFT * (k - 0.5 * (len(methods) - 1))  # or bars would hide one another
            bars: dict[str, Any] = {"linewidth": 1.3, "elinewidth": 0.7, "markersize": 4, "alpha": 0.9}
            ax.errorbar(shifted, shares, np.nan_to_num(errors), **bars, **_style(k))
        ax.set_xlim(0.45, 1.02)
        ax.set_ylim(-0.02, 1.02)
        points, groups = (table.loc[table["domain"] == domain, name].max() for name in ("points", "groups"))
        counted = f"{points:,} points, {groups:,} group{'' if groups == 1 else 's'}"
        ax.set_title(as_label(f"{domain}\n{counted}"), fontsize=9, loc="left")
        ax.set_xlabel("nominal coverage", fontsize=8)
    axes[0].set_ylabel("observed coverage", fontsize=8)
    for ax in axes[len(domains) :]:
        ax.set_axis_off()
    _legend(figure, methods)
    return figure


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    handles = [
        Line2D([], [], linewidth=1.3, markersize=5, label=as_label(method), **_style(k)) for k, method in enumerate(methods)
    ]
    room = figure.get_size_inches()[0] / (0.075 * max(map(len, methods)) + 0.7)
    figure.legend(handles=handles, loc="outside lower left", ncols=max(1, int(room)), frameon=False, fontsize=8)


def _annotated(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plot_cost(table: pd.DataFrame) -> Figure:
    """RMSLE and LL against milliseconds per curve, with standard errors: a row of two panels per domain.

    Parameters
    ----------
    table
        What `hybrid.benchmark_scores.summarise` gives.

    Returns
    -------
    matplotlib.figure.Figure
        Both panels have a logarithmic axis of time. A figure that is not finite, or an LL below -1000, is left out, and the
        panel says so.
    """
    domains, methods = (list(dict.fromkeys(table[column])) for column in ("domain", "method"))
    figure, axes = _figure(2, len(domains), 4.0, 2.4)
    titles = {"rmsle": "RMSLE (lower is better)", "ll": "LL, nats per point (higher is better)"}
    for row, domain in enumerate(domains):
        own = table[table["domain"] == domain].set_index("method")
        for ax, (score, title) in zip(axes[2 * row : 2 * row + 2], titles.items(), strict=True):
            _cost_panel(ax, own, methods, score)
            ax.set_title(as_label(f"{domain}: {title}"), fontsize=9, loc="left")
    for ax in axes[-2:]:
        ax.set_xlabel("milliseconds per curve, fit and forecast", fontsize=8)
    _legend(figure, methods)
    return figure


def _cost_panel(ax: Axes, own: pd.DataFrame, methods: Sequence[str], score: str) -> None:
    """One score of one domain against time."""
    _plain(ax)
    absent = []
    for k, method in enumerate(methods):
        value, error = float(own.loc[method, score]), float(own.loc[method, f"{score}_se"])
        bars: dict[str, Any] = {"yerr": error} if np.isfinite(error) else {}
        if _LEAST_LL <= value < np.inf:
            ax.errorbar(own.loc[method, "ms"], value, markersize=6, capsize=2, linewidth=1, **bars, **_style(k))
        else:
            absent.append(f"{method}: {value:.3g}")
    if absent:
        ax.text(0.02, 0.03, "\n".join(absent), transform=ax.transAxes, fontsize=7, va="bottom")
    times = own["ms"].to_numpy(dtype=float)
    if not np.any(np.isfinite(times)):
        return
    _time_axis(ax, times[np.isfinite(times)])
    low, high = ax.get_ylim()
    if score == "rmsle":
        ax.set_ylim(0, 1.08 * high)
    elif high - low > _WIDE_LL:
        ax.set_yscale("symlog", linthresh=_LINEAR_LL)
        ax.set_ylim(min(-_LINEAR_LL, 2 * low), max(_LINEAR_LL, 2 * float(own[score].replace(np.inf, np.nan).max())))


def _time_axis(ax: Axes, times: np.ndarray) -> None:
    """A logarithmic axis of at least one decade."""
    low, high = float(times.min()) / 1.5, float(times.max()) * 1.5
    room = max(1.0, math.sqrt(10.0 * low / high))
    log_axis(ax.xaxis, low / room, high * room)
    ax.set_xlim(low / room, high * room)
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _annotated(value)))


def _file_name(domain: str, method: str, page: int) -> str:
    """The name of a sheet; where it is not the domain's and the method's as they are, with a hash that keeps them apart."""
    usual = (domain, method.replace(":", "_", 1))
    plain = [re.sub(r"[^\w.]+", "_", part) for part in usual]
    marked = [] if tuple(plain) == usual else [hashlib.sha256("/".join(usual).encode()).hexdigest()[:6]]
    return "-".join([*plain, *marked, str(page)])


def write_figures(
    table: pd.DataFrame, cases: Sequence[Case], records: Mapping[str, Sequence[Record]], folder: Path
) -> list[Path]:
    """Write `calibration.png`, `cost.png`, and contact sheets of 24 curves a page into the folder `sheets`.

    Parameters
    ----------
    table
        What `hybrid.benchmark_scores.summarise` gives.
    cases, records
        The curves, and the forecasts of each method, by its name.
    folder
        Where to; it exists.

    Returns
    -------
    The paths written.
    """
    written = [folder / name for name in FIGURES]
    _save(plot_calibration(table[table["curves"] > 0]), written[0])
    _save(plot_cost(table), written[1])
    (folder / SHEETS).mkdir(exist_ok=True)
    size = _COLUMNS * _ROWS
    for method, found in records.items():
        for domain in dict.fromkeys(case.domain for case in cases):
            own = [i for i, case in enumerate(cases) if case.domain == domain and FAILED not in found[i]]
            pages = math.ceil(len(own) / size)
            for page in range(pages):
                part = own[page * size : (page + 1) * size]
                title = f"{domain}, {method}" + (f", page {page + 1} of {pages}" if pages > 1 else "")
                path = folder / SHEETS / f"{_file_name(domain, method, page + 1)}.png"
                noise_only = method.startswith("least_squares:")
                _save(plot_sheet([cases[i] for i in part], [found[i] for i in part], title, noise_only), path)
                written.append(path)
    return written

"""Figures of a calibration, readable in grey print and by colour-blind readers."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.diagnostics.uniformity import band_level, ecdf_band
from hybrid.models.errors import InvalidArgumentError
from hybrid.plotting import COLOURS, INK, MORE_COLOURS, MUTED, STYLES, WARNING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hybrid.calibrating import Calibration

COLUMNS = 4
PANEL = (2.5, 2.1)  # inches
FEWEST_CURVES = 20  # that the coverage at a distance is shown of
MOST_SHOWN = 200  # curves of which means are drawn against the truth
SHIFT = 0.005  # of a line of coverage beside the next
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


def _grid(count: int, columns: int = COLUMNS) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (PANEL[0] * columns, PANEL[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    flat = list(axes.ravel())
    for ax in flat[count:]:
        ax.set_visible(False)
    for ax in flat[:count]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize="x-small")
    return figure, flat[:count]


def plot_ranks(calibration: Calibration) -> Figure:
    """ECDF of the ranks of every quantity less that of the uniform, with its simultaneous band.

    The band is the one that `Calibration.checks` holds the ranks against: 99.5 %, as half of the error is for the scores.
    A curve inside the band, around 0, is what a right posterior gives. An arch above 0 means that the truth tends to be lower
    than the posterior, one below 0 higher; an S that falls in the middle that the posterior is too narrow, one that rises
    that it is too wide. "fails" is what the verdict finds, all quantities judged together; "fails alone" is at 99 % by itself,
    as one of ten right quantities does in a tenth of all calibrations.
    """
    values, checks = calibration.ranks, calibration.checks
    figure, axes = _grid(len(values))
    for i, (ax, (name, ranks)) in enumerate(zip(axes, values.items(), strict=True)):
        points, difference, low, high = ecdf_band(ranks, band_level(checks[name].level))
        ok, together = checks[name].ok, name not in calibration.failed
        ax.fill_between(points, low, high, color="#BBBBBB", alpha=0.5, linewidth=0, step="mid")
        ax.axhline(0.0, color=INK, linewidth=0.6)
        ax.plot(points, difference, color=COLOURS[0] if ok else WARNING, linewidth=1.3, linestyle="-" if ok else "--")
        title = name if ok else f"{name}: fails alone" if together else f"{name}: fails"
        ax.set_title(title, fontsize="small", color=INK if ok else WARNING, loc="left")
        ax.set_xlim(0, 1)
        if i % COLUMNS == 0:
            ax.set_ylabel("ECDF difference", fontsize="x-small")
        ax.set_xlabel("rank", fontsize="x-small")
    return figure  # type: ignore[no-any-return]


def plot_coverage(calibration: Calibration) -> Figure:
    """Coverage of central intervals less their level, by how far beyond the context; and the PIT of all held-out points.

    Bars are standard errors either way, by curve. Distances that are seen on fewer than 20 curves are left out.
    """
    import matplotlib.pyplot as plt

    levels = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    table, errors = calibration._coverage(levels)
    table = table[(table["curves"] >= FEWEST_CURVES) | (table.index == "all")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
    columns = [f"{100 * p:g} %" for p in levels]
    own = {"all": ("black", "-"), "before": (MUTED, ":")}
    beyond = itertools.cycle(zip(MORE_COLOURS, itertools.cycle(STYLES), strict=False))
    for k, (name, row) in enumerate(table.iterrows()):
        colour, style = own[str(name)] if name in own else next(beyond)
        label = f"{name} ({int(row['points']):,}; {int(row['curves']):,})"
        shifted = np.array(levels) + SHIFT * (k - 0.5 * (len(table) - 1))  # or bars would hide one another
        left.errorbar(shifted, row[columns] - np.array(levels), errors[str(name)], fmt=style, color=colour,
                      marker=MARKERS[k % len(MARKERS)], markersize=3, linewidth=1.8 if k == 0 else 1.0, elinewidth=0.6,
                      label=label)  # fmt: skip
    left.axhline(0.0, color=INK, linewidth=0.6)
    reach = max(0.02, float(np.abs(left.get_ylim()).max()))
    left.set_ylim(-reach, reach)
    left.set_xlabel("level of the central interval")
    left.set_ylabel("coverage less level")
    small: dict[str, Any] = {"fontsize": "x-small", "title_fontsize": "x-small", "frameon": False, "ncols": 3}
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), title="x / last context x (points; curves)", **small)
    pit = calibration.data["predictive"]["pit"].to_numpy().ravel()
    right.hist(pit, bins=20, range=(0, 1), density=True, color=COLOURS[0], alpha=0.5, edgecolor=COLOURS[0])
    right.axhline(1.0, color=INK, linewidth=0.8)
    right.set_xlabel("PIT of all held-out points")
    right.set_ylabel("density")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def plot_recovery(calibration: Calibration) -> Figure:
    """Posterior mean with one sd either way against the truth, for every parameter whose values have an order, on the real
    line: log or logit, as the axes say; a number of breaks as it is. Of more than 200 curves the first 200 are drawn, and
    said to be. The axes span the truth; arrowheads at an edge are means beyond it.

    Raises
    ------
    InvalidArgumentError
        If the engine gives no parameters for this prior, or none whose values have an order.
    """
    data, names = calibration.data, calibration.ordered
    if not names:
        raise InvalidArgumentError(f"the engine gives no parameters of prior {data.attrs['prior']!r} to recover")
    figure, axes = _grid(len(names))
    for ax, name in zip(axes, names, strict=True):
        truth, mean, sd = (data[group][name].to_numpy()[:MOST_SHOWN] for group in ("truth", "posterior_mean", "posterior_sd"))
        edge = np.array([truth.min(), truth.max()])
        room = 0.05 * (edge[1] - edge[0])
        ax.errorbar(truth, mean, sd, fmt="o", markersize=2, linewidth=0.5, color=COLOURS[0], alpha=0.6)
        low, high = edge[0] - room, edge[1] + room
        for beyond, at, marker in ((mean > high, high, "^"), (mean < low, low, "v")):  # the worst must not go unseen
            if beyond.any():
                place = np.clip(truth[beyond], low, high), np.full(beyond.sum(), at)
                ax.plot(*place, marker, color=WARNING, markersize=4, clip_on=False, zorder=4)
        ax.plot(edge, edge, color=INK, linewidth=0.8)
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.set_title(name, fontsize="small", loc="left")
        scale = str(data["truth"][name].attrs.get("scale", ""))
        ax.set_xlabel(f"{scale} of the truth" if scale else "truth", fontsize="x-small")
        ax.set_ylabel("posterior mean ± sd", fontsize="x-small")
    if calibration.curves > MOST_SHOWN:
        figure.suptitle(f"the first {MOST_SHOWN} of {calibration.curves:,} curves", x=0.01, ha="left", fontsize="small")
    return figure  # type: ignore[no-any-return]

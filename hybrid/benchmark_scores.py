"""Figures of a benchmark from what its methods forecast: per curve, and per method and domain with standard errors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hybrid.benchmark_cases import AS_GIVEN, Case
from hybrid.benchmark_methods import BANDS, FAILED, Record
from hybrid.diagnostics.scores import (
    MSCE_LEVELS,
    bootstrap_by_group,
    coverage,
    interval_score,
    msce,
    rmsle,
    standard_error,
)
from hybrid.output import format_table

if TYPE_CHECKING:
    import pandas as pd

COVERED = (0.5, 0.9)
_PIT_COLUMNS = tuple(f"coverage_{level:g}" for level in MSCE_LEVELS)
MEANS = (
    *("rmsle", "ll", "crps", "msce"),
    *("in_50", "in_90", "width_50", "width_90", "interval_score_90"),
    *("needs_review", "ms"),
)
POOLED = "msce_pooled"
_FIGURES = (
    *(f"{name}{end}" for name in (*MEANS, POOLED) for end in ("", "_se")),
    *(f"pooled_{name}{end}" for name in _PIT_COLUMNS for end in ("", "_se")),
)
_SHARES = np.array([name in ("in_50", "in_90", "needs_review") for name in MEANS])
_OF_LEVELS = np.array([name == "msce" for name in MEANS])
_LOW, _LOWER, _MEDIAN, _UPPER, _HIGH = range(len(BANDS))


class _Column(NamedTuple):
    """A column of the printed tables."""

    figure: str
    title: str
    best: float | None  #: the value that is best, -inf or inf; None where none is


_ACCURACY = (
    _Column("rmsle", "RMSLE", -np.inf),
    _Column("ll", "LL", np.inf),
    _Column("crps", "CRPS", -np.inf),
    _Column("ms", "ms per curve", -np.inf),
    _Column("needs_review", "needs review", None),
)
_CALIBRATION = (
    _Column("msce", "MSCE", -np.inf),
    _Column(POOLED, "MSCE pooled", -np.inf),
    _Column("in_50", "in 50 %", None),  # few points: which is nearest is often chance, and MSCE judges all levels
    _Column("in_90", "in 90 %", None),
    _Column("width_50", "width of 50 %", None),
    _Column("width_90", "width of 90 %", None),
)


def score_curve(case: Case, record: Record) -> dict[str, Any]:
    """The figures of one curve.

    Parameters
    ----------
    case
        The curve.
    record
        What `hybrid.benchmark_methods.run_method` gave for it.

    Returns
    -------
    Means over the targets: `rmsle` of the median; `ll`, log density in nats, `crps` and `interval_score_90` on the scale of
    `case.unit`; `in_50` and `in_90`, the shares inside central intervals; `width_50` and `width_90`, widths over y. `msce`
    over the seven levels of the paper. `needs_review` is 0 or 1, `ms` is milliseconds. `points`, and the coverage at each of
    those levels, `coverage_0.5` and so on, count a row that is written several times once: pooled over curves it would count
    as so many points.
    """
    y = case.curve.y_target / case.unit
    bands, pit = record["bands"], record["pit"]
    observed = coverage(pit)
    in_50, in_90 = coverage(pit, COVERED)
    distinct = np.unique(np.stack([case.curve.x_target, case.curve.y_target], 1), axis=0, return_index=True)[1]
    with np.errstate(all="ignore"):
        return {
            "points": distinct.size,
            "rmsle": rmsle(bands[_MEDIAN], y),
            "ll": float(np.mean(record["log_density"])),
            "crps": float(np.mean(record["crps"])),
            "msce": float(msce(observed)),
            "in_50": float(in_50),
            "in_90": float(in_90),
            "width_50": float(np.mean((bands[_UPPER] - bands[_LOWER]) / y)),
            "width_90": float(np.mean((bands[_HIGH] - bands[_LOW]) / y)),
            "interval_score_90": float(np.mean(interval_score(bands[_LOW], bands[_HIGH], y, 0.9))),
            "needs_review": float(record["needs_review"]),
            "ms": float(record["milliseconds"]),
            **dict(zip(_PIT_COLUMNS, coverage(pit[distinct]).tolist(), strict=True)),
        }


def curve_table(cases: Sequence[Case], records: Mapping[str, Sequence[Record]]) -> "pd.DataFrame":
    """One row per method and curve: method, domain, group, curve, the prior fitted, status, reasons, and `score_curve`."""
    import pandas as pd

    rows = [
        {
            "method": method,
            "domain": case.domain,
            "group": case.group,
            "curve": case.name,
            "prior": str(record["prior"]),
            **score_curve(case, record),
            "status": FAILED if FAILED in record else "needs_review" if record["needs_review"] else "ok",
            "reasons": str(record["reasons"]),
        }
        for method, found in records.items()
        for case, record in zip(cases, found, strict=True)
    ]
    return pd.DataFrame(rows)


def summarise(curves: "pd.DataFrame") -> "pd.DataFrame":
    """The table of a benchmark: one row per domain and method.

    Parameters
    ----------
    curves
        What `curve_table` gives.

    Returns
    -------
    pandas.DataFrame
        Columns domain, method, curves, groups, points, and how many more curves failed; for each figure of `score_curve` its
        mean over curves and, under `..._se`, the standard error by a bootstrap over groups (NaN for a single group, and where
        a share is 0 or 1, of which a bootstrap says nothing); `msce_pooled`, of the coverage over all points of the domain,
        each once, and that coverage by level, `pooled_coverage_0.5` and so on.
    """
    import pandas as pd

    rows = []
    domains, methods = (list(dict.fromkeys(curves[column])) for column in ("domain", "method"))
    for domain, method in itertools.product(domains, methods):
        asked = curves[(curves["domain"] == domain) & (curves["method"] == method)]
        own = asked[asked["status"] != FAILED]
        groups, points = own["group"].tolist(), own["points"].to_numpy()
        row = {
            "domain": domain,
            "method": method,
            "curves": len(own),
            "groups": len(set(groups)),
            "points": int(points.sum()),
            FAILED: len(asked) - len(own),
        }
        if own.empty:
            rows.append({**row, **dict.fromkeys(_FIGURES, math.nan)})
            continue
        by_curve, levels = own[list(MEANS)].to_numpy(dtype=float), own[list(_PIT_COLUMNS)].to_numpy()
        with np.errstate(all="ignore"):
            means = np.mean(by_curve, axis=0)
        pooled, drawn = np.average(levels, axis=0, weights=points), bootstrap_by_group(levels, groups, points)
        same = _is_extreme(pooled).all()  # at every level all points of all curves are inside, or none is
        errors = standard_error(bootstrap_by_group(by_curve, groups), groups)
        errors = np.where((_SHARES & _is_extreme(means)) | (_OF_LEVELS & same), np.nan, errors)
        spread = np.where(_is_extreme(pooled), np.nan, standard_error(drawn, groups))
        row |= _with_errors(MEANS, means, errors)
        row |= _with_errors((POOLED,), msce(pooled), np.nan if same else standard_error(msce(drawn), groups))
        row |= _with_errors([f"pooled_{name}" for name in _PIT_COLUMNS], pooled, spread)
        rows.append(row)
    return pd.DataFrame(rows)


def _is_extreme(share: np.ndarray) -> np.ndarray:
    """Whether a share is 0 or 1, rounding aside: all replicates of a bootstrap are too."""
    return (share < 1e-9) | (share > 1.0 - 1e-9)


def _with_errors(names: Sequence[str], values: Any, errors: Any) -> dict[str, float]:
    """Each figure by its name, and its standard error; both of shape (names,)."""
    found: dict[str, float] = {}
    for name, value, error in zip(names, np.atleast_1d(values), np.atleast_1d(errors), strict=True):
        found |= {name: float(value), f"{name}_se": float(error)}
    return found


def _cell(value: float, error: float, figure: str) -> str:
    """A mean with its standard error, to the same number of decimals."""
    if not np.isfinite(value):
        return str(float(value))
    if figure == "needs_review":
        return f"{100 * value:.0f} %"
    if figure == "ms":
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    if figure == "ll" and abs(value) >= 100:
        style = ",.0f" if abs(value) < 1e6 else ".1e"
        return f"{value:{style}}" + (f" ± {error:{style}}" if np.isfinite(error) else "")
    fixed = 3 if figure == "ll" or figure.startswith("in_") else 4
    style = f".{fixed}f" if value == 0 or 10.0**-fixed <= abs(value) < 100 else ".2g"
    return f"{value:{style}}" + (f" ± {error:{style}}" if np.isfinite(error) else "")


def _best(values: np.ndarray, best: float | None) -> int | None:
    """The index of the best value, where several are compared and it is unique."""
    if best is None or len(values) < 2:
        return None
    distance = np.where(np.isnan(values), np.inf, -np.sign(best) * values)
    least = np.flatnonzero(distance == distance.min())
    return int(least[0]) if least.size == 1 and np.isfinite(distance.min()) else None


def _block(rows: "pd.DataFrame", columns: Sequence[_Column]) -> str:
    """One printed table: methods as rows, mean and standard error in each cell, a star at the best value.

    No star where a method failed on some curves: means over different curves do not compare.
    """
    asked, same = rows["curves"] + rows[FAILED], not rows[FAILED].any()
    counted = [f" ({n} of {of} curves)" if n < of else "" for n, of in zip(rows["curves"], asked, strict=True)]
    cells: list[list[str]] = [[f"{method}{count}"] for method, count in zip(rows["method"], counted, strict=True)]
    for figure, _, target in columns:
        best = _best(rows[figure].to_numpy(dtype=float), target) if same else None
        for k, (value, error) in enumerate(zip(rows[figure], rows[f"{figure}_se"], strict=True)):
            cells[k].append(f"{'*' if k == best else ''}{_cell(value, error, figure)}")
    return format_table(["method", *(column.title for column in columns)], cells)


def failures(curves: "pd.DataFrame") -> str:
    """A line for each curve that a method could not forecast, which its means leave out."""
    rows = curves[curves["status"] == FAILED]
    lines = [f"{row.method} on {row.domain}/{row.curve} failed, and is left out: {row.reasons}" for row in rows.itertuples()]
    return "".join(f"\n{line}\n" for line in lines)


def render(table: "pd.DataFrame") -> str:
    """The table as text: for each domain a block on accuracy and one on calibration."""
    found = []
    for domain in dict.fromkeys(table["domain"]):
        rows = table[table["domain"] == domain]
        first = rows.loc[rows["curves"].idxmax()]
        counts = ", ".join(
            f"{first[name]:,} {word}{'' if first[name] == 1 else 's'}"
            for name, word in (("curves", "curve"), ("groups", "group"), ("points", "held-out point"))
        )
        unit = "y as given" if domain in AS_GIVEN else "y over its largest context value"
        found.append(f"{domain}: {counts}; LL and CRPS of {unit}\n{_block(rows, _ACCURACY)}\n\n{_block(rows, _CALIBRATION)}")
    star = "\n\n* the best of the column" if table["method"].nunique() > 1 else ""
    return "\n\n\n".join(found) + f"{star}\n"

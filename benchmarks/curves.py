"""Curves for the benchmark scripts: a tidy CSV, or the examples that ship with the package."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import hybrid
from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.engine import Problem
from hybrid.models.prior import Prior


class Points(NamedTuple):
    """One curve in the user's units; the targets may be empty."""

    domain: str
    name: str
    x: np.ndarray
    y: np.ndarray
    x_target: np.ndarray
    y_target: np.ndarray


def read_points(paths: Sequence[Path]) -> list[Points]:
    """All curves of tidy CSV files (columns domain, curve, x, y, split), sorted by x."""
    found = []
    for path in paths:
        for (domain, name), rows in pd.read_csv(path).groupby(["domain", "curve"], sort=False):
            rows = rows.sort_values("x", kind="stable")
            context, target = (rows[rows["split"] == part] for part in ("context", "target"))
            arrays = (part[column].to_numpy(float) for part in (context, target) for column in ("x", "y"))
            found.append(Points(str(domain), str(name), *arrays))
    return found


def example_points(holdout: int = 2) -> list[Points]:
    """The shipped examples with their last points as targets."""
    found = []
    for name in hybrid.examples().index:
        curve = hybrid.load_example(name)
        cut = curve.x.size - holdout
        found.append(Points("examples", name, curve.x[:cut], curve.y[:cut], curve.x[cut:], curve.y[cut:]))
    return found


def drawn_points(prior: Prior, n: int, points: int = 40, seed: int = 0) -> list[Points]:
    """Curves drawn from a prior, with targets at 1.5 to 10 times the last context x."""
    x = np.concatenate([np.geomspace(0.005, 1, points), np.geomspace(1.5, 10, 5)])
    y = prior.sample(n, x, seed=seed)["y"].to_numpy()
    return [Points("prior draws", str(k), x[:points], row[:points], x[points:], row[points:]) for k, row in enumerate(y)]


def to_problem(points: Points) -> Problem:
    """The context in ratio coordinates; the y scale is the largest context y."""
    horizon = max(points.x.max(), points.x_target.max(initial=0.0))
    frame: Frame = get_coordinates("ratio").frame(points.x, horizon, points.y.max())
    return Problem(frame.x_to(points.x), points.y / frame.y_scale, frame)

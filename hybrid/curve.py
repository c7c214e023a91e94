"""A scaling curve: what is observed, and optionally what was held out."""

import dataclasses
import numbers
from typing import Any

import numpy as np

from hybrid.models.checks import LIMIT, as_floats, require_aligned
from hybrid.models.errors import InvalidArgumentError, InvalidCurveError

Array = Any
MIN_POINTS = 3


def _check_values(x: np.ndarray, y: np.ndarray, names: tuple[str, str]) -> None:
    if x.shape != y.shape:
        raise InvalidCurveError(f"{names[0]} has {x.size} values but {names[1]} has {y.size}: give one {names[1]} per x")
    for values, name in zip((x, y), names, strict=True):
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 1 / LIMIT) & (values <= LIMIT)))
        if bad.size:
            i, value = int(bad[0]), float(values[bad[0]])
            raise InvalidCurveError(f"{name}[{i}] = {value:g}: {remedy(value, name.startswith('x'))}")


def remedy(value: float, is_scale: bool) -> str:
    """What to do about a value that a curve cannot have, as x where it is the scale, else as y; "" where it can."""
    if not np.isfinite(value):
        return "every value must be finite; remove the point"
    if 1 / LIMIT <= value <= LIMIT:
        return ""
    if value > 0:
        return f"values must lie between {1 / LIMIT:g} and {LIMIT:g}; change the units"
    if is_scale:
        return "a scale (tokens, parameters, FLOPs) must be above 0; remove the point"
    return "a loss or error must be above 0; remove the point, or subtract an accuracy from 1"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """Points (x, y) of one scaling curve, in the user's units.

    Points may come in any order and are sorted by x, stably. Repeated x are replicate measurements, all of which are kept.

    Parameters
    ----------
    x
        The scale (tokens, parameters, FLOPs), shape (n,), above 0; at least 3 points at 3 distinct x. Lists, NumPy
        arrays, pandas Series and the like.
    y
        The loss or error, shape (n,), above 0.
    x_label, y_label
        What x and y are, for plots and tables.
    x_target, y_target
        Points held out from fitting, shown in plots and used for scores; both or neither.
    name
        What the curve is called.

    Raises
    ------
    InvalidCurveError
        If the points cannot be used; the message names the entry and the remedy.

    Examples
    --------
    >>> Curve([1e18, 1e19, 1e20], [3.1, 2.6, 2.3], x_label="training FLOPs", y_label="loss")
    Curve(3 points, training FLOPs 1e+18 to 1e+20, loss 2.3 to 3.1)
    """

    x: Array
    y: Array
    x_label: str = "x"
    y_label: str = "y"
    x_target: Array = None
    y_target: Array = None
    name: str | None = None

    def __post_init__(self) -> None:
        for what in ("x_label", "y_label", "name"):
            value = getattr(self, what)
            if not isinstance(value, str) and not (what == "name" and value is None):
                raise InvalidCurveError(f"{what} must be text, got {value!r}")
        x = self._set_points("x", "y")
        distinct = np.unique(x).size
        if distinct < MIN_POINTS:
            raise InvalidCurveError(
                f"a curve needs points at {MIN_POINTS} or more distinct x, got {x.size} points at {distinct}: add points"
            )
        if self.x_target is None and self.y_target is None:
            return
        if self.x_target is None or self.y_target is None:
            raise InvalidCurveError("give both x_target and y_target, or neither")
        if self._set_points("x_target", "y_target").size == 0:
            object.__setattr__(self, "x_target", None)
            object.__setattr__(self, "y_target", None)

    def _set_points(self, x_name: str, y_name: str) -> np.ndarray:
        """Check one pair of fields and replace them by sorted arrays that cannot be written to; returns x."""
        given = getattr(self, x_name), getattr(self, y_name)
        x, y = (as_floats(values, name, InvalidCurveError) for values, name in zip(given, (x_name, y_name), strict=True))
        _check_values(x, y, (x_name, y_name))
        require_aligned(*given, (x_name, y_name), InvalidCurveError)
        order = np.argsort(x, kind="stable")
        for name, values in ((x_name, x[order]), (y_name, y[order])):
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        return x

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, or from a pickle: arrays cannot be written to there either."""
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __repr__(self) -> str:
        name = "" if self.name is None else f"{self.name!r}, "
        held_out = "" if self.x_target is None else f", {self.x_target.size} held out"
        spans = ", ".join(
            f"{label} {values.min():.3g} to {values.max():.3g}"
            for label, values in ((self.x_label, self.x), (self.y_label, self.y))
        )
        return f"Curve({name}{self.x.size} points{held_out}, {spans})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curve):
            return NotImplemented
        return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self))

    __hash__ = None  # type: ignore[assignment]

    def has_points_of(self, other: "Curve") -> bool:
        """Whether both have the same context, in whatever order replicates came; held-out points and labels aside."""
        one, two = (np.stack([curve.x, curve.y])[:, np.lexsort((curve.y, curve.x))] for curve in (self, other))
        return np.array_equal(one, two)

    def hold_out(self, points: int) -> "Curve":
        """The same curve with its last points moved to x_target, y_target; points held out before stay held out.

        Raises
        ------
        InvalidArgumentError
            If points is not an integer from 0 to the number of points.
        InvalidCurveError
            If fewer than 3 distinct x would be left.
        """
        if isinstance(points, bool) or not isinstance(points, numbers.Integral) or not 0 <= points <= self.x.size:
            most = max(self.x.size - MIN_POINTS, 0)
            raise InvalidArgumentError(f"the number of points to hold out must be an integer from 0 to {most}, got {points!r}")
        kept = self.x.size - int(points)
        x_target, y_target = self.x[kept:], self.y[kept:]
        if self.x_target is not None:
            x_target, y_target = np.append(x_target, self.x_target), np.append(y_target, self.y_target)
        distinct = np.unique(self.x[:kept]).size
        if distinct < MIN_POINTS:
            raise InvalidCurveError(
                f"holding out {points} of {self.x.size} points leaves {distinct} distinct x, and a curve needs {MIN_POINTS}: "
                "hold out fewer"
            )
        return dataclasses.replace(self, x=self.x[:kept], y=self.y[:kept], x_target=x_target, y_target=y_target)

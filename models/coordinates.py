"""The invertible map between a user's units and the coordinates in which a prior is stated."""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hybrid.models.errors import InvalidArgumentError, UnknownNameError

Array = Any
LOST = 1e-3  # relative error of the first context x that coordinates linear in x may have


class Frame(NamedTuple):
    """The coordinates of one curve. An affine map of x and a scaling of y, and the points a law may refer to.

    Each field is a float, or an array that broadcasts against x when several curves are handled at once.
    """

    x_shift: Array  #: x in coordinates = (x - x_shift) / x_scale
    x_scale: Array
    y_scale: Array  #: y in coordinates = y / y_scale
    first: Array  #: the smallest context x, in coordinates
    last: Array  #: the largest context x, in coordinates
    horizon: Array  #: the largest x that the forecast is about, in coordinates

    def x_to(self, x: Array) -> Array:
        """From the user's x to the coordinates."""
        return (x - self.x_shift) / self.x_scale

    def x_from(self, x: Array) -> Array:
        """From the coordinates to the user's x."""
        return x * self.x_scale + self.x_shift


class Coordinates(abc.ABC):
    """How a prior's coordinates follow from the context x, the horizon and the y scale, and from nothing else."""

    name: ClassVar[str]

    @abc.abstractmethod
    def frame(self, x: Array, horizon: float, y_scale: float) -> Frame:
        """The frame of a curve whose context x (shape (n,), any order) and horizon are in the user's units."""

    @abc.abstractmethod
    def defined_for(self, first: float, horizon: float) -> tuple[float, float]:
        """The smallest and the largest x that lie in them, for a first context x and a horizon, in the user's units."""

    @abc.abstractmethod
    def native_frame(self, x: Array) -> Frame:
        """The frame to use for x, shape (n,) or (..., n), that are already in the prior's coordinates: of each curve its own.

        Raises
        ------
        InvalidArgumentError
            If an x is outside the coordinates.
        """

    @abc.abstractmethod
    def frame_over(self, low: Array, high: Array, smaller: Any = min, larger: Any = max) -> Frame:
        """`native_frame` of x from low to high, unchecked; `smaller` and `larger` take two numbers, or what stands for them."""


class Ratio(Coordinates):
    """x is divided by the last context x, so a power law stays a power law; y by the y scale. log x <= 0 in the context."""

    name = "ratio"

    def frame(self, x: Array, horizon: float, y_scale: float) -> Frame:
        last = float(np.max(x))
        return Frame(0.0, last, y_scale, float(np.min(x)) / last, 1.0, horizon / last)

    def defined_for(self, first: float, horizon: float) -> tuple[float, float]:
        del first, horizon
        return 0.0, math.inf

    def native_frame(self, x: Array) -> Frame:
        low, high = _ends(x)
        if not np.all(low > 0):
            raise InvalidArgumentError("x in ratio coordinates is x / (last context x) and must be > 0")
        return self.frame_over(low, high, np.minimum, np.maximum)

    def frame_over(self, low: Array, high: Array, smaller: Any = min, larger: Any = max) -> Frame:
        return Frame(0.0, 1.0, 1.0, smaller(low, 1.0), 1.0, larger(high, 1.0))


class Unit(Coordinates):
    """x is mapped linearly so that the first context x becomes 0.01 and the horizon 1 (Lee et al. 2025); y is divided by
    the y scale."""

    name = "unit"
    low = 0.01

    def frame(self, x: Array, horizon: float, y_scale: float) -> Frame:
        first, last = float(np.min(x)), float(np.max(x))
        scale = (horizon - first) / (1.0 - self.low)
        shift = first - self.low * scale
        if abs(shift + self.low * scale - first) > LOST * first:
            raise InvalidArgumentError(
                f"the horizon {horizon:g} lies too far beyond the first context x {first:g} for linear coordinates: state a "
                "nearer one, leave out the first points, or take a prior in ratio coordinates, such as 'nsl'"
            )
        return Frame(shift, scale, y_scale, self.low, (last - shift) / scale, 1.0)

    def defined_for(self, first: float, horizon: float) -> tuple[float, float]:
        return first, horizon

    def native_frame(self, x: Array) -> Frame:
        low, high = _ends(x)
        if np.any(low < self.low * (1 - 1e-9)) or np.any(high > 1 + 1e-9):
            raise InvalidArgumentError(
                f"x in unit coordinates must lie in [{self.low}, 1], got [{np.min(low):g}, {np.max(high):g}]"
            )
        return self.frame_over(low, high)

    def frame_over(self, low: Array, high: Array, smaller: Any = min, larger: Any = max) -> Frame:
        del low, smaller, larger
        return Frame(0.0, 1.0, 1.0, self.low, high, 1.0)


def _ends(x: Array) -> tuple[Array, Array]:
    """The smallest and the largest x of each curve: floats for x of shape (n,), else arrays of shape (..., 1)."""
    low, high = np.min(x, -1), np.max(x, -1)
    return (float(low), float(high)) if np.ndim(x) == 1 else (low[..., None], high[..., None])


COORDINATES: dict[str, Coordinates] = {c.name: c for c in (Ratio(), Unit())}


def get_coordinates(name: str) -> Coordinates:
    """The coordinates called "ratio" or "unit"."""
    if not isinstance(name, str) or name not in COORDINATES:
        raise UnknownNameError(f"unknown coordinates {name!r}; there are {', '.join(COORDINATES)}")
    return COORDINATES[name]


def as_floating(xp: Any, values: Array) -> Array:
    """An array of the namespace as it is, or where it holds integers in 64-bit floats, or those that JAX is set to."""
    if xp.isdtype(values.dtype, "real floating"):
        return values
    return 1.0 * values if xp.name == "jax" else xp.astype(values, xp.float64)


def cast_frame(xp: Any, frame: Frame, like: Array) -> Frame:
    """The frame with its fields as arrays of the library, dtype and device of `like`, which holds floats."""
    if xp.name == "torch":
        return Frame(*(xp.asarray(v, dtype=like.dtype, device=like.device) for v in frame))
    return Frame(*(xp.asarray(v, dtype=like.dtype) for v in frame))

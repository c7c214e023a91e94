"""Checks of what users pass in, that name the entry at fault."""

import math
import numbers
from typing import Any

import numpy as np

from hybrid.models.errors import HybridError, InvalidArgumentError

LIMIT = 1e100  # beyond it, or below its inverse, powers of x would leave double precision
_CANNOT_CONVERT = (TypeError, ValueError, OverflowError, RuntimeError, AttributeError)


def is_real(value: Any) -> bool:
    """Whether a value is one real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def as_floats(values: Any, name: str, error: type[HybridError], scalar: bool = False) -> np.ndarray:
    """A new one-dimensional float array.

    Parameters
    ----------
    values
        A list, array, pandas Series or the like of real numbers; NaN and infinities pass.
    name
        What the message calls them.
    error
        The class of the error.
    scalar
        Whether one number may stand for an array of length 1.

    Raises
    ------
    error
        If an entry is not a real number, is masked, or the array is not one-dimensional.
    """
    if isinstance(values, (str, bytes, set, frozenset, dict)):
        raise error(f"{name} must be a list or array of numbers, got {type(values).__name__}")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise error(f"{name} has masked entries: remove those points, for instance with .compressed()")
    try:
        array = np.asarray(values)
    except _CANNOT_CONVERT as problem:
        raise error(f"{name} cannot be read as an array of numbers: {problem}") from None
    if scalar and array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise error(f"{name} must be one-dimensional, got shape {array.shape}: pass one row of numbers")
    if array.dtype.kind == "O":
        for i, value in enumerate(array):
            if not is_real(value):
                raise error(f"{name}[{i}] = {value!r} is not a real number: convert it or remove the point")
    elif array.dtype.kind not in "iuf":
        raise error(f"{name} must hold real numbers, got dtype {array.dtype}: convert it, as with .astype(float)")
    try:
        with np.errstate(over="ignore"):
            return np.array(array, dtype=float)
    except _CANNOT_CONVERT as problem:
        raise error(f"{name} cannot be converted to floating point: {problem}") from None


def require_aligned(x: Any, y: Any, names: tuple[str, str], error: type[HybridError]) -> None:
    """Refuse two pandas Series, or what has an index like theirs, that are not indexed alike: they do not pair by position."""
    first: Any = getattr(x, "index", None)
    second: Any = getattr(y, "index", None)
    if hasattr(first, "equals") and hasattr(second, "equals") and not first.equals(second):
        raise error(
            f"{names[0]} and {names[1]} are Series of different index: align them, or pass {names[0]}.to_numpy() and "
            f"{names[1]}.to_numpy() if they go together in this order"
        )


def as_positive(value: Any, name: str) -> float:
    """A float from 1e-100 to 1e100, or an InvalidArgumentError. Arrays without a dimension stand for their number."""
    try:
        if np.ndim(value) == 0 and hasattr(value, "item"):
            value = value.item()
        number = float(value) if is_real(value) else math.nan
    except (OverflowError, ValueError):
        number = math.inf
    if not 1 / LIMIT <= number <= LIMIT:
        got = " ".join(repr(value).split())
        raise InvalidArgumentError(f"{name} must be a positive number from {1 / LIMIT:g} to {LIMIT:g}, got {got}")
    return number


def as_levels(levels: Any) -> np.ndarray:
    """Probabilities above 0 and below 1, one or several, as an array, or an InvalidArgumentError."""
    found = as_floats(levels, "levels", InvalidArgumentError, scalar=True)
    if found.size == 0 or not np.all((found > 0) & (found < 1)):
        raise InvalidArgumentError(f"levels must be above 0 and below 1, got {levels!r}")
    return found


def as_integer(value: Any, name: str, low: int, high: int) -> int:
    """An int from low to high, or an InvalidArgumentError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        raise InvalidArgumentError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return int(value)

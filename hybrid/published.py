"""Published scaling curves that ship as examples, each with its citation and licence."""

import functools
import importlib.resources
from typing import TYPE_CHECKING

from hybrid.curve import Curve
from hybrid.models.errors import UnknownNameError
from hybrid.reading import curves_of, read_table

if TYPE_CHECKING:
    import pandas as pd

_ABOUT = ("shape", "x_label", "y_label", "source", "citation", "licence")


@functools.cache
def _read() -> tuple[dict[str, Curve], dict[str, dict[str, str]]]:
    """The curves, and what is known about each, by name."""
    resource = importlib.resources.files("hybrid").joinpath("data", "published.csv")
    with importlib.resources.as_file(resource) as path:
        about = {row["curve"]: {key: row[key] for key in _ABOUT} for _, row in read_table(path)[1]}
        return curves_of(path), about


def examples() -> "pd.DataFrame":
    """The curves that `load_example` knows.

    Returns
    -------
    pandas.DataFrame
        Indexed by name: the number of points, the shape in words, both labels, source, citation and licence.
    """
    import pandas as pd

    curves, about = _read()
    table = pd.DataFrame.from_dict(about, orient="index", columns=list(_ABOUT))
    table.insert(0, "points", [curves[name].x.size for name in table.index])
    return table.rename_axis("name")


def load_example(name: str, holdout: int = 0) -> Curve:
    """A published curve.

    Parameters
    ----------
    name
        A name in the index of `examples()`.
    holdout
        How many of the last points to hold out as targets.

    Raises
    ------
    UnknownNameError
        If there is no such example; the message lists those that exist.
    InvalidArgumentError, InvalidCurveError
        If holdout is not a count of points, or leaves fewer than 3.
    """
    curves, _ = _read()
    if not isinstance(name, str) or name not in curves:
        raise UnknownNameError(f"no example called {name!r}; there are {', '.join(curves)}")
    return curves[name].hold_out(holdout)

"""The curves that a benchmark scores: from tidy CSV files, from the data folder of NSL-PFN, or from the shipped examples."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.curve import Curve
from hybrid.diagnostics.scores import related_group
from hybrid.models.errors import FileFormatError, InvalidArgumentError, InvalidCurveError, UnknownNameError
from hybrid.models.files import as_path
from hybrid.nslpfn_data import DOMAINS as NSLPFN_DOMAINS
from hybrid.nslpfn_data import read_nslpfn
from hybrid.reading import curves_in, read_table

AS_GIVEN = ("IC", "NLP")  # domains whose log densities the NSL-PFN paper states in the units of y
COLUMNS = ("domain", "curve", "x", "y", "split")
SHOTS = re.compile(r"([^/]+)_\d+/(.+)")
EXAMPLES = "examples"
EXAMPLE_HOLDOUT = 2

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Case:
    """One curve to be scored.

    Attributes
    ----------
    domain
        The block of the tables it counts in.
    group
        Related curves share a group; standard errors resample groups.
    curve
        Context and held-out points, the latter not empty.
    """

    domain: str
    group: str
    curve: Curve

    @property
    def name(self) -> str:
        """The name of the curve."""
        return str(self.curve.name)

    @property
    def unit(self) -> float:
        """The unit of y for densities, CRPS and the fit's y scale: 1 in IC and NLP, else the largest context y."""
        return 1.0 if self.domain in AS_GIVEN else float(self.curve.y.max())

    @property
    def horizon(self) -> float:
        """The last target, or the last context x where that lies further."""
        return float(max(self.curve.x[-1], self.curve.x_target[-1]))

    @functools.cached_property
    def context(self) -> Curve:
        """What is fitted: the context with each (x, y) once, without held-out points.

        A row that is written several times is one measurement; counted as replicates that agree exactly it would make the
        noise look smaller than it is. Different y at one x are replicates, and stay.
        """
        x, y = np.unique(np.stack([self.curve.x, self.curve.y], 1), axis=0).T
        return dataclasses.replace(self.curve, x=x, y=y, x_target=None, y_target=None)

    @property
    def raw_context(self) -> Curve:
        """The context with repeated rows as they stand, without held-out points."""
        return dataclasses.replace(self.curve, x_target=None, y_target=None)

    @property
    def digest(self) -> str:
        """A hash of all points and of the unit."""
        curve = self.curve
        points = b"|".join(np.ascontiguousarray(part).tobytes() for part in (curve.x, curve.y, curve.x_target, curve.y_target))
        return hashlib.sha256(points + repr(self.unit).encode()).hexdigest()


def group_of(domain: str, name: str) -> str:
    """The group of related curves, by domain and name.

    In IC, where names are TASK_SHOTS/MODEL, it is one model on one task; else as `hybrid.diagnostics.scores.related_group` has
    it.
    """
    shots = SHOTS.fullmatch(name) if domain == "IC" else None
    return f"{shots[1]}/{shots[2]}" if shots else related_group(name)


def _case(domain: str, name: str, group: str, curve: Curve, where: str) -> Case:
    if curve.x_target is None:
        raise InvalidCurveError(
            f"{where}, curve {name!r} of {domain!r} has no held-out points to score: mark some rows split=target, or remove it"
        )
    return Case(domain, group, dataclasses.replace(curve, name=name))


def read_cases(path: PathLike) -> list[Case]:
    """All curves of a tidy CSV file with the columns domain, curve, x, y, split and, where they apply, x_label, y_label, group.

    A curve's group of related curves is what the column group says, or else follows from its domain and name by
    `group_of`.

    Raises
    ------
    FileFormatError
        If the file is missing, is not a table, or lacks a column.
    InvalidCurveError
        If a curve cannot be used, has no targets, or its rows name several groups.
    """
    columns, rows = read_table(path)
    for column in COLUMNS:
        if column not in columns:
            raise FileFormatError(
                f"{path} has no column {column!r}; a benchmark needs {', '.join(COLUMNS)}, and it has {', '.join(columns)}"
            )
    members: dict[str, list[tuple[str, str, str]]] = {}
    for _, row in rows:
        domain, name, group = row["domain"].strip(), row["curve"].strip(), row.get("group", "").strip()
        members.setdefault(f"{domain}/{name}", []).append((domain, name, group))
    found = []
    for key, curve in curves_in(path, columns, rows).items():
        domain, name, _ = members[key][0]
        stated = {group for _, _, group in members[key]}
        if len(stated) > 1:
            names = ", ".join(sorted(group or "none" for group in stated))
            raise InvalidCurveError(f"{path}, curve {name!r}: its rows name the groups {names}; give one, in every row")
        found.append(_case(domain, name, stated.pop() or group_of(domain, name), curve, str(path)))
    return found


def example_cases() -> list[Case]:
    """The published curves that ship, with their last two points held out, each a group of its own."""
    from hybrid.published import examples, load_example

    curves = {str(name): load_example(str(name), holdout=EXAMPLE_HOLDOUT) for name in examples().index}
    return [_case(EXAMPLES, name, name, curve, "the shipped examples") for name, curve in curves.items()]


def nslpfn_cases(folder: PathLike, domains: Sequence[str]) -> list[Case]:
    """The curves of NSL-PFN's data folder, of the given domains or, without any, of all.

    Raises
    ------
    As `hybrid.nslpfn_data.read_nslpfn`, and InvalidCurveError if a curve cannot be used.
    """
    chosen = [domain for domain in NSLPFN_DOMAINS if not domains or domain in domains]
    found = []
    for points in read_nslpfn(folder, chosen):
        labels = (points.x_label, points.y_label)
        try:
            curve = Curve(points.x, points.y, *labels, points.x_target, points.y_target)
        except InvalidCurveError as error:
            raise InvalidCurveError(f"{folder}, curve {points.name!r} of {points.domain!r}: {error}") from None
        found.append(_case(points.domain, points.name, group_of(points.domain, points.name), curve, str(folder)))
    return found


def as_paths(data: PathLike | Iterable[PathLike] | None) -> list[Path] | None:
    """One file or several as a list of paths; None as it is."""
    return None if data is None else [as_path(path, "data") for path in as_list(data, "data", "a file or a list of files")]


def as_list(value: Any, name: str, what: str) -> list[Any]:
    """One text or path, or several, as a list.

    Raises
    ------
    InvalidArgumentError
        If it is neither.
    """
    if isinstance(value, (str, os.PathLike)):
        return [value]
    if not isinstance(value, Iterable):
        raise InvalidArgumentError(f"{name} must be {what}, got {value!r}")
    return list(value)


def collect_cases(
    data: PathLike | Iterable[PathLike] | None, nslpfn_data: PathLike | None, domains: Sequence[str]
) -> list[Case]:
    """All curves of all sources, of the chosen domains; the shipped examples where there is no source.

    Raises
    ------
    FileFormatError, InvalidCurveError
        As the readers.
    InvalidArgumentError
        If the same curve is given twice, or a list of files is empty.
    UnknownNameError
        If no curve is of a chosen domain.
    """
    paths = as_paths(data)
    if paths == []:
        raise InvalidArgumentError("data names no file: give at least one, or None for the shipped examples")
    readers: list[Callable[[], list[Case]]] = [functools.partial(read_cases, path) for path in paths or []]
    if nslpfn_data is not None:
        readers.append(functools.partial(nslpfn_cases, nslpfn_data, domains))
    cases = [case for read in readers or [example_cases] for case in read()]
    known = list(dict.fromkeys(case.domain for case in cases))
    for domain in domains:
        if domain not in known:
            raise UnknownNameError(f"no curve of domain {domain!r}; there are {', '.join(known) or 'none'}")
    cases = [case for case in cases if not domains or case.domain in domains]
    seen: set[tuple[str, str]] = set()
    for case in cases:
        if (case.domain, case.name) in seen:
            raise InvalidArgumentError(f"curve {case.name!r} of {case.domain!r} is given twice: give each file once")
        seen.add((case.domain, case.name))
    return cases

"""Curves from CSV files: a user's own table, or a tidy benchmark file."""

import csv
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.curve import Curve, remedy
from hybrid.models.errors import FileFormatError, InvalidArgumentError, InvalidCurveError

if TYPE_CHECKING:
    from hybrid.models.prior import AbstractPrior

Row = tuple[int, dict[str, str]]
SPLITS = ("context", "target")


def read_prior(named: "str | AbstractPrior") -> "AbstractPrior":
    """A prior by its name, or from a JSON file that `prior.to_json()` wrote.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be read.
    FileFormatError
        If it holds no prior.
    UnknownNameError
        If there is no prior of that name.
    """
    from hybrid.models.registry import get_prior, prior_from_json

    if isinstance(named, str) and named.endswith(".json"):
        text = read_text(named)
        try:
            return prior_from_json(text)
        except FileFormatError as error:
            raise FileFormatError(f"{named}: {error}") from None
    return get_prior(named)


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file in UTF-8.

    Raises
    ------
    InvalidArgumentError
        If the file is missing, unreadable, or not such text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InvalidArgumentError(f"there is no file {path}: check the path") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None


def read_table(path: str | os.PathLike[str]) -> tuple[list[str], list[Row]]:
    """The columns of a CSV file in UTF-8, and its rows with the number of the line each ends on.

    Raises
    ------
    FileFormatError
        If the file is missing, unreadable, not text, empty, or a row is longer or shorter than the header.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise FileFormatError(f"there is no file {path}: check the path") from None
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not text in UTF-8: save it as CSV (UTF-8)") from None
    except (OSError, csv.Error, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as CSV: {error}") from None
    if len(rows) < 2:
        raise FileFormatError(f"{path} has no rows: give a header line and one line per point")
    columns = [cell.strip() for cell in rows[0][1]]
    if columns.count("") > 1:  # one is what pandas makes of an index
        raise FileFormatError(
            f"{path} has {columns.count('')} columns without a name: remove them, as commas at the end of its lines make them"
        )
    if len(set(columns)) != len(columns):
        raise FileFormatError(f"{path} names a column twice in its header: {', '.join(columns)}")
    for line, row in rows[1:]:
        if len(row) != len(columns):
            if len(columns) == 1 and columns[0].startswith("#"):
                hint = "; the first line must be the header: leave the comment out"
            elif len(row) == len(columns) + 1 and not row[-1].strip():
                hint = "; remove the comma at its end"
            elif len(columns) == 1 or len(row) > len(columns):
                hint = "; separate columns by commas and write decimals with points"
            else:
                hint = ""
            raise FileFormatError(f"{path}, line {line}: {len(row)} cells, but the header has {len(columns)}{hint}")
    return columns, [(line, dict(zip(columns, row, strict=True))) for line, row in rows[1:]]


def _require(path: str | os.PathLike[str], columns: list[str], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in columns:
            hint = "; is it separated by commas?" if len(columns) == 1 else ""
            raise FileFormatError(f"{path} has no column {name!r}; it has {', '.join(columns)}{hint}")


def _number(path: str | os.PathLike[str], line: int, column: str, cell: str, is_scale: bool) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise InvalidCurveError(
            f"{path}, line {line}: {column} = {cell!r} is not a number, such as 1500 or 1.5e3: correct or remove it"
        ) from None
    if problem := remedy(number, is_scale):
        raise InvalidCurveError(f"{path}, line {line}: {column} = {cell.strip()}: {problem}")
    return number


def _one_label(rows: list[Row], column: str, default: str) -> str:
    """The label that a column of labels agrees on."""
    labels = {row.get(column, "").strip() for _, row in rows}
    return labels.pop() or default if len(labels) == 1 else default


def _curve(path: str | os.PathLike[str], rows: list[Row], x: str, y: str, name: str | None) -> Curve:
    points: dict[str, tuple[list[float], list[float]]] = {split: ([], []) for split in SPLITS}
    for line, row in rows:
        split = row.get("split", "context").strip()
        if split not in SPLITS:
            raise InvalidCurveError(
                f"{path}, line {line}: split = {split!r} must be 'context' or 'target'; rename the column if "
                "it means something else"
            )
        for values, column in zip(points[split], (x, y), strict=True):
            values.append(_number(path, line, column, row[column], is_scale=column == x))
    x_label, y_label = _one_label(rows, "x_label", x), _one_label(rows, "y_label", y)
    try:
        return Curve(*points["context"], x_label, y_label, *points["target"], name=name)
    except InvalidCurveError as error:
        where = str(path) if name is None else f"{path}, curve {name!r}"
        raise InvalidCurveError(f"{where}: {error}") from None


def _grouped(columns: list[str], rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each curve under the key "domain/curve", or "curve" where there is no column of domains."""
    groups: dict[str, list[Row]] = {}
    named: dict[str, tuple[str, ...]] = {}
    for line, row in rows:
        parts = tuple(row[c].strip() for c in ("domain", "curve") if c in columns)
        if not parts[-1]:
            raise InvalidCurveError(f"line {line} does not name its curve: repeat the name in every row")
        key = "/".join(parts)
        if named.setdefault(key, parts) != parts:
            raise InvalidCurveError(f"two curves would both be called {key!r} (line {line}): rename the domain or curve of one")
        groups.setdefault(key, []).append((line, row))
    return groups


def _tell_repeats(path: str | os.PathLike[str], curves: list[Curve]) -> None:
    repeated = {c.name: len(c.x) - len(set(zip(c.x.tolist(), c.y.tolist(), strict=True))) for c in curves}
    count = sum(repeated.values())
    if count:
        named = [name for name, number in repeated.items() if number and name is not None]
        of = f" (of {_some(named, 3)})" if named else ""
        rows, repeat = ("row", "repeats") if count == 1 else ("rows", "repeat")
        warnings.warn(
            f"{path}: {count} {rows}{of} {repeat} the x and y of another exactly, and each counts as a measurement that agrees "
            "with it: remove what was written twice",
            stacklevel=3,
        )


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_csv(path: str | os.PathLike[str], x: str = "x", y: str = "y", curve: str | None = None) -> Curve:
    """Read one curve from a CSV file.

    Where the file has a column `split`, its rows marked "target" are held out; where it has a column `curve` (and perhaps
    `domain`) that names several curves, `curve` chooses one. Columns `x_label` and `y_label` label the axes, or else the
    names of the columns x and y do.

    Parameters
    ----------
    path
        A CSV file in UTF-8, with a header.
    x, y
        The columns of the scale and of the loss or error.
    curve
        Which curve to read, as "domain/curve" or "curve".

    Raises
    ------
    FileFormatError
        If the file is missing, is not a table, or lacks a column.
    InvalidCurveError
        If a cell is not a number, the points cannot be used, or it is unclear which curve is meant.

    Warns
    -----
    UserWarning
        If rows repeat others exactly: each counts as a measurement of its own, and the posterior grows narrower.
    """
    found = _one_of(path, x, y, curve)
    _tell_repeats(path, [found])
    return found


def _one_of(path: str | os.PathLike[str], x: str, y: str, curve: str | None) -> Curve:
    """The curve that `read_csv` reads."""
    columns, rows = read_table(path)
    _require(path, columns, (x, y))
    if x == y:
        raise FileFormatError(f"x and y are both column {x!r} of {path}: name two of {', '.join(columns)}")
    if "curve" not in columns:
        if curve is not None:
            raise FileFormatError(f"{path} has no column 'curve' to look {curve!r} up in; it has {', '.join(columns)}")
        domains = {row["domain"].strip() for _, row in rows} if "domain" in columns else set()
        if len(domains) > 1:
            raise InvalidCurveError(
                f"{path} has several domains ({_some(sorted(domains))}) and no column 'curve': add one that says which "
                "curve each row is of"
            )
        return _curve(path, rows, x, y, None)
    groups = _grouped(columns, rows)
    if curve is None:
        chosen = list(groups)
    else:
        chosen = [key for key in groups if key == curve] or [k for k, g in groups.items() if g[0][1]["curve"].strip() == curve]
    if len(chosen) != 1:
        problem = "has several curves: choose one with curve=... (--curve)" if len(chosen) > 1 else f"has no curve {curve!r}"
        raise InvalidCurveError(f"{path} {problem}; there are {_some(chosen or list(groups))}")
    return _curve(path, groups[chosen[0]], x, y, chosen[0])


def read_curves(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read all curves of a tidy benchmark file.

    Parameters
    ----------
    path
        A CSV file in UTF-8 with the columns curve, x, y and, where they apply, domain, split ("context" or "target"),
        x_label, y_label.

    Returns
    -------
    Curves by "domain/curve", or by "curve" without a column of domains, in the order of the file.

    Raises
    ------
    FileFormatError, InvalidCurveError
        As `read_csv`; the message names the line, or the curve.

    Warns
    -----
    UserWarning
        As `read_csv`.
    """
    found = curves_of(path)
    _tell_repeats(path, list(found.values()))
    return found


def curves_of(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """What `read_curves` gives, without a word on rows that repeat others."""
    return curves_in(path, *read_table(path))


def curves_in(path: str | os.PathLike[str], columns: list[str], rows: list[Row]) -> dict[str, Curve]:
    """The same of a table that was read from the path."""
    _require(path, columns, ("curve", "x", "y"))
    return {key: _curve(path, group, "x", "y", key) for key, group in _grouped(columns, rows).items()}

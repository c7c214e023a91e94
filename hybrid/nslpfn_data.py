"""The benchmark of NSL-PFN from its repository's own data folder (Lee et al. 2025; github.com/DongWooLee-Eli/nslpfn).

Files: `benchmark.vision.csv` and `benchmark.lang.csv` (IC and NLP, after Alabdulmohsin et al. 2022), `dd_data.pkl` (DD),
`min_val_loss_over_n_embd.npy` and `final_val_loss_over_n_embd.npy` (Nano), `colpret.npz` (ColPret).
"""

import io
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hybrid.models.errors import FileFormatError, UnknownNameError
from hybrid.models.files import DAMAGED
from hybrid.reading import Row, read_table

DOMAINS = ("IC", "NLP", "Nano", "ColPret", "DD")
BENCHMARK_FILES = ("benchmark.vision.csv", "benchmark.lang.csv")
BENCHMARK_COLUMNS = ("Domain", "Task", "Model", "Training", "Seen Examples", "Loss")
NANO_FILES = {"minval": "min_val_loss_over_n_embd.npy", "finalval": "final_val_loss_over_n_embd.npy"}
NANO_WIDTHS = (6, 12, 24, 48, 96, 192, 384)
NANO_CONTEXT = 6
COLPRET_FILE = "colpret.npz"
DD_FILE = "dd_data.pkl"
NUMERIC = "iuf"  # kinds of NumPy's numbers
OBSERVED = 0.5  # share of a DD or ColPret curve that is its context


class Points(NamedTuple):
    """One curve, its points in the order of x."""

    domain: str
    name: str
    x_label: str
    y_label: str
    x: np.ndarray
    y: np.ndarray
    x_target: np.ndarray
    y_target: np.ndarray


class _Refused(pickle.UnpicklingError):
    """The file asks for something that is not admitted."""


class _DType:
    """Stands for numpy.dtype while a pickle is read: keeps what it is told, runs nothing."""

    def __init__(self, code: str = "", *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def real(self) -> np.dtype[Any]:
        if not (isinstance(self.code, str) and re.fullmatch(r"[biuf][1248]|[SU]\d{1,6}", self.code)):
            raise _Refused(f"an array of dtype {self.code!r}")
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<" if self.order == "<" else "=")


class _Array:
    """Stands for numpy.ndarray while a pickle is read."""

    values: np.ndarray

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if isinstance(content, list) and dtype.code == "O8":  # numbers or strings that NumPy kept as objects
            self.values = np.asarray([_plain(item) for item in content]).reshape(shape)
        else:
            self.values = _from_bytes(content, dtype, shape, "F" if fortran else "C")


def _from_bytes(content: Any, dtype: _DType, shape: Any, order: str) -> np.ndarray:
    if isinstance(content, str):  # bytes as the pickles of Python 2 hold them
        content = content.encode("latin1")
    return np.frombuffer(bytes(content), dtype.real()).reshape(shape, order="F" if order == "F" else "C").copy()


def _as_array(content: Any, dtype: _DType, shape: Any, order: str) -> _Array:
    made = _Array()
    made.values = _from_bytes(content, dtype, shape, order)
    return made


def _as_scalar(dtype: _DType, content: Any) -> Any:
    return _from_bytes(content, dtype, (), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _as_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _as_array for core in ("core", "_core")},
    **{(home, kind.__name__): kind for home in ("builtins", "__builtin__") for kind in (set, frozenset, bytearray)},
}


class _Unpickler(pickle.Unpickler):
    """Reads arrays and containers; every other name is refused, so nothing in the file is ever imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _plain(value: Any) -> Any:
    """Stand-ins replaced by arrays, inside lists, tuples and dictionaries too."""
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def read_arrays_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of NumPy arrays, numbers, text, lists, tuples, sets and dictionaries, and of nothing else.

    A pickle can name any function and have it called. Here only the names that arrays are made of are known, and each stands
    for a function of this module; whatever else a file asks for is refused before it is imported.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or asks for anything else.
    """
    content = _read(Path(path))
    try:
        return _plain(_Unpickler(io.BytesIO(content)).load())
    except _Refused as error:
        raise FileFormatError(
            f"{path} was not read: it asks for {error}, and only NumPy arrays and plain containers are admitted; "
            "get the file from its source again"
        ) from None
    except Exception as error:  # damaged pickles raise errors of any kind
        raise FileFormatError(f"{path} is not a pickle of arrays ({error}): get it from its source again") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileFormatError(
            f"there is no file {path}: point to the data folder of NSL-PFN's repository, or choose the domains that are there"
        ) from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}") from None


def _load(path: Path) -> Any:
    try:
        loaded = np.load(io.BytesIO(_read(path)), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in sorted(loaded)}
    except DAMAGED as error:
        raise FileFormatError(f"{path} is not a file of NumPy arrays ({error}): get it from its source again") from None


def _halved(domain: str, name: str, labels: tuple[str, str], x: np.ndarray, y: np.ndarray) -> Points:
    """A curve whose first half is its context: at least 3 points, and one target."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    cut = max(3, min(int(OBSERVED * len(x) + 0.5), len(x) - 1))
    return Points(domain, name, *labels, x[:cut], y[:cut], x[cut:], y[cut:])


def _benchmark_name(row: dict[str, str]) -> tuple[str, str]:
    domain, task, model = (row[column].strip() for column in ("Domain", "Task", "Model"))
    if domain == "IC":
        return "IC", f"{task}/{model}"
    return "NLP", f"{domain}/{task if domain == 'BB' else model}"


def _numbers(path: Path, rows: list[Row]) -> np.ndarray:
    """Training, seen examples and loss, shape (3, n), in the order of x."""
    try:
        found = np.array([[float(row[c]) for c in ("Training", "Seen Examples", "Loss")] for _, row in rows])
    except ValueError as error:
        raise FileFormatError(f"{path} has a cell that is not a number: {error}") from None
    return found[np.lexsort((found[:, 2], found[:, 1]))].T


def _benchmark(folder: Path, domain: str) -> Iterator[Points]:
    labels = ("examples seen", "test error rate") if domain == "IC" else ("training set size", "loss")
    for file in BENCHMARK_FILES[:1] if domain == "IC" else BENCHMARK_FILES[1:]:
        path = folder / file
        _read(path)
        columns, rows = read_table(path)
        for column in BENCHMARK_COLUMNS:
            if column not in columns:
                raise FileFormatError(f"{path} has no column {column!r}; it has {', '.join(columns)}")
        curves: dict[str, list[Row]] = {}
        for line, row in rows:
            home, name = _benchmark_name(row)
            if home == domain:
                curves.setdefault(name, []).append((line, row))
        for name, own in sorted(curves.items()):
            training, x, y = _numbers(path, own)
            context = training == 1
            yield Points(domain, name, *labels, x[context], y[context], x[~context], y[~context])


def _nano(folder: Path, domain: str) -> Iterator[Points]:
    x = np.array(NANO_WIDTHS, dtype=float)
    for kind, file in NANO_FILES.items():
        losses = _load(folder / file)
        is_table = isinstance(losses, np.ndarray) and losses.ndim == 2 and losses.shape[1] == x.size
        if not is_table or losses.dtype.kind not in NUMERIC:
            raise FileFormatError(f"{folder / file} must hold one row of {x.size} losses per curve")
        for i, y in enumerate(losses.astype(float)):
            parts = (x[:NANO_CONTEXT], y[:NANO_CONTEXT], x[NANO_CONTEXT:], y[NANO_CONTEXT:])
            yield Points(domain, f"{kind}_hyp{i}", "n_embd", "validation loss", *parts)


def _colpret(folder: Path, domain: str) -> Iterator[Points]:
    path = folder / COLPRET_FILE
    curves = _load(path)
    for name, values in curves.items() if isinstance(curves, dict) else ():
        if values.ndim != 2 or len(values) < 2 or values.dtype.kind not in NUMERIC:
            raise FileFormatError(f"{path}: {name} must hold a row of tokens and a row of losses")
        yield _halved(domain, name, ("tokens seen", "loss"), *values[:2].astype(float))


def _double_descent(folder: Path, domain: str) -> Iterator[Points]:
    path = folder / DD_FILE
    entries = read_arrays_pickle(path)
    try:
        for name, x_label, y_label, x, y in sorted(entries, key=lambda entry: str(entry[0])):
            labels = (str(x_label), str(y_label))
            yield _halved(domain, str(name), labels, np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    except (TypeError, ValueError, IndexError) as error:
        raise FileFormatError(f"{path} must hold (name, x label, y label, x, y) for each curve: {error}") from None


_READERS: dict[str, Callable[[Path, str], Iterator[Points]]] = {
    "IC": _benchmark,
    "NLP": _benchmark,
    "Nano": _nano,
    "ColPret": _colpret,
    "DD": _double_descent,
}


def read_nslpfn(folder: str | os.PathLike[str], domains: Sequence[str] = DOMAINS) -> list[Points]:
    """The curves of the NSL-PFN benchmark with the paper's split into context and targets.

    Parameters
    ----------
    folder
        The folder `data` of NSL-PFN's repository.
    domains
        Which of IC, NLP (its NMT, LM and BB), Nano, ColPret and DD; only their files are read.

    Raises
    ------
    FileFormatError
        If a file is missing, damaged or not what the repository holds.
    UnknownNameError
        If there is no such domain.
    """
    for domain in domains:
        if domain not in _READERS:
            raise UnknownNameError(f"no domain {domain!r} in the NSL-PFN benchmark; there are {', '.join(DOMAINS)}")
    return [points for domain in domains for points in _READERS[domain](Path(folder), domain)]

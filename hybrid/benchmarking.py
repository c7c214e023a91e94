"""`benchmark`: score engines and priors on the held-out points of real curves."""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.benchmark_cases import Case, PathLike, as_list, as_paths, collect_cases
from hybrid.benchmark_methods import BANDS, FAILED, FIGURES, GRID, SHEETS, Method, Record, as_method, batches, run_method
from hybrid.benchmark_scores import curve_table, failures, render, summarise
from hybrid.models.checks import as_integer
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.files import DAMAGED, as_path, cannot_write, check_writable, make_folder, replacing
from hybrid.models.prior import AbstractPrior
from hybrid.spreading import spread

if TYPE_CHECKING:
    import pandas as pd

CACHE = "cache"
SHEET_NAME = re.compile(r"[\w.]+-(pfn|nuts|least_squares|auto)_[\w.]+(-[0-9a-f]{6})?-\d+\.png")  # as benchmark_plots has it
FORMAT = "hybrid benchmark 2"
TABLE, CURVES = "table.csv", "curves.csv"
WRITTEN = (TABLE, CURVES, *FIGURES)
_KEPT = ("bands", "log_density", "pit", "crps", "grid", "grid_bands", "needs_review", "milliseconds", "prior", "reasons")


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """What `benchmark` returns.

    Attributes
    ----------
    table
        One row per domain and method; see `hybrid.benchmark_scores.summarise`.
    curves
        One row per method and curve; see `hybrid.benchmark_scores.score_curve`.
    cases
        The curves, in the order of `curves`.
    records
        The forecasts of each method, by its name, one per case; see `hybrid.benchmark_methods.run_method`.
    """

    table: "pd.DataFrame"
    curves: "pd.DataFrame"
    cases: Sequence[Case] = dataclasses.field(repr=False)
    records: Mapping[str, Sequence[Record]] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return render(self.table) + failures(self.curves)


class _Cache:
    """Forecasts of single curves in a folder, each in a file named by a hash of all that they depend on."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._told = folder, False
        self._common = f"{FORMAT}|{importlib.metadata.version('hybrid-scaling-laws')}|{seed}"
        make_folder(folder)

    def _path(self, method: Method, case: Case) -> Path:
        key = hashlib.sha256(f"{self._common}|{method.name}|{method.identity}|{case.digest}".encode()).hexdigest()
        return self._folder / f"{key[:32]}.npz"

    def read(self, method: Method, case: Case) -> Record | None:
        """What is kept for a curve, or None where nothing is, or the file is damaged."""
        try:
            content = io.BytesIO(self._path(method, case).read_bytes())
            with np.load(content, allow_pickle=False) as arrays:
                record = {name: arrays[name] for name in _KEPT}
        except DAMAGED:
            return None
        n = case.curve.x_target.size
        complete = record["bands"].shape == (len(BANDS), n) and record["grid_bands"].shape == (len(BANDS), GRID)
        return record if complete else None

    def write(self, method: Method, case: Case, record: Record) -> None:
        """Keep the forecasts of a curve: the file appears whole, or not at all, of which the first is told."""
        arrays: dict[str, Any] = {name: record[name] for name in _KEPT}
        try:
            with replacing(self._path(method, case)) as temporary:
                np.savez_compressed(temporary, **arrays)
        except InvalidArgumentError as error:
            if not self._told:
                warnings.warn(f"forecasts are not kept, and would be made again by another run: {error}", stacklevel=2)
            self._told = True


def _run(
    methods: Sequence[Method],
    cases: Sequence[Case],
    cache: _Cache | None,
    fresh: bool,
    seed: int,
    workers: int,
    dask: str | None,
    progress: bool,
) -> dict[str, list[Record]]:
    """The forecasts of every method for every case, those that are kept read and the others made.

    The batches do not depend on what is kept, and are made whole, so that a resumed run repeats the figures of one in a go.
    """
    found: dict[tuple[int, int], Record] = {}
    work: list[tuple[int, list[int]]] = []
    calls: list[tuple[Any, ...]] = []
    for m, method in enumerate(methods):
        for part, call in batches(method, cases, seed):
            kept = {i: None if cache is None or fresh else cache.read(method, cases[i]) for i in part}
            found |= {(m, i): record for i, record in kept.items() if record is not None}
            if any(record is None for record in kept.values()):
                work.append((m, part))
                calls.append(call)
    total = len(methods) * len(cases)
    tqdm = importlib.import_module("tqdm").tqdm
    known = total - sum(len(part) for _, part in work)
    with (
        tqdm(total=total, initial=known, disable=not progress, desc="benchmark") as bar,
        contextlib.closing(spread(run_method, calls, workers, dask)) as made,  # an interruption here ends the workers, too
    ):
        for index, records in made:
            m, part = work[index]
            for i, record in zip(part, records, strict=True):
                if (m, i) in found:
                    continue
                found[m, i] = record
                if cache is not None and FAILED not in record:
                    cache.write(methods[m], cases[i], record)
            bar.set_postfix_str(methods[m].name)
            bar.update(len(part))
    records = {method.name: [found[m, i] for i in range(len(cases))] for m, method in enumerate(methods)}
    if all(FAILED in record for own in records.values() for record in own):
        name, own = next(iter(records.items()))
        raise InvalidArgumentError(f"{name} forecasts none of the curves: {own[0]['reasons']}")
    return records


def _as_methods(methods: Any) -> list[Method]:
    found = [as_method(method) for method in as_list(methods, "methods", "one as in 'pfn:nsl', or a list of them")]
    names = [method.name for method in found]
    if not found:
        raise InvalidArgumentError("there is no method to score: give one, such as 'pfn:nsl'")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidArgumentError(f"method {twice!r} is given twice: give each once, and priors of your own different names")
    return found


def benchmark(
    data: PathLike | Iterable[PathLike] | None = None,
    methods: str | Iterable[str | tuple[str, str | AbstractPrior]] = ("pfn:nsl",),
    out: PathLike | None = None,
    *,
    nslpfn_data: PathLike | None = None,
    domains: str | Iterable[str] = (),
    seed: int = 0,
    workers: int = 1,
    dask: str | None = None,
    fresh: bool = False,
    figures: bool = True,
    progress: bool = True,
) -> Benchmark:
    """Forecast the held-out points of real curves by several methods, and score the forecasts.

    As in the NSL-PFN paper (Lee et al. 2025, arXiv 2505.23032) a forecast is about the last target, and log densities and CRPS
    are on the scale of y divided by the largest context y, or of y as given in the domains IC and NLP. Scores are means over
    the targets of a curve, then over the curves of a domain.

    Parameters
    ----------
    data
        One or several tidy CSV files with the columns domain, curve, x, y and split ("context" or "target"), and perhaps
        x_label, y_label and group. Without `data` and `nslpfn_data` the shipped examples, with their last two points held
        out.
    methods
        One "engine:prior", such as "pfn:nsl", "nuts:m4" or "least_squares:bnsl", or several, or pairs of engine and Prior.
        "least_squares:bnsl_auto" takes 1 to 3 breaks for each curve: those that forecast the last fifth of its context best.
    out
        Folder for `table.csv`, `curves.csv`, figures, which replace earlier ones, and a cache of forecasts from which
        a later run goes on. A kept forecast is used again only for the same points, prior, weights, seed and version of Hybrid.
        None writes nothing.
    nslpfn_data
        The folder `data` of NSL-PFN's own repository, whose curves are added.
    domains
        Only these domains; by default all.
    seed
        Seed of the engines.
    workers
        Number of processes.
    dask
        Address of a Dask scheduler, whose workers are used instead.
    fresh
        Whether to make all forecasts anew.
    figures
        Whether to draw figures into `out`.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Benchmark
        Its `table` and `curves`; `print` shows the table.

    Raises
    ------
    FileFormatError, InvalidCurveError
        If data cannot be read, or a curve has no targets.
    UnknownNameError
        If there is no such engine, prior or domain.
    EngineUnavailableError
        If an engine cannot serve a prior, or Dask is asked for and not installed.
    InvalidArgumentError
        If an argument is outside what it may be, or `out` cannot be written, or the data would be overwritten there.
    """
    chosen = _as_methods(methods)
    seed = as_integer(seed, "seed", 0, 2**32 - 1)
    sources = as_paths(data)
    folder = None if out is None else as_path(out, "out")
    if folder is not None:
        _check_folder(folder, sources or [])
    cases = collect_cases(sources, nslpfn_data, as_list(domains, "domains", "a name or a list of names"))
    cache = None if folder is None else _Cache(folder / CACHE, seed)
    records = _run(chosen, cases, cache, fresh, seed, workers, dask, progress)
    curves = curve_table(cases, records)
    found = Benchmark(summarise(curves), curves, cases, records)
    if folder is not None:
        _write(found, folder, figures)
    return found


def _check_folder(folder: Path, data: Sequence[PathLike]) -> None:
    """Refuse, before the work, a folder where the tables cannot be written, or would take the place of the data."""
    read = {os.path.realpath(path): path for path in data}
    for name in WRITTEN:
        path = folder / name
        source = read.get(os.path.realpath(path))
        if source is not None:
            raise InvalidArgumentError(f"{source} would be overwritten by the benchmark's own {name}: give another folder")
        if folder.is_dir():
            check_writable(path)


def _write(found: Benchmark, folder: Path, figures: bool) -> None:
    for frame, name in ((found.table, TABLE), (found.curves, CURVES)):
        with replacing(folder / name) as temporary:
            frame.to_csv(temporary, index=False)
    try:
        written = _draw(found, folder) if figures else []
        for path in _figures(folder):  # of an earlier run, about other curves or methods
            if path not in written:
                path.unlink(missing_ok=True)  # another run may have been quicker
    except OSError as error:
        raise cannot_write(folder, error) from None


def _draw(found: Benchmark, folder: Path) -> Sequence[Path]:
    plots = importlib.import_module("hybrid.benchmark_plots")
    drawn: Sequence[Path] = plots.write_figures(found.table, found.cases, found.records, folder)
    return drawn


def _figures(folder: Path) -> list[Path]:
    """The figures that are in the folder, by the names that a benchmark gives them."""
    sheets = [path for path in (folder / SHEETS).glob("*.png") if SHEET_NAME.fullmatch(path.name)]
    return [path for path in (folder / name for name in FIGURES) if path.is_file()] + sheets

"""`calibrate`: is an engine right on curves of its own prior? And `Calibration`, the answer with its evidence."""

import dataclasses
import functools
import importlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from hybrid.diagnostics.datatree import read_datatree, write_datatree
from hybrid.diagnostics.scores import coverage, coverage_error
from hybrid.diagnostics.uniformity import LEVEL, Uniformity, check_uniform
from hybrid.models.checks import as_integer, as_levels
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError, UnknownNameError
from hybrid.models.files import as_path
from hybrid.models.prior import AbstractPrior
from hybrid.models.registry import get_prior

if TYPE_CHECKING:
    import pandas as pd

    from hybrid.amortized.design import Design

Array = Any
NOMINAL = ("family",)  # parameters whose numbers stand for names
SIMULATIONS = {"nuts": 256, "pfn": 2000}
LEVELS = (0.5, 0.8, 0.9, 0.95)
HORIZON_BINS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf)  # x over last context x
PREDICTIVE, JOINT = "held-out point", "joint held-out points (TARP)"
NUTS_SIZES = (5, 60)  # points of a context: chains on hundreds of points take minutes each


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """How well an engine's posteriors and forecasts are calibrated on curves of a prior. Made by `hybrid.calibrate`.

    Attributes
    ----------
    data
        The evidence, as `hybrid.diagnostics.sbc.run_sbc` describes it: ArviZ's `plot_ecdf_pit` reads it as it is.
    """

    data: xr.DataTree

    def __repr__(self) -> str:
        return self.verdict

    @property
    def curves(self) -> int:
        """Curves that were judged: those whose fit needs no review."""
        return int(self.data["predictive"].sizes["draw"])

    @property
    def ranks(self) -> dict[str, Array]:
        """What should be uniform, by quantity: one number for each curve."""
        found = {}
        if "prior_sbc" in self.data.children:
            found = {str(k): v.to_numpy().ravel() for k, v in self.data["prior_sbc"].data_vars.items()}
        return {**found, PREDICTIVE: self.data["predictive"]["pit_one"].to_numpy(), JOINT: self.data["tarp"]["y"].to_numpy()}

    def _check(self, level: float) -> dict[str, Uniformity]:
        known = {str(name): value.to_numpy() for name, value in self.data["features"].data_vars.items()}
        return {k: check_uniform(v, {f: x[: v.size] for f, x in known.items()}, level) for k, v in self.ranks.items()}

    @functools.cached_property
    def checks(self) -> dict[str, Uniformity]:
        """What `check_uniform` says of each quantity's ranks, of the PIT of a held-out point per curve, and of TARP.

        At 99 % each: of ten quantities of a right posterior, one fails in one of ten calibrations.
        """
        return self._check(LEVEL)

    @functools.cached_property
    def failed(self) -> dict[str, Uniformity]:
        """The quantities that fail when all are judged together at 99 %, by Bonferroni."""
        found = self._check(1.0 - (1.0 - LEVEL) / len(self.ranks))
        return {name: check for name, check in found.items() if not check.ok}

    @property
    def ok(self) -> bool:
        """Whether no quantity fails when all are judged together at 99 %."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """One line: whether miscalibration was found, on how many curves, and what is wrong; few show gross errors only."""
        attrs = self.data.attrs
        review = float(attrs["needs_review"])
        left_out = f", {100 * review:.1f} % more left out as needs_review" if review else ""
        start = f"{attrs['prior']} by {attrs['engine']} on {self.curves} curves of its prior{left_out}"
        total, passing = len(self.checks), sum(check.ok for check in self.checks.values())
        each = f"{passing} of {total} quantities pass at {LEVEL:.0%} each"
        if self.ok:
            return f"{start}: no miscalibration found: {each}, and all of them at {LEVEL:.0%} together"
        what = "; ".join(f"{name}: {check.diagnosis}" for name, check in self.failed.items())
        return f"{start}: miscalibrated: {each}, and {len(self.failed)} fail at {LEVEL:.0%} together: {what}"

    @property
    def ordered(self) -> list[str]:
        """The parameters whose values have an order, unlike the number of a family; none where the engine gives none."""
        found = self.data["truth"].data_vars if "truth" in self.data.children else ()
        return [str(name) for name in found if name not in NOMINAL]

    def table(self) -> "pd.DataFrame":
        """The checks by quantity.

        Returns
        -------
        pandas.DataFrame
            `excess`: how far the ECDF of the ranks leaves its simultaneous 99.5 % band (0 inside). `shift`, `spread`: standard
            normal if all is well; positive shift: the truth lies higher; positive spread: too narrow. `dependence`: of as many
            standard normals as there are features of the data, the one furthest from 0, so that of five one in 20 is beyond
            2.6. `p`: of all these tests by Bonferroni; the band is not among them. `ok`: at 99 % by itself. `ok_together`: at
            99 % for all quantities together, as the verdict has it. For parameters also the mean `contraction` of the posterior
            against the prior, and the correlation of posterior mean and truth (`recovery`); a family's number has neither.
        """
        import pandas as pd

        contractions = importlib.import_module("hybrid.diagnostics.sbc").contractions
        rows = {
            name: {**check._asdict(), "ok": check.ok, "ok_together": name not in self.failed}
            for name, check in self.checks.items()
        }
        found = pd.DataFrame(rows).T.drop(columns=["feature", "level", "undefined"])
        found = found.astype({name: bool if name.startswith("ok") else float for name in found.columns}).astype({"values": int})
        if "truth" in self.data.children:
            means, truth = self.data["posterior_mean"], self.data["truth"]
            names = self.ordered
            found["contraction"] = pd.Series({k: v for k, v in contractions(self.data).items() if k in names})
            recovery = {k: _correlation(means[k].to_numpy(), truth[k].to_numpy()) for k in names}
            found["recovery"] = pd.Series(recovery)
        return found

    def coverage(self, levels: Array = LEVELS) -> "pd.DataFrame":
        """Coverage of central intervals over all held-out points, by how far beyond the context they lie.

        Parameters
        ----------
        levels
            Probabilities of the intervals, above 0 and below 1: one or several.

        Returns
        -------
        pandas.DataFrame
            Indexed by the range of x over last context x (the first row is all points; "before" are those before the first
            context x, "within 1" those inside the context): `points`, the `curves` that they are of, coverage per level, the
            `error` of the coverage of 90 % (standard error; points of one curve go together), and the median `width` of the
            90 % interval over the forecast's median (sharpness).

        Raises
        ------
        InvalidArgumentError
            If a level is outside what it may be.
        """
        return self._coverage(tuple(as_levels(levels).tolist()))[0]

    def _coverage(self, levels: tuple[float, ...]) -> "tuple[pd.DataFrame, dict[str, np.ndarray]]":
        """The table of `coverage`, and the standard error at each level, by row."""
        import pandas as pd

        group = self.data["predictive"]
        pit, distance, width = (group[name].to_numpy().ravel() for name in ("pit", "distance", "width"))
        curve = np.repeat(np.arange(group["pit"].shape[0]), group["pit"].shape[1])
        before = (group["distance"] < group["first"]).to_numpy().ravel()
        rows = {"all": np.ones(pit.size, dtype=bool), "before": before}
        for low, high in itertools.pairwise(HORIZON_BINS):
            name = f"within {high:g}" if low == 0 else f"{low:g} to {high:g}" if np.isfinite(high) else f"beyond {low:g}"
            rows[name] = (distance > low) & (distance <= high) & ~before
        rows = {name: inside for name, inside in rows.items() if inside.any()}
        errors = {name: coverage_error(pit[inside], curve[inside], np.array(levels)) for name, inside in rows.items()}
        table = {
            name: {
                "points": int(inside.sum()),
                "curves": np.unique(curve[inside]).size,
                **{f"{100 * p:g} %": c for p, c in zip(levels, coverage(pit[inside], np.array(levels)), strict=True)},
                "error": float(coverage_error(pit[inside], curve[inside], [0.9])[0]),
                "width": float(np.median(width[inside])),
            }
            for name, inside in rows.items()
        }
        found = pd.DataFrame(table).T.astype({"points": int, "curves": int}).rename_axis("x / last context x")
        return found, errors

    def plot(self) -> Any:
        """Figure of the ECDF differences of all quantities; see `hybrid.calibration_plots.plot_ranks`."""
        return importlib.import_module("hybrid.calibration_plots").plot_ranks(self)

    def plot_coverage(self) -> Any:
        """Figure of coverage against level by horizon; see `hybrid.calibration_plots.plot_coverage`."""
        return importlib.import_module("hybrid.calibration_plots").plot_coverage(self)

    def plot_recovery(self) -> Any:
        """Figure of posterior means against the truth; see `hybrid.calibration_plots.plot_recovery`."""
        return importlib.import_module("hybrid.calibration_plots").plot_recovery(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to NetCDF; `hybrid.load_calibration` is the inverse.

        Raises
        ------
        InvalidArgumentError
            If the file cannot be written.
        """
        write_datatree(self.data, path)


def _correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if np.std(one) > 0 and np.std(other) > 0 else float("nan")


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration that `Calibration.save` wrote.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or not one of a calibration.
    """
    sbc = importlib.import_module("hybrid.diagnostics.sbc")
    tree = read_datatree(path, sbc.FORMAT)
    missing = [name for name in ("engine", "prior", "needs_review", "versions") if name not in tree.attrs]
    for group, names in sbc.ALWAYS.items():
        known = tree[group].data_vars if group in tree.children else {}
        missing += [f"{group}/{name}" for name in names if name not in known]
    if missing or "features" not in tree.children:
        raise FileFormatError(f"{path} lacks a part of a calibration ({', '.join(missing) or 'features'}): calibrate again")
    return Calibration(tree)


def _usual_design(prior: AbstractPrior, engine: str, checkpoint: str | os.PathLike[str] | None) -> Any:
    """The positions to calibrate on: by a network those that it was trained on, which its card tells."""
    if engine == "pfn":
        card = importlib.import_module("hybrid.amortized.cards").find_card(prior, checkpoint)
        return importlib.import_module("hybrid.amortized.checkpoint").trained_with(card)[1]
    design = importlib.import_module("hybrid.amortized.settings").design_for(prior)
    return dataclasses.replace(design, context=NUTS_SIZES)


def calibrate(
    prior: str | AbstractPrior = "m4",
    engine: str = "pfn",
    simulations: int | None = None,
    design: "Design | None" = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: bool = True,
    checkpoint: Any = None,
) -> Calibration:
    """Calibrate an engine by simulation: curves from the prior are fitted, and the truth is ranked among the posterior draws.

    Parameters
    ----------
    prior
        A name in `priors()`, or a prior object.
    engine
        "nuts" or "pfn".
    simulations
        Number of curves, at least 16; None takes 256 for "nuts" and 2000 for "pfn". With 256 a posterior that is 20 % too
        narrow, or .3 sd off, is found in most runs (`tests/test_uniformity.py` asks for 34 of 40).
    design
        Where the points of the curves lie; None takes for "pfn" the design that these very weights were trained on, for "nuts"
        that of the prior's law, with contexts of 5 to 60 points.
    seed
        Of the curves and of all ranks.
    cache
        File that keeps the draws of NUTS as they come: an interrupted run goes on there.
    workers
        Processes for NUTS.
    progress
        Whether to show progress bars.
    checkpoint
        Weights for "pfn", if not those that are found.

    Returns
    -------
    Calibration

    Raises
    ------
    UnknownNameError
        If there is no such prior or engine.
    EngineUnavailableError
        If the engine cannot serve the prior.
    InvalidArgumentError
        If an argument is outside what it may be.
    FileFormatError
        If the cache is damaged or of other curves, or a checkpoint is damaged.
    """
    prior = get_prior(prior)
    if engine not in SIMULATIONS:
        if engine in ("least_squares", "auto"):
            raise EngineUnavailableError(f"engine {engine!r} gives no posterior of its own to calibrate: use 'nuts' or 'pfn'")
        raise UnknownNameError(f"no engine called {engine!r} can be calibrated; there are {', '.join(SIMULATIONS)}")
    count = SIMULATIONS[engine] if simulations is None else as_integer(simulations, "simulations", 16, 10**6)
    if engine == "nuts" and checkpoint is not None:
        raise InvalidArgumentError(
            "weights are what engine 'pfn' is calibrated with: leave checkpoint out, or take engine='pfn'"
        )
    workers = as_integer(workers, "workers", 1, 1024)
    if engine == "pfn" and (cache is not None or workers > 1):
        raise InvalidArgumentError("cache and workers are for engine 'nuts', whose draws take long: leave them out")
    seed = as_integer(seed, "seed", 0, 2**32 - 2)
    if design is None:
        design = _usual_design(prior, engine, checkpoint)
    elif not isinstance(design, importlib.import_module("hybrid.amortized.design").Design):
        raise InvalidArgumentError(f"design must be a hybrid.Design, got {design!r:.80}")
    kept = None if cache is None else as_path(cache, "cache")
    run = importlib.import_module("hybrid.diagnostics.sbc").run_sbc
    tree = run(prior, engine, count, design, seed, kept, workers, progress, checkpoint)
    versions = importlib.import_module("hybrid.fitting").versions_of(engine)
    tree.attrs |= {"prior_json": prior.to_json(), "design_json": json.dumps(design.to_dict()), "versions": json.dumps(versions)}
    return Calibration(tree)

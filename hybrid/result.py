"""`Fit`: what every engine returns, and the questions that it answers."""

import dataclasses
import functools
import importlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from hybrid.amortized.importance import pareto_k, trusted_k
from hybrid.curve import Curve
from hybrid.diagnostics.datatree import build_datatree, flat_draws, write_datatree
from hybrid.models.checks import as_floats, as_integer, as_levels, as_positive, require_aligned
from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.identity import law_values
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import AbstractPrior, Prior

if TYPE_CHECKING:
    import pandas as pd

    from hybrid.amortized.predictive import AmortizedPredictive

Array = Any
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SUMMARY_LEVELS = (0.05, 0.5, 0.95)
BEFORE = (
    "{} = {:g} lies before {:g}, the earliest x that the network was trained for: its intervals there may be too narrow; use "
    "engine='nuts' or forecast='draws', where the prior allows it"
)
BEYOND = (
    "{} = {:g} lies beyond {:g}, the farthest x that the fit was judged for: the network was not trained to look so far ahead; "
    "fit again with a horizon that covers it to see what the status says, or use engine='nuts' or forecast='draws', where the "
    "prior allows it"
)
UNDEFINED = (
    "the forecast is NaN at x = {}, where the curve of some draw is none: ask for x nearer to the context, or fit a law that "
    "is defined and above 0 there"
)
EDGE = 1e-9  # relative rounding that a position at the edge of the coordinates may carry


def frame_of(prior: AbstractPrior, curve: Curve, horizon: float, y_scale: float) -> Frame:
    """The frame between a prior's coordinates and the units of a curve."""
    return get_coordinates(prior.coordinates).frame(curve.x, horizon, y_scale)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A curve with its posterior. Made by `hybrid.fit`, `hybrid.fit_many` and `hybrid.load_fit`.

    Everything it takes and gives is in the user's units, and no forecast at one x depends on the other x asked for.

    Attributes
    ----------
    curve
        What was fitted.
    prior
        The prior.
    engine
        The engine that ran.
    horizon
        The largest x that the forecast is about.
    y_scale
        The unit of y in the prior's coordinates.
    seed
        Seed of the engine and, where no other is given, of predictions.
    result
        What the engine returned: draws of shape (chain, draw), in coordinates, with its verdict.
    versions
        The software that made it, by package.
    """

    curve: Curve
    prior: AbstractPrior
    engine: str
    horizon: float
    y_scale: float
    seed: int
    result: EngineResult
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return self.verdict

    def __eq__(self, other: object) -> bool:
        return self.data.identical(other.data) if isinstance(other, Fit) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def status(self) -> str:
        """ "ok", or "needs_review" where the draws should not be trusted as they are."""
        return self.result.status

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, one sentence each, with the remedy."""
        return self.result.reasons

    @property
    def info(self) -> Mapping[str, Any]:
        """The engine's own figures: its method, and for samplers the worst R-hat, the lowest ESS and the divergences."""
        return self.result.info

    @property
    def verdict(self) -> str:
        """One line: what was drawn, how well, and what to do about it."""
        facts = [self._what()]
        for key, text in (
            ("max_rhat", "worst R-hat {:.3f}"),
            ("min_ess_bulk", "lowest bulk ESS {:.0f}"),
            ("min_ess_tail", "tail ESS {:.0f}"),
            ("divergences", "{:.0f} divergences"),
        ):
            if self.info.get(key) is not None:
                facts.append(text.format(self.info[key]))
        if "auto" in self.info:
            facts.append(f"taken by 'auto', as {self.info['auto']}")
        curve = f" on {self.curve.name}" if self.curve.name else ""
        remarks = f" - {' '.join(self.reasons)}" if self.reasons else ""
        return f"{self.prior.name}{curve} by {self.engine}: {', '.join(facts)}: {self.status.replace('_', ' ')}{remarks}"

    @property
    def by_draws(self) -> bool:
        """Whether forecasts are averages over the draws of the parameters; else a network makes them."""
        return self.engine != "pfn" or self.info.get("forecast") == "draws"

    def _what(self) -> str:
        network = f"a network that saw {self.info['curves']:,} curves" if self.engine == "pfn" else ""
        if not self.by_draws:
            return network
        chains, draws = next(iter(self.result.draws.values())).shape
        if network:
            return f"{draws} draws by {network}"
        return "a point estimate" if chains * draws == 1 else f"{chains} x {draws} draws"

    @functools.cached_property
    def pareto_k(self) -> float:
        """k-hat of the importance weights of amortized parameter draws; NaN where there are none.

        Below .7, and of fewer than 2,155 draws below 1 - 1 / log10(draws), the draws, which have been resampled by these
        weights, can be trusted; see `hybrid.amortized.importance.pareto_k`. Where the weights are uneven, Markov chains have
        moved the draws afterwards, so that they are better than a larger k-hat says, but nothing vouches for them. It says
        nothing about `predict`, unless `forecast="draws"` was asked for.
        """
        stats = self.result.sample_stats
        return pareto_k(stats["log_ratio"], 0.0) if "log_ratio" in stats else float("nan")

    @property
    def is_trusted(self) -> bool:
        """Whether nothing speaks against an amortized fit: the curve is like those trained on, and `pareto_k` small enough."""
        if self.status != "ok":
            return False
        k = self.pareto_k
        return math.isnan(k) or k < trusted_k(self.result.sample_stats["log_ratio"].size)

    @property
    def frame(self) -> Frame:
        """The frame between the prior's coordinates and the user's units."""
        return frame_of(self.prior, self.curve, self.horizon, self.y_scale)

    @property
    def defined_for(self) -> tuple[float, float]:
        """The smallest and the largest x at which the prior is defined: 0 and infinity, but for one in unit coordinates the
        first context x and the horizon."""
        return get_coordinates(self.prior.coordinates).defined_for(float(self.curve.x[0]), self.horizon)

    @property
    def trained_for(self) -> tuple[float, float]:
        """The smallest and the largest x that a network was trained to forecast for this curve; 0 and infinity if none does."""
        if self.engine != "pfn" or self.by_draws:
            return 0.0, np.inf
        first, last = float(self.curve.x[0]), float(self.curve.x[-1])
        return first * self.info.get("earliest", 1.0), max(self.horizon, last * self.info.get("farthest", np.inf))

    @functools.cached_property
    def predictive(self) -> "MixturePredictive | AmortizedPredictive":
        """The posterior predictive distribution, on plain arrays."""
        if self.result.predictive is not None:
            return self.result.predictive  # type: ignore[no-any-return]
        if self.engine == "pfn" and not self.by_draws:  # read from a file
            frame = self.frame
            problem = Problem(frame.x_to(self.curve.x), self.curve.y / frame.y_scale, frame)
            restore = importlib.import_module("hybrid.amortized.engine").restore
            return restore(self.prior, problem, self.info)  # type: ignore[no-any-return]
        assert isinstance(self.prior, Prior)
        return MixturePredictive(self.prior, flat_draws(self.result.draws), self.frame)

    @functools.cached_property
    def data(self) -> xr.DataTree:
        """The fit as a DataTree in ArviZ's schema; see `hybrid.diagnostics.datatree.build_datatree`."""
        curve = self.curve
        targets = {} if curve.x_target is None else {"x_target": curve.x_target, "y_target": curve.y_target}
        attrs = {
            "engine": self.engine,
            "horizon": self.horizon,
            "y_scale": self.y_scale,
            "seed": self.seed,
            "versions": json.dumps(dict(self.versions)),
            "x_label": curve.x_label,
            "y_label": curve.y_label,
            "name": curve.name,
            "law_values": None if (values := law_values(self.prior)) is None else json.dumps(values),
        }
        points = {"x": curve.x, "y": curve.y}
        backend = "torch" if self.engine == "pfn" else "jax"
        # Without draws of all parameters the replicates come from the engine's own predictive.
        complete = all(p.name in self.result.draws for p in self.prior.parameters)
        result = self.result if complete else dataclasses.replace(self.result, predictive=self.predictive)
        return build_datatree(self.prior, self.frame, result, points, targets, self.seed, attrs, backend)

    def predict(self, x_new: Array, levels: Sequence[float] = LEVELS) -> xr.Dataset:
        """The forecast of y, observation noise included.

        Parameters
        ----------
        x_new
            Positions, a number or shape (n,), above 0. Priors in unit coordinates forecast from the first context x to the
            horizon.
        levels
            Levels of the quantiles, each above 0 and below 1.

        Returns
        -------
        xarray.Dataset
            `mean`, `median`, `sd` (x) and `quantiles` (quantile, x), in the units of y. By a network that works on log y mean
            and sd leave out the last 1e-4 of the mass of each tail, and are infinite where they overflow.

        Raises
        ------
        InvalidArgumentError
            If a position or level is outside what it may be.

        Warns
        -----
        UserWarning
            If a network is asked before, or beyond the horizon and, what it was trained on, or the law ends before an x.
        """
        x = self.positions(x_new)
        p = as_levels(levels)
        quantiles = self.predictive.quantile(x, np.append(p, 0.5))
        _tell_undefined(x, quantiles[-1], 3)
        # From tuples in one go: datasets of data arrays are aligned and merged, which takes as long as the network does.
        label, along = {"long_name": self.curve.y_label}, {"long_name": self.curve.x_label}
        return xr.Dataset(
            {
                "mean": ("x", self.predictive.mean(x), label),
                "median": ("x", quantiles[-1], label),
                "sd": ("x", self.predictive.sd(x), label),
                "quantiles": (("quantile", "x"), quantiles[:-1], label),
            },
            coords={"x": ("x", x, along), "quantile": p},
            attrs={"prior": self.prior.name, "engine": self.engine, "status": self.status},
        )

    def log_density(self, x_new: Array, y_new: Array) -> xr.DataArray:
        """log p(y_new | x_new, context) in nats, one per point, in the units of y as given.

        Parameters
        ----------
        x_new
            Positions, a number or shape (n,), as for `predict`.
        y_new
            Observations, finite: one, or one per position.

        Returns
        -------
        xarray.DataArray
            On dim x; -inf where y is impossible.

        Raises
        ------
        InvalidArgumentError
            If a position or observation is outside what it may be.
        """
        x = self.positions(x_new)
        return self._along_x(x, self.predictive.log_density(x, _finite(y_new, x, "y_new", x_new)), "log_density")

    def sample(self, x_new: Array, draws: int = 1000, seed: int | None = None, *, progress: bool = True) -> xr.DataArray:
        """Joint curves of new observations, noise included.

        Where forecasts follow from draws of the parameters (`by_draws`), each curve is one of these for all x_new, with
        independent noise. A network draws y point after point, in turn at up to 16 positions and independently given those at
        the others; its curves have the marginals of `predict`.

        Parameters
        ----------
        x_new
            Positions, a number or shape (n,), as for `predict`.
        draws
            How many curves, 1 to 10 million.
        seed
            Seed of the random numbers; None takes the fit's. Equal seeds give equal curves.
        progress
            Whether to show a progress bar where this takes more than two seconds, as curves may that a network draws point
            after point.

        Returns
        -------
        xarray.DataArray
            y on (draw, x).

        Raises
        ------
        InvalidArgumentError
            If an argument is outside what it may be.
        """
        x, n = self.positions(x_new), as_integer(draws, "draws", 1, 10**7)
        seed = self.seed if seed is None else as_integer(seed, "seed", 0, 2**32 - 1)
        if isinstance(self.predictive, MixturePredictive):
            y = self.predictive.sample(x, n, seed)
        else:
            y = self.predictive.sample(x, n, seed, progress)
        coords = {"draw": np.arange(n), "x": self._x(x)}
        return xr.DataArray(y, coords, ("draw", "x"), "y", {"long_name": self.curve.y_label})

    def prob_below(self, x_new: Array, threshold: Array) -> xr.DataArray:
        """P(y < threshold | x, context) at each x_new, for an observation y with its noise.

        Of a point estimate it is about the noise alone: what is unknown of the parameters is left out.

        Parameters
        ----------
        x_new
            Positions, a number or shape (n,), as for `predict`.
        threshold
            One level of y, or one per position, finite.

        Returns
        -------
        xarray.DataArray
            On dim x.

        Raises
        ------
        InvalidArgumentError
            If an argument is outside what it may be.
        """
        x = self.positions(x_new)
        return self._along_x(x, self.predictive.cdf(x, _finite(threshold, x, "threshold", x_new)), "prob_below")

    def summary(self) -> "pd.DataFrame":
        """The posterior of each parameter, and of the law's textbook parameters in the user's units.

        Returns
        -------
        pandas.DataFrame
            By parameter: mean, sd, quantiles q5, q50 and q95, and ArviZ's ess_bulk, ess_tail, r_hat, mcse_mean and mcse_sd.
            For a point estimate a single column, value. For a mixture of laws by the amortized engine, the probability of each
            family and number of breaks; `data["posterior"]["family"].attrs["meaning"]` says which number is which family.

        Raises
        ------
        InvalidArgumentError
            If the engine gives no parameters for this prior.
        """
        if "posterior" not in self.data.children:
            raise InvalidArgumentError(f"engine {self.engine!r} gives no parameters of {self.prior.name!r}, only forecasts")
        posterior = self.data["posterior"].to_dataset()
        names = [str(name) for name in posterior.data_vars]
        import pandas as pd

        if all(np.issubdtype(posterior[name].dtype, np.integer) for name in names):
            counts = pd.DataFrame({name: posterior[name].to_numpy().reshape(-1) for name in names}).value_counts(normalize=True)
            return counts.sort_index().rename("probability").to_frame()
        if posterior.sizes["chain"] * posterior.sizes["draw"] == 1:
            return pd.DataFrame({"value": {name: posterior[name].item() for name in names}})
        arviz_stats = importlib.import_module("arviz_stats")
        draws = {name: posterior[name].to_numpy() for name in names}
        with np.errstate(all="ignore"):  # a textbook parameter may be too large for a float in the user's units
            columns = {"mean": {k: v.mean() for k, v in draws.items()}, "sd": {k: v.std(ddof=1) for k, v in draws.items()}}
            columns |= {f"q{100 * p:g}": {k: np.quantile(v, p) for k, v in draws.items()} for p in SUMMARY_LEVELS}
            return pd.DataFrame(columns).join(arviz_stats.summary(self.data, kind="diagnostics", round_to="none"))

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw context, forecast and held-out points; see `hybrid.plotting.plot_fit`. Returns the matplotlib axes."""
        from hybrid.plotting import plot_fit

        return plot_fit(self, ax=ax, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a NetCDF file, which ArviZ and xarray read too; `hybrid.load_fit` is the inverse.

        Raises
        ------
        InvalidArgumentError
            If the file cannot be written.
        """
        write_datatree(self.data, path)

    def positions(self, x_new: Array, name: str = "x_new") -> np.ndarray:
        """Where a forecast can be: a number or several, as an array of shape (n,) in the user's units.

        Raises
        ------
        InvalidArgumentError
            If one is not a positive number or, for a prior in unit coordinates, not from the first context x to the horizon.
        """
        x = as_floats(x_new, name, InvalidArgumentError, scalar=True)
        if x.size == 0:
            raise InvalidArgumentError(f"{name} is empty: give at least one position")
        for value in x[~((x >= 1e-100) & (x <= 1e100))]:
            as_positive(float(value), name)
        (first, horizon), (earliest, farthest) = self.defined_for, self.trained_for
        if np.any(x > horizon * (1 + EDGE)):
            raise InvalidArgumentError(
                f"{name} = {x[x > horizon * (1 + EDGE)][0]:g} lies beyond the horizon {horizon:g}, where prior "
                f"{self.prior.name!r} is not defined: fit again with horizon={float(x.max())!r}"
            )
        if np.any(x < first * (1 - EDGE)):
            raise InvalidArgumentError(
                f"{name} = {x.min():g} lies before the first context x {first:g}, where prior {self.prior.name!r} is not "
                "defined: ask for later x, or add earlier points"
            )
        if np.any(x < earliest * (1 - EDGE)):
            warnings.warn(BEFORE.format(name, x.min(), earliest), stacklevel=3)
        if np.any(x > farthest * (1 + EDGE)):
            warnings.warn(BEYOND.format(name, x.max(), farthest), stacklevel=3)
        return x

    def _x(self, x: np.ndarray) -> xr.DataArray:
        return xr.DataArray(x, dims="x", attrs={"long_name": self.curve.x_label})

    def _along_x(self, x: np.ndarray, values: Array, name: str | None = None) -> xr.DataArray:
        attrs = {} if name else {"long_name": self.curve.y_label}
        _tell_undefined(x, values, 4)
        return xr.DataArray(values, {"x": self._x(x)}, ("x",), name, attrs)


def _tell_undefined(x: np.ndarray, values: np.ndarray, level: int) -> None:
    if np.isnan(values).any():
        without = np.unique(x[np.isnan(values)])
        least, most = f"{without[0]:.4g}", f"{without[-1]:.4g}"
        warnings.warn(UNDEFINED.format(least if without.size == 1 else f"{least} to {most}"), stacklevel=level)


def _finite(values: Array, x: np.ndarray, name: str, given: Array) -> np.ndarray:
    """Finite numbers, one or one per position; `given` are the positions as they came."""
    found = as_floats(values, name, InvalidArgumentError, scalar=True)
    if found.size not in (1, x.size) or not np.all(np.isfinite(found)):
        raise InvalidArgumentError(f"{name} must be one finite number, or one per x_new ({x.size}), got {values!r}")
    if found.size > 1:
        require_aligned(given, values, ("x_new", name), InvalidArgumentError)
    return np.broadcast_to(found, x.shape)


def first_shown(fit: Fit, held_out: Array | None) -> float:
    """Where a picture of a forecast begins: at the first context x, or at held-out x before it, as far as the fit goes."""
    first = float(fit.curve.x[0])
    if held_out is None or not len(held_out):
        return first
    return min(first, max(float(np.min(held_out)), fit.defined_for[0], fit.trained_for[0]))

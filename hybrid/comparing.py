"""Do two engines say the same about one curve? `agreement` measures it, against stated thresholds."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.diagnostics.agreement import LEVELS, c2st, cdf_differences, wasserstein
from hybrid.models.distributions import unconstrained
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.prior import Prior
from hybrid.result import Fit

if TYPE_CHECKING:
    import pandas as pd

Array = Any
# The largest differences that count as agreement: of the cdfs five points of probability in the median over y and ten at any,
# of what central 90 % intervals hold five, and a classifier (after Lueckmann et al. 2021, Benchmarking simulation-based
# inference) that tells parameters apart with accuracy .65. All are our choice.
MAX_CDF = 0.05
MAX_ANYWHERE = 0.1
MAX_INSIDE = 0.05
MAX_C2ST = 0.65
INSIDE = 0.9
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 300.0)  # of the last context x, up to the horizon


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """How far the second of two fits of one curve is from the first. Made by `hybrid.agreement`.

    Attributes
    ----------
    first, second
        The fits.
    x
        Where forecasts are compared, shape (n,), in the user's units.
    """

    first: Fit
    second: Fit
    x: np.ndarray

    def __repr__(self) -> str:
        return self.verdict

    @functools.cached_property
    def table(self) -> "pd.DataFrame":
        """By x: `x_ratio` over the last context x; `cdf` and `cdf_max`, the median and the largest over y of the difference of
        the predictive cdfs (of Kolmogorov and Smirnov); `inside`, what the second says lies in the first's central 90 %;
        `wasserstein`, the mean difference of their quantiles in units of the first's sd; `median` and `width`, the second's
        median and 90 % width over the first's."""
        import pandas as pd

        one, other = self.first.predictive, self.second.predictive
        grid = np.concatenate([LEVELS, [0.05, 0.5, 0.95]])
        both = [p.quantile(self.x, grid) for p in (one, other)]
        quantiles = [q[: LEVELS.size] for q in both]
        (low, middle, high), (low_2, middle_2, high_2) = (q[LEVELS.size :] for q in both)
        sd = np.std(quantiles[0], axis=0)
        apart = cdf_differences(quantiles[0], LEVELS, lambda y: other.cdf(self.x, y))
        rows = {
            "x_ratio": self.x / self.first.curve.x[-1],
            "cdf": np.median(apart, axis=0),
            "cdf_max": np.max(apart, axis=0),
            "inside": other.cdf(self.x, high) - other.cdf(self.x, low),
            "wasserstein": wasserstein(quantiles[0], quantiles[1]) / np.where(sd > 0, sd, 1.0),
            "median": middle_2 / middle,
            "width": (high_2 - low_2) / (high - low),
        }
        return pd.DataFrame(rows, index=pd.Index(self.x, name=self.first.curve.x_label))

    @functools.cached_property
    def c2st(self) -> float:
        """Accuracy of a classifier that tells the two engines' parameters apart, .5 to 1; NaN where one gives none."""
        prior = self.first.prior
        if not isinstance(prior, Prior) or any(p.name not in fit.result.draws for p in prior.parameters for fit in self._fits):
            return float("nan")
        if min(next(iter(fit.result.draws.values())).size for fit in self._fits) < 100:
            return float("nan")
        sets = [
            {p.name: unconstrained(p.distribution, fit.result.draws[p.name]) for p in prior.parameters} for fit in self._fits
        ]
        return max(0.5, c2st(sets[0], sets[1]))  # below by chance, or where both hold the same draws

    @property
    def _fits(self) -> tuple[Fit, Fit]:
        return self.first, self.second

    @property
    def ok(self) -> bool:
        """Whether forecasts and parameters agree within the thresholds."""
        table = self.table[["cdf", "cdf_max", "inside"]]
        within = (table["cdf"] <= MAX_CDF) & (table["cdf_max"] <= MAX_ANYWHERE) & (self._off <= MAX_INSIDE)
        return bool(table.notna().all(axis=None)) and bool(within.all()) and not self.c2st > MAX_C2ST

    @property
    def _names(self) -> tuple[str, str]:
        """What to call the two: by their engines, or by what makes the forecasts, or by their order, whichever differs."""
        engines = [fit.engine for fit in self._fits]
        if engines[0] == engines[1]:
            made = [f"{fit.engine} {'by draws' if fit.by_draws else 'by its network'}" for fit in self._fits]
            engines = made if made[0] != made[1] else [f"the first {engines[0]}", f"the second {engines[0]}"]
        return engines[0], engines[1]

    @property
    def _off(self) -> "pd.Series":
        return (self.table["inside"] - INSIDE).abs()

    @property
    def verdict(self) -> str:
        """One line: agree or not, by how much, and what to do."""
        first, second = self._names
        cdf = self.table["cdf"]
        undefined = [f"{x:.4g}" for x in cdf.index[cdf.isna()]]
        parts = [f"there is no forecast to compare at x = {', '.join(undefined)}"] if undefined else []
        if len(undefined) < len(cdf):
            anywhere, inside = float(self.table["cdf_max"].max()), float(self.table["inside"][self._off.idxmax()])
            where = float(self.table["cdf_max"].idxmax())
            parts.append(
                f"predictive cdfs differ by {float(cdf.max()):.3f} in the median over y (at most {MAX_CDF}) and by "
                f"{anywhere:.3f} at any y (at most {MAX_ANYWHERE}) where they differ most, at x = {where:.4g}"
            )
            parts.append(
                f"{100 * INSIDE:.0f} % intervals of {first} hold {100 * inside:.1f} % by {second} "
                f"(within {100 * MAX_INSIDE:.0f} points)"
            )
        if not np.isnan(self.c2st):
            parts.append(f"a classifier tells the parameters apart with accuracy {self.c2st:.2f} (at most {MAX_C2ST})")
        names = f"{second} and {first}"
        if self.ok:
            return f"{names} agree: {', '.join(parts)}"
        exact = next((fit for fit in self._fits if fit.engine == "nuts"), None)
        if self.first.engine == self.second.engine == "nuts":
            unsure = any(fit.status != "ok" for fit in self._fits)
            remedy = "nuts needs review: see its reasons" if unsure else "chains of one of them missed something: draw more"
        elif exact is None:
            remedy = "fit with engine='nuts' to see which is right"
        elif exact.status == "ok":
            remedy = "the chains converged: trust nuts"
        else:
            remedy = "nuts needs review too: see its reasons"
        return f"{names} differ: {', '.join(parts)}; {remedy}"


def agreement(first: Fit, second: Fit, x: Array | None = None) -> Agreement:
    """Compare two fits of one curve under one prior.

    Parameters
    ----------
    first
        The reference, best the exact one.
    second
        The other.
    x
        Where to compare forecasts, once each; None takes 1, 1.5, 2, 3, 5, 10 ... times the last context x, and the horizon.

    Raises
    ------
    InvalidArgumentError
        If the fits are of different curves, priors, horizons or y scales, or x is not what `Fit.predict` takes.
    """
    for one in (first, second):
        if not isinstance(one, Fit):
            raise InvalidArgumentError(f"agreement is between two fits by hybrid.fit, got {type(one).__name__}")
    same = first.curve.has_points_of(second.curve)
    if not same or first.prior.fingerprint != second.prior.fingerprint:
        differ = f"these are under {first.prior.name!r} and {second.prior.name!r}" if same else "these are of different curves"
        raise InvalidArgumentError(
            f"agreement is between two fits of the same curve under the same prior, and {differ}: fit one of them again"
        )
    if (first.horizon, first.y_scale) != (second.horizon, second.y_scale):
        raise InvalidArgumentError("the two fits state different horizons or y scales: fit again with the same")
    if x is None:
        last = float(first.curve.x[-1])
        x = [last * step for step in STEPS if last * step < first.horizon * (1 - 1e-9)] + [first.horizon]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        places = np.unique(first.positions(x, "x"))
        second.positions(places, "x")
    for message in dict.fromkeys(str(warning.message) for warning in told):  # either may be a network
        warnings.warn(message, stacklevel=2)
    return Agreement(first, second, places)


def verdicts(fits: Sequence[Fit], x: Array | None = None) -> list[Agreement]:
    """The agreement of each fit that has uncertainty with the first such."""
    able = [fit for fit in fits if fit.engine != "least_squares"]
    return [agreement(able[0], other, x) for other in able[1:]]

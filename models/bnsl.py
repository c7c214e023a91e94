"""BNSL, the broken neural scaling law of Caballero et al. (2023, arXiv 2210.14891), with 1, 2 or 3 breaks."""

import math
from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta, anchor, power_factor
from hybrid.models.m1 import SIGMA, Y_FIRST
from hybrid.models.prior import Parameter, Prior

Array = Any
BEYOND = math.log(10.0)  # breaks may lie up to a decade beyond the last context x
GRID = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)  # where in the context a break's effect is looked at
VISIBLE = 0.02  # a bend of log y smaller than this counts as invisible
SHARPEST = 0.05  # smallest f: a break is spread over at least this many nats of x


class Bnsl(Law):
    """y = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i), evaluated in log space.

    log(y - a) = log b - c0 xi - sum_i c_i f_i softplus((xi - delta_i) / f_i) at xi = log x, delta_i = log d_i. The levels at
    both anchors are parameters and c0 follows from them. Breaks are ordered by construction: break_i is the share of
    what is left of [left anchor, a decade beyond the last context x] that lies before break i, and Beta(1, k - i + 1)
    shares make k breaks uniform and ordered.
    """

    formula = "y = a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i)"

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks
        self.name = "bnsl" if breaks == 1 else f"bnsl{breaks}"  # type: ignore[misc]
        self.nearly_linear = ("y_first", "y_ratio", *(f"slope_change_{i}" for i in range(1, breaks + 1)))

    def _breaks(self, xp: Any, theta: Theta, frame: Frame) -> list[tuple[Array, Array, Array]]:
        """(slope change, log position, sharpness) of each break."""
        position = xp.log(anchor(xp, frame))
        found = []
        for i in range(1, self.breaks + 1):
            position = position + theta[f"break_{i}"] * (BEYOND - position)
            found.append((theta[f"slope_change_{i}"], position, SHARPEST + theta[f"sharpness_{i}"]))
        return found

    def _levels(self, xp: Any, theta: Theta) -> tuple[Array, Array, Array]:
        """The asymptote a, and the excess over it at the left anchor and at the last context x."""
        first, last = theta["y_first"], theta["y_first"] * theta["y_ratio"]
        a = theta["floor"] * xp.minimum(first, last)
        return a, first - a, last - a

    def _bend(self, xp: Any, xi: Array, breaks: list[tuple[Array, Array, Array]]) -> Array:
        return sum(change * f * xp.softplus((xi - delta) / f) for change, delta, f in breaks)

    def _c0(self, xp: Any, theta: Theta, frame: Frame, breaks: list[tuple[Array, Array, Array]]) -> Array:
        left = xp.log(anchor(xp, frame))
        _, first, last = self._levels(xp, theta)
        bend = self._bend(xp, left, breaks) - self._bend(xp, xp.zeros_like(left), breaks)
        return (xp.log(first) - xp.log(last) + bend) / -left

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        breaks = self._breaks(xp, theta, frame)
        a, _, last = self._levels(xp, theta)
        xi = xp.log(x)
        bend = self._bend(xp, xi, breaks) - self._bend(xp, xp.zeros_like(xi), breaks)
        return a + last * xp.exp(-self._c0(xp, theta, frame, breaks) * xi - bend)

    def sampling_scales(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        """How far a unit slope change bends the context away from the straight line between the anchors.

        A break beyond the context leaves its slope change free, one inside pins it down: the scaled slope change has a
        similar spread in both.
        """
        left = xp.log(anchor(xp, frame))
        found = {}
        for i, (_, delta, f) in enumerate(self._breaks(xp, theta, frame), 1):
            ends = [f * xp.softplus((left - delta) / f), f * xp.softplus(-delta / f)]
            total = VISIBLE**2
            for share in GRID:
                inner = f * xp.softplus((share * left - delta) / f) - share * ends[0] - (1.0 - share) * ends[1]
                total = total + inner * inner / len(GRID)
            found[f"slope_change_{i}"] = xp.sqrt(total)
        return found

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        breaks = self._breaks(xp, theta, frame)
        a, _, last = self._levels(xp, theta)
        c0 = self._c0(xp, theta, frame, breaks)
        zero = xp.zeros_like(c0)
        b = last * xp.exp(self._bend(xp, zero, breaks)) * frame.y_scale * power_factor(xp, frame, c0)
        found = {"a": a * frame.y_scale, "b": b, "c0": c0}
        for i, (_, delta, f) in enumerate(breaks, 1):
            found[f"d{i}"] = xp.exp(delta) * frame.x_scale
            found[f"f{i}"] = f
        return found


def bnsl_prior(breaks: int) -> Prior:
    """The shipped BNSL prior with the given number of breaks."""
    law = Bnsl(breaks)
    parameters = [
        Y_FIRST,
        Parameter(
            "y_ratio",
            Distribution("LogNormal", loc=-0.7, scale=0.7),
            "level at the last context x over the level at the left anchor; above 1 the curve rises",
        ),
        Parameter("floor", Distribution("Uniform", low=0.0, high=1.0), "asymptote a over the lower of the two anchor levels"),
    ]
    for i in range(1, breaks + 1):
        parameters += [
            Parameter(
                f"break_{i}",
                Distribution("Beta", concentration1=1.0, concentration0=float(breaks - i + 1)),
                f"share of the remaining range of log x that lies before break {i}",
            ),
            Parameter(
                f"slope_change_{i}",
                Distribution("Normal", loc=0.0, scale=1.0),
                f"c_{i}, the change of log-log slope at break {i}",
            ),
            Parameter(
                f"sharpness_{i}",
                Distribution("LogNormal", loc=-1.0, scale=1.0),
                f"f_{i} - {SHARPEST}, the width of break {i} in nats of x",
            ),
        ]
    return Prior(law.name, law, (*parameters, SIGMA))


PRIOR = bnsl_prior(1)
PRIOR_2 = bnsl_prior(2)
PRIOR_3 = bnsl_prior(3)

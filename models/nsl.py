"""The NSL prior: what neural scaling curves do, as one explicit joint density.

A mixture of five families: Down, Down-Down (1 to 3 breaks), Down-Up-Down (double descent), Down-Up (turns up for good, as in
overfitting and in slices at constant compute) and Up (inverse scaling). The first three are those of NSL-PFN (Lee et al.
2025, arXiv 2505.23032), whose own form is `nsl_paper`; the segments are those of BNSL (Caballero et al. 2023, arXiv
2210.14891), power laws over a floor whose slopes change smoothly at breaks. With a slope of 0 beyond the break and f = 1 that
is M3 exactly, and a first segment that is nearly flat is a plateau at chance, or M4's saturation.

A sharp break inside a wide one can overshoot, so that a curve of several segments that all fall rises a little between.

Real curves keep to no formula. So two things are added:

- drift, a smooth deviation of log y from the families at all scales, from a bend of the whole curve to correlation between
  neighbouring points, w(xi) = drift sum_j omega_j^-drift_decay (a_j cos(omega_j xi) + b_j sin(omega_j xi)), xi = log x, at
  frequencies omega_j a factor 2 apart: its spectrum is a power law;
- noise of log y with outliers, whose size changes with the level: sigma f^noise_slope, the factor kept between exp(-5)
  and exp(5).

Versions: 1 (fingerprint 63a75a2b8d93d2e0 of its prior) is now `nsl_paper`; 2 is this one.
"""

import math
from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.drift import DRIFT, DRIFT_DECAY, WAVE_PARAMETERS, drift
from hybrid.models.law import Law, Theta, anchor, is_index
from hybrid.models.prior import Parameter, Prior

Array = Any
DOWN, DOWN_DOWN, DOWN_UP_DOWN, DOWN_UP, UP = range(5)
SEGMENTS = 4
BEYOND = math.log(10.0)  # breaks may lie up to a decade beyond the last context x
SHARPEST = 0.05  # smallest f: a break is spread over at least this many nats of x
HIGHEST = math.log(20.0)  # of the excess over its value at the left anchor, where a curve that rises ends


class Nsl(Law):
    """Mixture over Down, Down-Down, Down-Up-Down, Down-Up and Up; `family`, `extra_breaks` and `plateau` are discrete.

    The excess over the floor is exp(-g) of that at the left anchor, with g' the slope: the one that would let log y fall by
    `fall` over the context, times the factor of the segment, negative where a family rises. Where it rises it ends at 20 times
    its value at the left anchor.
    """

    name = "nsl"
    version = 2
    formula = "log y = log(a + b exp(-sum_i s_i f_i softplus((xi - d_i)/f_i))) + drift(xi)"
    classes = (
        {"family": DOWN, "breaks": 0},
        {"family": DOWN_DOWN, "breaks": 1},
        {"family": DOWN_DOWN, "breaks": 2},
        {"family": DOWN_DOWN, "breaks": 3},
        {"family": DOWN_UP_DOWN, "breaks": 2},
        {"family": DOWN_UP, "breaks": 1},
        {"family": DOWN_UP, "breaks": 2},
        {"family": UP, "breaks": 0},
        {"family": UP, "breaks": 1},
    )

    def break_count(self, xp: Any, theta: Theta) -> Array:
        """Number of breaks, 0 to 3, of the shape of the parameters."""
        extra = theta["extra_breaks"] + xp.zeros_like(theta["y_first"])  # torch would make an integer + 1.0 single precision
        family, one = theta["family"], xp.ones_like(extra)
        count = xp.where(is_index(xp, family, DOWN_DOWN), extra + one, xp.zeros_like(extra))
        count = xp.where(is_index(xp, family, DOWN_UP_DOWN), one + one, count)
        count = xp.where(is_index(xp, family, DOWN_UP), xp.where(extra > 1.5, one + one, one), count)
        return xp.where(is_index(xp, family, UP) & (extra > 0.5), one, count)

    def class_of(self, xp: Any, theta: Theta) -> Array:
        count, family = self.break_count(xp, theta), theta["family"]
        found = xp.where(is_index(xp, family, DOWN_UP_DOWN), xp.full_like(count, 4.0), count)
        found = xp.where(is_index(xp, family, DOWN_UP), count + 4.0, found)
        return xp.where(is_index(xp, family, UP), count + 7.0, found)

    def breaks(self, xp: Any, theta: Theta, frame: Frame) -> list[Array]:
        """Positions of breaks 1 to 3 as log(x / last context x): uniform order statistics; the first `break_count` count."""
        count, left = self.break_count(xp, theta), xp.log(anchor(xp, frame))
        gaps = [theta[f"gap_{k}"] for k in range(1, SEGMENTS + 1)]
        total, reached, found = gaps[SEGMENTS - 1], xp.zeros_like(gaps[0]), []
        for k in range(SEGMENTS - 1):
            total = total + xp.where(k < count - 0.5, gaps[k], xp.zeros_like(gaps[k]))
        for k in range(SEGMENTS - 1):
            reached = reached + gaps[k]
            found.append(left + (BEYOND - left) * reached / total)
        return found

    def slopes(self, xp: Any, theta: Theta, frame: Frame) -> list[Array]:
        """Slopes of -log(y - a) in log x of segments 1 to 4, positive where the curve falls."""
        count, family = self.break_count(xp, theta), theta["family"]
        floor, fall = theta["floor"], theta["fall"]
        # An excess that falls by this much lowers log y by `fall`.
        steep = (fall + xp.log1p(-floor * xp.exp(-fall)) - xp.log1p(-floor)) / -xp.log(anchor(xp, frame))
        plateau = is_index(xp, family, DOWN_DOWN) & (theta["plateau"] > 0.5)
        found = []
        for k in range(SEGMENTS):
            slope = steep * theta[f"factor_{k + 1}"]
            slope = xp.where(plateau, theta["flatness" if k == 0 else "surge"] * slope, slope)
            rises = is_index(xp, family, UP) | (is_index(xp, family, DOWN_UP) & is_index(xp, count, k))
            if k == 1:
                rises = rises | is_index(xp, family, DOWN_UP_DOWN)
            found.append(xp.where(rises, -theta["rise"] * slope, slope))
        return found

    def drift(self, xp: Any, xi: Array, theta: Theta) -> Array:
        """The deviation of log y from the families."""
        return drift(xp, xi, theta, theta["drift_pitch"])

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        count, left = self.break_count(xp, theta), xp.log(anchor(xp, frame))
        slopes, positions, xi = self.slopes(xp, theta, frame), self.breaks(xp, theta, frame), xp.log(x)
        bends = []
        for k in range(SEGMENTS - 1):
            change = xp.where(k < count - 0.5, slopes[k + 1] - slopes[k], xp.zeros_like(slopes[k]))
            bends.append((change, positions[k], SHARPEST + theta[f"sharpness_{k + 1}"]))

        def excess(at: Array) -> Array:
            """log of the excess over the floor, relative to its value at the left anchor."""
            found = -slopes[0] * (at - left)
            for change, delta, f in bends:
                found = found - change * f * (xp.softplus((at - delta) / f) - xp.softplus((left - delta) / f))
            return xp.minimum(found, xp.full_like(found, HIGHEST))

        low = theta["floor"] * xp.exp(-theta["fall"])
        return theta["y_first"] * (low + (1.0 - low) * xp.exp(excess(xi))) * xp.exp(self.drift(xp, xi, theta))


PRIOR = Prior(
    "nsl",
    Nsl(),
    [
        Parameter(
            "family",
            Distribution("Categorical", probs=(0.22, 0.45, 0.12, 0.12, 0.09)),
            "0 Down, 1 Down-Down, 2 Down-Up-Down, 3 Down-Up, 4 Up",
        ),
        Parameter(
            "extra_breaks",
            Distribution("Categorical", probs=(0.45, 0.35, 0.2)),
            "breaks of Down-Down, less one; 2 gives Down-Up, and 1 or 2 Up, a further break",
        ),
        Parameter("plateau", Distribution("Categorical", probs=(0.55, 0.45)), "1: Down-Down begins with a plateau"),
        Parameter(
            "flatness", Distribution("LogNormal", loc=-3.0, scale=1.5), "slope of a plateau over what it would be without one"
        ),
        Parameter("surge", Distribution("LogNormal", loc=0.7, scale=0.7), "slopes after a plateau over what they would be"),
        Parameter(
            "y_first",
            Distribution("LogNormal", loc=0.0, scale=0.3),
            "noise-free level at the left anchor, in units of the y scale, without drift",
        ),
        Parameter(
            "floor",
            Distribution("Uniform", low=0.0, high=1.0),
            "asymptote a over the level at the last context x at factors of 1",
        ),
        Parameter(
            "fall",
            Distribution("LogNormal", loc=-1.0, scale=1.0),
            "by how much log y would fall over the context at factors of 1",
        ),
        Parameter("rise", Distribution("LogNormal", loc=-0.7, scale=0.7), "slope of what rises over what it would fall with"),
        *(
            Parameter(f"factor_{k}", Distribution("LogNormal", loc=0.0, scale=1.0), f"relative slope of segment {k}")
            for k in range(1, SEGMENTS + 1)
        ),
        *(
            Parameter(f"gap_{k}", Distribution("Exponential", rate=1.0), f"relative gap {k} between breaks, in log x")
            for k in range(1, SEGMENTS + 1)
        ),
        *(
            Parameter(
                f"sharpness_{k}",
                Distribution("LogNormal", loc=-1.0, scale=1.0),
                f"f_{k} - {SHARPEST}, the width of break {k} in nats of x",
            )
            for k in range(1, SEGMENTS)
        ),
        DRIFT,
        DRIFT_DECAY,
        Parameter("drift_pitch", Distribution("Uniform", low=0.7, high=1.4), "factor of all frequencies of the drift"),
        *WAVE_PARAMETERS,
        Parameter("sigma", Distribution("LogNormal", loc=-5.5, scale=1.4), "sd of the noise of log y at a level of 1"),
        Parameter(
            "noise_slope",
            Distribution("Normal", loc=0.0, scale=1.0),
            "power of the level with which the noise of log y changes",
        ),
        Parameter("outliers", Distribution("Beta", concentration1=1.0, concentration0=30.0), "share of outliers"),
    ],
    noise="contaminated_lognormal",
)

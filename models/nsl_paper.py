"""The families of NSL-PFN (Lee et al. 2025, arXiv 2505.23032) as one explicit joint density; `nsl` departs from it further.

Down (one M3 or M4 curve), Down-Down (1 to 3 breaks, every segment its own M3 or M4 curve) and Down-Up-Down (a rise shaped
like a Beta cdf between two falls). Hyperparameters are the paper's. What departs from the released sampler, which is `nslpfn`:

- nothing is rejected: positivity holds by construction, because a segment is scaled, not shifted, to join the one before
  it, and the noise is a normal truncated to y > 0 point by point;
- break positions do not depend on where the context ends: they are uniform order statistics of log x;
- the Beta cdf runs over the whole of its segment;
- the rise saturates below the starting level, 1 - exp(-slope width / room) of the room there is, instead of redrawing;
- M4 is solved to double precision instead of on a grid of 1000 points.
"""

import math
from typing import Any

from hybrid.models.coordinates import Frame, Unit
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta, is_index
from hybrid.models.m4 import solve_logit
from hybrid.models.prior import Parameter, Prior

Array = Any
SEGMENTS = 4
LEFT = Unit.low
DOWN, DOWN_DOWN, DOWN_UP_DOWN = 0, 1, 2
_SHAPE = ("kind", "m3_c", "m3_gamma", "m4_alpha", "m4_beta", "m4_c", "end")


def _fall(xp: Any, x: Array, p: dict[str, Array]) -> Array:
    """A falling curve that is 1 at x = .01 and p["end"] at x = 1, shaped like M3 or M4."""
    left, right = xp.full_like(x, LEFT), xp.ones_like(x)

    def m3(at: Array) -> Array:
        return xp.exp(p["m3_c"] * (xp.log(1.0 / at + p["m3_gamma"]) - xp.log(1.0 / left + p["m3_gamma"])))

    def m4(at: Array) -> Array:
        return xp.expit(solve_logit(xp, p["m4_alpha"], xp.log(p["m4_beta"]) - p["m4_c"] * xp.log(at)))

    def shape(at: Array) -> Array:
        return xp.where(is_index(xp, p["kind"], 0), m3(at), m4(at))

    low, high = shape(right), shape(left)
    return p["end"] + (1.0 - p["end"]) * (shape(x) - low) / xp.maximum(high - low, xp.full_like(high, 1e-12))


class NslPaper(Law):
    """Mixture over Down, Down-Down and Down-Up-Down; `family` and `extra_breaks` are discrete."""

    name = "nsl_paper"
    formula = "piecewise M3 or M4 curves, joined continuously, with an optional rise shaped like a Beta cdf"
    classes = (
        {"family": DOWN, "breaks": 0},
        {"family": DOWN_DOWN, "breaks": 1},
        {"family": DOWN_DOWN, "breaks": 2},
        {"family": DOWN_DOWN, "breaks": 3},
        {"family": DOWN_UP_DOWN, "breaks": 2},
    )

    def _segment(self, xp: Any, theta: Theta, index: Array) -> dict[str, Array]:
        """The shape parameters of the segment with the given number, 0 to 3, per point."""
        found = {}
        for name in _SHAPE:
            value = theta[f"{name}_1"] + xp.zeros_like(index)
            for k in range(1, SEGMENTS):
                value = xp.where(is_index(xp, index, k), theta[f"{name}_{k + 1}"] + xp.zeros_like(index), value)
            found[name] = value
        return found

    def _breaks(self, xp: Any, theta: Theta, count: Array) -> list[Array]:
        """Positions of breaks 1 to 3: uniform order statistics of log x on [log .01, 0]; those beyond `count` lie at 1."""
        gaps = [theta[f"gap_{k}"] for k in range(1, SEGMENTS + 1)]
        total = gaps[SEGMENTS - 1]
        for k in range(SEGMENTS - 1):
            total = total + xp.where(k < count - 0.5, gaps[k], xp.zeros_like(gaps[k]))
        positions, reached = [], xp.zeros_like(total)
        for k in range(SEGMENTS - 1):
            reached = reached + gaps[k]
            inside = xp.exp(math.log(LEFT) * (1.0 - xp.clip(reached / total, 0.0, 1.0)))
            positions.append(xp.where(k < count - 0.5, inside, xp.ones_like(inside)))
        return positions

    def break_count(self, xp: Any, theta: Theta) -> Array:
        """Number of breaks, 0 to 3, of the shape of the parameters."""
        extra = theta["extra_breaks"] + xp.ones_like(theta["y_start"])  # torch would make an integer + 1.0 single precision
        count = xp.where(is_index(xp, theta["family"], DOWN_DOWN), extra, xp.zeros_like(extra))
        return xp.where(is_index(xp, theta["family"], DOWN_UP_DOWN), xp.full_like(count, 2.0), count)

    def class_of(self, xp: Any, theta: Theta) -> Array:
        count = self.break_count(xp, theta)
        return xp.where(is_index(xp, theta["family"], DOWN_UP_DOWN), xp.full_like(count, 4.0), count)

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        del frame
        count = self.break_count(xp, theta)
        rising = is_index(xp, theta["family"], DOWN_UP_DOWN)
        starts = [xp.full_like(count, LEFT), *self._breaks(xp, theta, count)]
        ends = [*starts[1:], xp.ones_like(count)]

        zero = xp.zeros_like(x)
        level = theta["y_start"] + zero  # noise-free level where the segment at hand begins
        index, begin, begin_level = zero, starts[0] + zero, level
        up, up_share = xp.zeros_like(x) > 1, zero
        for k in range(SEGMENTS):
            here = (x >= starts[k]) & (k < count + 0.5)
            index = xp.where(here, zero + k, index)
            begin = xp.where(here, starts[k] + zero, begin)
            begin_level = xp.where(here, level, begin_level)
            if k == SEGMENTS - 1:
                break
            p = self._segment(xp, theta, xp.full_like(count, float(k)))
            fall = _fall(xp, ends[k] + 0.0 * count, p) / _fall(xp, starts[k] + 0.0 * count, p)
            after = level * fall
            if k == 1:
                width = ends[1] - starts[1]
                room = xp.maximum(theta["y_start"] - level, 1e-6 * level)
                rise = room * -xp.expm1(-theta["rise_slope"] * width / room)
                share = xp.clip((x - starts[1]) / xp.maximum(width, 1e-9 + 0.0 * width), 0.0, 1.0)
                up_share = rise * xp.betainc_symmetric(theta["rise_b"] + zero, share) ** theta["rise_power"]
                up = here & rising
                after = xp.where(rising, level + rise, after)
            level = after
        p = self._segment(xp, theta, index)
        falling = begin_level * _fall(xp, x, p) / _fall(xp, begin, p)
        up = up & (index < 1.5)
        return xp.where(up, begin_level + up_share, falling)


def _segment_parameters(k: int) -> list[Parameter]:
    part = f"segment {k}"
    return [
        Parameter(f"kind_{k}", Distribution("Categorical", probs=(0.5, 0.5)), f"law of {part}: 0 M3, 1 M4"),
        Parameter(f"m3_c_{k}", Distribution("LogNormal", loc=-2.0, scale=1.0), f"M3 exponent of {part}"),
        Parameter(f"m3_gamma_{k}", Distribution("LogNormal", loc=0.0, scale=1.0), f"M3 gamma of {part}"),
        Parameter(f"m4_alpha_{k}", Distribution("LogNormal", loc=0.0, scale=0.5), f"M4 alpha of {part}"),
        Parameter(f"m4_beta_{k}", Distribution("LogNormal", loc=-1.0, scale=0.5), f"M4 beta of {part}"),
        Parameter(f"m4_c_{k}", Distribution("LogNormal", loc=0.0, scale=0.5), f"M4 exponent of {part}"),
        Parameter(
            f"end_{k}", Distribution("Uniform", low=0.0, high=1.0), f"level at the horizon over that at the start, {part} alone"
        ),
    ]


PRIOR = Prior(
    "nsl_paper",
    NslPaper(),
    [
        Parameter("family", Distribution("Categorical", probs=(0.7, 0.2, 0.1)), "0 Down, 1 Down-Down, 2 Down-Up-Down"),
        Parameter("extra_breaks", Distribution("Categorical", probs=(0.4, 0.4, 0.2)), "breaks of Down-Down, less one"),
        Parameter("y_start", Distribution("Uniform", low=0.2, high=1.2), "level at the first context x"),
        *(
            Parameter(f"gap_{k}", Distribution("Exponential", rate=1.0), f"relative gap {k} between breaks, in log x")
            for k in range(1, SEGMENTS + 1)
        ),
        *(p for k in range(1, SEGMENTS + 1) for p in _segment_parameters(k)),
        Parameter("rise_slope", Distribution("Uniform", low=0.01, high=0.7), "mean slope of the rise"),
        Parameter("rise_b", Distribution("Uniform", low=1.65, high=2.72), "both parameters of the rise's Beta cdf"),
        Parameter("rise_power", Distribution("LogNormal", loc=0.0, scale=0.1), "power of the rise's Beta cdf"),
        Parameter("sigma", Distribution("LogNormal", loc=-4.0, scale=1.0), "standard deviation of the noise"),
    ],
    noise="truncated_normal",
    coordinates="unit",
)

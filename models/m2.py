"""M2, the power law with an asymptote: y = epsilon_inf + beta x^-c."""

from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta, anchor, power_factor
from hybrid.models.m1 import SIGMA, Y_FIRST, Y_RATIO
from hybrid.models.prior import Parameter, Prior

Array = Any

FLOOR = Parameter(
    "floor", Distribution("Uniform", low=0.0, high=1.0), "asymptote epsilon_inf over the level at the last context x"
)


def log_excess_ratio(xp: Any, theta: Theta) -> Array:
    """log of (y_first - epsilon_inf) / (y_last - epsilon_inf), from y_ratio = y_last / y_first and floor."""
    ratio, floor = theta["y_ratio"], theta["floor"]
    return xp.log1p(-ratio * floor) - xp.log(ratio) - xp.log1p(-floor)


class M2(Law):
    """y = epsilon_inf + beta x^-c with 0 < epsilon_inf < y_last; c follows from the levels and the asymptote."""

    name = "m2"
    formula = "y = epsilon_inf + beta x^-c"

    def _c(self, xp: Any, theta: Theta, frame: Frame) -> Array:
        return log_excess_ratio(xp, theta) / -xp.log(anchor(xp, frame))

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        last = theta["y_first"] * theta["y_ratio"]
        power = xp.exp(-self._c(xp, theta, frame) * xp.log(x))
        return last * (theta["floor"] + (1.0 - theta["floor"]) * power)

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        c = self._c(xp, theta, frame)
        last = theta["y_first"] * theta["y_ratio"] * frame.y_scale
        beta = last * (1.0 - theta["floor"]) * power_factor(xp, frame, c)
        return {"epsilon_inf": last * theta["floor"], "beta": beta, "c": c}


PRIOR = Prior("m2", M2(), (Y_FIRST, Y_RATIO, FLOOR, SIGMA))

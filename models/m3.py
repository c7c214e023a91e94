"""M3, the shifted power law: y = beta (1/x + gamma)^c."""

from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta, anchor, power_factor
from hybrid.models.m1 import SIGMA, Y_FIRST, Y_RATIO
from hybrid.models.prior import Parameter, Prior

Array = Any


class M3(Law):
    """y = beta (1/x + gamma)^c: a power law that levels off near x = 1/gamma; c follows from the levels and gamma."""

    name = "m3"
    formula = "y = beta (1/x + gamma)^c"

    def _c(self, xp: Any, theta: Theta, frame: Frame) -> Array:
        gamma = theta["gamma"]
        span = xp.log(1.0 / anchor(xp, frame) + gamma) - xp.log1p(gamma)
        return -xp.log(theta["y_ratio"]) / span

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        gamma = theta["gamma"]
        rise = self._c(xp, theta, frame) * (xp.log(1.0 / x + gamma) - xp.log1p(gamma))
        return theta["y_first"] * theta["y_ratio"] * xp.exp(rise)

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        c = self._c(xp, theta, frame)
        last = theta["y_first"] * theta["y_ratio"] * frame.y_scale
        beta = last * xp.exp(-c * xp.log1p(theta["gamma"])) * power_factor(xp, frame, c)
        return {"beta": beta, "gamma_x": theta["gamma"] / frame.x_scale, "c": c}


GAMMA = Parameter(
    "gamma", Distribution("LogNormal", loc=-1.0, scale=1.5), "last context x over the x at which the curve levels off"
)
PRIOR = Prior("m3", M3(), (Y_FIRST, Y_RATIO, GAMMA, SIGMA))

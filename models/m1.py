"""M1, the power law: y = beta x^-c."""

from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta, anchor, power_factor
from hybrid.models.prior import Parameter, Prior

Array = Any

# The levels at the two anchors and the noise mean the same in every law, and so have the same prior in each.
Y_FIRST = Parameter(
    "y_first", Distribution("LogNormal", loc=0.0, scale=0.5), "noise-free level at the left anchor, in units of the y scale"
)
Y_RATIO = Parameter(
    "y_ratio", Distribution("Uniform", low=0.0, high=1.0), "level at the last context x over the level at the left anchor"
)
SIGMA = Parameter("sigma", Distribution("LogNormal", loc=-4.5, scale=1.5), "standard deviation of the noise of log y")


class M1(Law):
    """y = beta x^-c, with c set by the levels at the two anchors."""

    name = "m1"
    formula = "y = beta x^-c"

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        slope = xp.log(theta["y_ratio"]) / -xp.log(anchor(xp, frame))
        return theta["y_first"] * theta["y_ratio"] * xp.exp(slope * xp.log(x))

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        c = xp.log(theta["y_ratio"]) / xp.log(anchor(xp, frame))
        level = theta["y_first"] * theta["y_ratio"] * frame.y_scale
        return {"beta": level * power_factor(xp, frame, c), "c": c}


PRIOR = Prior("m1", M1(), (Y_FIRST, Y_RATIO, SIGMA))

"""M4 of Alabdulmohsin, Neyshabur and Zhai (2022, arXiv 2209.06640): (y - eps_inf) / (eps_0 - y)^alpha = beta x^-c."""

from types import MappingProxyType
from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta, anchor, power_factor
from hybrid.models.m1 import SIGMA, Y_FIRST, Y_RATIO
from hybrid.models.m2 import FLOOR, log_excess_ratio
from hybrid.models.prior import Parameter, Prior

Array = Any
STEPS = 2
CORNER = 0.3  # of the hyperbola that stands in for softplus at first: its squared width


def _logit_terms(xp: Any, u: Array) -> tuple[Array, Array]:
    """softplus(u) and expit(u): from one exponential where they are compiled, from two fast operations in torch."""
    if xp.name == "torch":
        return xp.softplus(u), xp.expit(u)
    small = xp.exp(-xp.abs(u))
    one = xp.ones_like(small)
    return xp.maximum(u, xp.zeros_like(u)) + xp.log1p(small), xp.where(u >= 0, one, small) / (one + small)


def solve_logit(xp: Any, alpha: Array, log_f: Array, steps: int = STEPS) -> Array:
    """Solve log(w / (1 - w)^alpha) = log_f for u = logit(w).

    The left side, alpha softplus(u) - softplus(-u), increases in u with slope alpha w + 1 - w between 1 and alpha. With the
    hyperbola (u + sqrt(u^2 + .3)) / 2 in place of softplus the equation is quadratic, and its root the start. Householder's
    method of third order converges quartically from there: after two steps and the last one of Newton the residual is below
    1e-12 of 1 + abs(log_f) for alpha in [.002, 400]. The solve itself carries no gradient; the last Newton step does, which
    gives the exact implicit derivatives in any autodiff.

    Parameters
    ----------
    xp
        Array namespace.
    alpha
        Exponent > 0, broadcasts against log_f.
    log_f
        Logarithm of the right-hand side, any real number.
    steps
        Number of Householder steps.

    Returns
    -------
    logit of w, of the broadcast shape.
    """
    a, target = xp.stop_gradient(alpha), xp.stop_gradient(log_f)
    more = a - 1.0
    u = (target * (a + 1.0) - more * xp.sqrt(target * target + CORNER * a)) / (2.0 * a)
    for _ in range(steps):
        softplus, w = _logit_terms(xp, u)
        part = more * w
        slope = part + 1.0
        step = (more * softplus + u - target) / slope
        bend = step * part * (1.0 - w) / slope
        u = u - step * (1.0 - 0.5 * bend) / (1.0 - bend + step * bend * (1.0 - 2.0 * w) / 6.0)
    softplus, w = _logit_terms(xp, u)
    return u - ((alpha - 1.0) * softplus + u - log_f) / (more * w + 1.0)


class M4(Law):
    """M4 with levels stated at two anchors, so that every parameter is free of constraints on the others.

    With w = (y - eps_inf) / (eps_0 - eps_inf) the law reads w / (1 - w)^alpha = f(x), f a power of x. The levels at the anchors
    and floor = eps_inf / y_last fix the ratio of w between the anchors; `saturation` = w at the left anchor then fixes eps_0,
    and c follows. saturation -> 0 is M2.
    """

    name = "m4"
    formula = "(y - epsilon_inf) / (epsilon_0 - y)^alpha = beta x^-c"
    nearly_linear = ("y_first", "y_ratio")
    computable = MappingProxyType({"alpha": (0.02, 50.0)})  # beyond, the upper plateau is a corner or hardly bends

    def _shape(self, xp: Any, theta: Theta, frame: Frame) -> tuple[Array, Array, Array]:
        """log w at the last context x, log f there, and c."""
        log_ratio = log_excess_ratio(xp, theta)
        log_w_first = xp.log(theta["saturation"])
        log_w_last = log_w_first - log_ratio
        log_v_first = xp.log1p(-theta["saturation"])
        log_v_last = xp.log1p(-xp.exp(log_w_last))
        c = (log_ratio + theta["alpha"] * (log_v_last - log_v_first)) / -xp.log(anchor(xp, frame))
        return log_w_last, log_w_last - theta["alpha"] * log_v_last, c

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        log_w_last, log_f_last, c = self._shape(xp, theta, frame)
        u = solve_logit(xp, theta["alpha"], log_f_last - c * xp.log(x))
        excess = xp.expit(u) * xp.exp(-log_w_last)
        return theta["y_first"] * theta["y_ratio"] * (theta["floor"] + (1.0 - theta["floor"]) * excess)

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        log_w_last, log_f_last, c = self._shape(xp, theta, frame)
        last = theta["y_first"] * theta["y_ratio"] * frame.y_scale
        epsilon_inf = last * theta["floor"]
        spread = last * (1.0 - theta["floor"]) * xp.exp(-log_w_last)
        log_beta = log_f_last + (1.0 - theta["alpha"]) * xp.log(spread)
        return {
            "epsilon_inf": epsilon_inf,
            "epsilon_0": epsilon_inf + spread,
            "beta": xp.exp(log_beta) * power_factor(xp, frame, c),
            "c": c,
        }


PRIOR = Prior(
    "m4",
    M4(),
    (
        Y_FIRST,
        Y_RATIO,
        FLOOR,
        Parameter(
            "saturation",
            Distribution("Uniform", low=0.0, high=1.0),
            "how near the start is to the upper plateau: (y_first - epsilon_inf) / (epsilon_0 - epsilon_inf)",
        ),
        Parameter("alpha", Distribution("LogNormal", loc=-1.0, scale=1.3), "sharpness of the upper plateau"),
        SIGMA,
    ),
)

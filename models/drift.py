"""Drift: a smooth deviation of the curve from a law, which keeps exact inference honest where the law is only nearly right.

    log y = log f(x) + w(log x) + noise,
    w(xi) = drift sum_j omega_j^-drift_decay (a_j cos(omega_j xi) + b_j sin(omega_j xi)),

with a_j and b_j standard normal, at frequencies omega_j a factor 2 apart: a Gaussian process whose spectrum is a power law,
from a bend of the whole curve to correlation between neighbouring points. It is the discrepancy of Kennedy and O'Hagan (2001,
JRSS B 63, 425-464). Without it the posterior of a wrong law grows as narrow with the number of points as that of a right one.

log y is linear in the waves a_j and b_j. With lognormal noise the exact engine integrates over them in closed form, and draws
them afterwards given all else (see `hybrid.models.unconstrained`).
"""

import math
from collections.abc import Mapping
from typing import Any

from hybrid.models.bnsl import PRIOR as BNSL
from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.law import Law, Theta
from hybrid.models.m4 import PRIOR as M4
from hybrid.models.prior import Parameter, Prior

Array = Any
WAVES = 7
LOWEST_WAVE = 0.5  # radians per nat of x
NAMES = tuple(f"drift_{part}{k}" for k in range(1, WAVES + 1) for part in "ab")
WAVE_PARAMETERS = tuple(
    Parameter(name, Distribution("Normal", loc=0.0, scale=1.0), f"wave {name[7:]} of the drift") for name in NAMES
)
DRIFT = Parameter("drift", Distribution("LogNormal", loc=-5.0, scale=1.4), "size of the drift of log y, at 1 radian per nat")
DRIFT_DECAY = Parameter(
    "drift_decay", Distribution("Uniform", low=0.0, high=1.5), "how much smaller fast drift is than slow drift"
)


def drift(xp: Any, xi: Array, theta: Theta, pitch: Array) -> Array:
    """w at xi = log(x / last context x), with all frequencies times the pitch."""
    total = xp.zeros_like(xi)
    for k in range(WAVES):
        omega = pitch * LOWEST_WAVE * 2.0**k
        size = xp.exp(-theta["drift_decay"] * xp.log(omega))
        phase = omega * xi
        total = total + size * (theta[f"drift_a{k + 1}"] * xp.cos(phase) + theta[f"drift_b{k + 1}"] * xp.sin(phase))
    return theta["drift"] * total


class Drifting(Law):
    """A law with drift.

    Parameters
    ----------
    law
        The law; its curve must be positive.
    """

    linear = NAMES

    def __init__(self, law: Law) -> None:
        self.law = law
        self.name = f"{law.name}_drift"  # type: ignore[misc]
        self.formula = f"{law.formula}, times exp(drift(log x))"  # type: ignore[misc]
        self.version = law.version  # type: ignore[misc]
        self.nearly_linear = (*law.nearly_linear, *NAMES)
        self.constrained = law.constrained  # type: ignore[misc]

    @property
    def computable(self) -> Mapping[str, tuple[float, float]]:  # type: ignore[override]
        return self.law.computable

    @property
    def is_own(self) -> bool:
        return self.law.is_own

    @property
    def attributes(self) -> dict[str, Any]:
        return self.law.attributes

    def admits(self, xp: Any, theta: Theta) -> Array:
        return self.law.admits(xp, theta)

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        return self.centre(xp, x, theta, frame) * xp.exp(drift(xp, xp.log(x), theta, xp.ones_like(theta["drift"])))

    def centre(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        return self.law.mean(xp, x, theta, frame)

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        return self.law.derived(xp, theta, frame)

    def sampling_scales(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        return self.law.sampling_scales(xp, theta, frame)

    def basis(self, xp: Any, x: Array) -> Array:
        xi = xp.log(x)
        phases = [LOWEST_WAVE * 2.0**k * xi for k in range(WAVES)]
        return xp.stack([wave(phase) for phase in phases for wave in (xp.cos, xp.sin)], -1)

    def basis_scales(self, xp: Any, theta: Theta) -> Array:
        logs = [math.log(LOWEST_WAVE * 2.0**k) for k in range(WAVES)]
        return xp.stack([theta["drift"] * xp.exp(-theta["drift_decay"] * log) for log in logs for _ in "ab"], -1)


def with_drift(prior: Prior) -> Prior:
    """The prior of a law with drift, from that of the law; the noise must be of log y.

    Parameters
    ----------
    prior
        A prior whose noise is "lognormal", in coordinates "ratio".

    Raises
    ------
    InvalidArgumentError
        If it is another.
    """
    if prior.noise.name != "lognormal" or prior.coordinates != "ratio":
        raise InvalidArgumentError(
            f"drift is of log y along log x: it needs lognormal noise and ratio coordinates, and prior {prior.name!r} has "
            f"{prior.noise.name} noise and {prior.coordinates} coordinates"
        )
    own = [p for p in prior.parameters if p.name != "sigma"]
    sigma = [p for p in prior.parameters if p.name == "sigma"]
    parameters = (*own, DRIFT, DRIFT_DECAY, *WAVE_PARAMETERS, *sigma)
    return Prior(f"{prior.name}_drift", Drifting(prior.law), parameters, prior.noise.name, prior.coordinates)


PRIORS = (with_drift(M4), with_drift(BNSL))

"""The prior of LC-PFN (Adriaensen et al., NeurIPS 2023, arXiv 2310.20447), the published baseline.

Accuracy is a weighted sum of three growth curves over epochs t = 1, ..., 100, here y = 1 - accuracy and t = 100 x in unit
coordinates (x = 1 is the horizon):

    accuracy = w_1 (c_1 - a_1 t^-alpha) + w_2 (c_2 - a_2 / log(t + 1)) + w_3 (a_3 - (a_3 - b_3) exp(-k t^delta)),

pow3, ilog2 and Janoschek, with the hyperparameters of the released code. A curve is admitted only if its accuracy lies
between 0 and 1 at all t = 1, ..., 100 and is higher at the end than at the beginning: a condition on the noise-free curve,
whatever is observed, so the prior is coherent. Its noise, normal in the release, is truncated to y > 0 point by point.
"""

from typing import Any

from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law, Theta
from hybrid.models.prior import Parameter, Prior, expand

Array = Any
EPOCHS = 100
LEAST = 1e-6  # of y, between two epochs


class LcPfn(Law):
    """Weighted sum of pow3, ilog2 and Janoschek, admitted where it is an accuracy that grows."""

    name = "lcpfn"
    formula = "y = 1 - (w1 pow3(t) + w2 ilog2(t) + w3 janoschek(t)), t = 100 x"
    constrained = True

    def _accuracy(self, xp: Any, t: Array, theta: Theta) -> Array:
        log_t = xp.log(t)
        pow3 = theta["pow3_c"] - theta["pow3_a"] * xp.exp(-theta["pow3_alpha"] * log_t)
        ilog2 = theta["ilog2_c"] - theta["ilog2_a"] / xp.log1p(t)
        decay = xp.exp(-theta["janoschek_k"] * xp.exp(theta["janoschek_delta"] * log_t))
        janoschek = theta["janoschek_a"] - (theta["janoschek_a"] - theta["janoschek_b"]) * decay
        return theta["weight_1"] * pow3 + theta["weight_2"] * ilog2 + theta["weight_3"] * janoschek

    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        del frame
        y = 1.0 - self._accuracy(xp, EPOCHS * x, theta)
        return xp.maximum(y, xp.full_like(y, LEAST))

    def admits(self, xp: Any, theta: Theta) -> Array:
        some = theta["weight_1"][..., None]
        t = xp.cumulative_sum(xp.ones_like(some + xp.zeros((EPOCHS,), dtype=some.dtype)), axis=-1)
        found = self._accuracy(xp, t, expand(theta))
        inside = xp.all((found > 0.0) & (found < 1.0), axis=-1)
        return inside & (found[..., -1] > found[..., 0])


def _uniform(name: str, low: float, high: float, meaning: str) -> Parameter:
    return Parameter(name, Distribution("Uniform", low=low, high=high), meaning)


def _lognormal(name: str, loc: float, scale: float, meaning: str) -> Parameter:
    return Parameter(name, Distribution("LogNormal", loc=loc, scale=scale), meaning)


PRIOR = Prior(
    "lcpfn",
    LcPfn(),
    [
        *(_uniform(f"weight_{k}", 0.0, 1.0, f"weight of curve {k}") for k in (1, 2, 3)),
        _uniform("pow3_a", -0.6, 0.6, "how far pow3 is from its limit at t = 1"),
        _uniform("pow3_c", 0.0, 1.25, "limit of pow3"),
        _lognormal("pow3_alpha", 0.0, 2.0, "exponent of pow3"),
        _uniform("ilog2_c", 0.0, 1.0, "limit of ilog2"),
        _uniform("ilog2_a", -0.5, 0.5, "size of ilog2"),
        _uniform("janoschek_a", 0.0, 1.0, "limit of Janoschek"),
        _uniform("janoschek_b", 0.0, 2.0, "Janoschek at t = 0"),
        _lognormal("janoschek_k", -2.0, 1.0, "rate of Janoschek"),
        _lognormal("janoschek_delta", 0.0, 0.5, "power of Janoschek"),
        _lognormal("sigma", -4.0, 1.0, "standard deviation of the noise"),
    ],
    noise="truncated_normal",
    coordinates="unit",
)

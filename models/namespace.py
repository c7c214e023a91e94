"""One set of array operations for NumPy, JAX and torch.

Laws are written once against this namespace. Everything of the array API standard comes from the
library itself (torch by way of array-api-compat); the few functions outside the standard that laws need
are added here under one name.
"""

import functools
import importlib
from typing import Any

Array = Any

# The array API standard (2023.12), which every library of the three has under the same names.
_NAMES = """
abs acos acosh add all any arange argmax argmin argsort asarray asin asinh astype atan atan2 atanh bitwise_and
bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor bool broadcast_arrays broadcast_to can_cast
ceil clip complex128 complex64 concat conj copysign cos cosh cumulative_sum divide e empty empty_like equal exp
expand_dims expm1 eye finfo flip float32 float64 floor floor_divide from_dlpack full full_like greater greater_equal
hypot iinfo imag inf int16 int32 int64 int8 isdtype isfinite isinf isnan less less_equal linalg linspace log log10 log1p
log2 logaddexp logical_and logical_not logical_or logical_xor matmul matrix_transpose max maximum mean meshgrid min
minimum moveaxis multiply nan negative newaxis nonzero not_equal ones ones_like permute_dims pi positive pow prod real
remainder repeat reshape result_type roll round searchsorted sign signbit sin sinh sort sqrt square squeeze stack std
subtract sum take tan tanh tensordot tile tril triu trunc uint16 uint32 uint64 uint8 unique_all unique_counts
unique_inverse unique_values unstack var vecdot where zeros zeros_like
"""
STANDARD = frozenset(_NAMES.split())
_BETA_TERMS, _BETA_LARGEST = 64, 20.0
_LINEAR = 50.0  # where softplus(x) is x in double precision


class Namespace:
    """Array operations of one library: the array API standard plus `softplus`, `expit`, `logit`, `gammaln`,
    `betainc_symmetric` and `stop_gradient`.

    Attributes
    ----------
    name
        "numpy", "jax" or "torch".
    """

    def __init__(self, name: str, base: Any, extras: dict[str, Any]) -> None:
        self.name = name
        self._base = base
        self._extras = extras

    def __getattr__(self, attribute: str) -> Any:
        extras = self.__dict__["_extras"]
        if attribute in extras:
            return extras[attribute]
        if attribute not in STANDARD:  # what one of the libraries has ends in an error by another engine
            raise AttributeError(
                f"xp has no {attribute!r}: it has the functions of the array API standard, such as xp.pow, and softplus, "
                "expit, logit, gammaln, betainc_symmetric and stop_gradient"
            )
        return getattr(self._base, attribute)

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    def softplus(self, x: Array) -> Array:
        """log(1 + e^x), without overflow."""
        if self.name == "torch":  # one operation: short tensors cost as much as there are operations
            return self._extras["softplus"](x, threshold=_LINEAR)
        return self.logaddexp(x, self.zeros_like(x))

    def logit(self, p: Array) -> Array:
        """log(p / (1 - p))."""
        return self.log(p) - self.log1p(-p)

    def betainc_symmetric(self, b: Array, x: Array) -> Array:
        """Regularised incomplete beta function I_x(b, b), the cdf of Beta(b, b), for b from 0 to 20; NaN beyond.

        By the symmetry I_x(b, b) = 1 - I_{1-x}(b, b) only x <= 1/2 is needed, where the terms of the power series
        x^b (1-x)^b / (b B(b, b)) * sum_n (2b)_n / (b+1)_n x^n (NIST DLMF 8.17.4 and 8.17.8) fall geometrically: it is right
        to rounding for b up to 10, to 3e-11 for 20.
        """
        small = self.where(x <= 0.5, x, 1.0 - x)
        small = self.clip(small, 1e-30, 0.5)
        total = self.zeros_like(small * b)
        for n in range(_BETA_TERMS - 1, -1, -1):  # Horner: 1 + r_0 x (1 + r_1 x (1 + ...))
            total = 1.0 + (2.0 * b + n) / (b + 1.0 + n) * small * total
        log_front = b * (self.log(small) + self.log1p(-small)) - self.log(b)
        log_beta = 2.0 * self.gammaln(b) - self.gammaln(2.0 * b)
        lower = self.where(b <= _BETA_LARGEST, self.exp(log_front - log_beta) * total, float("nan"))
        return self.where(x <= 0.5, lower, 1.0 - lower)


@functools.cache
def get_namespace(name: str) -> Namespace:
    """The namespace called "numpy", "jax" or "torch". Imports that library and no other."""
    if name == "numpy":
        numpy = importlib.import_module("numpy")
        special = importlib.import_module("scipy.special")
        extras = {"gammaln": special.gammaln, "expit": special.expit, "stop_gradient": lambda x: x}
        return Namespace(name, numpy, extras)
    if name == "jax":
        jax = importlib.import_module("jax")
        jnp = importlib.import_module("jax.numpy")
        extras = {
            "gammaln": jax.scipy.special.gammaln,
            "expit": jax.nn.sigmoid,
            "stop_gradient": jax.lax.stop_gradient,
        }
        return Namespace(name, jnp, extras)
    if name == "torch":
        torch = importlib.import_module("torch")
        base = importlib.import_module("array_api_compat.torch")
        extras = {
            "gammaln": torch.lgamma,
            "expit": torch.sigmoid,
            "stop_gradient": lambda x: x.detach(),
            "softplus": torch.nn.functional.softplus,
        }
        return Namespace(name, base, extras)
    raise ValueError(f"no array namespace called {name!r}; there are 'numpy', 'jax' and 'torch'")


def namespace_of(*arrays: Array) -> Namespace:
    """The namespace that the given arrays belong to: torch or JAX if any is of that library, else NumPy."""
    for array in arrays:
        root = type(array).__module__.partition(".")[0]
        if root == "torch":
            return get_namespace("torch")
        if root in ("jax", "jaxlib"):
            return get_namespace("jax")
    return get_namespace("numpy")

"""Observation noise: p(y | noise-free curve, theta), realised in NumPyro, in torch, and in NumPy for predictions."""

import abc
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from scipy import special
from scipy.optimize import elementwise

from hybrid.models.errors import UnknownNameError

Array = Any
_LOG_SQRT_2PI = 0.9189385332046727
MOST_TAPER = 5.0  # of the log of the factor by which a level changes the noise


def _from_zero(y: Array, f: Array, cdf: Array) -> Array:
    """P(Y <= y | f) of a Y that is never negative, from its cdf for y > 0: with certainty 0 where f has underflowed to 0."""
    if not np.any(np.asarray(y) <= 0):
        return cdf
    nothing = (np.asarray(y) <= 0) & (np.asarray(f) >= 0)  # neither is NaN
    return np.where(nothing, np.where((np.asarray(y) == 0) & (np.asarray(f) == 0), 1.0, 0.0), cdf)


class Noise(abc.ABC):
    """Independent noise around the noise-free curve f > 0, with scale parameter `sigma`.

    The NumPy methods take y or a probability, the noise-free value f and theta (a mapping that holds "sigma"), all
    broadcasting against one another.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]] = ("sigma",)
    shares: ClassVar[tuple[str, ...]] = ()  #: those of the parameters that lie between 0 and 1
    multiplicative: ClassVar[bool] = False  #: whether it is noise of log y around log f
    positive: ClassVar[bool] = True  #: whether y is never negative

    @abc.abstractmethod
    def numpyro(self, f: Array, theta: Mapping[str, Array]) -> Any:
        """p(y | f, theta) as a `numpyro.distributions.Distribution`, of density NaN where f is none."""

    @abc.abstractmethod
    def torch(self, f: Array, theta: Mapping[str, Array]) -> Any:
        """p(y | f, theta) as a `torch.distributions.Distribution`."""

    @abc.abstractmethod
    def log_prob(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        """log p(y | f, theta), NumPy."""

    @abc.abstractmethod
    def cdf(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        """P(Y <= y | f, theta), NumPy."""

    def cdf_of_rows(self, f: Array, theta: Mapping[str, Array]) -> Callable[[Array, Array], Array]:
        """The cdf along f of shape (n, S), for many y: a function of y, shape (m,), and the rows of f meant; shape (m, S)."""
        return lambda y, rows: self.cdf(y[:, None], f[rows], theta)

    @abc.abstractmethod
    def icdf(self, p: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        """Quantiles at probabilities p, NumPy."""

    @abc.abstractmethod
    def moments(self, f: Array, theta: Mapping[str, Array]) -> tuple[Array, Array]:
        """E[y] and Var[y] given f and theta, NumPy."""


class LogNormalNoise(Noise):
    """log y ~ Normal(log f, sigma): multiplicative noise, y stays positive. sigma is the sd of log y."""

    name = "lognormal"
    multiplicative = True

    def numpyro(self, f: Array, theta: Mapping[str, Array]) -> Any:
        dist = importlib.import_module("numpyro.distributions")
        jnp = importlib.import_module("jax.numpy")
        normal = dist.Normal(jnp.log(f), theta["sigma"], validate_args=False)
        return dist.TransformedDistribution(normal, dist.transforms.ExpTransform(), validate_args=False)

    def torch(self, f: Array, theta: Mapping[str, Array]) -> Any:
        torch = importlib.import_module("torch")
        return torch.distributions.LogNormal(torch.log(f), theta["sigma"], validate_args=False)

    def log_prob(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        sigma, positive = theta["sigma"], np.where(np.asarray(y) > 0, y, 1.0)
        z = (np.log(positive) - np.log(f)) / sigma
        return np.where(np.asarray(y) > 0, -0.5 * z * z - np.log(sigma) - np.log(positive) - _LOG_SQRT_2PI, -np.inf)

    def cdf(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = special.ndtr((np.log(np.maximum(y, 0.0)) - np.log(f)) / theta["sigma"])
        return _from_zero(y, f, found)

    def cdf_of_rows(self, f: Array, theta: Mapping[str, Array]) -> Callable[[Array, Array], Array]:
        log_f, sigma = np.log(f), theta["sigma"]  # once, and no array is made that need not be: quantiles take many y

        def cdf(y: Array, rows: Array) -> Array:
            if np.any(y <= 0):
                return self.cdf(y[:, None], f[rows], theta)
            z = log_f[rows]
            np.subtract(np.log(y)[:, None], z, out=z)
            return special.ndtr(np.divide(z, sigma, out=z), out=z)

        return cdf

    def icdf(self, p: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        return f * np.exp(theta["sigma"] * special.ndtri(p))

    def moments(self, f: Array, theta: Mapping[str, Array]) -> tuple[Array, Array]:
        variance = np.square(theta["sigma"])
        mean = f * np.exp(0.5 * variance)
        return mean, np.square(mean) * np.expm1(variance)


class ContaminatedLogNormalNoise(Noise):
    """log y ~ (1 - outliers) Normal(log f, s) + outliers Normal(log f, 5 s), with s = sigma f^noise_slope.

    The factor of sigma is kept between exp(-5) and exp(5). Multiplicative noise with outliers (Tukey's contaminated normal,
    1960) that may shrink or grow as the curve falls. sigma is the sd of log y without outliers where f is 1.
    """

    name = "contaminated_lognormal"
    multiplicative = True
    parameters = ("sigma", "noise_slope", "outliers")
    shares = ("outliers",)
    spread: ClassVar[float] = 5.0  #: sd of the outliers over that of the others

    def _scale(self, xp: Any, f: Array, theta: Mapping[str, Array]) -> Array:
        return theta["sigma"] * xp.exp(xp.clip(theta["noise_slope"] * xp.log(f), -MOST_TAPER, MOST_TAPER))

    def _mixture(self, library: Any, exp: Any, xp: Any, f: Array, theta: Mapping[str, Array], **options: Any) -> Any:
        """The mixture of two normals of log y, through exp, in torch or NumPyro: both name its parts alike."""
        log_f, scale = xp.log(f), self._scale(xp, f, theta)
        share = theta["outliers"] + xp.zeros_like(scale)
        parts = library.Normal(xp.stack([log_f + 0.0 * scale] * 2, -1), xp.stack([scale, self.spread * scale], -1), **options)
        which = library.Categorical(xp.stack([1.0 - share, share], -1), **options)
        return library.TransformedDistribution(library.MixtureSameFamily(which, parts, **options), [exp], **options)

    def numpyro(self, f: Array, theta: Mapping[str, Array]) -> Any:
        dist = importlib.import_module("numpyro.distributions")
        exp = dist.transforms.ExpTransform()
        return self._mixture(dist, exp, importlib.import_module("jax.numpy"), f, theta, validate_args=False)

    def torch(self, f: Array, theta: Mapping[str, Array]) -> Any:
        torch = importlib.import_module("torch")
        exp = torch.distributions.ExpTransform()
        return self._mixture(torch.distributions, exp, torch, f, theta, validate_args=False)

    def log_prob(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        scale, share, positive = self._scale(np, f, theta), theta["outliers"], np.where(np.asarray(y) > 0, y, 1.0)
        z = (np.log(positive) - np.log(f)) / scale
        with np.errstate(divide="ignore"):
            inside = np.logaddexp(
                np.log1p(-share) - 0.5 * z * z, np.log(share) - 0.5 * np.square(z / self.spread) - np.log(self.spread)
            )
        return np.where(np.asarray(y) > 0, inside - np.log(scale) - np.log(positive) - _LOG_SQRT_2PI, -np.inf)

    def cdf(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (np.log(np.maximum(y, 0.0)) - np.log(f)) / self._scale(np, f, theta)
        return _from_zero(y, f, self._standard_cdf(z, theta["outliers"]))

    def _standard_cdf(self, z: Array, share: Array) -> Array:
        return (1.0 - share) * special.ndtr(z) + share * special.ndtr(z / self.spread)

    def icdf(self, p: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        scale = self._scale(np, f, theta)
        p, share = np.broadcast_arrays(p, theta["outliers"])
        lower = np.minimum(p, 1.0 - p)  # by symmetry, and because the lower tail keeps precision
        near = special.ndtri(lower)
        with np.errstate(invalid="ignore"):
            root = elementwise.find_root(
                lambda z, q, w: self._standard_cdf(z, w) - q, (self.spread * near - 1e-9, near + 1e-9), args=(lower, share)
            )
        z = np.where(np.isfinite(near), root.x, near)
        return f * np.exp(scale * np.where(p < 0.5, z, -z))

    def moments(self, f: Array, theta: Mapping[str, Array]) -> tuple[Array, Array]:
        variance, share = np.square(self._scale(np, f, theta)), theta["outliers"]
        wide = self.spread**2 * variance
        growth = (1.0 - share) * np.expm1(0.5 * variance) + share * np.expm1(0.5 * wide)
        square = (1.0 - share) * np.expm1(2.0 * variance) + share * np.expm1(2.0 * wide)
        spread = np.where(np.isinf(square), np.inf, square - 2.0 * growth - np.square(growth))
        return f * (1.0 + growth), np.square(f) * spread


class NormalNoise(Noise):
    """y ~ Normal(f, sigma): additive noise; y may be negative. sigma is in units of the y scale."""

    name = "normal"
    positive = False

    def numpyro(self, f: Array, theta: Mapping[str, Array]) -> Any:
        dist = importlib.import_module("numpyro.distributions")
        return dist.Normal(f, theta["sigma"], validate_args=False)

    def torch(self, f: Array, theta: Mapping[str, Array]) -> Any:
        torch = importlib.import_module("torch")
        return torch.distributions.Normal(f, theta["sigma"], validate_args=False)

    def log_prob(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        z = (y - f) / theta["sigma"]
        return -0.5 * z * z - np.log(theta["sigma"]) - _LOG_SQRT_2PI

    def cdf(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        return special.ndtr((y - f) / theta["sigma"])

    def icdf(self, p: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        return f + theta["sigma"] * special.ndtri(p)

    def moments(self, f: Array, theta: Mapping[str, Array]) -> tuple[Array, Array]:
        return f, np.square(theta["sigma"]) + 0.0 * f


class TruncatedNormalNoise(Noise):
    """y ~ Normal(f, sigma) truncated to y > 0, with f the location of the untruncated normal.

    Additive noise that keeps y positive point by point, so the joint density stays explicit: each point carries its own
    normalising constant Phi(f / sigma). sigma is in units of the y scale.
    """

    name = "truncated_normal"

    def numpyro(self, f: Array, theta: Mapping[str, Array]) -> Any:
        dist = importlib.import_module("numpyro.distributions")
        return dist.TruncatedDistribution(dist.Normal(f, theta["sigma"], validate_args=False), low=0.0, validate_args=False)

    def torch(self, f: Array, theta: Mapping[str, Array]) -> Any:
        from hybrid.models.torch_distributions import PositiveNormal

        return PositiveNormal(f, theta["sigma"])

    def log_prob(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        sigma = theta["sigma"]
        z = (y - f) / sigma
        inside = -0.5 * z * z - np.log(sigma) - _LOG_SQRT_2PI - special.log_ndtr(f / sigma)
        return np.where(y > 0, inside, -np.inf)

    def cdf(self, y: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        """From the lower tail where f > 0, which keeps small values right; else in logarithms, where most is cut off."""
        a, z = f / theta["sigma"], (y - f) / theta["sigma"]
        lower = (special.ndtr(z) - special.ndtr(-a)) / special.ndtr(np.maximum(a, 0.0))
        upper = -np.expm1(np.minimum(special.log_ndtr(-z) - special.log_ndtr(a), 0.0))
        return np.clip(np.where(a > 0, lower, upper), 0.0, 1.0)

    def icdf(self, p: Array, f: Array, theta: Mapping[str, Array]) -> Array:
        sigma = theta["sigma"]
        with np.errstate(divide="ignore"):  # of p = 1, which is at infinity
            log_upper = special.log_ndtr(f / sigma) + np.log1p(-p)  # the survival side keeps precision in the upper tail
        return np.maximum(f - sigma * special.ndtri_exp(log_upper), 0.0)

    def moments(self, f: Array, theta: Mapping[str, Array]) -> tuple[Array, Array]:
        sigma = theta["sigma"]
        a = f / sigma
        ratio = np.exp(-0.5 * a * a - _LOG_SQRT_2PI - special.log_ndtr(a))
        return f + sigma * ratio, np.square(sigma) * (1.0 - a * ratio - np.square(ratio))


NOISES: dict[str, Noise] = {
    n.name: n for n in (LogNormalNoise(), ContaminatedLogNormalNoise(), NormalNoise(), TruncatedNormalNoise())
}


def get_noise(name: str) -> Noise:
    """The noise model called "lognormal", "contaminated_lognormal", "normal" or "truncated_normal"."""
    if not isinstance(name, str) or name not in NOISES:
        raise UnknownNameError(f"unknown noise {name!r}; there are {', '.join(NOISES)}")
    return NOISES[name]

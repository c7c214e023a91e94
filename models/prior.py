"""A prior as data: coordinates, named parameters with their distributions, a law and a noise model."""

import abc
import contextlib
import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr

from hybrid.models.checks import as_integer
from hybrid.models.coordinates import Frame, as_floating, cast_frame, get_coordinates
from hybrid.models.declaring import check_prior
from hybrid.models.distributions import Distribution
from hybrid.models.errors import FileFormatError, HybridError, InvalidArgumentError
from hybrid.models.law import Law, Theta, run_mean
from hybrid.models.namespace import get_namespace, namespace_of
from hybrid.models.noise import get_noise
from hybrid.models.torch_random import seeded

Array = Any
FORMAT = 1
_FIELDS = frozenset({"format", "name", "law", "law_version", "coordinates", "noise", "parameters", "law_attributes"})
_OF_PARAMETER = frozenset({"name", "distribution", "meaning"})
STANDARD_NORMAL = Distribution("Normal", loc=0.0, scale=1.0)
PROBED = 7  # parameter values at which a law is tried out, at least
GOLDEN = 0.618033988749895  # spreads the multiples of it evenly over an interval
FEWEST_DRAWN, SURPLUS, MAX_ATTEMPTS = 256, 4, 1000  # where a law admits only some draws


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a prior: its name, its distribution, and in a few words what it means.

    Raises
    ------
    InvalidArgumentError
        If the name is not text, is empty or has a slash, the distribution is none, or the meaning is not text.
    """

    name: str
    distribution: Distribution
    meaning: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise InvalidArgumentError(f"the name of a parameter must be text without a slash, got {self.name!r}")
        if not isinstance(self.distribution, Distribution):
            raise InvalidArgumentError(f"parameter {self.name!r} needs a hybrid.Distribution, got {self.distribution!r}")
        if not isinstance(self.meaning, str):
            raise InvalidArgumentError(f"the meaning of parameter {self.name!r} must be text, got {self.meaning!r}")


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Run the JAX code inside in 64 bit, whatever the user's global setting."""
    jax = importlib.import_module("jax")
    with jax.enable_x64(True):
        yield


class AbstractPrior(abc.ABC):
    """What every prior offers, also one that can only be simulated."""

    name: str
    coordinates: str
    class_meanings: Mapping[str, str] = MappingProxyType({"breaks": "number of breaks"})  #: beside the parameters' own

    @property
    @abc.abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that `replace` can change."""

    @property
    @abc.abstractmethod
    def has_density(self) -> bool:
        """Whether p(theta, y | x) can be evaluated; NUTS and `log_density` need it."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The whole specification, JSON-ready."""

    @abc.abstractmethod
    def replace(self, **changes: Any) -> "AbstractPrior":
        """The same prior with some distributions changed, or, by `name`, under another name."""

    @abc.abstractmethod
    def draw(self, n: int, x: Array, frame: Frame, seed: int, backend: str) -> tuple[dict[str, Array], Array, Array]:
        """n draws of (parameters, noise-free curve, noisy curve) as arrays of the backend; curves have shape (n, len(x))."""

    @property
    def fingerprint(self) -> str:
        """A hash of the whole specification except the name: 16 hexadecimal digits. Equal priors have equal fingerprints."""
        description = self.to_dict()
        description.pop("name")
        for parameter in description.get("parameters", []):
            parameter.pop("meaning", None)
        text = json.dumps(description, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The specification as JSON text, the inverse of `hybrid.prior_from_json`."""
        return json.dumps(self.to_dict(), indent=2)

    def sample(self, n: int, x: Array, seed: int = 0, backend: str = "jax") -> xr.Dataset:
        """Draw parameters and curves from the prior, in the prior's coordinates.

        Parameters
        ----------
        n
            Number of draws, at least 1.
        x
            Positions in the prior's coordinates, shape (n_x,), positive, in increasing order.
        seed
            Seed of the random numbers.
        backend
            "jax" or "torch": the library that draws. Both sample the same prior, with different random numbers.

        Returns
        -------
        xarray.Dataset
            One variable per parameter (draw,), `mean` (draw, x) the noise-free curve and `y` (draw, x) with noise.

        Raises
        ------
        InvalidArgumentError
            If n or seed is no such integer, x is empty, not finite, not increasing or outside the coordinates, the
            backend is unknown, or the law is undefined for a draw.
        """
        n, seed = as_integer(n, "n", 1, 2**32 - 1), as_integer(seed, "seed", 0, 2**32 - 1)
        try:
            x = np.asarray(x, dtype=float)
        except (TypeError, ValueError):
            raise InvalidArgumentError(f"x must be numbers, got {x!r}") from None
        if x.ndim != 1 or x.size == 0 or not np.all(np.isfinite(x)) or np.any(np.diff(x) < 0):
            raise InvalidArgumentError("x must be a one-dimensional array of finite numbers in increasing order")
        if backend not in ("jax", "torch"):
            raise InvalidArgumentError(f"backend must be 'jax' or 'torch', got {backend!r}")
        frame = get_coordinates(self.coordinates).native_frame(x)
        theta, mean, y = self.draw(n, x, frame, seed, backend)
        without = share_without(mean, y)
        if without > 0:
            raise InvalidArgumentError(
                f"{without:.2%} of the draws of prior {self.name!r} have no curve at these x: change the distributions of its "
                "parameters, so that the law is defined for all of their values"
            )
        variables: dict[str, Any] = {k: ("draw", np.asarray(v)) for k, v in theta.items()}
        variables["mean"] = (("draw", "x"), np.asarray(mean))
        variables["y"] = (("draw", "x"), np.asarray(y))
        attrs = {"prior": self.name, "fingerprint": self.fingerprint, "seed": seed, "backend": backend}
        return xr.Dataset(variables, coords={"draw": np.arange(n), "x": x}, attrs=attrs)


def sigma_draws(prior: "Prior", n: int) -> np.ndarray:
    """n draws of the noise scale from its own distribution, by JAX and always the same, shape (n,)."""
    (sigma,) = (p.distribution for p in prior.parameters if p.name == "sigma")
    return np.asarray(sigma.numpyro().sample(importlib.import_module("jax").random.key(0), (n,)))


def share_without(mean: Array, y: Array) -> float:
    """The share of draws without a curve: a NaN in the mean (n, n_x), or in y (n, n_x) where the noise allows no such mean."""
    return float((np.isnan(np.asarray(mean)) | np.isnan(np.asarray(y))).any(-1).mean())


def expand(theta: Theta) -> dict[str, Array]:
    """Give every parameter a trailing axis of length 1, so that shape (...) broadcasts against x of shape (..., n)."""
    return {name: value[..., None] for name, value in theta.items()}


class Prior(AbstractPrior):
    """An explicit joint density p(theta) p(y | theta, x), declared once and realised in NumPyro and in torch.

    Parameters
    ----------
    name
        What the prior is called; not part of its fingerprint.
    law
        The law whose `mean` is the noise-free curve.
    parameters
        The parameters, independent of one another a priori; `sigma`, the noise scale, is one of them.
    noise
        "lognormal" (default), "contaminated_lognormal", "normal" or "truncated_normal"; see `hybrid.models.noise`.
    coordinates
        "ratio" (default) or "unit"; see `hybrid.models.coordinates`.

    Raises
    ------
    InvalidArgumentError
        If parameter names repeat, the noise scale is missing or may be negative, a share may be none, a parameter that the
        law reads or names is missing, it returns curves of another shape than x, or a law of your own has the name of one
        that ships.

    Examples
    --------
    >>> from hybrid.models.registry import get_prior
    >>> narrow = get_prior("m4").replace(sigma={"loc": -6.0})
    """

    def __init__(
        self,
        name: str,
        law: Law,
        parameters: tuple[Parameter, ...] | list[Parameter],
        noise: str = "lognormal",
        coordinates: str = "ratio",
    ) -> None:
        if not isinstance(name, str):
            raise InvalidArgumentError(f"the name of a prior must be text, got {name!r}")
        self.name = name
        self.law = law
        self._parameters = tuple(parameters) if isinstance(parameters, Iterable) else (parameters,)
        if any(not isinstance(p, Parameter) for p in self._parameters):
            raise InvalidArgumentError(
                f"prior {name!r}: give its parameters as a list of hybrid.Parameter, got {parameters!r:.80}"
            )
        self.noise = get_noise(noise)
        self.coordinates = get_coordinates(coordinates).name
        check_prior(self)

    def __repr__(self) -> str:
        return f"Prior({self.name!r}, law={self.law.name!r}, fingerprint={self.fingerprint!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and self.law == other.law and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self._parameters

    @property
    def has_density(self) -> bool:
        return True

    @property
    def is_continuous(self) -> bool:
        """Whether every parameter is continuous, and none left out by the law's indicator, as NUTS requires."""
        return not (self.law.constrained or any(p.distribution.is_discrete for p in self._parameters))

    @property
    def probe(self) -> object:
        """What a law of one's own computes now, at a few parameters and positions: equal while nothing that it reads changes.

        None for a law that ships; equal to nothing else where NumPy cannot run the law, or finds no number. Parameters lie
        where the prior has them, and take all discrete values. Programs that were compiled before are used again only where
        it is the same: a notebook's law may read what a later cell changes.
        """
        if not self.law.is_own:
            return None
        distributions = {p.name: p.distribution for p in self._parameters}
        rows = max([PROBED, *(len(d["probs"]) for d in distributions.values() if d.is_discrete)])
        x, shift = np.array([0.05, 0.1, 0.3, 1.0, 4.0]), np.arange(rows) / rows
        shares = [0.1 + 0.8 * np.mod(k * GOLDEN + shift, 1.0) for k in range(len(distributions))]
        theta = {name: d.spread_out(share) for (name, d), share in zip(distributions.items(), shares, strict=True)}
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(self.mean(theta, x, get_coordinates(self.coordinates).native_frame(x[:-1])), dtype=float)
        except Exception:
            return object()
        return found.tobytes() if np.isfinite(found).any() else object()

    @property
    def integrable(self) -> tuple[str, ...]:
        """Parameters over which the likelihood can be integrated in closed form: `Law.linear`, where all is Gaussian."""
        linear = {p.name: p.distribution for p in self._parameters if p.name in self.law.linear}
        gaussian = self.noise.name == "lognormal" and all(d == STANDARD_NORMAL for d in linear.values())
        return self.law.linear if gaussian else ()

    def to_dict(self) -> dict[str, Any]:
        attributes = self.law.attributes if self.law.is_own else {}
        return {
            "format": FORMAT,
            "name": self.name,
            "law": self.law.name,
            "law_version": self.law.version,
            **({"law_attributes": attributes} if attributes else {}),
            "coordinates": self.coordinates,
            "noise": self.noise.name,
            "parameters": [
                {"name": p.name, "distribution": p.distribution.to_dict(), "meaning": p.meaning} for p in self._parameters
            ],
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any], law: Law) -> "Prior":
        """Rebuild a prior from `to_dict` and its law.

        Raises
        ------
        FileFormatError
            If the description is incomplete, says what no prior has, lacks a parameter of the law, or was written for another
            version of the law.
        """
        if not isinstance(law, Law):
            raise FileFormatError(f"a prior needs an instance of a Law, got {law!r}")
        try:
            if description["format"] != FORMAT or not isinstance(description["name"], str):
                raise FileFormatError(f"a prior has the format {FORMAT} and a name, got {dict(description)!r:.80}")
            unknown = [*(set(description) - _FIELDS), *(k for p in description["parameters"] for k in set(p) - _OF_PARAMETER)]
            if unknown:
                raise FileFormatError(f"a prior has no field {unknown[0]!r}; it has {', '.join(sorted(_FIELDS))}")
            if description["law"] != law.name or description["law_version"] != law.version:
                raise FileFormatError(
                    f"this prior was written for law {description['law']} version {description['law_version']}, "
                    f"but the law here is {law.name} version {law.version}"
                )
            written, here = description.get("law_attributes", {}), law.attributes if law.is_own else {}
            if json.dumps(written, sort_keys=True) != json.dumps(here, sort_keys=True):
                raise FileFormatError(
                    f"this prior was written for law {law.name} with {written or 'no attributes'}, but the law here has "
                    f"{here or 'none'}: give the law that it was written for"
                )
            parameters = tuple(
                Parameter(p["name"], Distribution.from_dict(p["distribution"]), p.get("meaning", ""))
                for p in description["parameters"]
            )
            return cls(description["name"], law, parameters, description["noise"], description["coordinates"])
        except InvalidArgumentError as error:
            raise FileFormatError(str(error)) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, HybridError):
                raise
            raise FileFormatError(f"not a complete description of a prior: {error!r}") from None

    def replace(self, name: str | None = None, **changes: Any) -> "Prior":
        """The same prior with some distributions changed.

        Parameters
        ----------
        name
            A new name; by default the old one.
        **changes
            By parameter name either a new `Distribution`, or a mapping of the hyperparameters to change.

        Raises
        ------
        InvalidArgumentError
            If a name is not a parameter of this prior, or a value is neither a Distribution nor a mapping.
        """
        known = {p.name: p for p in self._parameters}
        for key, change in changes.items():
            if key not in known:
                raise InvalidArgumentError(f"prior {self.name!r} has no parameter {key!r}; it has {', '.join(known)}")
            if isinstance(change, Mapping) and "family" in change:
                raise InvalidArgumentError(f"{key}: give a hybrid.Distribution to change the family")
            if isinstance(change, Mapping):
                change = known[key].distribution.replace(**{str(name): value for name, value in change.items()})
            if not isinstance(change, Distribution):
                raise InvalidArgumentError(f"{key}: give a hybrid.Distribution or a mapping of hyperparameters")
            known[key] = dataclasses.replace(known[key], distribution=change)
        return Prior(self.name if name is None else name, self.law, tuple(known.values()), self.noise.name, self.coordinates)

    def mean(self, theta: Theta, x: Array, frame: Frame) -> Array:
        """The noise-free curve in coordinates: theta of shape (...), x of shape (n,) or (..., n), result (..., n)."""
        xp = namespace_of(x, *theta.values())
        x = as_floating(xp, x)
        found = run_mean(self.law, xp, x, expand(theta), cast_frame(xp, frame, x))
        return found if np.shape(found)[-1:] == x.shape[-1:] else found + xp.zeros_like(x)  # a law that is the same at all x

    def derived(self, theta: Theta, frame: Frame) -> dict[str, Array]:
        """The law's textbook parameters in the user's units; arrays of the shape of theta's."""
        if not theta:
            return {}
        some = next(iter(theta.values()))
        xp = namespace_of(some)
        return self.law.derived(xp, theta, cast_frame(xp, frame, as_floating(xp, some)))

    def log_prior(self, theta: Theta) -> dict[str, Array]:
        """log p(theta) by parameter, as arrays of the library that theta belongs to: for NumPy arrays JAX, in its precision."""
        if namespace_of(*theta.values()).name == "torch":
            some = theta["sigma"]  # a discrete parameter has an integer dtype
            return {p.name: p.distribution.torch(some.dtype, some.device).log_prob(theta[p.name]) for p in self._parameters}
        return {p.name: p.distribution.numpyro().log_prob(theta[p.name]) for p in self._parameters}

    def log_likelihood(self, theta: Theta, x: Array, y: Array, frame: Frame) -> Array:
        """log p(y | theta, x) point by point, in coordinates, shape (..., n), of the library and precision of `log_prior`.

        JAX computes in 32 bit unless it is set to 64, as `log_density` sets it for itself.
        """
        if namespace_of(x, y, *theta.values()).name == "torch":
            xp, found = get_namespace("torch"), self.noise.torch(self.mean(theta, x, frame), expand(theta)).log_prob(y)
        else:
            xp = get_namespace("jax")
            theta, x, y = {k: xp.asarray(v) for k, v in theta.items()}, xp.asarray(x), xp.asarray(y)
            found = self.noise.numpyro(self.mean(theta, x, frame), expand(theta)).log_prob(y)
        return xp.where(y > 0, found, -np.inf) if self.noise.positive else found

    def log_density(self, theta: Theta, x: Array, y: Array, frame: Frame | None = None) -> Array:
        """log p(theta) + log p(y | theta, x), in the prior's coordinates and the constrained parameters.

        Parameters
        ----------
        theta
            Parameters by name, each of shape (...).
        x, y
            Points in the prior's coordinates, shape (n,) or (..., n). torch tensors are evaluated by torch; JAX and NumPy
            arrays by JAX, in 64 bit.
        frame
            The curve's frame; None takes the one in which x, of each curve its own, are already coordinates.

        Returns
        -------
        Array of shape (...), of the library that evaluated it; -inf where theta is outside the support of its distributions
        or the law does not admit it. Where it leaves anything out, the density is not divided by the share of what it admits.

        Raises
        ------
        InvalidArgumentError
            If theta lacks a parameter, or no frame is given and x are outside the coordinates.
        """
        absent = next((p.name for p in self._parameters if p.name not in theta), None)
        if absent is not None:
            raise InvalidArgumentError(f"theta lacks the parameter {absent!r} of prior {self.name!r}")
        frame = get_coordinates(self.coordinates).native_frame(np.asarray(x)) if frame is None else frame
        on_torch = namespace_of(x, y, *theta.values()).name == "torch"
        with contextlib.nullcontext() if on_torch else double_precision():
            xp = get_namespace("torch" if on_torch else "jax")
            safe, inside = dict(theta), []
            for p in self._parameters:
                value = xp.asarray(theta[p.name])
                within, harmless = p.distribution.supports(xp, value)
                safe[p.name] = xp.where(within, value, xp.full_like(value, harmless))
                inside.append(within)
            if self.law.constrained:
                inside.append(self.law.admits(xp, safe))
            found = sum(self.log_prior(safe).values()) + self.log_likelihood(safe, x, y, frame).sum(-1)
            for within in (*inside, ~xp.isnan(found)):  # NaN, as at the edge of a support, is no curve
                found = xp.where(within, found, xp.full_like(found, -np.inf))
            return found

    def draw(self, n: int, x: Array, frame: Frame, seed: int, backend: str) -> tuple[dict[str, Array], Array, Array]:
        if backend == "torch":
            torch = importlib.import_module("torch")
            with seeded(seed):
                x = torch.as_tensor(x, dtype=torch.float64)
                theta = self.draw_torch(n, torch.float64)
                mean = self.mean(theta, x, frame)
                return theta, mean, self.noise.torch(mean, expand(theta)).sample()
        jax = importlib.import_module("jax")
        with double_precision():
            *keys, last = jax.random.split(jax.random.key(seed), len(self._parameters) + 1)

            def draw(n: int, attempt: int) -> dict[str, Array]:
                own = keys if attempt == 0 else [jax.random.fold_in(key, attempt) for key in keys]
                return {p.name: p.distribution.numpyro().sample(k, (n,)) for p, k in zip(self._parameters, own, strict=True)}

            theta = self._admitted(n, draw)
            mean = self.mean(theta, jax.numpy.asarray(x), frame)
            return theta, mean, self.noise.numpyro(mean, expand(theta)).sample(last)

    def draw_torch(self, n: int, dtype: Any = None, device: Any = None) -> dict[str, Array]:
        """n draws of the parameters by torch's global random state, each of shape (n,)."""
        made = {p.name: p.distribution.torch(dtype, device) for p in self._parameters}
        return self._admitted(n, lambda n, attempt: {name: found.sample((n,)) for name, found in made.items()})

    def _admitted(self, n: int, draw: Callable[[int, int], dict[str, Array]]) -> dict[str, Array]:
        """n draws that the law admits, by rejection: `draw` is given a number and which attempt it is."""
        if not self.law.constrained:
            return draw(n, 0)
        parts: list[dict[str, Array]] = []
        left, attempt = n, 0
        while left > 0:
            if attempt == MAX_ATTEMPTS:
                raise InvalidArgumentError(f"law {self.law.name!r} admits hardly any draw of prior {self.name!r}: change it")
            theta = draw(max(FEWEST_DRAWN, SURPLUS * n), attempt)
            admitted = self.law.admits(namespace_of(theta["sigma"]), theta)
            parts.append({name: value[admitted][:left] for name, value in theta.items()})
            left -= len(parts[-1]["sigma"])
            attempt += 1
        xp = namespace_of(parts[0]["sigma"])
        return {name: xp.concat([part[name] for part in parts]) for name in parts[0]}

"""Distributions as data: a family name with hyperparameters, realised in NumPyro or in torch on demand."""

import dataclasses
import importlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from hybrid.models.errors import InvalidArgumentError

# NumPyro and torch agree on the class name and on the names of the hyperparameters of these families.
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Normal": ("loc", "scale"),
        "StudentT": ("df", "loc", "scale"),
        "LogNormal": ("loc", "scale"),
        "HalfNormal": ("scale",),
        "Exponential": ("rate",),
        "Gamma": ("concentration", "rate"),
        "Beta": ("concentration1", "concentration0"),
        "Uniform": ("low", "high"),
        "Categorical": ("probs",),
    }
)
DISCRETE = frozenset({"Categorical"})
_POSITIVE = frozenset({"scale", "rate", "concentration", "concentration1", "concentration0", "df"})


def _checked(family: str, name: str, value: Any) -> float | tuple[float, ...]:
    if name == "probs":
        try:
            probs = tuple(float(p) + 0.0 for p in value)  # -0.0 is 0.0
        except (TypeError, ValueError):
            raise InvalidArgumentError(f"{family}: probs must be a sequence of numbers, got {value!r}") from None
        if len(probs) < 2 or any(not 0 <= p <= 1 for p in probs) or abs(sum(probs) - 1) > 1e-9:
            raise InvalidArgumentError(f"{family}: probs must be two or more numbers in [0, 1] that sum to 1, got {value}")
        return probs
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value) + 0.0
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{family}: {name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or (name in _POSITIVE and number <= 0):
        kind = "a positive finite number" if name in _POSITIVE else "a finite number"
        raise InvalidArgumentError(f"{family}: {name} must be {kind}, got {value!r}")
    return number


@dataclasses.dataclass(frozen=True, init=False)
class Distribution:
    """A univariate distribution, declared by the name of its family and its hyperparameters.

    Parameters
    ----------
    family
        A key of `FAMILIES`, such as "Normal" or "Beta".
    **hyperparameters
        The hyperparameters by name, such as ``loc=0.0, scale=1.0``; all are required.

    Raises
    ------
    InvalidArgumentError
        If the family is unknown, a hyperparameter is missing or unknown, or a value is outside its range.

    Examples
    --------
    >>> Distribution("LogNormal", loc=-4.0, scale=1.0)
    Distribution('LogNormal', loc=-4.0, scale=1.0)
    """

    family: str
    hyperparameters: tuple[tuple[str, float | tuple[float, ...]], ...]

    def __init__(self, family: str, **hyperparameters: Any) -> None:
        if not isinstance(family, str) or family not in FAMILIES:
            raise InvalidArgumentError(f"unknown distribution family {family!r}; there are {', '.join(FAMILIES)}")
        names = FAMILIES[family]
        if set(hyperparameters) != set(names):
            raise InvalidArgumentError(
                f"{family} takes the hyperparameters {', '.join(names)}, got {', '.join(hyperparameters) or 'none'}"
            )
        values = tuple((name, _checked(family, name, hyperparameters[name])) for name in names)
        object.__setattr__(self, "family", family)
        object.__setattr__(self, "hyperparameters", values)
        if family == "Uniform" and self["low"] >= self["high"]:
            raise InvalidArgumentError(f"Uniform: low must be below high, got {self['low']} and {self['high']}")

    def __getitem__(self, name: str) -> Any:
        return dict(self.hyperparameters)[name]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters)
        return f"Distribution({self.family!r}, {inside})"

    @property
    def is_discrete(self) -> bool:
        """Whether draws are integers 0, 1, 2, ..."""
        return self.family in DISCRETE

    @property
    def is_bounded(self) -> bool:
        """Whether the support ends at a number other than 0, so that it changes when values are rescaled."""
        return self.is_discrete or self.family in ("Uniform", "Beta")

    def supports(self, xp: Any, value: Any) -> tuple[Any, float]:
        """Whether the density is above 0 at each value, of an array of the namespace xp; and one value where it is."""
        if self.family in ("Normal", "StudentT"):
            return value == value, 0.0  # not NaN
        if self.family == "Categorical":
            return xp.any(value[..., None] == xp.arange(len(self["probs"])), axis=-1), 0.0
        if self.family == "Uniform":
            return (value >= self["low"]) & (value < self["high"]), 0.5 * (self["low"] + self["high"])
        if self.family == "Beta":
            return (value >= 0.0) & (value <= 1.0), 0.5
        return value > 0, 1.0

    def spread_out(self, share: np.ndarray) -> np.ndarray:
        """Values where the density is above 0, of the size that draws have: increasing in the shares, which are in (0, 1).

        Of a discrete family all values in turn, whatever the shares.
        """
        share = np.asarray(share, dtype=float)
        score = np.log(share) - np.log1p(-share)
        if self.family == "Categorical":
            possible = np.flatnonzero(np.asarray(self["probs"]) > 0)
            return possible[np.arange(share.size) % possible.size].reshape(share.shape).astype(float)
        if self.family in ("Normal", "StudentT"):
            return np.asarray(self["loc"] + self["scale"] * score)
        if self.family == "LogNormal":
            return np.asarray(np.exp(self["loc"] + self["scale"] * score))
        if self.family in ("Uniform", "Beta"):
            low, high = (self["low"], self["high"]) if self.family == "Uniform" else (0.0, 1.0)
            return np.asarray(low + (high - low) * share)
        size = {"HalfNormal": lambda: self["scale"], "Exponential": lambda: 1.0 / self["rate"]}
        return np.asarray(-np.log1p(-share) * size.get(self.family, lambda: self["concentration"] / self["rate"])())

    def replace(self, **hyperparameters: Any) -> "Distribution":
        """The same family with some hyperparameters changed; InvalidArgumentError where they are not what it takes."""
        if "family" in hyperparameters:
            raise InvalidArgumentError("a changed family is another distribution: make one by hybrid.Distribution")
        return Distribution(self.family, **{**dict(self.hyperparameters), **hyperparameters})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, the inverse of `from_dict`."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in self.hyperparameters}
        return {"family": self.family, **values}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Distribution":
        """Rebuild a distribution from `to_dict`; InvalidArgumentError where there is no such family or hyperparameter."""
        values = dict(description)
        return cls(values.pop("family", ""), **values)

    def numpyro(self) -> Any:
        """The `numpyro.distributions.Distribution` of this declaration."""
        jnp = importlib.import_module("jax.numpy")
        family = getattr(importlib.import_module("numpyro.distributions"), self.family)
        return family(**{k: jnp.asarray(v) if isinstance(v, tuple) else v for k, v in self.hyperparameters})

    def torch(self, dtype: Any = None, device: Any = None) -> Any:
        """The `torch.distributions.Distribution` of this declaration, in the given dtype on the given device."""
        torch = importlib.import_module("torch")
        family = getattr(torch.distributions, self.family)
        values = {k: torch.tensor(v, dtype=dtype, device=device) for k, v in self.hyperparameters}
        return family(**values)


HARMLESS = 1e-12  # how near to the ends of their interval values are taken


def unconstrained(distribution: Distribution, values: Any) -> np.ndarray:
    """Values on the real line: their logarithm where the support is positive, the logit of their place in an interval.

    Parameters
    ----------
    distribution
        Of a continuous family.
    values
        Array of any shape.

    Returns
    -------
    Array of the same shape, finite.
    """
    found = np.asarray(values, dtype=float)
    scale = unconstrained_scale(distribution)
    if scale == "logit":
        low, high = (distribution["low"], distribution["high"]) if distribution.family == "Uniform" else (0.0, 1.0)
        share = np.clip((found - low) / (high - low), HARMLESS, 1.0 - HARMLESS)
        return np.asarray(np.log(share) - np.log1p(-share))
    return np.asarray(np.log(np.maximum(found, np.finfo(float).tiny))) if scale else found


def unconstrained_scale(distribution: Distribution) -> str:
    """What `unconstrained` takes of a value: "log", "logit" (of its place in an interval), or "" where it is as it was."""
    if distribution.family in ("Uniform", "Beta"):
        return "logit"
    return "" if distribution.family in ("Normal", "StudentT") else "log"

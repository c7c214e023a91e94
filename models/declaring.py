"""What the parts of a prior must be to make one: told where it is declared, not in the middle of a fit."""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.models.coordinates import get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.law import Law, Theta
from hybrid.models.namespace import get_namespace

if TYPE_CHECKING:
    from hybrid.models.prior import Prior

RESERVED = frozenset({"x", "y", "mean", "chain", "draw", "point", "target"})  # variables and dimensions beside the parameters
TRIED_X = np.array([0.1, 0.5, 1.0])
TRIED_ROWS = 2


def check_parameters(prior: "Prior") -> None:
    """The parameters: their names, and those of the noise.

    Raises
    ------
    InvalidArgumentError
        If names repeat or are taken, or a parameter of the noise is missing or may have a value that it must not.
    """
    names = [p.name for p in prior.parameters]
    reserved = [n for n in names if n in RESERVED]
    if reserved:
        raise InvalidArgumentError(
            f"prior {prior.name!r}: {reserved[0]!r} is the name of something else in datasets: choose another"
        )
    if len(set(names)) != len(names):
        raise InvalidArgumentError(f"prior {prior.name!r} declares a parameter twice: {', '.join(names)}")
    missing = [p for p in prior.noise.parameters if p not in names]
    if missing:
        raise InvalidArgumentError(f"prior {prior.name!r} lacks the noise parameter {', '.join(missing)}")
    known = {p.name: p.distribution for p in prior.parameters}
    sigma = known["sigma"]
    if sigma.is_discrete or sigma.family in ("Normal", "StudentT") or (sigma.family == "Uniform" and sigma["low"] < 0):
        raise InvalidArgumentError(f"prior {prior.name!r}: sigma is a scale, and {sigma!r} is not all above 0; try a LogNormal")
    for name in prior.noise.shares:
        if not _is_share(known[name]):
            raise InvalidArgumentError(
                f"prior {prior.name!r}: {name} is a share, and {known[name]!r} is not all from 0 to 1; try a Beta"
            )


def _is_share(distribution: Distribution) -> bool:
    if distribution.family == "Uniform":
        return bool(distribution["low"] >= 0 and distribution["high"] <= 1)
    return distribution.family == "Beta"


def check_law(prior: "Prior") -> None:
    """The law: what it reads and what it returns, tried out at a few values.

    Raises
    ------
    InvalidArgumentError
        If a law of one's own has the name of one that ships, reads or names a parameter that the prior lacks, or returns a
        curve of another shape than x. A law that NumPy cannot run is not tried.
    """
    law, names = prior.law, [p.name for p in prior.parameters]
    if law.is_own:
        shipped = importlib.import_module("hybrid.models.registry").law_names()
        if law.name in shipped:  # the fingerprint, and with it the weights, goes by the name
            raise InvalidArgumentError(f"a law called {law.name!r} ships with Hybrid: give yours another `name`")
    frame = get_coordinates(prior.coordinates).native_frame(TRIED_X)
    shares = np.linspace(0.4, 0.6, TRIED_ROWS)
    theta = {p.name: p.distribution.spread_out(shares) for p in prior.parameters}
    shape = _tried(prior, lambda: prior.mean(theta, TRIED_X, frame))
    if shape is not None and shape != (TRIED_ROWS, len(TRIED_X)):
        raise InvalidArgumentError(
            f"law {law.name!r}: `mean` returns an array of shape {shape} for theta of shape {(TRIED_ROWS, 1)} and "
            f"{len(TRIED_X)} positions: return one of shape {(TRIED_ROWS, len(TRIED_X))}, by operations that broadcast"
        )
    for attribute in ("nearly_linear", "linear"):
        named = getattr(law, attribute)
        if not isinstance(named, (tuple, list)) or any(n not in names for n in named):
            raise InvalidArgumentError(
                f"law {law.name!r}: {attribute} must be a tuple of parameters of prior {prior.name!r}, got {named!r}"
            )
    if law.linear:
        _check_linear(prior, theta)
    try:
        with np.errstate(all="ignore"):
            scales = law.sampling_scales(get_namespace("numpy"), theta, frame)
    except Exception:
        return
    unknown = [name for name in scales if name not in names]
    if unknown:
        raise InvalidArgumentError(
            f"law {law.name!r}: sampling_scales names {unknown[0]!r}, which is no parameter of prior {prior.name!r}"
        )


def _check_linear(prior: "Prior", theta: Theta) -> None:
    """That basis and basis_scales have a column for each parameter of `linear`, and the centre does without them."""
    law, xp = prior.law, get_namespace("numpy")
    count = len(law.linear)
    others = {name: value for name, value in theta.items() if name not in law.linear}
    frame = get_coordinates(prior.coordinates).native_frame(TRIED_X)
    _tried(prior, lambda: law.centre(xp, TRIED_X, {k: v[..., None] for k, v in others.items()}, frame), "centre", law.linear)
    wanted = {"basis": (len(TRIED_X), count), "basis_scales": (TRIED_ROWS, count)}
    found = {
        "basis": _tried(prior, lambda: law.basis(xp, TRIED_X), "basis"),
        "basis_scales": _tried(prior, lambda: law.basis_scales(xp, others), "basis_scales", law.linear),
    }
    for name, shape in found.items():
        if shape is not None and shape != wanted[name]:
            raise InvalidArgumentError(
                f"law {law.name!r}: `{name}` has shape {shape} where {wanted[name]} is needed: the last axis goes with the "
                f"{count} parameters that it calls linear"
            )


def _tried(prior: "Prior", job: Any, what: str = "mean", without: tuple[str, ...] | list[str] = ()) -> tuple[int, ...] | None:
    """The shape of what a function of the law returns; None where NumPy cannot run it, or not at these values."""
    try:
        with np.errstate(all="ignore"):
            shape: tuple[int, ...] = np.shape(job())
            return shape
    except KeyError as error:
        name = str(error.args[0])
        if name in without:
            raise InvalidArgumentError(
                f"law {prior.law.name!r} calls {name!r} linear, and its `{what}` reads it: define one that does without it"
            ) from None
        raise InvalidArgumentError(
            f"law {prior.law.name!r} has a parameter {name!r}, and prior {prior.name!r} none of that name"
        ) from None
    except Exception:
        return None


def check_prior(prior: "Prior") -> None:
    """All of a prior's parts, once it has them.

    Raises
    ------
    InvalidArgumentError
        As `check_parameters` and `check_law`, and where the law is none.
    """
    law = prior.law
    if not isinstance(law, Law) or not isinstance(getattr(law, "name", None), str):
        raise InvalidArgumentError(f"prior {prior.name!r}: law must be an instance of a Law that has a `name`, got {law!r}")
    check_parameters(prior)
    check_law(prior)

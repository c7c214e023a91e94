"""What the parts of a prior must be to make one: told where it is declared, not in the middle of a fit."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.law import Law, Theta
from hybrid.models.namespace import get_namespace

if TYPE_CHECKING:
    from hybrid.models.prior import Prior

Array = Any

DIMENSIONS = frozenset({"chain", "draw", "point", "target"})
DENSITIES = frozenset({"log_q", "lp", "log_ratio"})  # that an engine keeps beside its draws
CALIBRATION = frozenset({"log_likelihood", "f_horizon", "status", "ess", "key"})  # what it ranks or keeps beside the parameters
RESERVED = frozenset({"x", "y", "mean"}) | DIMENSIONS | DENSITIES | CALIBRATION
TRIED_X = np.array([0.1, 0.5, 1.0])
TRIED_ROWS = 2
LEAST = 1e-9  # share of a distribution that lies below what counts as its least value
ALIKE = 1e-6  # of the log of a curve


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


class _Read(dict[str, Array]):
    """Parameters that take note of which of them are looked up; where all are taken at once, all are."""

    def __init__(self, theta: Theta) -> None:
        super().__init__(theta)
        self.read: set[str] = set()

    def _all(self) -> dict[str, Array]:
        self.read.update(super().keys())
        return dict(super().items())

    def __getitem__(self, name: str) -> Array:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def keys(self) -> Any:
        return self._all().keys()

    def values(self) -> Any:
        return self._all().values()

    def items(self) -> Any:
        return self._all().items()

    def copy(self) -> dict[str, Array]:
        return self._all()

    def __or__(self, other: Any) -> Any:
        return self._all() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._all()


def check_law(prior: "Prior") -> None:
    """The law: what it reads and what it returns, tried out by NumPy at a few values.

    Raises
    ------
    InvalidArgumentError
        If a law of one's own has the name of one that ships, reads or names a parameter that the prior lacks or reads none of
        one that it has, cannot be run, returns arrays of other shapes than are asked for, or what it states as linear is not
        what its curve is; or where a parameter may have values for which the law is not defined.
    """
    law, names = prior.law, [p.name for p in prior.parameters]
    if law.is_own:
        shipped = importlib.import_module("hybrid.models.registry").law_names()
        if law.name in shipped:  # the fingerprint, and with it the weights, goes by the name
            raise InvalidArgumentError(f"a law called {law.name!r} ships with Hybrid: give yours another `name`")
    for p in prior.parameters:
        low = law.computable.get(p.name, (-np.inf, np.inf))[0]
        if low > 0 and float(p.distribution.spread_out(np.array([LEAST]))[0]) < 0:
            raise InvalidArgumentError(
                f"prior {prior.name!r}: law {law.name!r} needs {p.name} above 0, and {p.distribution!r} is not; try a LogNormal"
            )
    frame = get_coordinates(prior.coordinates).native_frame(TRIED_X)
    shares = np.linspace(0.4, 0.6, TRIED_ROWS)
    values = {p.name: p.distribution.spread_out(shares) for p in prior.parameters}
    theta, wide = _Read(values), _Read({name: value[:, None] for name, value in values.items()})
    xp = get_namespace("numpy")
    curve = _tried(prior, "mean", lambda: law.mean(xp, TRIED_X, wide, frame))
    size = (TRIED_ROWS, len(TRIED_X))
    if np.shape(curve) not in (size, (TRIED_ROWS, 1)):  # the second: the same at all x
        raise InvalidArgumentError(
            f"law {law.name!r}: `mean` returns {_described(curve)} for theta of shape {(TRIED_ROWS, 1)} and "
            f"{len(TRIED_X)} positions: return an array of shape {size}, by operations that broadcast"
        )
    for attribute in ("nearly_linear", "linear"):
        named = getattr(law, attribute)
        if not isinstance(named, (tuple, list)) or any(n not in names for n in named):
            raise InvalidArgumentError(
                f"law {law.name!r}: {attribute} must be a tuple of parameters of prior {prior.name!r}, got {named!r}"
            )
    _check_derived(prior, theta, frame)
    if law.constrained:
        admitted = _tried(prior, "admits", lambda: law.admits(xp, theta))
        if np.shape(admitted) != (TRIED_ROWS,) or np.asarray(admitted).dtype != bool:
            raise InvalidArgumentError(
                f"law {law.name!r}: `admits` returns {_described(admitted)} for theta of shape {(TRIED_ROWS,)}: return "
                "an array of True and False of that shape, by comparisons of arrays"
            )
    if law.linear:
        _check_linear(prior, values, frame, np.broadcast_to(curve, size))
    scales = _tried(prior, "sampling_scales", lambda: law.sampling_scales(xp, theta, frame))
    unknown = [name for name in scales if name not in names]
    if unknown:
        raise InvalidArgumentError(
            f"law {law.name!r}: sampling_scales names {unknown[0]!r}, which is no parameter of prior {prior.name!r}"
        )
    unread = [n for n in names if n not in {*theta.read, *wide.read, *prior.noise.parameters}]
    if unread:
        raise InvalidArgumentError(
            f"law {law.name!r} never reads {unread[0]!r}, and no data would tell of it: leave it out of prior {prior.name!r}"
        )


def _check_derived(prior: "Prior", theta: Theta, frame: Frame) -> None:
    """That the textbook parameters have names and shapes that a dataset can hold: else a fit could not be kept."""
    derived = _tried(prior, "derived", lambda: prior.law.derived(get_namespace("numpy"), theta, frame))
    if not isinstance(derived, Mapping):
        raise InvalidArgumentError(f"law {prior.law.name!r}: `derived` must return a dict of arrays by name, got {derived!r}")
    for name, value in derived.items():
        if not isinstance(name, str) or not name or "/" in name or name in DIMENSIONS:
            raise InvalidArgumentError(f"law {prior.law.name!r}: `derived` cannot call something {name!r}: choose another name")
        if np.shape(value) not in ((), (TRIED_ROWS,)):
            raise InvalidArgumentError(
                f"law {prior.law.name!r}: `derived` returns {_described(value)} as {name} for theta of shape {(TRIED_ROWS,)}: "
                "return arrays of that shape"
            )


def _check_linear(prior: "Prior", theta: Theta, frame: Frame, curve: Array) -> None:
    """That basis and basis_scales have a column for each parameter of `linear`, the centre does without them, and the three
    make the curve."""
    law, xp, linear = prior.law, get_namespace("numpy"), tuple(prior.law.linear)
    others = {name: value for name, value in theta.items() if name not in linear}
    wide = {name: value[:, None] for name, value in others.items()}
    centre = _tried(prior, "centre", lambda: law.centre(xp, TRIED_X, wide, frame), linear)
    wanted = {"basis": (len(TRIED_X), len(linear)), "basis_scales": (TRIED_ROWS, len(linear))}
    found = {
        "basis": _tried(prior, "basis", lambda: law.basis(xp, TRIED_X)),
        "basis_scales": _tried(prior, "basis_scales", lambda: law.basis_scales(xp, others), linear),
    }
    for name, value in found.items():
        if np.shape(value) != wanted[name]:
            raise InvalidArgumentError(
                f"law {law.name!r}: `{name}` has shape {np.shape(value)} where {wanted[name]} is needed: the last axis goes "
                f"with the {len(linear)} parameters that it calls linear"
            )
    with np.errstate(all="ignore"):
        parts = np.stack([theta[name] for name in linear], -1) * found["basis_scales"]
        stated, real = np.log(centre) + parts @ np.asarray(found["basis"]).T, np.log(curve)
    if np.all(np.isfinite(stated + real)) and not np.allclose(stated, real, rtol=0.0, atol=ALIKE):
        raise InvalidArgumentError(
            f"law {law.name!r}: log of `mean` is not log of `centre` plus `basis` times `basis_scales` times the parameters "
            f"that it calls linear (off by {np.max(np.abs(stated - real)):.2g}): make them agree, or call none linear"
        )


def _described(value: Any) -> str:
    return "None" if value is None else f"an array of shape {np.shape(value)} of type {np.asarray(value).dtype}"


def _tried(prior: "Prior", what: str, job: Callable[[], Any], without: tuple[str, ...] = ()) -> Any:
    """What a function of the law returns."""
    law = prior.law
    try:
        with np.errstate(all="ignore"):
            return job()
    except KeyError as error:
        name = str(error.args[0])
        if name in without:
            raise InvalidArgumentError(
                f"law {law.name!r} calls {name!r} linear, and its `{what}` reads it: define one that does without it"
            ) from None
        raise InvalidArgumentError(
            f"law {law.name!r} has a parameter {name!r}, and prior {prior.name!r} none of that name"
        ) from None
    except Exception as error:
        told = " ".join(str(error).split())
        raise InvalidArgumentError(
            f"law {law.name!r}: `{what}` cannot be run on arrays ({type(error).__name__}: {told}): write it with the functions "
            "of xp, such as xp.exp and xp.where, in place of math's and of if"
        ) from error


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

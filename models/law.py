"""What a scaling law is: one function of (x, theta) for the noise-free curve."""

import abc
import dataclasses
import functools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from hybrid.models.coordinates import Frame
from hybrid.models.errors import InvalidArgumentError

Array = Any
Theta = Mapping[str, Array]


class Law(abc.ABC):
    """A formula for the mean curve, written once and run by NumPy, JAX and torch.

    Subclasses set `name`, `formula` and, whenever the formula changes, `version`; they define `mean` and may define
    `derived`, `admits`, `sampling_scales`, and `classes` with `class_of`.

    Attributes
    ----------
    name, formula, version
        What priors and reports call it, how it reads, and a number.
    constrained
        Whether `admits` leaves anything out: True where a class defines it.
    classes
        What kinds of curve a mixture of laws distinguishes.
    nearly_linear
        Parameters that the data fix once all others are given, because the log of the curve is nearly linear in them or in
        their logs; the amortized engine states them relative to that (see `hybrid.amortized.posterior`).
    computable
        Values between which `mean` is right to rounding, by parameter; all of them where it says nothing. Least squares, which
        no prior holds back, does not look beyond.
    linear
        Parameters in which the log of the curve is linear: log mean(x; theta) = log centre(x; theta) + sum_k basis_k(x)
        basis_scales_k(theta) theta_k, where centre and basis_scales do not know them. Where they are standard normal and the
        noise lognormal, the exact engine integrates over them in closed form.
    """

    name: ClassVar[str]
    formula: ClassVar[str] = ""
    version: ClassVar[int] = 1
    constrained: ClassVar[bool] = False
    classes: ClassVar[tuple[Mapping[str, int], ...]] = ()
    nearly_linear: tuple[str, ...] = ()
    computable: Mapping[str, tuple[float, float]] = MappingProxyType({})
    linear: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "admits" in vars(cls) and "constrained" not in vars(cls):
            cls.constrained = True

    def __eq__(self, other: object) -> bool:
        """Of the same class and with the same attributes: a class that was written anew is another law, whatever its name."""
        if type(self) is not type(other):
            return NotImplemented
        try:
            return self is other or vars(self) == vars(other)
        except ValueError:  # attributes that are arrays
            return False

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.version))

    @property
    def is_own(self) -> bool:
        """Whether the law is a user's own, not one that ships."""
        return not type(self).__module__.startswith("hybrid.models.")

    @property
    def attributes(self) -> dict[str, Any]:
        """The public attributes of this instance, JSON-ready: two laws of one's own that differ in them are different laws.

        Raises
        ------
        InvalidArgumentError
            If they refer to themselves.
        """
        made = {
            name for part in type(self).__mro__ for name, v in vars(part).items() if isinstance(v, functools.cached_property)
        }
        public = {name: value for name, value in sorted(vars(self).items()) if not name.startswith("_") and name not in made}
        try:
            found: dict[str, Any] = json.loads(_as_json(public))
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"law {self.name!r} has an attribute that cannot be stated in JSON: {error}") from None
        return found

    @abc.abstractmethod
    def mean(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        """The noise-free curve in the prior's coordinates.

        Parameters
        ----------
        xp
            The array namespace (`hybrid.models.namespace.Namespace`) that x and theta belong to.
        x
            Positions in the prior's coordinates, shape (..., n).
        theta
            Parameters by name; every array broadcasts against x.
        frame
            The curve's coordinates; `frame.first`, `frame.last` and `frame.horizon` are positions in coordinates.

        Returns
        -------
        Array of shape (..., n), positive.
        """

    def derived(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        """The textbook parameters of the formula **in the user's units**, by name; same shapes as theta."""
        del xp, theta, frame
        return {}

    def sampling_scales(self, xp: Any, theta: Theta, frame: Frame) -> dict[str, Array]:
        """Positive factors by which real-valued parameters are multiplied to give the coordinates that NUTS moves in.

        A factor may depend on the other parameters, not on those that are scaled themselves. Where the data's grip on a
        parameter varies with another one, this turns a funnel into a blob. It changes no density: samplers account for
        the Jacobian.
        """
        del xp, theta, frame
        return {}

    def centre(self, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
        """The curve where the parameters `linear` are 0, from theta without them; as `mean`."""
        return self.mean(xp, x, theta, frame)

    def basis(self, xp: Any, x: Array) -> Array:
        """The functions of x that go with `linear`: x of shape (n,), result (n, k)."""
        return xp.zeros((*x.shape, 0), dtype=x.dtype)

    def basis_scales(self, xp: Any, theta: Theta) -> Array:
        """What each of `basis` is multiplied by, positive, from the other parameters: shape (..., k)."""
        return xp.zeros((*next(iter(theta.values())).shape, 0))

    def class_of(self, xp: Any, theta: Theta) -> Array:
        """Index into `classes` of each draw, of the shape of theta's arrays; for laws that have classes."""
        raise NotImplementedError(f"law {self.name!r} has no classes")

    def admits(self, xp: Any, theta: Theta) -> Array:
        """Whether the prior holds these parameters: True or False, of the shape of theta's arrays.

        It may depend on the noise-free curve, never on data: sampler and density apply the same indicator. Engines that
        follow gradients cannot, and refuse a prior whose law defines it.
        """
        return xp.ones_like(next(iter(theta.values()))) > 0


def _as_json(value: Any) -> str:
    return json.dumps(_with_text_keys(value), default=lambda part: _with_text_keys(_stated(part)))


def _with_text_keys(value: Any) -> Any:
    """The same with keys of dictionaries that JSON does not know, such as tuples, as their text in JSON."""
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(part) for part in value]
    if isinstance(value, dict):
        known = (str, int, float, type(None))
        return {key if isinstance(key, known) else _as_json(key): _with_text_keys(part) for key, part in value.items()}
    return value


def _stated(value: Any) -> Any:
    """Arrays and sets as lists, laws, mappings and data classes by what they hold, all else by the name of what it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=_as_json)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Law):
        return {"law": _stated(type(value)), "version": value.version, **value.attributes}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": _stated(type(value)), **fields}
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def run_mean(law: Law, xp: Any, x: Array, theta: Theta, frame: Frame) -> Array:
    """`law.mean`; what goes wrong in one of one's own is told as that.

    Raises
    ------
    InvalidArgumentError
        If such a law calls functions of the library with what it does not take, or that it does not have.
    """
    try:
        return law.mean(xp, x, theta, frame)
    except (TypeError, AttributeError, ValueError) as error:
        if not law.is_own or type(error).__module__.startswith("jax"):  # these `compiled_by_jax` explains
            raise
        raise InvalidArgumentError(
            f"law {law.name!r} cannot be run by {xp.name}: give the functions of xp arrays, not numbers or lists "
            f"(math.log(10.0), xp.stack(...)), and call no others ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error


ANCHOR = 0.1


def anchor(xp: Any, frame: Frame) -> Array:
    """The left anchor of the levels, in ratio coordinates: the first context x, but at least a decade before the last.

    Stating levels at both ends of the data keeps the posterior well shaped; a context narrower than a decade would
    make the same levels imply absurd slopes, so there the anchor lies a decade back.
    """
    first = xp.asarray(frame.first)
    return xp.where(first < ANCHOR, first, ANCHOR)


def power_factor(xp: Any, frame: Frame, exponent: Array) -> Array:
    """(x scale)^exponent, which turns a coefficient of x^-c in coordinates into one in the user's units."""
    return xp.exp(exponent * xp.log(xp.asarray(frame.x_scale)))


def is_index(xp: Any, value: Array, index: int) -> Array:
    """Whether a discrete parameter, integer or float as the library drew it, has this value."""
    return xp.abs(value - index) < 0.5

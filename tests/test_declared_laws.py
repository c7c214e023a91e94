"""Slips in a law of one's own are told where it is declared, not after minutes of sampling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybrid
from hybrid.models.distributions import Distribution
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.namespace import STANDARD, get_namespace
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

X = np.geomspace(1.0, 100.0, 8)
CURVE = hybrid.Curve(X, 0.9 * X**-0.5 * np.exp(0.01 * np.random.default_rng(0).standard_normal(8)))
LEVEL = hybrid.Parameter("level", Distribution("LogNormal", loc=0.0, scale=0.3))
TILT = hybrid.Parameter("tilt", Distribution("Normal", loc=0.0, scale=1.0))
SIGMA = hybrid.Parameter("sigma", Distribution("LogNormal", loc=-4.0, scale=1.0))
POWER = -0.5


def law_with(**functions: Any) -> hybrid.Law:
    """A level times a power of x, with some functions in place of the right ones."""

    def mean(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["level"] * xp.exp(0.1 * theta["tilt"] * xp.log(x))

    made: hybrid.Law = type("Made", (hybrid.Law,), {"name": "made", "mean": mean, **functions})()
    return made


def declare(**functions: Any) -> Prior:
    return Prior("made", law_with(**functions), [LEVEL, TILT, SIGMA])


def bends(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    import math

    return theta["level"] * math.exp(theta["tilt"])


def rows_alone(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return theta["level"][..., 0] * xp.exp(theta["tilt"][..., 0])


def forgets(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> None:
    theta["level"] * theta["tilt"] * xp.log(x)


def unread(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return theta["level"] * xp.exp(-0.2 * xp.log(x))


def powers(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return theta["level"] * xp.power(x, theta["tilt"])


def gives(value: Any) -> Any:
    """A `derived` or `admits` that returns this, or what it makes of theta."""

    def give(self: Any, xp: Any, theta: Any, frame: Any = None) -> Any:
        return value(theta) if callable(value) else value

    return give


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({"mean": bends}, r"`mean` cannot be run on arrays \(TypeError.*functions of xp"),
        ({"mean": rows_alone}, r"`mean` returns an array of shape \(2,\)"),
        ({"mean": forgets}, "`mean` returns None"),
        ({"mean": powers}, r"xp has no 'power': .* such as xp\.pow"),
        ({"mean": unread}, "never reads 'tilt', and no data would tell of it: leave it out of prior 'made'"),
        ({"derived": gives(lambda theta: {"c": theta["z"]})}, "has a parameter 'z', and prior 'made' none of that name"),
        ({"derived": gives(lambda theta: {"c": theta["tilt"][None]})}, r"`derived` returns an array of shape \(1, 2\)"),
        ({"derived": gives(lambda theta: {"draw": theta["tilt"]})}, "cannot call something 'draw'"),
        ({"derived": gives(lambda theta: {"a/b": theta["tilt"]})}, "cannot call something 'a/b'"),
        ({"derived": gives([1.0])}, "`derived` must return a dict"),
        ({"admits": gives(True)}, "`admits` returns an array of shape"),
        ({"admits": gives(None)}, "`admits` returns None"),
        ({"admits": gives(lambda theta: theta["tilt"])}, "of type float64 .* return an array of True and False"),
    ],
)
def test_a_slip_is_told_at_once(functions: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        declare(**functions)


def test_what_is_right_is_taken() -> None:
    plain = declare(derived=gives(lambda theta: {"c": -0.1 * theta["tilt"], "one": 1.0}))
    assert hybrid.fit(CURVE, plain, "least_squares", progress=False).data["posterior"]["one"].item() == 1.0
    declare(admits=gives(lambda theta: theta["tilt"] < 0))
    only_admits = {"mean": unread, "admits": gives(lambda theta: theta["tilt"] < 0)}
    declare(**only_admits)  # read somewhere


@pytest.mark.parametrize(
    "taken",
    [
        lambda theta: dict(theta),
        lambda theta: {**theta},
        lambda theta: theta.copy(),
        lambda theta: theta | {"more": 1.0},
        lambda theta: {"more": 1.0} | theta,
        lambda theta: {name: theta.get(name) for name in ("level", "tilt")},
        lambda theta: dict(zip(theta, theta.values(), strict=True)),
        lambda theta: dict(theta.items()),
    ],
)
def test_a_law_may_take_its_parameters_in_any_way(taken: Any) -> None:
    def mean(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        own = taken(theta)
        return own["level"] * xp.exp(0.1 * own["tilt"] * xp.log(x))

    declare(mean=mean)


def test_what_is_stated_as_linear_is_what_the_curve_is() -> None:
    parts = {
        "linear": ("tilt",),
        "centre": lambda self, xp, x, theta, frame: theta["level"] + 0.0 * x,
        "basis": lambda self, xp, x: xp.log(x)[:, None],
        "basis_scales": lambda self, xp, theta: 0.1 * xp.ones_like(theta["level"])[..., None],
    }
    assert declare(**parts).integrable == ("tilt",)
    wrong = {**parts, "basis_scales": lambda self, xp, theta: xp.ones_like(theta["level"])[..., None]}
    with pytest.raises(InvalidArgumentError, match=r"is not log of `centre` plus .* \(off by 0\.\d+\)"):
        declare(**wrong)


@pytest.mark.parametrize("name", ["lp", "log_q", "log_ratio", "f_horizon", "log_likelihood", "status", "key"])
def test_names_that_engines_and_calibrations_use_are_refused(name: str) -> None:
    """Such a parameter would be overwritten in silence."""
    with pytest.raises(InvalidArgumentError, match=f"'{name}' is the name of something else"):
        Prior("made", law_with(), [LEVEL, TILT, SIGMA, hybrid.Parameter(name, TILT.distribution)])


def test_a_parameter_stays_where_the_law_is_defined() -> None:
    with pytest.raises(InvalidArgumentError, match="law 'm4' needs alpha above 0"):
        get_prior("m4").replace(alpha=Distribution("Normal", loc=0.0, scale=1.0))
    assert get_prior("m4").replace(alpha=Distribution("HalfNormal", scale=1.0)).has_density


def test_every_library_has_the_functions_that_xp_promises() -> None:
    for library in ("numpy", "jax", "torch"):
        xp = get_namespace(library)
        assert [name for name in STANDARD if not hasattr(xp, name)] == []
        assert not hasattr(xp, "power")


def by_global(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return theta["level"] * xp.exp(POWER * xp.log(x)) + 0.0 * theta["tilt"]


def test_a_saved_fit_refuses_a_law_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = declare(mean=by_global)
    fit = hybrid.fit(CURVE, prior, "least_squares", progress=False)
    fit.save(tmp_path / "fit.nc")
    loaded = hybrid.load_fit(tmp_path / "fit.nc", law=law_with(mean=by_global))
    assert loaded.predict([200.0]).identical(fit.predict([200.0]))
    monkeypatch.setattr(f"{__name__}.POWER", -1.0)
    with pytest.raises(FileFormatError, match="a law that computes something else: give that one"):
        hybrid.load_fit(tmp_path / "fit.nc", law=law_with(mean=by_global))


def branches(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return theta["level"] * xp.exp(0.1 * theta["tilt"] * xp.log(x)) if theta["level"].max() > 0 else x


def test_calibration_tells_of_a_law_that_jax_cannot_follow() -> None:
    with pytest.raises(InvalidArgumentError, match="law 'made' cannot be compiled: write `mean` with the functions of xp"):
        hybrid.calibrate(declare(mean=branches), "nuts", simulations=16, progress=False)


def number(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return theta["level"] * xp.exp(theta["tilt"] * xp.log(x) / xp.log(10.0))


def added(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    return xp.sum([theta["level"] * x, theta["level"] * x**2], axis=0) * xp.exp(theta["tilt"])


@pytest.mark.parametrize(("mean", "backend"), [(number, "torch"), (added, "jax")])
def test_sampling_tells_of_a_law_that_numpy_alone_runs(mean: Any, backend: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"law 'made' cannot be run by {backend}: give the functions of xp arrays"):
        declare(mean=mean).sample(2, [0.1, 1.0], backend=backend)


def refuses(self: Any, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
    if xp.name == "torch":
        raise ValueError
    return theta["level"] * xp.exp(theta["tilt"] * xp.log(x))


def test_what_a_law_raises_without_a_word_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"law 'made' cannot be run by torch: .*\(ValueError: \)"):
        declare(mean=refuses).sample(2, [0.1, 1.0], backend="torch")


def test_a_fit_tells_of_a_law_that_numpy_alone_runs() -> None:
    with pytest.raises(InvalidArgumentError, match="law 'made' cannot be run by jax"):
        hybrid.fit(CURVE, declare(mean=added), "least_squares", progress=False)


@pytest.mark.parametrize("engine", ["nuts", "auto", "least_squares"])
def test_a_fit_tells_of_a_law_that_jax_cannot_follow(engine: str) -> None:
    with pytest.raises(InvalidArgumentError, match="law 'made' cannot be compiled: write `mean` with the functions of xp"):
        hybrid.fit(CURVE, declare(mean=branches), engine, progress=False)

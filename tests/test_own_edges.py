"""Laws and priors at the edges of what users write: what they compute is noticed, inverted, and the same by every library."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import hybrid
from hybrid.amortized.law_frame import LawFrame
from hybrid.models.coordinates import Frame
from hybrid.models.distributions import FAMILIES, Distribution, unconstrained
from hybrid.models.drift import with_drift
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.identity import identity
from hybrid.models.numpyro_model import numpyro_model
from hybrid.models.prior import Prior, double_precision
from hybrid.models.registry import get_prior

SIGMA = hybrid.Parameter("sigma", hybrid.Distribution("LogNormal", loc=-4.0, scale=1.0))
LEVEL = hybrid.Parameter("level", hybrid.Distribution("LogNormal", loc=0.0, scale=1.0))
SIGN = 1.0
WHOLE = np.array([1, 3, 10])


class Beyond(hybrid.Law):
    """Defined where q is above 1 only."""

    name = "beyond"

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        return theta["level"] * xp.exp(-SIGN * xp.log(theta["q"] - 1.0) * xp.log(x))


class Chosen(hybrid.Law):
    """One of three exponents."""

    name = "chosen"

    def __init__(self, exponents: tuple[float, float, float]) -> None:
        self._exponents = exponents

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        first, second, third = self._exponents
        slope = xp.where(theta["k"] == 0, first, xp.where(theta["k"] == 1, second, third))
        return theta["level"] * xp.exp(-slope * xp.log(x))


def of(law: hybrid.Law, *others: hybrid.Parameter) -> Prior:
    return Prior(law.name, law, [LEVEL, *others, SIGMA])


def test_a_law_is_tried_out_where_its_prior_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that changes what the law reads changes what least squares finds."""
    prior = of(Beyond(), hybrid.Parameter("q", hybrid.Distribution("Uniform", low=1.05, high=3.0)))
    x = np.geomspace(1.0, 100.0, 8)
    curve = hybrid.Curve(x, 2.0 * x**-0.5)
    before, found = identity(prior), hybrid.fit(curve, prior, "least_squares").predict(x)["median"].to_numpy()
    assert identity(prior) == before
    monkeypatch.setitem(globals(), "SIGN", -1.0)
    assert identity(prior) != before
    again = hybrid.fit(curve, prior, "least_squares").predict(x)["median"].to_numpy()
    np.testing.assert_allclose(found, curve.y, rtol=1e-4)
    np.testing.assert_allclose(again, curve.y, rtol=1e-4)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_discrete_value_is_tried_out(which: int) -> None:
    kind = hybrid.Parameter("k", hybrid.Distribution("Categorical", probs=(0.2, 0.3, 0.5)))
    changed = [0.1, 0.2, 0.3]
    changed[which] = 0.9
    assert of(Chosen((0.1, 0.2, 0.3)), kind).probe == of(Chosen((0.1, 0.2, 0.3)), kind).probe
    assert of(Chosen((0.1, 0.2, 0.3)), kind).probe != of(Chosen((changed[0], changed[1], changed[2])), kind).probe


def test_a_law_that_gives_no_number_is_never_the_same() -> None:
    nowhere = of(Beyond(), hybrid.Parameter("q", hybrid.Distribution("Uniform", low=0.0, high=0.9)))
    assert identity(nowhere) != identity(nowhere)


HYPERPARAMETERS = {
    "Normal": {"loc": 1000.0, "scale": 100.0},
    "StudentT": {"df": 3.0, "loc": -5.0, "scale": 2.0},
    "LogNormal": {"loc": 3.0, "scale": 0.5},
    "HalfNormal": {"scale": 1e-6},
    "Exponential": {"rate": 1e6},
    "Gamma": {"concentration": 9.0, "rate": 0.001},
    "Beta": {"concentration1": 2.0, "concentration0": 3.0},
    "Uniform": {"low": 1.05, "high": 3.0},
}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "Categorical"])
def test_spread_out_values_are_where_draws_are(family: str) -> None:
    """They increase, lie in the support, and half of all draws lie between those of .05 and .95."""
    distribution = Distribution(family, **HYPERPARAMETERS[family])
    values = distribution.spread_out(np.linspace(0.05, 0.95, 9))
    assert np.all(np.diff(values) > 0)
    assert np.all(distribution.supports(np, values)[0])
    torch.manual_seed(0)
    draws = distribution.torch(torch.float64).sample((4000,)).numpy()
    assert np.mean((draws > values[0]) & (draws < values[-1])) > 0.5


def test_spread_out_values_of_a_discrete_family_have_mass() -> None:
    assert Distribution("Categorical", probs=(0.5, 0.0, 0.5)).spread_out(np.full(5, 0.3)).tolist() == [0.0, 2.0, 0.0, 2.0, 0.0]


class Line(hybrid.Law):
    """A parameter far from 0 that may be any number."""

    name = "line"

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        return theta["level"] * xp.exp(0.001 * theta["rate"] * xp.log(x))


@pytest.mark.parametrize(
    "distribution",
    [
        hybrid.Distribution("Normal", loc=1000.0, scale=100.0),
        hybrid.Distribution("Normal", loc=0.0, scale=200.0),
        hybrid.Distribution("StudentT", df=3.0, loc=0.0, scale=150.0),
    ],
)
def test_coordinates_of_the_network_hold_any_real_number(distribution: hybrid.Distribution) -> None:
    law = LawFrame(of(Line(), hybrid.Parameter("rate", distribution)), True)
    s = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)[:, None].expand(-1, law.size)
    back = (law.unconstrain(law.constrain(s)) - law.loc) / law.scale
    torch.testing.assert_close(back, s)


@pytest.mark.parametrize(
    ("level", "status"), [(1e-10, "ok"), (1e-12, "needs_review"), (1e-30, "needs_review"), (1e14, "needs_review")]
)
def test_least_squares_says_where_the_curve_is_out_of_its_reach(level: float, status: str) -> None:
    x = np.geomspace(1.0, 1000.0, 12)
    curve = hybrid.Curve(x, level * x**-0.3)
    stated = hybrid.fit(curve, "m1", "least_squares", y_scale=1.0)
    assert stated.status == status, stated.reasons
    assert ("y_first" in str(stated.reasons)) == (status != "ok")
    assert hybrid.fit(curve, "m1", "least_squares").status == "ok"


class Fixed(hybrid.Law):
    """A power law of a fixed exponent, which leaves some levels out."""

    name = "fixed"

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        return theta["level"] * xp.exp(-self.exponent * xp.log(x))

    def admits(self, xp: Any, theta: Mapping[str, Any]) -> Any:
        return theta["level"] < 1.0


def test_drift_keeps_what_the_law_is() -> None:
    one, other = (with_drift(of(Fixed(exponent))) for exponent in (0.1, 0.9))
    assert one.fingerprint != other.fingerprint
    assert one.probe != other.probe
    assert one.law.constrained
    assert Fixed.constrained
    assert not hybrid.Law.constrained
    outside = {"level": 2.0, "sigma": 0.1}
    assert float(of(Fixed(0.1)).log_density(outside, np.array([0.5, 1.0]), np.array([2.0, 2.0]))) == -np.inf
    assert float(one.sample(200, x=[0.1, 0.5, 1.0], seed=0)["level"].max()) < 1.0
    with pytest.raises(EngineUnavailableError):
        hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), one, "nuts")
    shipped = with_drift(get_prior("m4"))  # type: ignore[arg-type]
    assert (shipped.fingerprint, shipped.probe) == (get_prior("m4_drift").fingerprint, None)
    with pytest.raises(InvalidArgumentError, match="it needs lognormal noise and ratio coordinates"):
        with_drift(Prior("other", Fixed(0.1), [LEVEL, SIGMA], "normal"))


@dataclasses.dataclass(frozen=True)
class Part:
    exponent: float


class Wrapping(hybrid.Law):
    """A law made of another one, with something that is made when first asked for."""

    name = "wrapping"

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @functools.cached_property
    def grid(self) -> list[float]:
        return [1.0, 2.0]

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        return theta["level"] + 0.0 * x


@pytest.mark.parametrize("make", [Fixed, Part])
def test_a_law_is_what_it_is_made_of(make: Any) -> None:
    one, other, again = of(Wrapping(make(0.1))), of(Wrapping(make(0.9))), of(Wrapping(make(0.1)))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.law.grid == [1.0, 2.0]  # type: ignore[attr-defined]
    assert one.fingerprint == again.fingerprint


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_positions_may_be_integers(library: str) -> None:
    prior, frame = get_prior("m4"), Frame(0.0, 1e22, 1.0, 0.01, 1.0, 10.0)
    assert isinstance(prior, Prior)
    theta = {"y_first": 1.0, "y_ratio": 0.4, "floor": 0.5, "saturation": 0.5, "alpha": 1.0, "sigma": 0.1}
    as_array = {"numpy": np.asarray, "torch": torch.as_tensor, "jax": importlib.import_module("jax.numpy").asarray}[library]
    with double_precision():
        values = {name: as_array(np.array([value])) for name, value in theta.items()}
        whole, floating = (np.asarray(prior.mean(values, as_array(x), frame)) for x in (WHOLE, WHOLE.astype(float)))
        one = {**values, "y_first": as_array(np.array([1]))}
        derived = [np.asarray(prior.derived(found, frame)["c"]) for found in (one, values)]
    assert whole.dtype == floating.dtype == float
    np.testing.assert_allclose(whole, floating, rtol=1e-12)
    np.testing.assert_allclose(*derived)


def test_a_model_of_numpyro_is_of_the_whole_prior() -> None:
    with pytest.raises(EngineUnavailableError, match="prior 'lcpfn' leaves out some parameters"):
        numpyro_model(get_prior("lcpfn"))  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", ["lognormal", "contaminated_lognormal", "truncated_normal", "normal"])
@pytest.mark.parametrize("y", [-0.01, 0.0])
def test_libraries_agree_on_what_noise_never_gives(noise: str, y: float) -> None:
    shared = get_prior("m1")
    assert isinstance(shared, Prior)
    extra = [hybrid.Parameter(name, hybrid.Distribution("Uniform", low=0.0, high=0.5)) for name in ("noise_slope", "outliers")]
    prior = Prior("noisy", shared.law, [*shared.parameters, *(extra if noise.startswith("contaminated") else [])], noise)
    theta = {p.name: np.array([0.3]) for p in prior.parameters}
    x, values = np.array([0.1, 0.5, 1.0]), np.array([0.5, y, 0.3])
    found = float(np.asarray(prior.log_density(theta, x, values))[0])
    by_torch = prior.log_density({k: torch.as_tensor(v) for k, v in theta.items()}, torch.as_tensor(x), torch.as_tensor(values))
    assert float(by_torch[0]) == pytest.approx(found)
    assert np.isfinite(found) == (noise == "normal")
    if noise != "normal":
        assert found == -np.inf


def test_numpy_seeds_draw_by_either_library() -> None:
    prior = get_prior("m2")
    for backend in ("jax", "torch"):
        one, same = (prior.sample(np.int64(2), [0.1, 1.0], seed, backend) for seed in (np.int64(7), 7))
        assert one.equals(same)


def test_an_empty_name_is_a_name() -> None:
    assert get_prior("m2").replace(name="").name == ""


def test_a_family_cannot_be_replaced_and_text_is_no_number() -> None:
    normal = Distribution("Normal", loc=0.0, scale=1.0)
    with pytest.raises(InvalidArgumentError, match="a changed family is another distribution"):
        normal.replace(family="Beta")
    with pytest.raises(InvalidArgumentError, match="loc must be a number"):
        Distribution("Normal", loc="1", scale=1.0)


def test_small_scales_are_told_apart_on_the_real_line() -> None:
    tiny = Distribution("LogNormal", loc=-40.0, scale=1.0)
    values = np.exp(np.array([-42.0, -40.0, -38.0]))
    np.testing.assert_allclose(unconstrained(tiny, values), [-42.0, -40.0, -38.0])
    assert np.all(np.isfinite(unconstrained(tiny, np.zeros(2))))

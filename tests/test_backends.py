"""One prior, two backends: the same draws in distribution, the same densities; and priors as data."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from hybrid.models.coordinates import get_coordinates
from hybrid.models.distributions import FAMILIES, Distribution
from hybrid.models.errors import FileFormatError, HybridError, InvalidArgumentError, UnknownNameError
from hybrid.models.law import Law
from hybrid.models.m1 import M1
from hybrid.models.prior import AbstractPrior, Parameter, Prior
from hybrid.models.registry import PRIORS, get_prior, prior_from_json

EXPLICIT = [p for p in PRIORS if isinstance(p, Prior)]
LEAST_P = 1e-5  # some 80 parameters are tested, so chance alone falls below this once in 1000 runs
EXAMPLES: dict[str, dict[str, Any]] = {
    "Normal": {"loc": 0.3, "scale": 1.2},
    "StudentT": {"df": 4.0, "loc": 0.1, "scale": 0.7},
    "LogNormal": {"loc": -1.0, "scale": 0.6},
    "HalfNormal": {"scale": 0.8},
    "Exponential": {"rate": 2.0},
    "Gamma": {"concentration": 2.5, "rate": 3.0},
    "Beta": {"concentration1": 1.5, "concentration0": 3.0},
    "Uniform": {"low": -1.0, "high": 2.0},
    "Categorical": {"probs": (0.2, 0.5, 0.3)},
}


def positions(prior: AbstractPrior) -> np.ndarray:
    return np.array([0.01, 0.1, 0.5, 1.0]) if prior.coordinates == "unit" else np.array([0.02, 0.3, 1.0, 4.0])


def assert_same_distribution(a: np.ndarray, b: np.ndarray, discrete: bool) -> None:
    if discrete:
        values = np.union1d(a, b)
        counts = np.array([[np.sum(a == v) for v in values], [np.sum(b == v) for v in values]])
        assert stats.chi2_contingency(counts).pvalue > LEAST_P
    else:
        assert stats.ks_2samp(a, b, method="asymp").pvalue > LEAST_P


@pytest.mark.parametrize("prior", EXPLICIT, ids=lambda p: p.name)
def test_draws_agree(prior: Prior) -> None:
    by_jax = prior.sample(4000, positions(prior), seed=3, backend="jax")
    by_torch = prior.sample(4000, positions(prior), seed=4, backend="torch")
    for p in prior.parameters:
        assert_same_distribution(by_jax[p.name].values, by_torch[p.name].values, p.distribution.is_discrete)
    for k in range(by_jax.sizes["x"]):
        for name in ("mean", "y"):
            assert_same_distribution(by_jax[name].values[:, k], by_torch[name].values[:, k], False)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree(family: str) -> None:
    distribution = Distribution(family, **EXAMPLES[family])
    drawn = distribution.torch(torch.float64).sample((50,))
    value = np.asarray(drawn)
    np.testing.assert_allclose(
        np.asarray(distribution.numpyro().log_prob(value)),
        distribution.torch(torch.float64).log_prob(drawn),
        rtol=1e-4,
        atol=1e-5,
    )
    assert Distribution.from_dict(distribution.to_dict()) == distribution


@pytest.mark.parametrize("prior", EXPLICIT, ids=lambda p: p.name)
def test_log_densities_agree(prior: Prior) -> None:
    x = np.repeat(positions(prior), 3)
    data = prior.sample(100, x, seed=5)
    theta = {p.name: data[p.name].values.copy() for p in prior.parameters}
    frame = get_coordinates(prior.coordinates).native_frame(x)
    by_jax = np.asarray(prior.log_density(theta, x, data["y"].values, frame))
    on_torch = {k: torch.as_tensor(v) for k, v in theta.items()}
    by_torch = prior.log_density(on_torch, torch.as_tensor(x), torch.tensor(data["y"].values), frame).numpy()
    assert by_jax.dtype == np.float64
    assert by_jax.shape == (100,)
    np.testing.assert_allclose(by_jax, by_torch, rtol=1e-8, atol=1e-8)


def test_sampling_leaves_the_global_state_of_torch_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    get_prior("m4").sample(5, np.array([0.1, 1.0]), seed=1, backend="torch")
    assert torch.equal(torch.rand(3), expected)


def test_seed_fixes_the_draws() -> None:
    x = np.array([0.1, 1.0])
    for backend in ("jax", "torch"):
        one, same, other = (get_prior("bnsl").sample(20, x, seed=s, backend=backend) for s in (1, 1, 2))
        assert one.equals(same)
        assert not np.allclose(one["y"], other["y"])


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: p.name)
def test_json_round_trip(prior: AbstractPrior) -> None:
    again = prior_from_json(prior.to_json())
    assert again.fingerprint == prior.fingerprint
    assert again.to_dict() == prior.to_dict()


def test_broken_json_is_a_file_format_error() -> None:
    description = get_prior("m1").to_json()
    for text in ("{", "[]", "{}", description.replace('"lognormal"', "3"), description.replace('"law": "m1"', '"law": "m9"')):
        with pytest.raises((FileFormatError, UnknownNameError)):
            prior_from_json(text)


def bumped(distribution: Distribution, name: str) -> Distribution:
    if name == "probs":
        first, *rest = distribution["probs"]
        return distribution.replace(probs=(first - 0.05, rest[0] + 0.05, *rest[1:]))
    return distribution.replace(**{name: distribution[name] + (-0.01 if name == "low" else 0.01)})


@pytest.mark.parametrize("prior", EXPLICIT, ids=lambda p: p.name)
def test_fingerprint_covers_every_hyperparameter(prior: Prior) -> None:
    seen = {prior.fingerprint}
    for p in prior.parameters:
        for name, _ in p.distribution.hyperparameters:
            changed = prior.replace(None, **{p.name: bumped(p.distribution, name)})
            assert changed.fingerprint not in seen, (p.name, name)
            seen.add(changed.fingerprint)


class Renamed(M1):
    """M1 by another name."""

    name = "renamed"


def test_fingerprint_covers_the_rest_of_the_specification_but_not_the_name() -> None:
    prior = get_prior("m1")
    assert isinstance(prior, Prior)
    assert prior.replace(name="mine").fingerprint == prior.fingerprint
    described = [dataclasses.replace(p, meaning="other words") for p in prior.parameters]
    assert Prior("m1", prior.law, described).fingerprint == prior.fingerprint
    others = [
        Prior("m1", prior.law, prior.parameters, noise="normal"),
        Prior("m1", prior.law, prior.parameters, coordinates="unit"),
        Prior("m1", Renamed(), prior.parameters),
    ]
    found = {p.fingerprint for p in (prior, *others)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(M1, "version", 99)
        found.add(prior.fingerprint)
    assert len(found) == 5


def test_fingerprints_of_shipped_priors_differ() -> None:
    assert len({p.fingerprint for p in PRIORS}) == len(PRIORS)


def test_replace() -> None:
    prior = get_prior("m4")
    narrow = prior.replace(sigma={"loc": -6.0}, alpha=Distribution("HalfNormal", scale=0.3))
    found = {p.name: p.distribution for p in narrow.parameters}
    assert found["sigma"] == Distribution("LogNormal", loc=-6.0, scale=1.5)
    assert found["alpha"] == Distribution("HalfNormal", scale=0.3)
    assert narrow != prior
    assert get_prior("m4").fingerprint == prior.fingerprint


@pytest.mark.parametrize(
    "change", [{"nope": {"loc": 1.0}}, {"sigma": 3.0}, {"sigma": {"rate": 1.0}}, {"sigma": {"scale": -1.0}}]
)
def test_replace_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        get_prior("m4").replace(**change)


@pytest.mark.parametrize(
    ("family", "hyperparameters"),
    [
        ("Cauchy", {"loc": 0.0, "scale": 1.0}),
        ("Normal", {"loc": 0.0}),
        ("Normal", {"loc": 0.0, "scale": 0.0}),
        ("Normal", {"loc": 0.0, "scale": -1.0}),
        ("Normal", {"loc": float("nan"), "scale": 1.0}),
        ("Normal", {"loc": 0.0, "scale": float("inf")}),
        ("Normal", {"loc": "a", "scale": 1.0}),
        ("Normal", {"loc": None, "scale": 1.0}),
        ("Normal", {"loc": 0.0, "scale": 1.0, "df": 3.0}),
        ("Uniform", {"low": 1.0, "high": 1.0}),
        ("Uniform", {"low": 2.0, "high": 1.0}),
        ("Categorical", {"probs": (1.0,)}),
        ("Categorical", {"probs": (0.5, 0.6)}),
        ("Categorical", {"probs": (-0.5, 1.5)}),
        ("Categorical", {"probs": 0.5}),
        ("Categorical", {"probs": "ab"}),
    ],
)
def test_bad_distributions_are_refused(family: str, hyperparameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Distribution(family, **hyperparameters)


def test_bad_priors_are_refused() -> None:
    law: Law = M1()
    sigma = Parameter("sigma", Distribution("HalfNormal", scale=1.0))
    with pytest.raises(InvalidArgumentError, match="twice"):
        Prior("p", law, [sigma, sigma])
    with pytest.raises(InvalidArgumentError, match="sigma"):
        Prior("p", law, [])
    with pytest.raises(UnknownNameError):
        Prior("p", law, [sigma], noise="cauchy")
    with pytest.raises(UnknownNameError):
        Prior("p", law, [sigma], coordinates="log")
    with pytest.raises(UnknownNameError, match="m4"):
        get_prior("m5")

    class Mine(M1):
        """Another law by the name of one that ships would be served that one's weights."""

    with pytest.raises(InvalidArgumentError, match="'m1' ships"):
        Prior("mine", Mine(), get_prior("m1").parameters)


@pytest.mark.parametrize(
    ("n", "x", "backend"),
    [(0, [1.0], "jax"), (1, [], "jax"), (1, [1.0, 0.5], "jax"), (1, [np.nan], "jax"), (1, [[1.0]], "jax"), (1, [1.0], "numpy")],
)
def test_bad_samples_are_refused(n: int, x: list[Any], backend: str) -> None:
    with pytest.raises(InvalidArgumentError):
        get_prior("m4").sample(n, np.array(x), backend=backend)
    with pytest.raises(InvalidArgumentError):
        get_prior("m4").sample(1, np.array([-1.0, 1.0]))
    with pytest.raises(InvalidArgumentError):
        get_prior("nsl_paper").sample(1, np.array([0.5, 2.0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "format 1"),
        ({"name": 5}, "a name"),
        ({"noize": "normal"}, "no field 'noize'"),
        ({"noise": None}, "noise"),
    ],
)
def test_a_description_with_a_mistake_is_refused(change: dict[str, Any], said: str) -> None:
    described = {**get_prior("m4").to_dict(), **change}
    with pytest.raises(HybridError, match=said):
        prior_from_json(json.dumps(described))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "y_rat"}, "a parameter 'y_ratio'"),
        ({"extra": 1}, "no field 'extra'"),
        ({"distribution": "Normal"}, "not a complete description"),
    ],
)
def test_a_parameter_with_a_mistake_is_refused(change: dict[str, Any], said: str) -> None:
    described = get_prior("m4").to_dict()
    described["parameters"][1].update(change)
    with pytest.raises(FileFormatError, match=said):
        prior_from_json(json.dumps(described))


def test_a_scale_that_may_be_negative_is_refused() -> None:
    for family in (Distribution("Normal", loc=0.0, scale=1.0), Distribution("Uniform", low=-1.0, high=1.0)):
        with pytest.raises(InvalidArgumentError, match="sigma is a scale"):
            get_prior("m4").replace(sigma=family)

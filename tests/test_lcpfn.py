"""LC-PFN's prior: its curves, its indicator, and who can fit it."""

import numpy as np
import pytest
import torch

import hybrid
from hybrid.models.distributions import Distribution
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

PRIOR = get_prior("lcpfn")
assert isinstance(PRIOR, Prior)
EPOCHS = np.arange(1, 101) / 100.0


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_draw_is_an_error_that_falls(backend: str) -> None:
    mean = PRIOR.sample(500, EPOCHS, seed=1, backend=backend)["mean"].values
    assert mean.shape == (500, 100)
    assert np.all((mean > 0) & (mean < 1))
    assert np.all(mean[:, -1] < mean[:, 0])


def test_curve_is_the_published_formula() -> None:
    data = PRIOR.sample(50, EPOCHS, seed=2)
    p = {name: data[name].values[:, None] for name in (q.name for q in PRIOR.parameters)}
    t = 100.0 * EPOCHS
    pow3 = p["pow3_c"] - p["pow3_a"] * t ** -p["pow3_alpha"]
    ilog2 = p["ilog2_c"] - p["ilog2_a"] / np.log(t + 1.0)
    decay = np.exp(-p["janoschek_k"] * t ** p["janoschek_delta"])
    janoschek = p["janoschek_a"] - (p["janoschek_a"] - p["janoschek_b"]) * decay
    accuracy = p["weight_1"] * pow3 + p["weight_2"] * ilog2 + p["weight_3"] * janoschek
    np.testing.assert_allclose(data["mean"].values, 1.0 - accuracy, rtol=1e-9, atol=1e-12)


def test_density_is_nought_where_the_indicator_is() -> None:
    data = PRIOR.sample(4, EPOCHS, seed=3)
    theta = {q.name: data[q.name].values.copy() for q in PRIOR.parameters}
    theta["pow3_c"][0], theta["weight_1"][0] = 1.25, 1.0  # an accuracy above 1
    theta["ilog2_c"][0], theta["weight_2"][0] = 1.0, 1.0
    assert get_namespace("numpy").all(PRIOR.law.admits(get_namespace("numpy"), theta)[1:])
    by_jax = np.asarray(PRIOR.log_density(theta, EPOCHS, data["y"].values))
    on_torch = {k: torch.as_tensor(v) for k, v in theta.items()}
    by_torch = PRIOR.log_density(on_torch, torch.as_tensor(EPOCHS), torch.tensor(data["y"].values)).numpy()
    for found in (by_jax, by_torch):
        assert found[0] == -np.inf
        assert np.all(np.isfinite(found[1:]))


def test_a_prior_that_admits_nothing_says_so() -> None:
    hopeless = PRIOR.replace(pow3_c=Distribution("Uniform", low=50.0, high=60.0), weight_1={"low": 0.9})
    with pytest.raises(InvalidArgumentError, match="admits hardly any"):
        hopeless.sample(2, EPOCHS, backend="torch")


def test_gradient_based_engines_decline() -> None:
    x = np.linspace(1.0, 60.0, 20)
    curve = hybrid.Curve(x, 0.3 + 0.5 / x)
    with pytest.raises(EngineUnavailableError, match="admits only some"):
        hybrid.fit(curve, "lcpfn", "nuts")

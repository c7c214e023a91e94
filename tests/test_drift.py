"""Laws with drift: what the formula says, and the exact engine that integrates over the waves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

import hybrid
from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.drift import NAMES
from hybrid.models.drift import PRIORS as DRIFTING
from hybrid.models.engine import Problem
from hybrid.models.errors import EngineUnavailableError
from hybrid.models.namespace import get_namespace
from hybrid.models.nuts import pad
from hybrid.models.prior import Prior, double_precision, expand
from hybrid.models.registry import get_prior, prior_from_json
from hybrid.models.unconstrained import Points, Unconstrained

X = np.geomspace(0.01, 1.0, 9)
FRAME = Frame(0.0, 1.0, 1.0, 0.01, 1.0, 10.0)
EACH = pytest.mark.parametrize("prior", DRIFTING, ids=lambda p: p.name)


def explicit(name: str) -> Prior:
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    return prior


def drawn(prior: Prior, n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {p.name: p.distribution.numpyro().sample(jax.random.key(int(rng.integers(2**31))), (n,)) for p in prior.parameters}


def arrays(theta: dict[str, Any], backend: str) -> dict[str, Any]:
    if backend == "torch":
        return {k: torch.as_tensor(np.array(v, dtype=float)) for k, v in theta.items()}
    return {k: np.array(v, dtype=float) for k, v in theta.items()}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@EACH
def test_log_curve_is_linear_in_the_waves(prior: Prior, backend: str) -> None:
    xp, theta = get_namespace(backend), arrays(drawn(prior), backend)
    x = xp.asarray(X)
    frame = Frame(*(xp.asarray(float(v), dtype=x.dtype) for v in FRAME))
    waves = xp.stack([theta[name] for name in NAMES], -1)
    others = {k: v for k, v in theta.items() if k not in NAMES}
    law = prior.law
    found = np.log(np.asarray(law.mean(xp, x, expand(theta), frame)))
    centre = np.log(np.asarray(law.centre(xp, x, expand(others), frame)))
    added = np.asarray(law.basis_scales(xp, others) * waves) @ np.asarray(law.basis(xp, x)).T
    np.testing.assert_allclose(found, centre + added, rtol=1e-10, atol=1e-10)
    plain = explicit(prior.name.removesuffix("_drift")).mean({k: np.asarray(v) for k, v in others.items()}, X, FRAME)
    np.testing.assert_allclose(np.exp(centre), plain, rtol=1e-10)


def posed(prior: Prior) -> tuple[Unconstrained, Points, np.ndarray]:
    """A problem with some padding, in double precision, and y."""
    y = prior.sample(1, X, seed=4)["y"].to_numpy()[0]
    return Unconstrained(prior), pad(prior, Problem(X, y, FRAME), 16), y


@EACH
def test_the_likelihood_is_that_of_the_gaussian_process(prior: Prior) -> None:
    with double_precision():
        space, points, y = posed(prior)
        z = space.draw(jax.random.key(1), 6, points.frame)
        found = np.asarray(space.log_likelihood(z, points))
        theta = {k: np.asarray(v) for k, v in space.constrain(z, points.frame).items()}
    assert set(theta) == {p.name for p in prior.parameters} - set(NAMES)
    xp = get_namespace("numpy")
    basis, scales = prior.law.basis(xp, X), prior.law.basis_scales(xp, theta)
    centre = np.log(prior.law.centre(xp, X, expand(theta), FRAME))
    for i in range(6):
        features = basis * scales[i]
        covariance = features @ features.T + theta["sigma"][i] ** 2 * np.eye(X.size)
        assert np.linalg.cond(covariance) < 1e10
        expected = stats.multivariate_normal(centre[i], covariance).logpdf(np.log(y)) - np.log(y).sum()
        assert found[i] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@EACH
def test_the_waves_are_drawn_from_their_conditional_distribution(prior: Prior) -> None:
    draws = 40_000
    with double_precision():
        space, points, y = posed(prior)
        theta = {k: v[0] for k, v in space.constrain(space.draw(jax.random.key(2), 1, points.frame), points.frame).items()}
        many = {k: jnp.full(draws, v) for k, v in theta.items()}
        found = {k: np.asarray(v) for k, v in space.complete(jax.random.key(3), many, points).items()}
    assert list(found) == [p.name for p in prior.parameters]
    xp, one = get_namespace("numpy"), {k: np.asarray(v)[None] for k, v in theta.items()}
    features = prior.law.basis(xp, X) * prior.law.basis_scales(xp, one)[0]
    residual = np.log(y) - np.log(prior.law.centre(xp, X, expand(one), FRAME))[0]
    covariance = features @ features.T + float(theta["sigma"]) ** 2 * np.eye(X.size)
    gain = np.linalg.solve(covariance, features).T
    mean, spread = gain @ residual, np.eye(len(NAMES)) - gain @ features
    waves = np.stack([found[name] for name in NAMES], -1)
    np.testing.assert_allclose(waves.mean(0), mean, atol=5 * draws**-0.5)
    np.testing.assert_allclose(np.cov(waves.T), spread, atol=0.05)


def test_waves_of_another_distribution_are_sampled_with_the_rest() -> None:
    wide = explicit("m4_drift").replace(drift_a1=Distribution("StudentT", df=3.0, loc=0.0, scale=1.0))
    assert wide.integrable == ()
    assert set(NAMES) <= set(Unconstrained(wide).names)
    assert prior_from_json(wide.to_json()) == wide


def bent(n: int = 40) -> hybrid.Curve:
    """A power law with a wave that no parameter of m4 knows, and little noise."""
    x = np.geomspace(1.0, 300.0, 2 * n)
    y = (0.2 + 0.8 * x**-0.3) * np.exp(0.02 * np.sin(5.0 * np.log(x)) + 0.002 * np.random.default_rng(0).standard_normal(2 * n))
    return hybrid.Curve(x[:n], y[:n], x_target=x[n:], y_target=y[n:])


def test_exact_inference_with_drift_knows_that_the_law_is_not_right() -> None:
    curve = bent()
    assert curve.x_target is not None
    assert curve.y_target is not None
    plain, drifting = (hybrid.fit(curve, name, "nuts", horizon=300.0, progress=False) for name in ("m4", "m4_drift"))
    assert "follow one another" in " ".join(plain.reasons)
    assert "follow one another" not in " ".join(drifting.reasons)
    posterior = drifting.data["posterior"]
    assert set(NAMES) <= set(posterior.data_vars)
    lower, upper = drifting.predict(curve.x_target, [0.05, 0.95])["quantiles"].to_numpy()
    assert np.mean((lower < curve.y_target) & (curve.y_target < upper)) > 0.6
    # What the waves explain inside the context is not noise.
    assert float(posterior["sigma"].median()) < 0.5 * float(plain.data["posterior"]["sigma"].median())


def test_least_squares_is_not_offered() -> None:
    with pytest.raises(EngineUnavailableError, match=r"drift of prior 'm4_drift'.*engine='nuts'"):
        hybrid.fit(bent(8), "m4_drift", "least_squares")
    assert hybrid.priors().loc["m4_drift", "engines"] == "nuts"


def test_rounding_is_not_taken_for_information() -> None:
    """Against the singular values of the waves, down to a noise that no double can tell from none."""
    prior = explicit("m4_drift")
    with double_precision():
        space, points, y = posed(prior)
        z = space.draw(jax.random.key(5), 1, points.frame)[0]
        sigma, drift = space.names.index("sigma"), space.names.index("drift")
        z = jnp.repeat(z.at[drift].set(0.0)[None], 30, 0).at[:, sigma].set(jnp.linspace(-1.0, -40.0, 30))
        found = np.asarray(space.log_likelihood(z, points))
        theta = {k: np.asarray(v) for k, v in space.constrain(z, points.frame).items()}
    xp = get_namespace("numpy")
    left, values, _ = np.linalg.svd(prior.law.basis(xp, X) * prior.law.basis_scales(xp, theta)[0])
    residual = np.log(y) - np.log(prior.law.centre(xp, X, expand(theta), FRAME)[0])
    variances = values**2 + theta["sigma"][:, None] ** 2
    expected = stats.norm.logpdf(residual @ left, scale=np.sqrt(variances)).sum(-1) - np.log(y).sum()
    told = np.isfinite(found)
    assert 5 < told.sum() < 25
    np.testing.assert_allclose(found[told], expected[told], rtol=1e-6, atol=0.05)
    assert not told[-1]

"""Points given the others with a drift integrated out, against the conditional distributions of the joint Gaussian."""

import numpy as np
import pytest
from scipy import stats

import hybrid
from hybrid.models.coordinates import get_coordinates
from hybrid.models.left_out import given_the_others
from hybrid.models.prior import Prior, expand
from hybrid.models.registry import get_prior

X = np.array([0.01, 0.02, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


@pytest.mark.parametrize("name", ["m4_drift", "bnsl_drift"])
def test_densities_are_those_of_the_joint_gaussian(name: str) -> None:
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    assert prior.integrable
    theta = {k: v.numpy().astype(float) for k, v in prior.draw_torch(300).items()}
    frame = get_coordinates(prior.coordinates).native_frame(X)
    y = X**-0.2 * np.exp(0.03 * np.random.default_rng(0).standard_normal(X.size))
    density, below = given_the_others(prior, theta, X, y, frame)
    assert density.shape == below.shape == (300, X.size)
    namespace = hybrid.models.namespace.get_namespace("numpy")
    centre = np.log(prior.law.centre(namespace, X, expand(theta), frame))
    basis, scales = prior.law.basis(namespace, X), prior.law.basis_scales(namespace, theta)
    for s in (0, 100, 299):
        covariance = (basis * scales[s] ** 2) @ basis.T + theta["sigma"][s] ** 2 * np.eye(X.size)
        for i in range(X.size):
            others = np.delete(np.arange(X.size), i)
            weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, i])
            mean = centre[s, i] + weights @ (np.log(y) - centre[s])[others]
            sd = np.sqrt(covariance[i, i] - weights @ covariance[others, i])
            expected = stats.norm(mean, sd)
            assert density[s, i] == pytest.approx(expected.logpdf(np.log(y[i])) - np.log(y[i]), rel=1e-5, abs=1e-5)
            assert below[s, i] == pytest.approx(expected.cdf(np.log(y[i])), abs=1e-6)


@pytest.mark.parametrize("points", [3, 5, 12, 30])
@pytest.mark.parametrize("sigma", [1e-3, 1e-5, 1e-7])
def test_nothing_cancels_where_the_drift_is_much_larger_than_the_noise(points: int, sigma: float) -> None:
    """Against sixty digits; by the inverse of I + Z'Z the density of few points was off by any amount."""
    mpmath = pytest.importorskip("mpmath")
    prior, rng = get_prior("m4_drift"), np.random.default_rng(points)
    assert isinstance(prior, Prior)
    namespace = hybrid.models.namespace.get_namespace("numpy")
    x = np.append(np.sort(np.exp(rng.uniform(-6.0, -0.1, points - 1))), 1.0)
    frame = get_coordinates("ratio").native_frame(x)
    theta = {name: value.numpy().astype(float) for name, value in prior.draw_torch(1).items()}
    theta |= {"drift": np.array([0.02]), "drift_decay": np.array([0.7]), "sigma": np.array([sigma])}
    y = prior.mean(theta, x, frame)[0] * np.exp(sigma * rng.standard_normal(points))
    density, below = given_the_others(prior, theta, x, y, frame)
    residual = np.log(y) - np.log(prior.law.centre(namespace, x, expand(theta), frame))[0]
    basis = prior.law.basis(namespace, x) * prior.law.basis_scales(namespace, theta)[0]
    with mpmath.workdps(60):
        waves = mpmath.matrix(basis.tolist())
        precision = (waves * waves.T + mpmath.mpf(sigma) ** 2 * mpmath.eye(points)) ** -1
        pulled = precision * mpmath.matrix(residual.tolist())
        for i in range(points):
            score = pulled[i] / mpmath.sqrt(precision[i, i])
            log_density = -(score**2) / 2 + mpmath.log(precision[i, i] / (2 * mpmath.pi)) / 2
            assert density[0, i] == pytest.approx(float(log_density) - np.log(y[i]), abs=1e-4)
            assert below[0, i] == pytest.approx(float(mpmath.ncdf(score)), abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:k-hat is [.]:UserWarning")  # of few points
def test_leave_one_out_under_drift_is_that_of_refits() -> None:
    """Weighed by densities that know the point's own drift it was half a nat too high at the end, with k-hat below .7."""
    curve = hybrid.load_example("cerebras_gpt_pile")
    fit = hybrid.fit(curve, "m4_drift", "nuts", progress=False)
    table = hybrid.loo(fit)
    for i in (1, 2, 3):
        rest = hybrid.Curve(np.delete(curve.x, i), np.delete(curve.y, i))
        other = hybrid.fit(rest, "m4_drift", "nuts", fit.horizon, fit.y_scale, progress=False)
        assert table["elpd"].iloc[i] == pytest.approx(float(other.log_density(curve.x[i], curve.y[i])[0]), abs=0.12)
        assert table["pit"].iloc[i] == pytest.approx(float(other.prob_below(curve.x[i], curve.y[i])[0]), abs=0.05)

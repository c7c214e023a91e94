import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hybrid.models import convergence, jumps, nuts
from hybrid.models.coordinates import Frame, Ratio, get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.law import Law
from hybrid.models.nuts import NutsSettings, _Attempt, _best_suffix, _doubts, _health, _verdict, bucket, pad, run_nuts
from hybrid.models.prior import Parameter, Prior, double_precision
from hybrid.models.registry import PRIORS, get_prior
from hybrid.models.unconstrained import Unconstrained

REFERENCE = pathlib.Path(__file__).parent / "reference"
CONTINUOUS = [p for p in PRIORS if isinstance(p, Prior) and p.is_continuous]


def problem(x, y, horizon=10.0):
    return Problem(np.asarray(x), np.asarray(y), Ratio().frame(np.asarray(x), horizon, 1.0))


class Line(Law):
    """A law whose posterior is known in closed form: log f is constant."""

    name = "constant"

    def mean(self, xp, x, theta, frame):
        return xp.exp(theta["level"]) + 0.0 * x


def constant_prior(sigma=0.1):
    narrow = Distribution("LogNormal", loc=float(np.log(sigma)), scale=1e-4)
    level = Parameter("level", Distribution("Normal", loc=0.0, scale=1.0))
    return Prior("constant", Line(), [level, Parameter("sigma", narrow)])


def test_closed_form_posterior():
    rng = np.random.default_rng(0)
    x = np.geomspace(0.01, 1, 16)
    y = np.exp(0.4 + 0.1 * rng.standard_normal(16))
    result = run_nuts(constant_prior(), [problem(x, y)], seed=1)[0]
    precision = 1.0 + 16 / 0.1**2
    mean, sd = np.log(y).sum() / 0.1**2 / precision, precision**-0.5
    draws = result.draws["level"]
    error = sd / np.sqrt(convergence.ess_bulk(draws))
    assert result.status == "ok"
    assert abs(draws.mean() - mean) < 4 * error
    assert abs(draws.std() / sd - 1) < 4 / np.sqrt(2 * convergence.ess_bulk(draws))


def test_a_law_that_is_written_anew_is_compiled_anew():
    """As in a notebook, where a class is changed and run again: name, parameters and fingerprint stay the same."""

    class Steep(Line):
        def mean(self, xp, x, theta, frame):
            return xp.exp(3.0 * theta["level"]) + 0.0 * x

    x = np.geomspace(0.01, 1, 16)
    data = problem(x, np.exp(0.4 + 0.1 * np.random.default_rng(0).standard_normal(16)))
    anew = Prior("constant", Steep(), constant_prior().parameters)
    assert anew.fingerprint == constant_prior().fingerprint
    assert anew != constant_prior()
    assert constant_prior() == constant_prior()
    means = [run_nuts(prior, [data], seed=1)[0].draws["level"].mean() for prior in (constant_prior(), anew)]
    assert means[1] == pytest.approx(means[0] / 3.0, abs=0.02)


@pytest.mark.parametrize("name", ["m4", "bnsl"])
def test_agrees_with_stored_reference_posterior(name):
    stored = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
    prior = get_prior(name)
    assert stored["fingerprint"] == prior.fingerprint, "run benchmarks/reference_posterior.py again"
    result = run_nuts(prior, [problem(stored["x"], stored["y"])], seed=2, draws=600)[0]
    assert result.status == "ok", result.reasons
    for parameter, expected in stored["parameters"].items():
        draws = result.draws[parameter]
        ess = min(convergence.ess_bulk(draws), convergence.ess_tail(draws))
        error = expected["sd"] * np.sqrt(1 / ess + 1 / expected["ess_bulk"])
        assert abs(draws.mean() - expected["mean"]) < 4 * error, parameter
        kurtosis = stats.kurtosis(draws, axis=None, fisher=False)  # the sd of an sd depends on it
        relative = np.sqrt((kurtosis - 1) / 4) * np.sqrt(1 / ess + 1 / expected["ess_bulk"])
        assert abs(draws.std() / expected["sd"] - 1) < 4 * relative, parameter


def test_crosses_between_separate_modes():
    """Two modes 30 sds apart with weights 1 to 3: a plain chain would stay where it began."""

    class TwoModes(Law):
        name = "two_modes"

        def mean(self, xp, x, theta, frame):
            bump = xp.exp(-0.5 * ((xp.abs(theta["z"]) - 1.5) / 0.05) ** 2)
            return xp.exp(20.0 * bump) + 0.0 * x

    z = Parameter("z", Distribution("Normal", loc=0.275, scale=0.866))
    sigma = Parameter("sigma", Distribution("LogNormal", loc=0.0, scale=1e-3))
    prior = Prior("two_modes", TwoModes(), [z, sigma])
    x = np.array([0.1, 0.5, 1.0])
    result = run_nuts(prior, [problem(x, np.full(3, np.exp(20.0)))], seed=3)[0]
    draws = result.draws["z"]
    density = stats.norm(0.275, 0.866).pdf
    expected = density(1.5) / (density(1.5) + density(-1.5))
    per_chain = (draws > 0).mean(1)
    assert result.status == "ok", result.reasons
    assert np.all(np.abs(per_chain - expected) < 0.15)
    assert abs(per_chain.mean() - expected) < 0.05


def test_result_is_independent_of_batch_and_padding():
    prior = get_prior("m1")
    x = np.geomspace(0.01, 1, 12)
    y = prior.sample(3, x, seed=4)["y"].values
    options = {"draws": 50, "warmup": 50, "rounds": 1, "attempts": 1}
    together = run_nuts(prior, [problem(x, v) for v in y], seed=5, **options)
    alone = run_nuts(prior, [problem(x, y[2])], seed=5, **options)[0]
    assert np.array_equal(together[2].draws["y_ratio"], alone.draws["y_ratio"])
    again = run_nuts(prior, [problem(x, y[2])], seed=5, **options)[0]
    assert np.array_equal(again.draws["sigma"], alone.draws["sigma"])
    other = run_nuts(prior, [problem(x, y[2])], seed=6, **options)[0]
    assert not np.array_equal(other.draws["sigma"], alone.draws["sigma"])


def test_padding_does_not_change_the_posterior():
    prior = get_prior("m4")
    x = np.geomspace(0.01, 1, 12)
    y = prior.sample(1, x, seed=4)["y"].values[0]
    with double_precision():
        space = Unconstrained(prior)
        points = [pad(prior, problem(x, y), size) for size in (12, 40)]
        z = space.draw(jax.random.key(0), 20, points[0].frame)
        values = [np.asarray(space.log_posterior(z, p)) for p in points]
        gradients = [np.asarray(jax.grad(lambda v, p=p: space.log_posterior(v, p))(z[0])) for p in points]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", CONTINUOUS, ids=lambda p: p.name)
def test_unconstrained_density_matches_the_prior(prior):
    """The density over z is that over theta times the Jacobian, which is found here by differentiation."""
    frame = get_coordinates(prior.coordinates).native_frame(np.geomspace(1e-3, 10, 20))
    with double_precision():
        frame = Frame(*(jnp.asarray(v, dtype=jnp.float64) for v in frame))
        space = Unconstrained(prior)
        for z in space.draw(jax.random.key(1), 5, frame):
            theta = space.constrain(z, frame)

            def vector(v):
                found = space.constrain(v, frame)
                return jnp.stack([found[n] for n in space.names])

            _, log_det = jnp.linalg.slogdet(jax.jacfwd(vector)(z))
            expected = log_det
            for parameter in prior.parameters:
                if parameter.name in space.names:  # the others are integrated out
                    expected = expected + parameter.distribution.numpyro().log_prob(theta[parameter.name])
            assert float(space.log_prior(z, frame)) == pytest.approx(float(expected), abs=1e-8)


def test_draws_of_the_prior_are_those_of_the_unconstrained_space():
    prior = get_prior("bnsl2")
    with double_precision():
        frame = Frame(*(jnp.asarray(v, dtype=jnp.float64) for v in Ratio().native_frame(np.array([1e-3, 1.0]))))
        space = Unconstrained(prior)
        theta = space.constrain(space.draw(jax.random.key(2), 4000, frame), frame)
        for parameter in prior.parameters:
            exact = parameter.distribution.numpyro().sample(jax.random.key(3), (4000,))
            assert stats.ks_2samp(np.asarray(theta[parameter.name]), np.asarray(exact)).pvalue > 1e-4


def test_cloud_density_integrates_to_one_and_matches_its_draws():
    with double_precision():
        key = jax.random.key(0)
        points = jax.random.normal(key, (200, 1)) * 2.0 + jnp.where(jnp.arange(200)[:, None] % 2 == 0, 5.0, -5.0)
        cloud = jumps.make_cloud(points)
        grid = jnp.linspace(-60, 60, 20001)
        density = np.exp(np.asarray(jax.vmap(lambda z: jumps.log_density(cloud, z[None]))(grid)))
        total = np.trapezoid(density, np.asarray(grid))
        draws = np.asarray(jumps.propose(jax.random.key(1), cloud, 20_000))[:, 0]
    assert total == pytest.approx(1.0, abs=1e-3)
    below = np.trapezoid(density[np.asarray(grid) < 0], np.asarray(grid)[np.asarray(grid) < 0])
    assert (draws < 0).mean() == pytest.approx(below, abs=0.02)


def test_walk_steps_are_symmetric():
    with double_precision():
        points = jax.random.normal(jax.random.key(0), (300, 2)) ** 3
        steps = np.asarray(jumps.differences(jax.random.key(1), jumps.make_cloud(points), 20_000))
    for column in steps.T:
        assert stats.ks_2samp(column, -column).pvalue > 1e-3


def test_jump_accepts_by_the_metropolis_rule():
    with double_precision():
        at, accepted = jumps.jump(jnp.asarray(0.0), jnp.asarray([-5.0, 1.0, -9.0]), jnp.asarray([0.5, 0.9, 0.5]))
        stays, none = jumps.jump(jnp.asarray(0.0), jnp.asarray([-5.0]), jnp.asarray([0.5]))
    assert (int(at), int(accepted), int(stays), int(none)) == (1, 1, -1, 0)


def test_too_few_draws_are_tried_again_and_then_reported():
    x = np.geomspace(1e-2, 1, 8)
    y = get_prior("m1").sample(1, x, seed=11)["y"].values[0]
    result = run_nuts(get_prior("m1"), [problem(x, y)], draws=50, warmup=50, rounds=1, particles=200, cloud=100)[0]
    assert result.info["attempts"] == 2
    assert result.status == "needs_review"
    assert any("effective sample size" in reason and "fit again" in reason for reason in result.reasons)


def test_disagreeing_chains_are_reported():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 500, 2))
    health = _health({"a": z[..., 0], "b": z[..., 1]})
    assert health.good
    z[0, :, 1] += 1.0
    health = _health({"a": z[..., 0], "b": z[..., 1]})
    assert not health.good
    assert health.worst == "b"
    stats_ = {k: np.zeros((4, 500)) for k in ("jump_rate", "n_steps")} | {"diverging": np.zeros((4, 500), bool)}
    attempt = _Attempt(z, {}, stats_, health, 1)
    reasons = _doubts(attempt, NutsSettings())
    assert "R-hat of b" in reasons[0]
    result = _verdict({"b": z[..., 1]}, attempt, 1, NutsSettings(), tuple(reasons), {})
    assert result.status == "needs_review"
    assert result.reasons == tuple(reasons)


def test_draws_before_agreement_are_discarded():
    rng = np.random.default_rng(1)
    late = rng.standard_normal((4, 500))
    early = late + np.arange(4)[:, None]
    first, health = _best_suffix([{"a": early}, {"a": late}])
    assert first == 1
    assert health.good


@pytest.mark.parametrize("name", ["nsl", "nslpfn", "lcpfn"])
def test_priors_without_a_continuous_density_are_refused(name):
    with pytest.raises(EngineUnavailableError, match="engine='pfn'"):
        run_nuts(get_prior(name), [])


@pytest.mark.parametrize(
    "options", [{"draws": 3}, {"chains": 2}, {"drows": 100}, {"target_accept": 1.5}, {"workers": 0}, {"attempts": 0}]
)
def test_bad_options(options):
    x = np.geomspace(0.1, 1, 5)
    with pytest.raises(InvalidArgumentError):
        run_nuts(get_prior("m1"), [problem(x, x)], **options)


def test_settings_and_buckets():
    assert [bucket(n) for n in (3, 8, 9, 41, 1025)] == [8, 8, 16, 64, 2048]
    assert NutsSettings().stronger().draws == 2 * NutsSettings().draws


def test_workers_give_the_same_draws():
    prior = get_prior("m1")
    x = np.geomspace(0.01, 1, 8)
    curves = [problem(x, y) for y in prior.sample(4, x, seed=4)["y"].values]
    options = {"draws": 50, "warmup": 50, "rounds": 1, "attempts": 1}
    here: list[EngineResult] = run_nuts(prior, curves, **options)
    there = run_nuts(prior, curves, workers=2, **options)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.draws["sigma"], b.draws["sigma"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m1", "m2", "m3", "m4"])
def test_most_prior_curves_converge(name):
    prior = get_prior(name)
    x = np.geomspace(1e-3, 1, 40)
    curves = [problem(x, y) for y in prior.sample(20, x, seed=7)["y"].values]
    results = run_nuts(prior, curves)
    assert sum(r.status == "ok" for r in results) >= 19


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform():
    """Simulation-based calibration, with the log likelihood among the quantities (Modrak et al. 2023)."""
    prior = get_prior("m4")
    x = np.geomspace(3e-3, 1, 24)
    curves = prior.sample(64, x, seed=8)
    problems = [problem(x, y) for y in curves["y"].values]
    results = run_nuts(prior, problems)
    rng = np.random.default_rng(0)
    ranks = {}

    def rank(name, draws, truth):
        ranks.setdefault(name, []).append((np.sum(draws < truth) + rng.uniform()) / (draws.size + 1))

    def log_likelihood(theta, y, frame):
        level = prior.mean(theta, x, frame)
        return prior.noise.log_prob(y, level, {"sigma": theta["sigma"][:, None]}).sum(-1)

    for i, (result, each) in enumerate(zip(results, problems, strict=True)):
        draws = {k: v.ravel() for k, v in result.draws.items()}
        truth = {k: curves[k].values[i : i + 1] for k in draws}
        for name in draws:
            rank(name, draws[name], truth[name][0])
        rank("log_likelihood", *(log_likelihood(t, each.y, each.frame) for t in (draws, truth)))
    for name, values in ranks.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-3, name


@pytest.mark.slow
def test_points_without_noise_are_said_to_have_none():
    x = np.geomspace(0.05, 1.0, 20)
    (result,) = run_nuts(get_prior("m1"), [problem(x, x**-0.1)])
    assert result.info["attempts"] == 1
    assert result.status == "needs_review"
    assert "lie on the law to rounding" in result.reasons[0]
    assert len(result.reasons) == 1


@pytest.mark.slow
def test_points_almost_without_noise_are_said_to_have_hardly_any():
    """More draws do not help there, a tighter prior does."""
    x = np.geomspace(1e-4, 1.0, 9)
    curve = problem(x, (1.5 + 2.0 * (x / x[0]) ** -0.3) / 3.5)
    prior = get_prior("m4")
    (result,) = run_nuts(prior, [curve], attempts=1)
    assert result.status == "needs_review"
    assert "lie almost exactly on the law" in result.reasons[0]
    (result,) = run_nuts(prior.replace(sigma={"loc": -7.0, "scale": 0.3}), [curve])
    assert (result.status, result.reasons) == ("ok", ())


@pytest.mark.parametrize(
    "option", [{"walks": True}, {"draws": 50.5}, {"workers": "2"}, {"workers": 1.5}, {"target_accept": "0.9"}]
)
def test_options_of_another_kind_are_refused(option):
    with pytest.raises(InvalidArgumentError, match=next(iter(option))):
        run_nuts(constant_prior(), [], **option)


def test_integers_of_numpy_are_integers():
    assert NutsSettings(draws=np.int64(300)) == NutsSettings(draws=300)


def test_each_threshold_of_an_attempt_is_judged():
    z = np.random.default_rng(0).standard_normal((4, 500, 2))
    health, share = _health({"a": z[..., 0], "b": z[..., 1]}), np.zeros((4, 500), bool)
    assert _Attempt(z, {}, {"diverging": share}, health, 1).good
    share[:, :11] = True
    attempt = _Attempt(z, {}, {"diverging": share}, health, 1)
    assert not attempt.good
    (reason,) = _doubts(attempt, NutsSettings())
    assert "2.2 % of the NUTS transitions diverged" in reason
    for ess in ("min_ess_bulk", "min_ess_tail"):
        attempt = _Attempt(z, {}, {"diverging": np.zeros((4, 500), bool)}, dataclasses.replace(health, **{ess: 399.0}), 1)
        assert not attempt.good
        (reason,) = _doubts(attempt, NutsSettings())
        assert "effective sample size is 399 (must be >= 400)" in reason


def test_each_curve_has_random_numbers_of_its_own(monkeypatch):
    keys = []

    def attempt(prior, points, key, *_):
        keys.append(np.asarray(jax.random.key_data(key)).tolist())
        raise ZeroDivisionError

    monkeypatch.setattr(nuts, "_attempt", attempt)
    x = np.geomspace(0.01, 1, 12)
    one, other = get_prior("m1").sample(2, x, seed=4)["y"].values
    for y in (one, other, one):
        with pytest.raises(ZeroDivisionError):
            run_nuts(get_prior("m1"), [problem(x, y)], seed=5)
    assert keys[0] == keys[2] != keys[1]


def test_convergence_is_judged_of_the_parameters_that_are_returned():
    """Not of those the chains move in: `bnsl` scales the change of slope by others."""
    x = np.geomspace(0.01, 1, 16)
    prior = get_prior("bnsl")
    (found,) = run_nuts(prior, [problem(x, prior.sample(1, x, seed=9)["y"].values[0])], seed=3)
    for figure, judge, extreme in (
        ("max_rhat", "rhat", max),
        ("min_ess_bulk", "ess_bulk", min),
        ("min_ess_tail", "ess_tail", min),
    ):
        each = [getattr(convergence, judge)(value) for value in found.draws.values()]
        assert found.info[figure] == pytest.approx(extreme(each), rel=1e-9)

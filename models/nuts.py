"""Exact inference by NumPyro's NUTS, started by tempered SMC and helped across modes by independence jumps.

One iteration is a NUTS transition (Hoffman and Gelman 2014, JMLR 15), a few differential-evolution steps (ter Braak and Vrugt
2008, Statistics and Computing 18) and a few independence proposals from a cloud of posterior points, each with its
Metropolis-Hastings rule, so that every part leaves the posterior invariant.

A plain NUTS chain cannot move between the modes that scaling laws really have (a break inside or beyond the context, an
asymptote or a slow power law). So each chain begins at a particle of its own tempered SMC run from the prior, and the cloud,
pooled from all runs, lets it jump: R-hat then compares chains that could have met. While R-hat, bulk or tail ESS miss their
thresholds, the chains run on with a cloud made of their own draws; the earliest rounds are dropped if the later ones pass
without them. Then everything is tried again with several times the effort; and where that is not enough the result says so.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer.hmc import hmc
from tqdm import tqdm

from hybrid.models import convergence, jumps
from hybrid.models.checks import as_integer, is_real
from hybrid.models.compilation import use_compilation_cache
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.namespace import get_namespace
from hybrid.models.parallel import run_tasks
from hybrid.models.prior import AbstractPrior, Prior, double_precision, sigma_draws
from hybrid.models.requirements import require_continuous
from hybrid.models.residuals import checked
from hybrid.models.tempered_smc import tempered_smc
from hybrid.models.thresholds import MAX_DIVERGENT, MAX_RHAT, MIN_ESS
from hybrid.models.unconstrained import Points, Unconstrained, covariance

Array = Any
Report = Callable[[str], object]  # called with what a fit is doing, for a progress bar
BUCKETS = (8, 16, 24, 40, 64, 96, 160, 256, 400, 640, 1024)
ROUNDING = 1e-9  # sigma below which points lie on the law as exactly as numbers are written
NO_NOISE = (
    "The points lie on the law to rounding (noise sd {:.0e}), so the chains did not settle on a size of the noise. "
    "Measurements have some: check that y is measured and not computed, or give sigma a tighter prior with "
    "prior.replace(sigma={{'loc': ..., 'scale': ...}})."
)
HARDLY_NOISE = (
    "The points lie almost exactly on the law (noise sd {:.0e}, below all of {:,} draws of its prior), which is a needle for "
    "the chains to find: check that y is measured and not computed, or give sigma a tighter prior that holds what the noise "
    "can be, such as prior.replace(sigma={{'loc': -7.0, 'scale': 0.3}})."
)
ALL_NOISE = (
    "The points are taken for noise (sd {:.2g}, above all of {:,} draws of its prior): their level is far from what the prior "
    "expects, or one of them is far from the others. State a y_scale near the observed y, or check that point."
)
AMONG = 1000  # draws of the noise's prior
MOST = 10**9  # of anything that is counted
LINEAR = 2  # in place of an attempt's number, for the parameters that are drawn last


@dataclasses.dataclass(frozen=True)
class NutsSettings:
    """How long and how widely to sample.

    Attributes
    ----------
    chains
        Number of chains, each with its own SMC run; at least 4.
    warmup, draws
        Transitions per chain and round to adapt, and to keep.
    particles
        SMC particles per chain.
    walks, jumps
        Differential-evolution and independence proposals after every NUTS transition.
    cloud
        Number of posterior points that shape the proposals.
    max_tree_depth, target_accept
        As in NumPyro's NUTS. Trees are kept short: the jumps do what long ones are for.
    rounds
        How many times the chains are run on while they have not converged.
    attempts
        1, or more to start again once with `stronger` settings where the first attempt failed.
    """

    chains: int = 4
    warmup: int = 100
    draws: int = 300
    particles: int = 500
    walks: int = 20
    jumps: int = 8
    cloud: int = 500
    max_tree_depth: int = 6
    target_accept: float = 0.9
    rounds: int = 3
    attempts: int = 2

    def __post_init__(self) -> None:
        if not (is_real(self.target_accept) and 0.0 < self.target_accept < 1.0):
            raise InvalidArgumentError(f"target_accept must lie between 0 and 1, got {self.target_accept!r}")
        low = {
            "chains": 4,
            "warmup": 50,
            "draws": 50,
            "particles": 200,
            "walks": 1,
            "jumps": 1,
            "cloud": 100,
            "max_tree_depth": 1,
            "rounds": 1,
            "attempts": 1,
        }
        for name, least in low.items():
            value = getattr(self, name)
            object.__setattr__(self, name, as_integer(value, name, least, MOST))

    def stronger(self) -> "NutsSettings":
        """Several times the effort, for posteriors on which the first attempt failed."""
        return dataclasses.replace(
            self,
            warmup=2 * self.warmup,
            draws=2 * self.draws,
            particles=3 * self.particles,
            walks=2 * self.walks,
            cloud=2 * self.cloud,
            target_accept=0.5 + 0.5 * self.target_accept,
        )


def _silent(text: str) -> None:
    del text


def bucket(n: int) -> int:
    """The padded length of a context of n points, so that curves of similar length share a compilation."""
    for size in BUCKETS:
        if n <= size:
            return size
    return -(-n // BUCKETS[-1]) * BUCKETS[-1]


def pad(prior: Prior, problem: Problem, size: int) -> Points:
    """The context of a problem as JAX arrays of the given length."""
    n = problem.x.size
    x, y = np.ones(size), np.ones(size)
    x[:n], y[:n] = problem.x, problem.y
    x[n:] = problem.frame.last
    frame = type(problem.frame)(*(jnp.asarray(v, dtype=jnp.float64) for v in problem.frame))
    mask = jnp.arange(size) < n
    basis = jnp.where(mask[:, None], prior.law.basis(get_namespace("jax"), jnp.asarray(x)), 0.0)
    return Points(jnp.asarray(x), jnp.asarray(y), mask, frame, basis, basis.T @ basis)


@functools.lru_cache(maxsize=32)
def _programs(prior: Prior, settings: NutsSettings, probe: object) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The compiled SMC run and the compiled chain of a prior whose law computes what its probe says."""
    del probe
    space = Unconstrained(prior)
    length = settings.warmup + settings.draws

    def smc(key: Array, points: Points) -> Array:
        return tempered_smc(space, key, points, settings.particles)

    def chain(key: Array, points: Points, cloud_points: Array, start: Array) -> tuple[Array, dict[str, Array]]:
        def potential(z: Array) -> Array:
            return -space.log_posterior(z, points)

        key_cloud, key_uniform, key_walk, key_accept, key_nuts = jax.random.split(key, 5)
        cloud = jumps.make_cloud(cloud_points)
        offers = jumps.propose(key_cloud, cloud, length * settings.jumps)
        log_cloud = lax.map(lambda z: jumps.log_density(cloud, z), offers, batch_size=64)
        weights = space.log_posterior(offers, points) - log_cloud
        weights = jnp.where(jnp.isnan(weights), -jnp.inf, weights)
        shape = (length, settings.jumps)
        walks = (length, settings.walks)
        steps = jumps.differences(key_walk, cloud, length * settings.walks).reshape(*walks, space.size)
        plan = (
            offers.reshape(*shape, space.size),
            weights.reshape(shape),
            jax.random.uniform(key_uniform, shape),
            steps,
            jax.random.uniform(key_accept, walks),
        )

        initialise, transition = hmc(potential_fn=potential, algo="NUTS")
        state = initialise(
            start,
            num_warmup=settings.warmup,
            dense_mass=True,
            inverse_mass_matrix=covariance(cloud_points),
            target_accept_prob=settings.target_accept,
            max_tree_depth=settings.max_tree_depth,
            rng_key=key_nuts,
        )

        def moved(z: Array, state: Any) -> Any:
            energy, gradient = jax.value_and_grad(potential)(z)
            return state._replace(z=z, potential_energy=energy, z_grad=gradient)

        def step(state: Any, planned: tuple[Array, ...]) -> tuple[Any, tuple[Array, ...]]:
            proposals, proposal_weights, uniform, differences, uniform_walk = planned
            state = transition(state)
            z, level, walked = jumps.walk(lambda z: -potential(z), state.z, -state.potential_energy, differences, uniform_walk)
            at, jumped = jumps.jump(level - jumps.log_density(cloud, z), proposal_weights, uniform)
            z = jnp.where(at >= 0, proposals[at], z)
            state = moved(z, state)
            kept = (
                state.z,
                -state.potential_energy,
                state.diverging,
                state.energy,
                state.num_steps,
                state.accept_prob,
                state.adapt_state.step_size,
                jumped / settings.jumps,
                walked / settings.walks,
            )
            return state, kept

        _, kept = lax.scan(step, state, plan)
        z, lp, diverging, energy, n_steps, accept, step_size, jump_rate, walk_rate = (v[settings.warmup :] for v in kept)
        stats = {
            "lp": lp,
            "diverging": diverging,
            "energy": energy,
            "n_steps": n_steps,
            "tree_depth": jnp.ceil(jnp.log2(n_steps + 1.0)).astype(int),
            "acceptance_rate": accept,
            "step_size": step_size,
            "jump_rate": jump_rate,
            "walk_rate": walk_rate,
        }
        return z, stats

    return jax.jit(smc), jax.jit(chain)


def _spread(points: Array, size: int) -> Array:
    """Evenly spaced rows, `size` of them."""
    return points[np.linspace(0, len(points) - 1, size).astype(int)]


@dataclasses.dataclass(frozen=True)
class _Health:
    max_rhat: float
    min_ess_bulk: float
    min_ess_tail: float
    worst: str

    @property
    def good(self) -> bool:
        enough = min(self.min_ess_bulk, self.min_ess_tail) >= MIN_ESS
        return self.max_rhat < MAX_RHAT and enough


def _health(theta: Mapping[str, Array]) -> _Health:
    """Of the parameters themselves: the chains move in others, some of which are scaled by one another."""
    rhats = {name: convergence.rhat(value) for name, value in theta.items()}
    bulk, tail = ([ess(v) for v in theta.values()] for ess in (convergence.ess_bulk, convergence.ess_tail))
    worst = max(rhats, key=lambda name: rhats[name])
    return _Health(rhats[worst], min(bulk), min(tail), worst)


def _joined(rounds: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The draws of all rounds, one after another in every chain."""
    return {name: np.concatenate([r[name] for r in rounds], 1) for name in rounds[0]}


def _best_suffix(rounds: Sequence[Mapping[str, Array]]) -> tuple[int, _Health]:
    """The earliest round from which on the draws pass; if none passes, the one with the smallest R-hat."""
    found: list[tuple[int, _Health]] = []
    for first in range(len(rounds)):
        health = _health(_joined(rounds[first:]))
        found.append((first, health))
        if health.good:
            return found[-1]
    return min(found, key=lambda item: item[1].max_rhat)


@dataclasses.dataclass(frozen=True)
class _Attempt:
    z: Array
    theta: dict[str, Array]
    stats: dict[str, Array]
    health: _Health
    rounds: int

    @property
    def divergent_share(self) -> float:
        return float(self.stats["diverging"].mean())

    @property
    def good(self) -> bool:
        return self.health.good and self.divergent_share <= MAX_DIVERGENT


def _attempt(prior: Prior, points: Points, key: Array, settings: NutsSettings, report: Report) -> _Attempt:
    """Start the chains by SMC and run them for as many rounds as they need, or may."""
    smc, chain = _programs(prior, settings, prior.probe)
    space = Unconstrained(prior)
    keys = jax.random.split(key, (settings.rounds + 1, settings.chains))
    particles = []
    for number, k in enumerate(keys[0], 1):
        report(f"start {number}/{settings.chains}")
        particles.append(np.asarray(smc(k, points)))
    cloud = _spread(np.concatenate(particles), settings.cloud)
    starts = [p[0] for p in particles]

    rounds: list[Array] = []
    thetas: list[dict[str, Array]] = []
    stats: list[dict[str, Array]] = []
    first, health = 0, _Health(np.inf, 0.0, 0.0, space.names[0])
    for index in range(settings.rounds):
        results = []
        for number, (k, start) in enumerate(zip(keys[index + 1], starts, strict=True), 1):
            report(f"round {index + 1}, chain {number}/{settings.chains}")
            results.append(jax.tree.map(np.asarray, chain(k, points, cloud, start)))
        rounds.append(np.stack([z for z, _ in results]))
        stats.append({k: np.stack([s[k] for _, s in results]) for k in results[0][1]})
        thetas.append(jax.tree.map(np.asarray, space.constrain(jnp.asarray(rounds[-1]), points.frame)))
        first, health = _best_suffix(thetas)
        if health.good:
            break
        seen = np.unique(np.concatenate(rounds, 1).reshape(-1, space.size), axis=0)  # a stuck chain repeats its point
        cloud = _spread(seen, settings.cloud)
        starts = list(rounds[-1][:, -1])
    theta, kept = (_joined(parts[first:]) for parts in (thetas, stats))
    return _Attempt(np.concatenate(rounds[first:], 1), theta, kept, health, len(rounds))


def _sample(prior: Prior, problem: Problem, settings: NutsSettings, seed: int, report: Report) -> EngineResult:
    with double_precision():
        points = pad(prior, problem, bucket(problem.x.size))
        key = jax.random.fold_in(jax.random.key(seed), problem.stream)
        first, second = jax.random.split(key)
        attempt, attempts = _attempt(prior, points, first, settings, report), 1
        space = Unconstrained(prior)
        exact = False
        if not attempt.good:
            exact = float(np.median(attempt.theta["sigma"])) < ROUNDING  # more effort would find no noise either
        if not attempt.good and not exact and settings.attempts > 1:
            settings, attempts = settings.stronger(), 2
            attempt = _attempt(prior, points, second, settings, report)
        noise = float(np.median(attempt.theta["sigma"]))
        usual = sigma_draws(prior, AMONG)
        lp = attempt.stats["lp"] + np.asarray(space.log_volume(jnp.asarray(attempt.z), points.frame))
        attempt = dataclasses.replace(attempt, stats={**attempt.stats, "lp": lp})
        draws = jax.tree.map(np.asarray, space.complete(jax.random.fold_in(key, LINEAR), attempt.theta, points))
    checks, remarks = checked(prior, draws, problem)
    told: tuple[str, ...] = ()
    if not attempt.good and noise < usual.min():
        told = (HARDLY_NOISE.format(noise, AMONG),)
    elif noise > usual.max():
        told = (ALL_NOISE.format(noise, AMONG),)
    reasons = (NO_NOISE.format(noise),) if exact else (*told, *_doubts(attempt, settings), *remarks)
    return _verdict(draws, attempt, attempts, settings, reasons, checks)


def _sample_all(
    prior: Prior, problems: Sequence[Problem], settings: NutsSettings, seed: int, report: Report = _silent
) -> list[EngineResult]:
    use_compilation_cache()
    return [_sample(prior, problem, settings, seed, report) for problem in problems]


def _doubts(attempt: _Attempt, settings: NutsSettings) -> list[str]:
    """What is wrong with an attempt, and what to do."""
    reasons = []
    health, share = attempt.health, attempt.divergent_share
    if not health.max_rhat < MAX_RHAT:
        reasons.append(
            f"R-hat of {health.worst} is {health.max_rhat:.3f} (must be < {MAX_RHAT}): the chains disagree; fit again "
            f"with draws={4 * settings.draws}, particles={4 * settings.particles}, or choose a prior with fewer parameters"
        )
    ess = min(health.min_ess_bulk, health.min_ess_tail)
    if not ess >= MIN_ESS:
        reasons.append(
            f"effective sample size is {ess:.0f} (must be >= {MIN_ESS:.0f}): fit again with draws={4 * settings.draws}"
        )
    if share > MAX_DIVERGENT:
        reasons.append(
            f"{100 * share:.1f} % of the NUTS transitions diverged: the posterior has corners that NUTS cannot follow; compare "
            "another prior, or give the offending parameter a tighter one with prior.replace(...)"
        )
    return reasons


def _verdict(
    draws: dict[str, Array],
    attempt: _Attempt,
    attempts: int,
    settings: NutsSettings,
    reasons: tuple[str, ...],
    checks: dict[str, float],
) -> EngineResult:
    health, stats = attempt.health, attempt.stats
    info = {
        "method": "NUTS with SMC starts and independence jumps",
        "chains": settings.chains,
        "draws": int(next(iter(draws.values())).shape[1]),
        "attempts": attempts,
        "rounds": attempt.rounds,
        "max_rhat": health.max_rhat,
        "min_ess_bulk": health.min_ess_bulk,
        "min_ess_tail": health.min_ess_tail,
        "divergences": int(stats["diverging"].sum()),
        "jump_rate": float(stats["jump_rate"].mean()),
        "mean_n_steps": float(stats["n_steps"].mean()),
        **checks,
    }
    return EngineResult(draws, stats, "needs_review" if reasons else "ok", reasons, info)


def run_nuts(
    prior: AbstractPrior, problems: Sequence[Problem], seed: int = 0, progress: bool = False, workers: int = 1, **options: Any
) -> list[EngineResult]:
    """Sample the posterior of each problem.

    Parameters
    ----------
    prior
        A prior with a density and continuous parameters.
    problems
        Contexts in the prior's coordinates. Those of similar length share a compilation.
    seed
        Seed of the random numbers; a curve's draws do not depend on its place in the batch.
    progress
        Whether to show a progress bar.
    workers
        Number of processes to spread the curves over; each loads or compiles the programs for itself. XLA does not run
        the same program safely from several threads of one process, so processes it is.
    **options
        Fields of `NutsSettings`.

    Returns
    -------
    One result per problem, in order. Status is "needs_review" where rank-normalised R-hat is not below 1.01, bulk or tail
    ESS is below 400 (Vehtari et al. 2021), more than 2 % of the transitions diverged, or the residuals follow one another
    or a line as those of replicated curves do in less than one of a hundred (see `hybrid.models.residuals`): then the draws
    are right for the model, and the model is not right for the curve; or where the points have no noise at all, or
    nothing but noise: more than any of 1000 draws of its prior.

    Raises
    ------
    EngineUnavailableError
        If the prior has no density or has discrete parameters.
    InvalidArgumentError
        If an option is unknown or out of range.
    """
    prior = require_continuous(prior, "nuts")
    known = {f.name for f in dataclasses.fields(NutsSettings)}
    if set(options) - known:
        unknown = ", ".join(sorted(set(options) - known))
        raise InvalidArgumentError(f"engine 'nuts' has no option {unknown}; it has {', '.join(sorted(known | {'workers'}))}")
    settings = NutsSettings(**options)
    workers = as_integer(workers, "workers", 1, MOST)
    by_length = sorted(range(len(problems)), key=lambda i: bucket(problems[i].x.size))
    size = 1 if workers == 1 else max(1, min(8, len(problems) // (4 * workers)))
    tasks = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    found: dict[int, EngineResult] = {}
    with tqdm(total=len(problems), desc=f"NUTS {prior.name}", unit="curve", disable=not progress) as bar:
        report = (bar.set_postfix_str,) if workers == 1 else ()
        calls = [(prior, [problems[i] for i in task], settings, seed, *report) for task in tasks]
        with contextlib.closing(run_tasks(_sample_all, calls, workers)) as made:
            for index, results in made:
                found.update(zip(tasks[index], results, strict=True))
                bar.update(len(results))
    return [found[i] for i in range(len(problems))]

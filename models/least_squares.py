"""Least squares: the point estimate that minimises the squared residuals of log y, whatever the prior's density.

For a law with mean curve f(x; theta) this finds argmin_theta sum_i (log y_i - log f(x_i; theta))^2 over the support of the
declared distributions. A prior's density plays no part in the objective, only in where the search starts.

1. Candidates: prior draws, and draws spread wider than the prior, are scored on a thinned context by the variance of their
   residuals, since a wrong level is what the first step repairs. The best few that differ from one another are starts.
2. Every start is improved by Levenberg-Marquardt on the thinned context.
3. The best few go on to convergence on the whole context, and the least RSS is the estimate.

Levenberg-Marquardt (Moré 1978, doi:10.1007/BFb0067700) runs on unconstrained transforms of the parameters. It departs from
the paper in that steps of transformed parameters are clipped: where the optimum lies on a bound, the gradient
fades exponentially and unclipped steps would leave the range of floating point. All lanes of a batch run in one compiled
loop, and shapes are padded to few sizes so that compilations are reused.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hybrid.models.checks import as_integer
from hybrid.models.coordinates import Frame
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.law import Law, run_mean
from hybrid.models.namespace import get_namespace
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import AbstractPrior, Parameter, Prior, double_precision, expand, sigma_draws
from hybrid.models.requirements import require_continuous
from hybrid.models.residuals import checked

Array = Any

BATCHES = (1, 4, 16)
CANDIDATES = 2048
SMALLEST_PAD = 16
SCORED, THINNED = 16, 32  # points on which candidates are scored and starts improved
ROUGH_STEPS = 40
ROUGH_TOLERANCE = 1e-4
TOLERANCE = 1e-8
WINDOW, STALL = 25, 1e-4  # a search ends when so many steps gain less than this share of the RSS: 0.01 nats at 200 points
EXACT = 1e-20  # mean squared residual of log y below which a curve is fitted exactly
NEGLIGIBLE = 1e-6  # sigma of residuals that are left by the search
NEAR = 0.5  # starts differ by at least so many prior standard deviations in some parameter
TIE = 1e-6  # optima whose RSS differ by less, relatively, are equal: the one nearest the prior's median is taken
FINALISTS = 4
AGREE = 1.01
ALIKE = 2.0  # n log(RSS / least RSS), twice the loss of log likelihood at the best noise, up to which a curve fits as well
APART, LEAST_APART = 5.0, 0.05  # sds of the noise, and nats, by which forecasts of log y differ that are not the same
MOST_STEPS = 10**6
REACH = 25.0  # how far a transformed parameter may go from the prior's median, in log or logit
LONGEST_STEP = 3.0
SMALLEST_SIGMA = 1e-12


class _Free(NamedTuple):
    """A parameter to estimate and the bounds of its support."""

    name: str
    low: float
    high: float

    def to_support(self, u: Array) -> Array:
        return self._transform()(u)

    def from_support(self, value: Array) -> Array:
        return self._transform().inv(value)

    def _transform(self) -> Any:
        dist = importlib.import_module("numpyro.distributions")
        constraints = dist.constraints
        if math.isfinite(self.high):
            return dist.biject_to(constraints.interval(self.low, self.high))
        if math.isfinite(self.low):
            return dist.biject_to(constraints.greater_than(self.low))
        return dist.biject_to(constraints.real)


class _State(NamedTuple):
    """One lane of Levenberg-Marquardt."""

    u: Array  #: unconstrained parameters, (p,)
    residual: Array  #: weighted residuals of log y, (n,)
    jacobian: Array  #: of the residuals, (n, p)
    cost: Array  #: sum of squared residuals
    damping: Array
    scale: Array  #: diagonal of J'J, remembered over a few steps, (p,)
    step: Array  #: steps taken
    mark: Array  #: cost at the last step that was a multiple of `WINDOW`
    done: Array  #: whether the residuals vanish, or no further gain is in sight


class _Solver(NamedTuple):
    """The compiled stages for one law and one set of supports."""

    starts: Callable[..., Any]
    improve: Callable[..., Any]


def _free(parameter: Parameter) -> _Free:
    support = parameter.distribution.numpyro().support
    low = getattr(support, "lower_bound", -math.inf)
    return _Free(parameter.name, float(low), float(getattr(support, "upper_bound", math.inf)))


def _levenberg_marquardt(
    residuals: Callable[[Array], Array], u: Array, low: Array, high: Array, max_steps: int, tolerance: float
) -> _State:
    """Minimise the sum of squares of residuals(u) from u on, inside [low, high]; shapes as in `_State`.

    Products are sums of elements, not XLA's matrix products, whose rounding depends on the threads that it may use: where the
    data do not fix a law, the last digit decides where the search ends.
    """
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    basis = jnp.eye(u.size)
    longest = jnp.where(jnp.isfinite(low), LONGEST_STEP, jnp.inf)

    def linearise(at: Array) -> tuple[Array, Array]:
        value, push = jax.linearize(residuals, at)
        return value, jax.vmap(push, out_axes=1)(basis)

    def advance(s: _State) -> _State:
        normal = jnp.sum(s.jacobian[:, :, None] * s.jacobian[:, None, :], 0)
        gradient = jnp.sum(s.jacobian * s.residual[:, None], 0)
        scale = jnp.maximum(0.3 * s.scale, jnp.diag(normal))
        damped = normal + jnp.diag(s.damping * (scale + 1e-12 * jnp.max(scale) + 1e-300))
        move = jnp.clip(-jnp.linalg.solve(damped, gradient), -longest, longest)
        u = jnp.clip(s.u + move, low, high)
        move = u - s.u
        expected = -2.0 * jnp.sum(gradient * move) - jnp.sum(normal * move[:, None] * move)
        residual, jacobian = linearise(u)
        cost = jnp.sum(residual * residual)
        better = (cost < s.cost) & jnp.all(jnp.isfinite(jacobian))
        cost_after = jnp.where(better, cost, s.cost)
        # A small gain means convergence only if it is not the damping that makes the step short.
        flat = (expected <= tolerance * s.cost) & (s.damping <= 1e-2)
        look = (s.step + 1) % WINDOW == 0
        stalled = look & (cost_after >= (1.0 - STALL) * s.mark)
        done = flat | stalled | (s.cost < EXACT * residual.size)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(better, new, old)

        return _State(
            keep(u, s.u),
            keep(residual, s.residual),
            keep(jacobian, s.jacobian),
            cost_after,
            jnp.where(better, jnp.maximum(0.2 * s.damping, 1e-8), 4.0 * s.damping),
            scale,
            s.step + 1,
            jnp.where(look, cost_after, s.mark),
            done,
        )

    residual, jacobian = linearise(u)
    diagonal, cost = jnp.sum(jacobian * jacobian, 0), jnp.sum(residual * residual)
    begin, no = jnp.asarray(0), jnp.asarray(False)
    start = _State(u, residual, jacobian, cost, jnp.asarray(1e-2), diagonal, begin, jnp.full_like(cost, jnp.inf), no)
    final: _State = jax.lax.while_loop(lambda s: ~s.done & (s.step < max_steps), advance, start)
    return final


def _pick_distinct(scores: Array, places: Array, count: int) -> Array:
    """Indices of the `count` lowest scores (b, c) whose places (c, p) differ by `NEAR` or more, as long as there are such."""
    jnp = importlib.import_module("jax.numpy")
    picked = []
    for _ in range(count):
        best = jnp.argmin(scores, 1)
        picked.append(best)
        near = jnp.max(jnp.abs(places[best][:, None, :] - places), 2) < NEAR
        scores = jnp.where(near, scores + 1e12, scores)
        scores = jnp.where(jnp.arange(scores.shape[1]) == best[:, None], jnp.inf, scores)
    return jnp.stack(picked, 1)


@functools.lru_cache(maxsize=32)
def _solver(law: Law, free: tuple[_Free, ...], probe: object) -> _Solver:
    """The compiled stages, shared by all priors with this law, which computes what its probe says, and these supports."""
    del probe
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    xp = get_namespace("jax")

    def residuals(u: Array, x: Array, log_y: Array, weight: Array, frame: Array) -> Array:
        theta = {f.name: f.to_support(u[k]) for k, f in enumerate(free)}
        mean = run_mean(law, xp, x, expand(theta), Frame(*frame))
        return jnp.where(weight > 0, log_y - jnp.log(mean), 0.0)

    def starts(candidates: Array, spread: Array, x: Array, log_y: Array, weight: Array, frame: Array, count: int) -> Array:
        over_candidates = jax.vmap(residuals, (0, None, None, None, None))
        found = jax.vmap(over_candidates, (None, 0, 0, 0, 0))(candidates, x, log_y, weight, frame)
        total = jnp.sum(weight, 1)[:, None]
        level = jnp.sum(found, 2) / total
        scores = jnp.sum(found * found, 2) / total - level * level
        picked = _pick_distinct(jnp.where(jnp.isfinite(scores), scores, 1e24), candidates / spread, count)
        return candidates[picked]

    def improve(
        u: Array, x: Array, log_y: Array, weight: Array, frame: Array, low: Array, high: Array, steps: int, tol: float
    ) -> tuple[Array, Array, Array]:
        def lane(u: Array, *data: Array) -> tuple[Array, Array, Array]:
            s = _levenberg_marquardt(lambda at: residuals(at, *data), u, low, high, steps, tol)
            return s.u, jnp.where(jnp.isfinite(s.cost), s.cost, jnp.inf), s.done

        over_starts = jax.vmap(lane, (0, None, None, None, None))
        found: tuple[Array, Array, Array] = jax.vmap(over_starts)(u, x, log_y, weight, frame)
        return found

    return _Solver(jax.jit(starts, static_argnames=("count",)), jax.jit(improve, static_argnames=("steps", "tol")))


def _candidates(
    free: Sequence[_Free], parameters: Sequence[Parameter], seed: int, computable: Mapping[str, tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unconstrained candidates (c, p), and the standard deviation of prior draws and the search's bounds, (p,) each.

    Half are prior draws, half spread at least three times as wide. The first is the prior's median.
    """
    jax = importlib.import_module("jax")
    rng = np.random.default_rng(seed)
    half = CANDIDATES // 2
    keys = jax.random.split(jax.random.key(seed), len(free))
    columns = []
    for f, p, key in zip(free, parameters, keys, strict=True):
        columns.append(np.asarray(f.from_support(p.distribution.numpyro().sample(key, (half,)))))
    drawn = np.clip(np.stack(columns, 1), -1e150, 1e150)
    centre, spread = np.median(drawn, 0), np.maximum(drawn.std(0), 1e-150)
    transformed = np.array([math.isfinite(f.low) for f in free])
    wide = np.where(transformed, np.maximum(2.0 * spread, 1.5), 3.0 * spread)
    found = np.concatenate([centre[None], drawn[1:], centre + wide * rng.standard_normal((half, len(free)))])
    low = np.where(transformed, centre - REACH, -np.inf)
    high = np.where(transformed, centre + REACH, np.inf)
    for k, f in enumerate(free):
        if f.name in computable:
            first, last = (edge if f.low < edge < f.high else None for edge in computable[f.name])
            low[k] = low[k] if first is None else np.clip(float(f.from_support(first)), low[k], high[k])
            high[k] = high[k] if last is None else np.clip(float(f.from_support(last)), low[k], high[k])
    found = np.clip(found, low, high)
    return found, spread, low, high


def _pad(n: int) -> int:
    return max(SMALLEST_PAD, 1 << (n - 1).bit_length())


def _stack(problems: Sequence[Problem], size: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, log y, weight of shape (batch, size) and frames (batch, 6): longer curves are thinned, shorter ones padded."""
    x, log_y, weight = np.ones((batch, size)), np.zeros((batch, size)), np.zeros((batch, size))
    frames = np.zeros((batch, len(Frame._fields)))
    for k in range(batch):
        problem = problems[min(k, len(problems) - 1)]  # spare lanes repeat the last curve, and take no longer than it
        n = problem.x.size
        keep = np.arange(n) if n <= size else np.unique(np.linspace(0, n - 1, size).round().astype(int))
        x[k], log_y[k, : keep.size] = problem.x[0], np.log(problem.y[keep])
        x[k, : keep.size], weight[k, : keep.size] = problem.x[keep], 1.0
        frames[k] = [float(v) for v in problem.frame]
    return x, log_y, weight, frames


def _noise_scale(prior: Prior, problem: Problem, theta: dict[str, float], count: int) -> float:
    """sqrt(RSS / (n - p)), on the scale on which the prior's noise is stated."""
    xp = get_namespace("numpy")
    mean = prior.law.mean(xp, problem.x, {k: np.asarray([v]) for k, v in theta.items()}, problem.frame)
    additive = not prior.noise.multiplicative
    residual = problem.y - mean if additive else np.log(problem.y) - np.log(mean)
    sigma = math.sqrt(float(residual @ residual) / max(residual.size - count, 1))
    (free,) = (_free(p) for p in prior.parameters if p.name == "sigma")
    return float(np.clip(max(sigma, SMALLEST_SIGMA), free.low, free.high))


def _misses(prior: Prior, problem: Problem, theta: dict[str, float]) -> bool:
    """Whether the curve lies to one side of the data, by more than they scatter."""
    mean = prior.law.mean(get_namespace("numpy"), problem.x, {k: np.asarray([v]) for k, v in theta.items()}, problem.frame)
    residual = np.log(problem.y) - np.log(mean)
    return bool(abs(residual.mean()) > residual.std())


def _reasons(problem: Problem, count: int, finite: bool, converged: bool, max_steps: int) -> tuple[str, ...]:
    reasons = []
    if not finite:
        reasons.append(
            "No start gave a finite curve, so the values returned are the prior's medians; check the data and the prior's "
            "supports, or take another law."
        )
    elif not converged:
        reasons.append(
            f"Least squares did not converge in {max_steps} steps; raise max_steps, or take a law with fewer parameters."
        )
    distinct = np.unique(problem.x).size
    if distinct < count or problem.x.size <= count:
        given = f"{problem.x.size} points at {distinct} distinct x"
        reasons.append(
            f"{given} cannot fix {count} parameters and the noise; add points, take a law with fewer parameters, "
            'or use engine="nuts", which lets the prior fill in.'
        )
    return tuple(reasons)


def run_least_squares(
    prior: AbstractPrior,
    problems: Sequence[Problem],
    seed: int = 0,
    progress: bool = False,
    *,
    starts: int | None = None,
    max_steps: int = 200,
) -> list[EngineResult]:
    """Point estimates of a law's parameters from squared residuals of log y.

    Parameters
    ----------
    prior
        Any `Prior` whose parameters are continuous. Only the law and the supports enter the objective.
    problems
        Curves in the prior's coordinates, y > 0.
    seed
        Seed of the starting points.
    progress
        Whether to show a progress bar.
    starts
        Number of distinct starts per curve; by default p^2 / 2, at least 4, for p parameters of the law.
    max_steps
        Limit on the Levenberg-Marquardt steps of the last stage.

    Returns
    -------
    list of EngineResult
        One per problem, in order. Draws have shape (1, 1); `sigma` is sqrt(RSS / max(n - p, 1)) for p parameters of the law,
        with residuals of log y for log-normal noise and of y for additive noise. A parameter at a bound of its support is
        no error. `status` is "needs_review" where the search did not converge, no start was finite, the context has no more
        points than the law has parameters or fewer distinct x, curves that fit alike forecast otherwise at the horizon, or the
        residuals follow one another or a line (`hybrid.models.residuals`).
        `info`: method, rss (of log y), n, n_parameters, starts, and starts_agreeing, the starts that ended within 1 % of the
        least rss on the thinned context.

    Raises
    ------
    EngineUnavailableError
        If the prior has no density, has discrete parameters or none but sigma, its noise has more parameters than sigma, or its
        law has drift, which nothing but its distribution keeps small.
    InvalidArgumentError
        If an option is out of range or some y is not positive and finite.
    """
    prior = require_continuous(prior, "least_squares")
    if prior.law.linear:
        raise EngineUnavailableError(
            f"least squares knows no distribution that keeps the drift of prior {prior.name!r} small, and would follow the "
            "noise: use engine='nuts', or the prior without drift"
        )
    if prior.noise.parameters != ("sigma",):
        raise EngineUnavailableError(
            f"least squares finds the sd of the residuals, and nothing else of the noise {prior.noise.name!r} of prior "
            f"{prior.name!r}: use engine='nuts', or the prior with another noise"
        )
    if len(prior.parameters) == 1:
        raise EngineUnavailableError(f"the law of prior {prior.name!r} has no parameters to find: use engine='nuts'")
    starts = None if starts is None else as_integer(starts, "starts", 1, CANDIDATES)
    max_steps = as_integer(max_steps, "max_steps", 1, MOST_STEPS)
    for problem in problems:
        if not (np.all(np.isfinite(problem.y)) and np.all(problem.y > 0)):
            raise InvalidArgumentError("least squares works on log y: every y must be positive and finite")
    importlib.import_module("hybrid.models.compilation").use_compilation_cache()
    tqdm = importlib.import_module("tqdm").tqdm
    results: list[EngineResult | None] = [None] * len(problems)
    groups: dict[int, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(_pad(problem.x.size), []).append(index)
    with double_precision(), tqdm(total=len(problems), disable=not progress, desc="least squares") as bar:
        search = _Search(prior, seed, starts, max_steps)
        for size in sorted(groups):
            for begin in range(0, len(groups[size]), BATCHES[-1]):
                indices = groups[size][begin : begin + BATCHES[-1]]
                for index, result in zip(indices, search.run([problems[i] for i in indices], size), strict=True):
                    results[index] = result
                bar.update(len(indices))
    return [r for r in results if r is not None]


class _Search:
    """The three stages for one prior, run on one batch of curves at a time."""

    def __init__(self, prior: Prior, seed: int, starts: int | None, max_steps: int) -> None:
        self.prior, self.max_steps = prior, max_steps
        self.parameters = [p for p in prior.parameters if p.name not in prior.noise.parameters]
        self.free = tuple(_free(p) for p in self.parameters)
        self.starts = starts or max(len(self.free) ** 2 // 2, FINALISTS)
        self.solver = _solver(prior.law, self.free, prior.probe)
        self.candidates, self.spread, self.low, self.high = _candidates(self.free, self.parameters, seed, prior.law.computable)

    def run(self, problems: Sequence[Problem], size: int) -> list[EngineResult]:
        batch = next(b for b in BATCHES if b >= len(problems))
        thinned = _stack(problems, THINNED, batch)
        u = self.solver.starts(self.candidates, self.spread, *_stack(problems, SCORED, batch), count=self.starts)
        u, rough, _ = self.solver.improve(u, *thinned, self.low, self.high, steps=ROUGH_STEPS, tol=ROUGH_TOLERANCE)
        rough = np.asarray(rough)
        order = np.argsort(rough, 1)[:, :FINALISTS]
        u = np.take_along_axis(np.asarray(u), order[..., None], 1)
        whole = _stack(problems, size, batch)
        found = self.solver.improve(u, *whole, self.low, self.high, steps=self.max_steps, tol=TOLERANCE)
        return [self._result(p, rough[k], *(np.asarray(part)[k] for part in found)) for k, p in enumerate(problems)]

    def _undecided(self, problem: Problem, u: Array, rss: Array) -> tuple[str, ...]:
        """What is to be said where finalists that fit alike forecast otherwise."""
        with np.errstate(all="ignore"):
            rss = np.maximum(rss, EXACT * problem.x.size)  # less is rounding, and chooses nothing
            near = u[problem.x.size * np.log(rss / np.min(rss)) < ALIKE]
            theta = {f.name: np.asarray(f.to_support(near[:, k])) for k, f in enumerate(self.free)}
            horizon = np.array([problem.frame.x_from(problem.frame.horizon)])
            forecast = np.log(MixturePredictive(self.prior, theta, problem.frame).curves(horizon)[:, 0])
            low, high = np.nanmin(forecast, initial=np.inf), np.nanmax(forecast, initial=-np.inf)
            noise = math.sqrt(np.min(rss) / max(problem.x.size - len(self.free), 1))
            if not high > low + max(APART * noise, LEAST_APART):  # nor where all of them are infinite
                return ()
            ends = f"{np.exp(low):.4g} to {np.exp(high):.4g}"
        return (
            f"Curves that fit alike forecast y = {ends} at the horizon, and the data do not choose between them: use "
            "engine='nuts', which averages over them, or take a law with fewer parameters.",
        )

    def _edges(self, at: Array) -> list[str]:
        """The positive parameters that are as far from the prior's median as the search goes."""
        positive = np.array([math.isfinite(f.low) and not math.isfinite(f.high) for f in self.free])
        far = positive & (np.abs(at - self.candidates[0]) > REACH - NEAR)
        return [f.name for f, there in zip(self.free, far, strict=True) if there]

    def _result(self, problem: Problem, rough: Array, u: Array, rss: Array, done: Array) -> EngineResult:
        tied = rss <= max((1.0 + TIE) * float(np.min(rss)), EXACT * problem.x.size)
        best = int(np.argmin(np.where(tied, np.abs(u - self.candidates[0]).max(1), np.inf)))
        finite = bool(np.isfinite(rss[best]))
        at = u[best] if finite else self.candidates[0]
        theta = {f.name: float(f.to_support(v)) for f, v in zip(self.free, at, strict=True)}
        theta["sigma"] = (
            _noise_scale(self.prior, problem, theta, len(self.free))
            if finite
            else float(np.median(sigma_draws(self.prior, CANDIDATES)))
        )
        reasons = _reasons(problem, len(self.free), finite, bool(done[best]), self.max_steps)
        edges = self._edges(at)
        if edges and _misses(self.prior, problem, theta):
            reasons += (
                f"The search ended as far from the prior's median of {' and '.join(edges)} as it goes, and the curve does not "
                "pass through the data: state a y_scale near the observed y.",
            )
        draws = {p.name: np.full((1, 1), theta[p.name]) for p in self.prior.parameters}
        if finite:
            reasons += self._undecided(problem, u, rss)
            reasons += checked(self.prior, draws, problem)[1] if theta["sigma"] > NEGLIGIBLE else ()
        return EngineResult(
            draws=draws,
            status="needs_review" if reasons else "ok",
            reasons=reasons,
            info={
                "method": "least squares of log y (Levenberg-Marquardt)",
                "rss": float(rss[best]) if finite else None,
                "n": int(problem.x.size),
                "n_parameters": len(self.free),
                "starts": self.starts,
                "starts_agreeing": int(np.sum(rough <= AGREE * np.min(rough) + 1e-20)),
            },
        )

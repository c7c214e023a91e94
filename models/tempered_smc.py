"""Tempered sequential Monte Carlo from the prior to the posterior, to start chains in every mode.

Particles move along p(z) p(y | z)^b while b grows from 0 to 1 (Del Moral, Doucet and Jasra 2006), each step as large as keeps
half the effective sample size. Moves are differential-evolution steps between particles (ter Braak 2006), mixed with
random-walk steps of the particles' covariance, in three sizes; they go on until a particle has been moved several times, so
hard posteriors get more moves. The result starts the chains and shapes proposals; exactness rests on the chains.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.models.unconstrained import Points, Unconstrained, covariance

Array = Any
ACCEPTED_MOVES = 8.0  # mean number of accepted moves per particle and temperature
MAX_MOVES = 60
_SIZES = (1.0, 0.45, 0.15)
_BISECTIONS = 40


def _effective_share(step: Array, log_lik: Array) -> Array:
    """Effective sample size over the number of particles, for weights exp(step * log_lik)."""
    weight = jax.nn.softmax(step * log_lik)
    return 1.0 / (jnp.sum(weight**2) * log_lik.shape[0])


def _next_step(b: Array, log_lik: Array) -> Array:
    """The largest increase of b that keeps half of the effective sample size."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = _effective_share(middle, log_lik) > 0.5
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rest = 1.0 - b
    low, _ = lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(rest), rest))
    return jnp.where(_effective_share(rest, log_lik) > 0.5, rest, jnp.maximum(low, 1e-9))


def _proposals(key: Array, z: Array) -> Array:
    """One symmetric proposal per particle."""
    n, d = z.shape
    keys = jax.random.split(key, 6)
    sizes = jnp.asarray(_SIZES)
    factor = jnp.linalg.cholesky(covariance(z))
    walk = jax.random.normal(keys[0], (n, d)) @ factor.T * (2.38 / d**0.5)
    walk = walk * jax.random.choice(keys[1], sizes, (n, 1))
    pair = jax.random.randint(keys[2], (2, n), 0, n)
    jump = (z[pair[0]] - z[pair[1]]) * (2.38 / (2 * d) ** 0.5) * jax.random.choice(keys[3], sizes, (n, 1))
    by_walk = jax.random.uniform(keys[4], (n, 1)) < 0.3
    return z + jnp.where(by_walk, walk, jump + 0.02 * walk)


def tempered_smc(space: Unconstrained, key: Array, points: Points, particles: int) -> Array:
    """Particles from (nearly) the posterior, shape (particles, d), equally weighted."""

    def move(state: Any) -> Any:
        z, log_prior, log_lik, b, key, accepted, count = state
        key, key_proposal, key_accept = jax.random.split(key, 3)
        proposal = _proposals(key_proposal, z)
        new_prior, new_lik = space.log_prior(proposal, points.frame), space.log_likelihood(proposal, points)
        gain = new_prior + b * new_lik - log_prior - b * log_lik
        take = jnp.log(jax.random.uniform(key_accept, (particles,))) < gain
        z = jnp.where(take[:, None], proposal, z)
        log_prior, log_lik = jnp.where(take, new_prior, log_prior), jnp.where(take, new_lik, log_lik)
        return z, log_prior, log_lik, b, key, accepted + take.mean(), count + 1

    def warm(state: Any) -> Any:
        z, log_prior, log_lik, b, key = state
        step = _next_step(b, log_lik)
        key, key_resample = jax.random.split(key)
        ladder = (jnp.arange(particles) + jax.random.uniform(key_resample)) / particles
        index = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(step * log_lik)), ladder)
        index = jnp.clip(index, 0, particles - 1)
        start = (z[index], log_prior[index], log_lik[index], b + step, key, jnp.zeros(()), 0)
        moved = lax.while_loop(lambda s: (s[5] < ACCEPTED_MOVES) & (s[6] < MAX_MOVES), move, start)
        return moved[:5]

    key, key_start = jax.random.split(key)
    z = space.draw(key_start, particles, points.frame)
    log_lik = jnp.maximum(space.log_likelihood(z, points), -1e30)
    start = (z, space.log_prior(z, points.frame), log_lik, jnp.zeros(()), key)
    return lax.while_loop(lambda s: s[3] < 1.0 - 1e-12, warm, start)[0]

"""Independence proposals from a cloud of posterior points: how a chain crosses from one mode to another.

A kernel density of the cloud with local covariances (a mixture of Student t around every point, its shape that of the
nearest neighbours) proposes; Metropolis-Hastings with the ratio of posterior to proposal density accepts. The proposals
do not depend on the state of the chain, so they are drawn and evaluated in one batch beforehand.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln

from hybrid.models.unconstrained import covariance

Array = Any
NEIGHBOURS = 30
DEGREES = 6.0
_RIDGE = 1e-6


_SIZES = (1.0, 0.4, 0.15)


class Cloud(NamedTuple):
    """A mixture of Student t distributions with equal weights, in coordinates whitened by the cloud's covariance."""

    mean: Array  #: (d,)
    factor: Array  #: Cholesky factor of the cloud's covariance, (d, d)
    centres: Array  #: whitened, (m, d)
    factors: Array  #: Cholesky factors of the local covariances, (m, d, d)
    inverses: Array  #: their inverses, (m, d, d)
    nearest: Array  #: indices of the nearest neighbours, (m, NEIGHBOURS)


def make_cloud(points: Array) -> Cloud:
    """The cloud of the given points, shape (m, d), m > NEIGHBOURS."""
    d = points.shape[1]
    mean = points.mean(0)
    factor = jnp.linalg.cholesky(covariance(points))
    white = solve_triangular(factor, (points - mean).T, lower=True).T
    square = jnp.sum(white**2, 1)
    distance = square[:, None] + square[None, :] - 2.0 * white @ white.T
    _, nearest = lax.top_k(-distance, NEIGHBOURS)
    local = white[nearest]
    local = local - local.mean(1, keepdims=True)
    shapes = jnp.einsum("mki,mkj->mij", local, local) / (NEIGHBOURS - 1) + _RIDGE * jnp.eye(d)
    factors = jnp.linalg.cholesky(shapes)
    eye = jnp.broadcast_to(jnp.eye(d), factors.shape)
    return Cloud(mean, factor, white, factors, solve_triangular(factors, eye, lower=True), nearest)


def log_density(cloud: Cloud, z: Array) -> Array:
    """log density of the cloud at one z of shape (d,)."""
    m, d = cloud.centres.shape
    white = solve_triangular(cloud.factor, z - cloud.mean, lower=True)
    scaled = jnp.einsum("mij,mj->mi", cloud.inverses, white - cloud.centres)
    log_det = jnp.log(jnp.diagonal(cloud.inverses, axis1=1, axis2=2)).sum(-1)
    kernel = -0.5 * (DEGREES + d) * jnp.log1p(jnp.sum(scaled**2, -1) / DEGREES) + log_det
    constant = gammaln((DEGREES + d) / 2) - gammaln(DEGREES / 2) - 0.5 * d * jnp.log(DEGREES * jnp.pi)
    return jax.nn.logsumexp(kernel) - jnp.log(m) - jnp.log(jnp.diagonal(cloud.factor)).sum() + constant


def propose(key: Array, cloud: Cloud, n: int) -> Array:
    """n independent draws from the cloud, shape (n, d)."""
    m, d = cloud.centres.shape
    key_centre, key_normal, key_scale = jax.random.split(key, 3)
    which = jax.random.randint(key_centre, (n,), 0, m)
    scale = jnp.sqrt(jax.random.chisquare(key_scale, DEGREES, shape=(n, 1)) / DEGREES)
    step = jax.random.normal(key_normal, (n, d)) / scale
    white = cloud.centres[which] + jnp.einsum("nij,nj->ni", cloud.factors[which], step)
    return cloud.mean + white @ cloud.factor.T


def differences(key: Array, cloud: Cloud, n: int) -> Array:
    """n random symmetric steps, shape (n, d): scaled differences of two points of the cloud, half of them of neighbours.

    Being independent of the chain's state and as likely as their negatives, they are differential-evolution proposals with a
    fixed archive (ter Braak and Vrugt 2008), valid in Metropolis' rule without a correction.
    """
    m, d = cloud.centres.shape
    keys = jax.random.split(key, 5)
    one, other = jax.random.randint(keys[0], (2, n), 0, m)
    neighbour = cloud.nearest[one, jax.random.randint(keys[1], (n,), 0, NEIGHBOURS)]
    other = jnp.where(jax.random.bernoulli(keys[2], 0.5, (n,)), neighbour, other)
    size = jax.random.choice(keys[3], jnp.asarray(_SIZES), (n, 1)) * (2.38 / (2 * d) ** 0.5)
    size = jnp.where(jax.random.bernoulli(keys[4], 0.5, (n, 1)), size, -size)
    return size * (cloud.centres[one] - cloud.centres[other]) @ cloud.factor.T


def walk(log_posterior: Any, z: Array, level: Array, steps: Array, uniforms: Array) -> tuple[Array, Array, Array]:
    """Random-walk Metropolis along given steps of shape (j, d).

    Returns
    -------
    The end point, its log posterior density, and the number of acceptances.
    """

    def visit(state: tuple[Array, Array, Array], item: tuple[Array, Array]) -> Any:
        z, level, accepted = state
        step, uniform = item
        new = log_posterior(z + step)
        take = jnp.log(uniform) < new - level
        return (jnp.where(take, z + step, z), jnp.where(take, new, level), accepted + take), None

    (z, level, accepted), _ = lax.scan(visit, (z, level, jnp.asarray(0)), (steps, uniforms))
    return z, level, accepted


def jump(log_weight: Array, proposal_log_weights: Array, uniforms: Array) -> tuple[Array, Array]:
    """Metropolis-Hastings over a sequence of independent proposals.

    Parameters
    ----------
    log_weight
        log posterior minus log proposal density at the current state, a scalar.
    proposal_log_weights, uniforms
        The same of each proposal, and uniform random numbers, shape (j,).

    Returns
    -------
    The index of the proposal where the chain ends, -1 if it stays; and the number of acceptances.
    """

    def visit(state: tuple[Array, Array, Array], item: tuple[Array, Array, Array]) -> Any:
        at, weight, accepted = state
        index, new, uniform = item
        take = jnp.log(uniform) < new - weight
        return (jnp.where(take, index, at), jnp.where(take, new, weight), accepted + take), None

    items = (jnp.arange(proposal_log_weights.shape[0]), proposal_log_weights, uniforms)
    (at, _, accepted), _ = lax.scan(visit, (jnp.asarray(-1), log_weight, jnp.asarray(0)), items)
    return at, accepted

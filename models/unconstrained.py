"""A prior's parameters as one unconstrained vector, and the densities over it that the samplers run on."""

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions.transforms import biject_to

from hybrid.models.coordinates import Frame
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import Prior, expand

Array = Any


def covariance(z: Array) -> Array:
    """Covariance (d, d) of the rows of z (n, d), with a ridge that keeps it positive definite; d may be 1."""
    d = z.shape[1]
    return jnp.cov(z.T).reshape(d, d) + 1e-10 * jnp.eye(d)


class Points:
    """The padded context of one curve as a JAX pytree: x, y, the frame, and a mask that is False on padding."""

    def __init__(self, x: Array, y: Array, mask: Array, frame: Frame) -> None:
        self.x, self.y, self.mask, self.frame = x, y, mask, frame


jax.tree_util.register_pytree_node(Points, lambda p: ((p.x, p.y, p.mask, p.frame), None), lambda _, children: Points(*children))


class Unconstrained:
    """Maps theta to a vector in R^d by each parameter's own bijection, and evaluates the posterior there.

    A flat vector rather than a mapping keeps the number of operations in a NUTS tree small, which is what its time goes
    into when a curve has tens of points.

    Parameters
    ----------
    prior
        A prior with continuous parameters.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.names = tuple(p.name for p in prior.parameters)
        self._distributions = [p.distribution.numpyro() for p in prior.parameters]
        self._transforms = [biject_to(d.support) for d in self._distributions]

    @property
    def size(self) -> int:
        """The dimension d."""
        return len(self.names)

    def _scales(self, theta: dict[str, Array], frame: Frame) -> dict[str, Array]:
        return self.prior.law.sampling_scales(get_namespace("jax"), theta, frame)

    def _unscaled(self, z: Array) -> dict[str, Array]:
        return {n: t(z[..., i]) for i, (n, t) in enumerate(zip(self.names, self._transforms, strict=True))}

    def constrain(self, z: Array, frame: Frame) -> dict[str, Array]:
        """Vectors of shape (..., d) to parameters of shape (...)."""
        theta = self._unscaled(z)
        return {**theta, **{k: theta[k] / v for k, v in self._scales(theta, frame).items()}}

    def draw(self, key: Array, n: int, frame: Frame) -> Array:
        """n prior draws, shape (n, d)."""
        keys = jax.random.split(key, self.size)
        theta = {k: d.sample(j, (n,)) for k, d, j in zip(self.names, self._distributions, keys, strict=True)}
        theta |= {k: theta[k] * v for k, v in self._scales(theta, frame).items()}
        return jnp.stack([t.inv(theta[k]) for k, t in zip(self.names, self._transforms, strict=True)], -1)

    def log_prior(self, z: Array, frame: Frame) -> Array:
        """log p(theta) plus the log Jacobian of the map from z to theta; (..., d) to (...)."""
        unscaled = self._unscaled(z)
        scales = self._scales(unscaled, frame)
        total = jnp.zeros(z.shape[:-1])
        for i, name in enumerate(self.names):
            value, transform = unscaled[name], self._transforms[i]
            total = total + transform.log_abs_det_jacobian(z[..., i], value)
            if name in scales:
                value = value / scales[name]
                total = total - jnp.log(scales[name])
            total = total + self._distributions[i].log_prob(value)
        return total

    def log_likelihood(self, z: Array, points: Points) -> Array:
        """log p(y | theta, x) summed over the points; (..., d) to (...). -inf where it is not a number."""
        theta = self.constrain(z, points.frame)
        curve = self.prior.mean(theta, points.x, points.frame)
        each = self.prior.noise.numpyro(curve, expand(theta)).log_prob(points.y)
        total = jnp.where(points.mask, each, 0.0).sum(-1)
        return jnp.where(jnp.isnan(total), -jnp.inf, total)

    def log_posterior(self, z: Array, points: Points) -> Array:
        """Unnormalised log posterior density of z."""
        return self.log_prior(z, points.frame) + self.log_likelihood(z, points)

"""A prior's parameters as one unconstrained vector, and the densities over it that the samplers run on.

Parameters in which log y is linear and Gaussian (`Law.linear`) are not in the vector: the likelihood is what is left when they
are integrated out, and they are drawn afterwards from their conditional distribution (Rao-Blackwellisation; Rasmussen and
Williams 2006, Gaussian Processes for Machine Learning, section 2.7, with the matrix inversion lemma).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions.transforms import biject_to

from hybrid.models.coordinates import Frame
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import Prior, expand

Array = Any
# What the data say of a linear parameter over what its prior says: beyond it rounding would be taken for information. It takes
# hundreds of points and a drift more than 1e4 times the noise.
MOST_PRECISE = 1e12


def covariance(z: Array) -> Array:
    """Covariance (d, d) of the rows of z (n, d), with a ridge that keeps it positive definite; d may be 1."""
    d = z.shape[1]
    return jnp.cov(z.T).reshape(d, d) + 1e-10 * jnp.eye(d)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Points:
    """The padded context of one curve as a JAX pytree."""

    x: Array
    y: Array
    mask: Array  #: False on padding
    frame: Frame
    basis: Array  #: (n, k) the functions that go with the linear parameters, 0 on padding
    gram: Array  #: (k, k) their products, summed over the points


def _solve(factor: Array, right: Array, **options: bool) -> Array:
    """L^-1 r, or L'^-1 r, for triangular L (..., k, k) and r (..., k)."""
    found: Array = jax.lax.linalg.triangular_solve(factor, right[..., None], left_side=True, lower=True, **options)[..., 0]
    return found


class Unconstrained:
    """Maps theta to a vector in R^d by each parameter's own bijection, and evaluates the posterior there.

    A flat vector rather than a mapping keeps the number of operations in a NUTS tree small, which is what its time goes
    into when a curve has tens of points.

    Parameters
    ----------
    prior
        A prior with continuous parameters.

    Attributes
    ----------
    names
        The parameters in the vector.
    linear
        Those that are integrated out.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.linear = prior.integrable
        self.names = tuple(p.name for p in prior.parameters if p.name not in self.linear)
        # Rescaled these would leave their support, or not reach all of it.
        self._bounded = {p.name for p in prior.parameters if p.distribution.is_bounded}
        self._distributions = [p.distribution.numpyro() for p in prior.parameters if p.name in self.names]
        self._transforms = [biject_to(d.support) for d in self._distributions]

    @property
    def size(self) -> int:
        """The dimension d."""
        return len(self.names)

    def _scales(self, theta: dict[str, Array], frame: Frame) -> dict[str, Array]:
        scales = self.prior.law.sampling_scales(get_namespace("jax"), theta, frame)
        return {name: scale for name, scale in scales.items() if name not in self._bounded}

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

    def log_volume(self, z: Array, frame: Frame) -> Array:
        """log |dz/du| of the vector over the unconstrained parameters u, which some of its elements rescale; (..., d) to (...).

        Added to the log density of z it gives that of u.
        """
        unscaled = self._unscaled(z)
        scales = self._scales(unscaled, frame)
        total = jnp.zeros(z.shape[:-1])
        for i, name in enumerate(self.names):
            if name in scales:
                transform, value = self._transforms[i], unscaled[name] / scales[name]
                of_u = transform.log_abs_det_jacobian(transform.inv(value), value)
                total = total + of_u + jnp.log(scales[name]) - transform.log_abs_det_jacobian(z[..., i], unscaled[name])
        return total

    def log_likelihood(self, z: Array, points: Points) -> Array:
        """log p(y | z, x) of all points; (..., d) to (...). -inf where it is not a number."""
        theta = self.constrain(z, points.frame)
        if self.linear:
            total = self._integrated(theta, points)
        else:
            curve = self.prior.mean(theta, points.x, points.frame)
            each = self.prior.noise.numpyro(curve, expand(theta)).log_prob(points.y)
            total = jnp.where(points.mask, each, 0.0).sum(-1)
        return jnp.where(jnp.isnan(total), -jnp.inf, total)

    def _regression(self, theta: dict[str, Array], points: Points) -> tuple[Array, Array, Array]:
        """Residuals of log y without the linear parameters (..., n), the Cholesky factor L of their posterior precision
        (..., k, k), and L' times their posterior mean (..., k).
        """
        law, xp = self.prior.law, get_namespace("jax")
        curve = law.centre(xp, points.x, expand(theta), points.frame)
        residual = jnp.where(points.mask, jnp.log(points.y) - jnp.log(curve), 0.0)
        scales = law.basis_scales(xp, theta)
        precise = theta["sigma"][..., None] ** -2
        precision = scales[..., None] * scales[..., None, :] * points.gram * precise[..., None] + jnp.eye(len(self.linear))
        factor = jnp.linalg.cholesky(precision)
        return residual, factor, _solve(factor, scales * (residual @ points.basis) * precise)

    def _integrated(self, theta: dict[str, Array], points: Points) -> Array:
        """log p(y | z, x) with the linear parameters integrated out, shape (...)."""
        residual, factor, half = self._regression(theta, points)
        sigma, count = theta["sigma"], points.mask.sum()
        squares = (residual**2).sum(-1) / sigma**2 - (half**2).sum(-1)
        volume = count * (jnp.log(sigma) + 0.5 * math.log(2.0 * math.pi)) + jnp.where(points.mask, jnp.log(points.y), 0.0).sum()
        found = -0.5 * squares - volume - jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
        return jnp.where(jnp.square(factor).sum(-1).max(-1) < MOST_PRECISE, found, -jnp.inf)

    def complete(self, key: Array, theta: dict[str, Array], points: Points) -> dict[str, Array]:
        """All parameters, the linear ones drawn given the others, in the prior's order; shapes (...)."""
        if self.linear:
            _, factor, half = self._regression(theta, points)
            noise = jax.random.normal(key, half.shape)
            drawn = _solve(factor, half + noise, transpose_a=True)
            theta = {**theta, **{name: drawn[..., k] for k, name in enumerate(self.linear)}}
        return {p.name: theta[p.name] for p in self.prior.parameters}

    def log_posterior(self, z: Array, points: Points) -> Array:
        """Unnormalised log posterior density of z."""
        return self.log_prior(z, points.frame) + self.log_likelihood(z, points)

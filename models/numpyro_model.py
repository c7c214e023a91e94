"""A prior as a NumPyro model."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro

from hybrid.models.coordinates import Frame
from hybrid.models.errors import EngineUnavailableError
from hybrid.models.prior import AbstractPrior, Prior, expand

Array = Any


def require_continuous(prior: AbstractPrior, engine: str) -> Prior:
    """The prior itself, if it has a density and only continuous parameters.

    Raises
    ------
    EngineUnavailableError
        Otherwise; the message says what to use instead.
    """
    if not isinstance(prior, Prior):
        raise EngineUnavailableError(
            f"engine {engine!r} needs a density, but prior {prior.name!r} can only be simulated; use engine='pfn', or a prior "
            "with a density such as 'm4' or 'bnsl'"
        )
    if not prior.is_continuous:
        discrete = ", ".join(p.name for p in prior.parameters if p.distribution.is_discrete)
        raise EngineUnavailableError(
            f"engine {engine!r} needs continuous parameters, but prior {prior.name!r} has discrete ones ({discrete}); use "
            "engine='pfn', or prior 'm4' or 'bnsl'"
        )
    return prior


def numpyro_model(prior: Prior) -> Callable[..., None]:
    """A model function ``model(x, y=None, frame=None, mask=True)`` for NumPyro's own inference and predictive tools.

    Its sample sites are the prior's parameters and "y"; x and y are in the prior's coordinates, shape (n,), and points
    where mask is False are ignored.

    Parameters
    ----------
    prior
        A prior with a density.
    """

    def model(x: Array, y: Array | None = None, frame: Frame | None = None, mask: Array | bool = True) -> None:
        x = jnp.asarray(x)
        frame = frame or Frame(0.0, 1.0, 1.0, jnp.min(x), 1.0, jnp.maximum(jnp.max(x), 1.0))
        theta = {p.name: numpyro.sample(p.name, p.distribution.numpyro()) for p in prior.parameters}
        curve = prior.mean(theta, x, frame)
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", prior.noise.numpyro(curve, {k: v[..., None] for k, v in theta.items()}), obs=y)

    return model


__all__ = ["expand", "numpyro_model", "require_continuous"]

"""A prior as a NumPyro model."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro

from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.errors import EngineUnavailableError
from hybrid.models.prior import Prior, expand

Array = Any


def numpyro_model(prior: Prior) -> Callable[..., None]:
    """A model function ``model(x, y=None, frame=None, mask=True)`` for NumPyro's own inference and predictive tools.

    Its sample sites are the prior's parameters and "y"; x and y are in the prior's coordinates, shape (n,), and points
    where mask is False are ignored. Without a frame that of `prior.sample` is taken for these x,
    those that are ignored left out.

    Parameters
    ----------
    prior
        A prior with a density, whose law admits all parameters.

    Raises
    ------
    EngineUnavailableError
        If its law leaves some out: draws of the sites would be of another prior.
    """
    if prior.law.constrained:
        raise EngineUnavailableError(
            f"prior {prior.name!r} leaves out some parameters that its distributions draw, as NumPyro's own tools cannot: draw "
            "curves by prior.sample"
        )

    coordinates = get_coordinates(prior.coordinates)

    def model(x: Array, y: Array | None = None, frame: Frame | None = None, mask: Array | bool = True) -> None:
        x = jnp.asarray(x)
        if frame is None:  # x may be traced
            low, high = jnp.min(jnp.where(mask, x, jnp.inf)), jnp.max(jnp.where(mask, x, -jnp.inf))
            frame = coordinates.frame_over(low, high, jnp.minimum, jnp.maximum)
        theta = {p.name: jnp.asarray(numpyro.sample(p.name, p.distribution.numpyro())) for p in prior.parameters}
        curve = prior.mean(theta, x, frame)
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", prior.noise.numpyro(curve, expand(theta)), obs=y)

    return model

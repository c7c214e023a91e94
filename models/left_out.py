"""Each point given the others and the parameters, where the law has parameters in which log y is linear and Gaussian.

Given theta the points of such a law are jointly Gaussian in log y. Importance sampling of leave-one-out from draws of all
parameters fails there: the waves of a drift were drawn with the point at hand, and follow it. With the linear parameters
integrated out the weights are 1 / p(y_i | y_-i, theta), in closed form (Bürkner, Gabry and Vehtari 2020, Computational
Statistics 36, 1243-1261, section 2; Rasmussen and Williams 2006, equations 5.10 to 5.12).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from hybrid.models.coordinates import Frame, cast_frame
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import Prior, expand

Array = Any
AT_ONCE = 250  # draws
LEAST_LEFT = 1e-300  # of a point's precision given the others, over that of its noise


def given_the_others(prior: Prior, theta: Mapping[str, Array], x: Array, y: Array, frame: Frame) -> tuple[Array, Array]:
    """Log density, and P(Y <= y), of each point given theta and the other points, the linear parameters integrated out.

    Parameters
    ----------
    prior
        A prior with integrable parameters, `Prior.integrable`; their values in theta are not looked at.
    theta
        Parameters by name, each of shape (S,).
    x, y
        The points in the prior's coordinates, shape (n,).
    frame
        The curve's.

    Returns
    -------
    Two arrays of shape (S, n); the density is of y in the prior's coordinates, in nats.
    """
    found = []
    for start in range(0, len(theta["sigma"]), AT_ONCE):
        part = {name: np.asarray(value, dtype=float)[start : start + AT_ONCE] for name, value in theta.items()}
        found.append(_some(prior, part, np.asarray(x, dtype=float), np.asarray(y, dtype=float), frame))
    density, below = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return density, below


def _some(prior: Prior, theta: dict[str, Array], x: Array, y: Array, frame: Frame) -> tuple[Array, Array]:
    law, xp = prior.law, get_namespace("numpy")
    sigma = theta["sigma"][:, None]
    residual = np.log(y) - np.log(law.centre(xp, x, expand(theta), cast_frame(xp, frame, x)))
    # In units of sigma the covariance is I + Z Z'. By the singular values of Z = U S V' its inverse is U (1 + S^2)^-1 U' plus
    # what is orthogonal to U; nothing cancels, however large the drift is beside the noise.
    z = law.basis(xp, x) * (law.basis_scales(xp, theta) / sigma)[:, None]
    along, singular, _ = np.linalg.svd(z, full_matrices=False)
    left = 1.0 / (1.0 + np.square(singular))
    scaled = residual / sigma
    onto = (along.mT @ scaled[..., None])[..., 0]
    precision = np.sum(np.square(along) * left[:, None], -1)  # of each point given the others
    pulled = (along @ (left * onto)[..., None])[..., 0]  # the inverse covariance times the residuals
    if x.size > z.shape[-1]:
        precision = precision + np.maximum(1.0 - np.sum(np.square(along), -1), 0.0)
        pulled = pulled + scaled - (along @ onto[..., None])[..., 0]
    precision = np.maximum(precision, LEAST_LEFT)
    score = pulled / np.sqrt(precision)
    density = -0.5 * score**2 + 0.5 * np.log(precision) - np.log(sigma) - 0.5 * np.log(2.0 * np.pi) - np.log(y)
    return density, special.ndtr(score)

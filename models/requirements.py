"""What the engines that evaluate a density ask of a prior."""

from typing import Any

import numpy as np

from hybrid.models.coordinates import Frame
from hybrid.models.errors import EngineUnavailableError
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import PRIORS

Array = Any
TRIED = 1000  # draws of the prior
MOST_WITHOUT = 0.01  # of them without a curve, before the user is told


def require_continuous(prior: AbstractPrior, engine: str) -> Prior:
    """The prior itself, if it has a density and only continuous parameters.

    Raises
    ------
    EngineUnavailableError
        Otherwise; the message says what to use instead.
    """
    if not isinstance(prior, Prior):
        raise EngineUnavailableError(
            f"engine {engine!r} needs a density over continuous parameters, but prior {prior.name!r} can only be "
            "simulated; use engine='pfn', or a prior with a density such as 'm4' or 'bnsl'"
        )
    if prior.law.constrained:
        raise EngineUnavailableError(
            f"engine {engine!r} needs a density without gaps, but prior {prior.name!r} admits only some parameters; use "
            "engine='pfn', or prior 'm4' or 'bnsl'"
        )
    if not prior.is_continuous:
        discrete = ", ".join(p.name for p in prior.parameters if p.distribution.is_discrete)
        raise EngineUnavailableError(
            f"engine {engine!r} needs continuous parameters, but prior {prior.name!r} has discrete ones ({discrete}); use "
            "engine='pfn', or prior 'm4' or 'bnsl'"
        )
    return prior


def without_curve(prior: AbstractPrior, x: Array, frame: Frame, seed: int) -> tuple[str, ...]:
    """The reason against a fit by a density whose prior has no curve for some of its draws, if so; empty where it has.

    A density leaves such parameters out without a word: the fit is under another prior than the one that was declared.
    """
    if prior in PRIORS:
        return ()
    mean = np.asarray(prior.draw(TRIED, x, frame, seed, "jax")[1])
    share = np.isnan(mean).any(-1).mean()
    if share <= MOST_WITHOUT:
        return ()
    return (
        f"{share:.0%} of the draws of prior {prior.name!r} have no curve at the observed x, and the fit is under the others "
        "alone: change the distributions of its parameters, so that the law is defined for all of their values.",
    )

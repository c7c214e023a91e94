"""What the engines that evaluate a density ask of a prior."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from hybrid.models.coordinates import Frame
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.law import Theta
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import AbstractPrior, Prior, share_without
from hybrid.models.registry import PRIORS

Array = Any
TRIED = 1000  # draws of the prior
MOST_WITHOUT = 0.01  # of them without a curve, before the user is told
SEEN = 32  # positions in the context, evenly spaced
ASKED = 8  # positions from the last context x to the horizon


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


@contextlib.contextmanager
def compiled_by_jax(prior: AbstractPrior) -> Iterator[None]:
    """Where a law of one's own runs under JAX, which follows it with abstract values: what that finds is said of the law.

    Raises
    ------
    InvalidArgumentError
        If the law does with its arguments what only numbers can.
    """
    try:
        yield
    except TypeError as error:
        if not (type(error).__module__.startswith("jax") and isinstance(prior, Prior) and prior.law.is_own):
            raise
        raise InvalidArgumentError(
            f"law {prior.law.name!r} cannot be compiled: write `mean` with the functions of xp, such as xp.exp and xp.where, "
            f"in place of NumPy's, of math's, and of if ({str(error).splitlines()[0]})"
        ) from error


def without_curve(prior: AbstractPrior, x: Array, frame: Frame, seed: int) -> tuple[str, ...]:
    """The reason against a fit by a density whose prior has no curve for some of its draws, if so; empty where it has.

    A density leaves such parameters out without a word: the fit is under another prior than the one that was declared.
    """
    if prior in PRIORS:
        return ()
    some = x[np.linspace(0, x.size - 1, SEEN).round().astype(int)]  # as many for every curve: each number is compiled for anew
    _, mean, y = prior.draw(TRIED, some, frame, seed, "jax")
    share = share_without(mean, y)
    if share <= MOST_WITHOUT:
        return ()
    return (
        f"{share:.0%} of the draws of prior {prior.name!r} have no curve at the observed x, and the fit is under the others "
        "alone: change the distributions of its parameters, so that the law is defined for all of their values.",
    )


def without_forecast(prior: Prior, draws: Theta, frame: Frame) -> tuple[str, ...]:
    """The reason against forecasts up to the horizon, where the curve of some draw ends before it; empty where none does.

    One draw without a number there makes every quantile, cdf and density NaN.

    Parameters
    ----------
    prior
        The prior.
    draws
        Parameters by name, each of shape (S,).
    frame
        The frame between the prior's coordinates and the user's units.
    """
    x = np.geomspace(frame.x_from(frame.last), frame.x_from(frame.horizon), ASKED)
    defined = ~np.isnan(MixturePredictive(prior, draws, frame).curves(x))
    ends = x[~defined.all(0)]
    if not ends.size:
        return ()
    share = 1.0 - defined.all(1).mean()
    return (
        f"the curve of {share:.2g} of the draws is none at x = {ends[0]:.4g} and beyond, where forecasts are NaN: state a "
        "nearer horizon, or a law that is defined and above 0 up to there.",
    )

"""A network with its heads, for one prior."""

import functools

import torch
from torch import nn

from hybrid.amortized.coordinates import curve_features
from hybrid.amortized.law_frame import LawFrame, frame_prior
from hybrid.amortized.network import Network
from hybrid.amortized.posterior import parameter_head
from hybrid.amortized.settings import Settings
from hybrid.amortized.typical import Typical
from hybrid.models.coordinates import Frame
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.torch_random import seeded, single_precision

LOOKED_AT = 2000  # curves that are drawn to see whether any rises
FIRST_DECADE, LAST_DECADE, PLACES = -4, 3, 24  # of x over the last context x, where they are looked at
ROUNDING = 1e-9


def is_logarithmic(prior: AbstractPrior) -> bool:
    """Whether a prior's network works on log y: where the noise is multiplicative. Else it works on y."""
    return isinstance(prior, Prior) and prior.noise.multiplicative


def is_positive(prior: AbstractPrior) -> bool:
    """Whether no observation is negative under a prior: for all but plain normal noise."""
    return not isinstance(prior, Prior) or prior.noise.positive


def falls(prior: AbstractPrior) -> bool:
    """Whether no curve of a prior with continuous parameters and multiplicative noise rises, by some that are drawn from it."""
    own = frame_prior(prior)
    if own is not prior or not is_logarithmic(prior):
        return False
    with seeded(0):
        theta = own.draw_torch(LOOKED_AT, torch.float64)
    x = torch.logspace(FIRST_DECADE, LAST_DECADE, PLACES, dtype=torch.float64)
    one = torch.ones(LOOKED_AT, 1, dtype=torch.float64)
    level = own.mean(theta, x.expand(LOOKED_AT, -1), Frame(0.0 * one, one, one, x[0] * one, one, x[-1] * one))
    return bool((level[:, 1:] <= level[:, :-1] * (1.0 + ROUNDING)).all())


OWN_LAW, OTHER_LAW = 4.0, 0.0  # initial logits of the trust in the law that is fitted


class AmortizedModel(nn.Module):
    """A network and a parameter head, with initial weights.

    Parameters
    ----------
    prior
        The prior that they are for.
    settings
        Their sizes.
    """

    def __init__(self, prior: AbstractPrior, settings: Settings) -> None:
        super().__init__()
        self.prior, self.settings = prior, settings
        self.logarithmic, self.positive = is_logarithmic(prior), is_positive(prior)
        self.reads_best = False  # whether it was trained on contexts of the best result so far, where values repeat
        sizes = (settings.layers, settings.width, settings.heads, settings.inner)
        fitted = frame_prior(prior)
        self.law = LawFrame(fitted, self.logarithmic, settings.search)
        shared, trust = curve_features(self.law.size), OWN_LAW if fitted is prior else OTHER_LAW
        self.network = Network(*sizes, settings.bins, settings.summaries, shared, trust)
        self.head = parameter_head(self.law, prior, settings)
        self.typical = Typical(settings.summaries * settings.width, shared + 1)

    @functools.cached_property
    def falls(self) -> bool:
        """Whether no curve of the prior rises; looked at once."""
        return falls(self.prior)


def build_model(prior: AbstractPrior, settings: Settings) -> AmortizedModel:
    """A model with initial weights by the settings' seed; torch's global state is left as it is."""
    with seeded(settings.seed), single_precision():
        return AmortizedModel(prior, settings)

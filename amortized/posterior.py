"""The parameter heads: a conditional flow over the unconstrained parameters, or a posterior over the classes of a mixture."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to

from hybrid.amortized.coordinates import CURVE_FEATURES
from hybrid.models.coordinates import Frame
from hybrid.models.namespace import get_namespace
from hybrid.models.nslpfn import NslPfn
from hybrid.models.prior import AbstractPrior, Prior

_validates = Distribution._validate_args
import zuko  # noqa: E402

Distribution.set_default_validate_args(_validates)  # importing zuko turns torch's checks off for everyone

SPLINE_BINS = 8
SUMMARY = 64  # what the transforms are conditioned on: they run once per draw, so it is kept short
LEAST_SLOPE = 1e-5
PRIOR_DRAWS = 20_000


def _classes(prior: AbstractPrior) -> tuple[Mapping[str, int], ...]:
    if isinstance(prior, NslPfn):
        return tuple({"family": family} for family in range(3))
    return prior.law.classes if isinstance(prior, Prior) else ()


class FlowHead(nn.Module):
    """q(theta | context) for a prior with continuous parameters.

    The parameters are mapped to the real line and standardised by their prior; what a linear function of the curve's
    features, in single precision, explains is taken off, so that a level known to one in 10,000 asks nothing of the network
    but a small scale. The rest follows a masked autoregressive affine map (Papamakarios et al. 2017) and neural spline
    couplings (Durkan et al. 2019).

    Parameters
    ----------
    prior
        Its parameters.
    features
        Size of the summary of the context.
    transforms, hidden
        Number of spline couplings, and width of the perceptrons that condition all transforms.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, prior: Prior, features: int, transforms: int, hidden: int) -> None:
        super().__init__()
        self.prior = prior
        self.names = tuple(p.name for p in prior.parameters)
        size = len(self.names)
        shared: dict[str, Any] = {"context": SUMMARY, "hidden_features": (hidden, hidden)}
        affine = functools.partial(zuko.transforms.MonotonicAffineTransform, slope=LEAST_SLOPE)
        spline = functools.partial(zuko.transforms.MonotonicRQSTransform, slope=1e-3)
        autoregressive = zuko.flows.autoregressive.MaskedAutoregressiveTransform
        steps = [autoregressive(size, univariate=affine, **shared)]
        coupling: dict[str, Any] = {
            "passes": 2,
            "univariate": spline,
            "shapes": [(SPLINE_BINS,), (SPLINE_BINS,), (SPLINE_BINS - 1,)],
        }
        order = torch.arange(size)
        steps += [autoregressive(size, order=torch.roll(order, k), **coupling, **shared) for k in range(transforms)]
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(size), torch.ones(size), buffer=True
        )
        self.flow = zuko.lazy.Flow(steps, base)
        self.summary = nn.Linear(features, SUMMARY)
        self.linear = nn.Linear(CURVE_FEATURES, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            draws = self._unconstrain(prior.draw_torch(PRIOR_DRAWS, torch.float64))
        self.register_buffer("loc", draws.mean(0).float())
        self.register_buffer("scale", draws.std(0).float())

    def _bijections(self, like: Tensor) -> list[Any]:
        return [biject_to(p.distribution.torch(like.dtype, like.device).support) for p in self.prior.parameters]

    def _unconstrain(self, theta: Mapping[str, Tensor]) -> Tensor:
        some = theta[self.names[0]]
        return torch.stack([b.inv(theta[k]) for k, b in zip(self.names, self._bijections(some), strict=True)], -1)

    def _standardise(self, theta: Mapping[str, Tensor], curve: Tensor) -> Tensor:
        exact = (self._unconstrain(theta) - self.loc) / self.scale
        standard: Tensor = (exact - self.linear(curve)).float()
        return standard

    def loss(self, theta: Mapping[str, Tensor], summary: Tensor, curve: Tensor) -> Tensor:
        """-log q of the standardised parameters, nats per parameter, shape (B,)."""
        loss: Tensor = -self.flow(self.summary(summary)).log_prob(self._standardise(theta, curve)) / len(self.names)
        return loss

    @torch.no_grad()
    def sample(self, summary: Tensor, curve: Tensor, draws: int) -> tuple[dict[str, Tensor], Tensor]:
        """Draws by name, and log q of each over the unconstrained parameters; shapes (draws, B), float64."""
        z, log_q = self.flow(self.summary(summary)).rsample_and_log_prob((draws,))
        return self._restore(z.double(), log_q.double(), curve)

    def log_joint(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """log p(theta, y | x) over the unconstrained parameters, nats, of the shape of theta's tensors; x, y of shape (n,)."""
        real = self._unconstrain(theta).unbind(-1)
        bijections = self._bijections(real[0])
        scale = [b.log_abs_det_jacobian(u, theta[k]) for k, b, u in zip(self.names, bijections, real, strict=True)]
        prior: Tensor = sum(self.prior.log_prior(theta).values()) + sum(scale)
        found: Tensor = prior + self.prior.log_likelihood(theta, x, y, frame).sum(-1)
        return torch.where(found.isnan(), -torch.inf, found)  # as NUTS has it where a law breaks down

    def _restore(self, z: Tensor, log_q: Tensor, curve: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        real = (z + self.linear(curve).double()) * self.scale.double() + self.loc.double()
        theta = {k: b(real[..., i]) for i, (k, b) in enumerate(zip(self.names, self._bijections(real), strict=True))}
        return theta, log_q - self.scale.double().log().sum()


class ClassHead(nn.Module):
    """q(class | context) for a mixture of laws, such as the families of `nsl` with their number of breaks.

    Parameters
    ----------
    prior
        A prior whose law has classes.
    features
        Size of the summary of the context.
    hidden
        Width of the perceptron.
    """

    def __init__(self, prior: AbstractPrior, features: int, hidden: int) -> None:
        super().__init__()
        self.prior = prior
        self.classes = _classes(prior)
        self.logits = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, len(self.classes)))

    def loss(self, theta: Mapping[str, Tensor], summary: Tensor, curve: Tensor) -> Tensor:
        """-log q of the class, nats, shape (B,)."""
        del curve
        if isinstance(self.prior, Prior):
            index = self.prior.law.class_of(get_namespace("torch"), theta).long()
        else:
            index = theta["family"].long()
        return nn.functional.cross_entropy(self.logits(summary).float(), index, reduction="none")

    def probabilities(self, summary: Tensor) -> Tensor:
        """q of each class, shape (B, classes)."""
        found: Tensor = self.logits(summary).double().softmax(-1)
        return found


def parameter_head(prior: AbstractPrior, features: int, transforms: int, hidden: int) -> FlowHead | ClassHead | None:
    """The head that suits a prior: a flow where all parameters are continuous, else one over its classes, if it has any."""
    if isinstance(prior, Prior) and prior.is_continuous:
        return FlowHead(prior, features, transforms, hidden)
    return ClassHead(prior, features, hidden) if _classes(prior) else None

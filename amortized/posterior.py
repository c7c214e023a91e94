"""The parameter heads: a conditional flow over the unconstrained parameters, or a posterior over the classes of a mixture."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to

from hybrid.amortized.coordinates import Described, curve_features, mode_features
from hybrid.amortized.law_frame import FARTHEST as LARGEST
from hybrid.amortized.law_frame import MODES, Conditional, LawFrame, Modes
from hybrid.amortized.moves import moved
from hybrid.amortized.settings import Settings
from hybrid.models.coordinates import Frame
from hybrid.models.namespace import get_namespace
from hybrid.models.nslpfn import NslPfn
from hybrid.models.prior import AbstractPrior, Prior

_validates = Distribution._validate_args
import zuko  # noqa: E402

Distribution.set_default_validate_args(_validates)  # importing zuko turns torch's checks off for everyone

SPLINE_BINS = 8
BLOCK = 4_000_000  # likelihoods of one point under one draw that are held at once
TOGETHER = 50_000  # draws that go through the flow at once
SUMMARY = 64  # what the transforms are conditioned on: they run once per draw, so it is kept short
LEAST_SLOPE = 1e-5
LEAST_WEIGHT = 1e-6  # of a mode of the law
PRIOR_LOGIT = -3.0  # initial log weight of the prior's frame
FARTHEST = 1e3  # a frame in which the parameters lie further out than this has no part in their density


def _classes(prior: AbstractPrior) -> tuple[Mapping[str, int], ...]:
    if isinstance(prior, NslPfn):
        return tuple({"family": family} for family in range(3))
    return prior.law.classes if isinstance(prior, Prior) else ()


def _at_once(draws: Tensor) -> int:
    """How many draws (n, B) go through the flow at once: more would fill the memory."""
    return max(1, TOGETHER // draws.shape[1])


class FlowHead(nn.Module):
    """q(theta | context) for a prior with continuous parameters: a mixture of one normalizing flow in several frames.

    Two frames are the modes of the law that was fitted to the context, in which the parameters are whitened by the Laplace
    approximation there: what the data pin down to one in 10,000 asks nothing of the network. The third is the prior, for
    what the two modes miss. A law with nearly linear parameters has a fourth: the others as the prior has them, and the
    nearly linear ones and sigma whitened by the Laplace approximation given these, which goes along with a bent posterior.
    In each the parameters follow a masked autoregressive affine map (Papamakarios et al. 2017) and neural spline couplings
    (Durkan et al. 2019), conditioned on the context and the frame; the network weighs the frames. The density is that of
    the mixture, exact.

    Parameters
    ----------
    law
        The law of the prior, which is fitted to contexts.
    prior
        Its parameters.
    features
        Size of the summary of the context.
    transforms, hidden
        Number of spline couplings, and width of the perceptrons that condition all transforms.
    """

    def __init__(self, law: LawFrame, prior: Prior, features: int, transforms: int, hidden: int) -> None:
        super().__init__()
        self._law = (law,)  # the model owns it
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
        of_curve = features + curve_features(law.size)
        self.summary = nn.Linear(of_curve, SUMMARY)
        self.of_mode = nn.Linear(mode_features(law.size), SUMMARY)
        frames = MODES + (2 if law.inner else 1)
        self.of_frame = nn.Parameter(0.1 * torch.randn(frames, SUMMARY))
        self.weight = nn.Linear(of_curve, frames)
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)

    def _bijections(self, like: Tensor) -> list[Any]:
        return [biject_to(p.distribution.torch(like.dtype, like.device).support) for p in self.prior.parameters]

    def _conditions(self, summary: Tensor, described: Described) -> tuple[Tensor, Tensor]:
        """What the flow is conditioned on in each frame, (B, F, SUMMARY), and the log weights of the frames, (B, F)."""
        known = torch.cat([summary, described.curve], -1)
        by_mode = self.of_mode(described.by_mode)
        others = len(self.of_frame) - MODES
        by_frame = torch.cat([by_mode, torch.zeros_like(by_mode[:, :1]).expand(-1, others, -1)], 1) + self.of_frame
        evidence = described.modes.weight.float().clamp(min=LEAST_WEIGHT).log()
        prior = torch.full_like(evidence[:, :1], PRIOR_LOGIT).expand(-1, others)
        log_weight = (torch.cat([evidence, prior], 1) + self.weight(known)).log_softmax(-1)
        return self.summary(known)[:, None] + by_frame, log_weight

    def _frames(self, modes: Modes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centre (B, F, d + 1) of s and log sigma in each frame, R' (B, F, d, d), sd of log sigma (B, F), and log |dz/ds|.

        Those of the modes and of the prior, which are the same for all parameters.
        """
        law = self._law[0]
        batch, _, size = modes.s.shape
        mu, tau = law.noise.expand(batch, 2).unbind(1)
        centre = torch.cat([modes.s, torch.zeros_like(modes.s[:, :1])], 1)
        log_sigma = torch.cat([modes.log_sigma, mu[:, None]], 1)
        eye = torch.eye(size, dtype=modes.s.dtype, device=modes.s.device).expand(batch, 1, size, size)
        whiten = torch.cat([modes.root.mT, eye], 1)
        log_sigma_sd = torch.cat([modes.log_sigma_sd, tau[:, None]], 1)
        volume = whiten.diagonal(dim1=-2, dim2=-1).log().sum(-1) - log_sigma_sd.log()
        return torch.cat([centre, log_sigma[..., None]], -1), whiten, log_sigma_sd, volume

    def _split(self, theta: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """s and log sigma, and log of their volume over that of the unconstrained parameters."""
        law = self._law[0]
        s = (law.unconstrain(theta) - law.loc) / law.scale
        sigma = theta["sigma"]
        bijection = self._bijections(sigma)[self.names.index("sigma")]
        jacobian = bijection.log_abs_det_jacobian(bijection.inv(sigma), sigma) - sigma.log()
        return torch.cat([s, sigma.log()[..., None]], -1), jacobian - law.scale.log().sum()

    def _given(self, both: Tensor, modes: Modes) -> Conditional | None:
        """The nearly linear parameters given the others, if the law has any."""
        law = self._law[0]
        return law.conditional(both[..., :-1], modes) if law.inner else None

    def _whitened(self, both: Tensor, modes: Modes, given: Conditional | None) -> tuple[Tensor, Tensor]:
        """s and log sigma (..., B, d + 1) in each frame, shape (..., B, F, d + 1), and log |dz/ds|, shape (..., B, F)."""
        centre, whiten, log_sigma_sd, volume = self._frames(modes)
        away = both[..., None, :] - centre
        z = (whiten @ away[..., :-1, None])[..., 0]
        z = torch.cat([z, away[..., -1:] / log_sigma_sd[..., None]], -1)
        volume = volume.expand(z.shape[:-1])
        if given is None:
            return z, volume
        inner, last = self._law[0].inner, both.clone()
        last[..., inner] = (given.root.mT @ (both[..., inner] - given.centre)[..., None])[..., 0]
        last[..., -1] = (both[..., -1] - given.log_sigma) / given.log_sigma_sd
        own = given.root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - given.log_sigma_sd.log()
        return torch.cat([z, last[..., None, :]], -2), torch.cat([volume, own[..., None]], -1)

    def _unwhitened(self, z: Tensor, frame: Tensor, modes: Modes) -> tuple[Tensor, Conditional | None]:
        """s and log sigma (draws, B, d + 1) from z (draws, B, d + 1) in the frames of these numbers (draws, B)."""
        centre, whiten, log_sigma_sd, _ = self._frames(modes)
        row, plain = torch.arange(z.shape[1], device=z.device), frame.clamp(max=MODES)
        # R'(s - mode) = z, R' upper triangular
        away = torch.linalg.solve_triangular(whiten[row, plain], z[..., :-1, None], upper=True)[..., 0]
        both = torch.cat([away, (z[..., -1] * log_sigma_sd[row, plain])[..., None]], -1) + centre[row, plain]
        here = (frame > MODES)[..., None]
        both = torch.where(here, z, both)
        given = self._given(both, modes)
        if given is None:
            return both, None
        inner, last = self._law[0].inner, z.clone()
        of_unit = torch.linalg.solve_triangular(given.root.mT, z[..., inner, None], upper=True)[..., 0]
        last[..., inner] = given.centre + of_unit
        last[..., -1] = given.log_sigma + z[..., -1] * given.log_sigma_sd
        return torch.where(here, last, both), given

    def _log_q(self, both: Tensor, summary: Tensor, described: Described, given: Conditional | None = None) -> Tensor:
        """log q of s and log sigma (..., B, d + 1)."""
        conditions, log_weight = self._conditions(summary, described)
        given = self._given(both, described.modes) if given is None else given
        z, volume = self._whitened(both, described.modes, given)
        near = z.abs().amax(-1) < FARTHEST
        log_q = self.flow(conditions).log_prob(torch.where(near[..., None], z, 0.0).float())
        each = torch.where(near, log_q + volume + log_weight, -torch.inf)
        return each.logsumexp(-1)

    def loss(self, theta: Mapping[str, Tensor], summary: Tensor, described: Described) -> Tensor:
        """-log q of the parameters over what the likeliest frame's whitening alone gives, nats per parameter, shape (B,)."""
        both, _ = self._split(theta)
        volume = self._frames(described.modes)[3][:, 0]
        loss: Tensor = (volume - self._log_q(both, summary, described)) / len(self.names)
        return loss.float()

    @torch.no_grad()
    def sample(self, summary: Tensor, described: Described, draws: int) -> tuple[dict[str, Tensor], Tensor]:
        """Draws by name, and log q of each over the unconstrained parameters; shapes (draws, B), float64."""
        conditions, log_weight = self._conditions(summary, described)
        frame = torch.multinomial(log_weight.exp(), draws, replacement=True).T  # (draws, B)
        found = []
        for some in frame.split(_at_once(frame)):
            z = self.flow(conditions[torch.arange(some.shape[1], device=some.device), some]).rsample().double()
            both, given = self._unwhitened(z, some, described.modes)
            theta = self.constrain(both)
            both, volume = self._split(theta)  # the constraints round a little
            found.append({**theta, "log_q": self._log_q(both, summary, described, given) + volume})
        whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        return whole, whole.pop("log_q")

    def constrain(self, both: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each of shape (...), from s and log sigma, shape (..., d + 1)."""
        theta = self._law[0].constrain(both[..., :-1])
        theta["sigma"] = both[..., -1].clamp(-LARGEST, LARGEST).exp()
        return {name: theta[name] for name in self.names}

    def modes(self, described: Described) -> dict[str, Tensor]:
        """The parameters at the modes of the law that is fitted to one context, by name, each of shape (MODES,)."""
        modes = described.modes
        return {k: v[0].cpu() for k, v in self.constrain(torch.cat([modes.s, modes.log_sigma[..., None]], -1)).items()}

    @torch.no_grad()
    def log_prob(self, theta: Mapping[str, Tensor], summary: Tensor, described: Described) -> Tensor:
        """log q of draws (draws, B) over the unconstrained parameters, shape (draws, B), float64."""
        both, volume = self._split(theta)
        found = [self._log_q(some, summary, described) for some in both.split(_at_once(volume))]
        return torch.cat(found) + volume

    @torch.no_grad()
    def move(
        self,
        theta: Mapping[str, Tensor],
        cloud: Mapping[str, Tensor],
        described: Described,
        problem: tuple[Tensor, Tensor, Frame],
        seed: int,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draws (n,) after moves that keep the posterior of one context, and log p(theta, y | x) as `log_joint` has it.

        Parameters
        ----------
        theta
            The draws.
        cloud
            Draws (m,) that are spread like the posterior or wider.
        described
            The context, B = 1.
        problem
            x and y of shape (n,), and the frame, as `log_joint` takes them.
        seed
            Of the moves.
        """
        modes, device = described.modes, described.curve.device
        x, y, frame = problem[0].to(device), problem[1].to(device), problem[2]

        def log_p(both: Tensor) -> Tensor:
            found = self.constrain(both)
            inside = (both.abs() < LARGEST).all(-1)
            return torch.where(inside, self.log_joint(found, x, y, frame) - self._split(found)[1], -torch.inf)

        start, around = (self._split({k: v.to(device) for k, v in part.items()})[0] for part in (theta, cloud))
        size = start.shape[-1]
        spreads = start.new_zeros(MODES, size, size)
        spreads[:, :-1, :-1] = modes.spread[0]
        spreads[:, -1, -1] = modes.log_sigma_sd[0]
        both, at = moved(start, log_p, around, spreads, torch.Generator(device).manual_seed(seed))
        found = self.constrain(both)
        return found, at + self._split(found)[1]

    def log_joint(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, frame: Frame, mask: Tensor | None = None) -> Tensor:
        """log p(theta, y | x) over the unconstrained parameters, nats, of the shape of theta's tensors.

        x and y are of shape (n,); or (B, n) for theta of shape (..., B), with points only where the mask is True.
        """
        bijections = self._bijections(theta[self.names[0]])
        real = [b.inv(theta[k]) for k, b in zip(self.names, bijections, strict=True)]
        scale = [b.log_abs_det_jacobian(u, theta[k]) for k, b, u in zip(self.names, bijections, real, strict=True)]
        possible = torch.stack([u.isfinite() for u in real]).all(0)
        theta = {
            k: torch.where(possible, theta[k], b(theta[k].new_zeros(()))) for k, b in zip(self.names, bijections, strict=True)
        }
        prior: Tensor = sum(self.prior.log_prior(theta).values()) + sum(scale)
        step = max(1, BLOCK // prior.numel()) if mask is None else x.shape[-1]
        found = prior
        for some in range(0, x.shape[-1], step):  # at once the points of a long curve would fill the memory
            points = self.prior.log_likelihood(theta, x[..., some : some + step], y[..., some : some + step], frame)
            found = found + (points if mask is None else torch.where(mask, points, 0.0)).sum(-1)
        return torch.where(found.isnan() | ~possible, -torch.inf, found)  # as NUTS has it where a law breaks down


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

    def loss(self, theta: Mapping[str, Tensor], summary: Tensor, described: Described) -> Tensor:
        """-log q of the class, nats, shape (B,)."""
        del described
        if isinstance(self.prior, Prior):
            index = self.prior.law.class_of(get_namespace("torch"), theta).long()
        else:
            index = theta["family"].long()
        return nn.functional.cross_entropy(self.logits(summary).float(), index, reduction="none")

    def probabilities(self, summary: Tensor) -> Tensor:
        """q of each class, shape (B, classes)."""
        found: Tensor = self.logits(summary).double().softmax(-1)
        return found


def parameter_head(law: LawFrame, prior: AbstractPrior, settings: Settings) -> FlowHead | ClassHead | None:
    """The head that suits a prior: a flow where its own law is fitted, else one over its classes, if it has any."""
    features = settings.summaries * settings.width
    if law.prior is prior:
        return FlowHead(law, law.prior, features, settings.transforms, settings.hidden)
    return ClassHead(prior, features, settings.hidden) if _classes(prior) else None

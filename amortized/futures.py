"""Other targets for the same context: what follows it under other parameters that the context allows.

A network that predicts learns from one target at each position, drawn with the parameters that made the context. Any other draw
from the posterior of the parameters would do as well, and the mean over all of them says more than one. They need no chains:
the curve's own parameters are an exact draw from the posterior, since both came from the prior; beside them, proposals of the
parameter head are weighed by posterior over proposal density. This is one step of iterated sampling importance resampling
(Andrieu, Lee and Vihola 2018, Bernoulli 24, 842-872), which keeps the posterior as it is whatever the proposals, with all
candidates kept by their weights in place of one drawn by them. So the mean of the loss is that of plain targets exactly, for
any head and any number of proposals, and its variance less.
"""

import torch
from torch import Tensor

from hybrid.amortized.coordinates import Described
from hybrid.amortized.posterior import FlowHead
from hybrid.amortized.sampler import CurveBatch
from hybrid.models.prior import expand
from hybrid.models.torch_random import seeded

HEAVIEST = 1e4  # nats: of the log weight of parameters that the head cannot propose, beside which all others vanish


@torch.no_grad()
def futures(
    head: FlowHead, curves: CurveBatch, summary: Tensor, described: Described, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Targets under the curves' own parameters and under proposals.

    Parameters
    ----------
    head
        The parameter head that proposes.
    curves, summary, described
        The curves, and what the network makes of their contexts.
    count
        Number of proposals.
    generator
        Source of the seed of all draws.

    Returns
    -------
    y at the targets, shape (1 + count, B, M), the curves' own first, and the weights of the candidates, shape (1 + count, B).
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    own = {name: curves.theta[name][None] for name in head.names}
    with seeded(seed, curves.y_target.device):
        drawn, log_q = head.sample(summary, described, count)
        theta = {name: torch.cat([own[name], drawn[name]]) for name in head.names}
        log_q = torch.cat([head.log_prob(own, summary, described), log_q])
        log_p = head.log_joint(theta, curves.x_context, curves.y_context, curves.frame, curves.mask)
        ratio = (log_p - log_q).nan_to_num(-torch.inf, HEAVIEST, -torch.inf)
        ratio[0] = ratio[0].clamp(min=-HEAVIEST)  # they made the context: whatever rounding says, they can
        mean = head.prior.mean(drawn, curves.x_target, curves.frame)
        y = head.prior.noise.torch(mean, expand(drawn)).sample()
    broken = y.isnan().any(-1)  # where a law overflows beyond the context
    ratio[1:] = torch.where(broken, -torch.inf, ratio[1:])
    y = torch.where(broken[..., None], curves.y_target, y)
    return torch.cat([curves.y_target[None], y]), ratio.softmax(0)

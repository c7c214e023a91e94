"""The network: a transformer in which every point attends to the context, and the context only."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid.amortized.coordinates import CONTEXT_FEATURES, ORDER_FEATURES, QUERY_FEATURES, Tokens

LONGEST = 6.0  # of a tail, as a log factor
QUICKER = 5.0  # so many times quicker the tails learn: few targets lie in them
REFERENCE_DOF = 5.0  # of the Student t whose quantiles are the edges of the bins


class Prediction(NamedTuple):
    """What the network says about each query, in z = (v - loc) / scale with loc and scale as `placed` gives them."""

    gate: Tensor  #: (B, M) logit of the trust in the law rather than the smoother
    centre: Tensor  #: (B, M)
    log_width: Tensor  #: (B, M)
    logits: Tensor  #: (B, M, bins + 2)
    tails: Tensor  #: (B, M, 2) log factors of the tails' lengths


def placed(prediction: Prediction, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Loc and scale (B, M) of each query: the forecasts of law and smoother, weighted by their precision and the gate."""
    logits = torch.stack([prediction.gate, -prediction.gate], -1).double()
    log_precision = torch.nn.functional.logsigmoid(logits) - 2.0 * tokens.scale.log()
    total = log_precision.logsumexp(-1, keepdim=True)
    return ((log_precision - total).exp() * tokens.loc).sum(-1), (-0.5 * total[..., 0]).exp()


class _Block(nn.Module):
    """Attention to the context, then a two-layer perceptron; both normalise first and add."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.inner_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, points: Tensor, size: int, mask: Tensor, first: int) -> Tensor:
        """Update points[:, first:]; the first `size` points are the context."""
        normed = self.norm(points)
        query = self.query(normed[:, first:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(normed[:, :size]).unflatten(-1, (2, self.heads, -1)).transpose(1, 3)
        # With at most MOST_TOKENS keys this is faster on a CPU than the fused kernel, above all backwards.
        scores = (query * query.shape[-1] ** -0.5) @ pair[:, :, 0].mT + mask.to(query.dtype)
        mixed = scores.softmax(-1) @ pair[:, :, 1]
        points = points[:, first:] + self.out(mixed.transpose(1, 2).flatten(2))
        updated: Tensor = points + self.down(functional.relu(self.up(self.inner_norm(points))))
        return updated


class Network(nn.Module):
    """From the tokens of a curve to a distribution at each query.

    Parameters
    ----------
    layers, width, heads, inner
        Number of blocks, width of a token, heads of attention, inner width of the perceptrons.
    bins
        Bins of the bar distribution.
    summaries
        Extra tokens that summarise the context for the parameter head.
    shared
        Size of what all points of a curve share.
    trust
        Initial logit of the trust in the law.
    """

    edges: Tensor

    def __init__(
        self, layers: int, width: int, heads: int, inner: int, bins: int, summaries: int, shared: int, trust: float
    ) -> None:
        super().__init__()
        self.of_context = nn.Linear(CONTEXT_FEATURES, width)
        self.of_query = nn.Linear(QUERY_FEATURES, width)
        self.of_curve = nn.Linear(shared, width)
        self.of_order = nn.Linear(ORDER_FEATURES, width, bias=False)
        nn.init.zeros_(self.of_order.weight)
        self.summary = nn.Parameter(torch.randn(summaries, width) * 0.5)
        self.observed = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(_Block(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, bins + 5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.constant_(self.head.bias[:1], trust)
        self.tails = nn.Linear(width, 2)
        nn.init.zeros_(self.tails.weight)
        nn.init.zeros_(self.tails.bias)
        self.register_buffer("edges", _student_edges(bins))

    @torch.no_grad()
    def skip(self, first: int, end: int) -> None:
        """Make blocks `first` to `end` - 1 add nothing, until they are trained."""
        for block in list(self.blocks)[first:end]:
            for name, value in block.named_parameters():
                if name.startswith(("out.", "down.")):
                    value.zero_()

    def forward(self, tokens: Tokens, observed: int = 0) -> tuple[Prediction, Tensor]:
        """The prediction at each query, and the summaries, shape (B, summaries, width).

        The last `observed` queries are points of the context, of which the network is asked what it has seen.
        """
        size, queries = tokens.context.shape[1], tokens.query.shape[1]
        device = tokens.curve.device.type
        # Only the blocks may run in half precision: what goes in and comes out carries more than three digits.
        with torch.autocast(device, enabled=False):
            query = self.of_query(tokens.query)
            if observed:
                query = torch.cat([query[:, :-observed], query[:, -observed:] + self.observed], 1)
            summary = self.summary.expand(len(tokens.curve), -1, -1)
            points = torch.cat([self.of_context(tokens.context), query, summary], 1)
            points = points + (self.of_curve(tokens.curve) + self.of_order(tokens.order))[:, None]
        mask = torch.zeros_like(tokens.mask, dtype=torch.float32).masked_fill(~tokens.mask, -1e9)[:, None, None]
        for block in self.blocks[:-1]:
            points = block(points, size, mask, 0)
        points = self.blocks[-1](points, size, mask, size)
        with torch.autocast(device, enabled=False):
            points = self.norm(points.float())
            out = self.head(points[:, :queries])
            tails = (QUICKER * self.tails(points[:, :queries])).clamp(-LONGEST, LONGEST)
        return Prediction(out[..., 0], out[..., 1], out[..., 2], out[..., 3:], tails), points[:, queries:]


def _student_edges(bins: int) -> Tensor:
    from scipy import stats

    levels = torch.arange(1, bins + 2, dtype=torch.float64) / (bins + 2)
    return torch.as_tensor(stats.t.ppf(levels.numpy(), REFERENCE_DOF), dtype=torch.float32)

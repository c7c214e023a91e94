"""Is a context like those that the network was trained on? Measured on fresh curves of the training design."""

import torch
from torch import Tensor, nn

COMPONENTS = 24
SHARE = 0.995  # of the training curves that count as typical by each of the criteria


# Features of a curve by their index, as `describe` orders them, and what a user can do about them.
WANDER = -1  # after the features that the network sees
WIDTH = 1
NAMED = {
    WANDER: "residuals that follow one another",
    WIDTH: "the width of the context in log x",
    3: "the noise, relative to the range of the context",
    5: "the level of y, in units of the y scale",
}


class Typical(nn.Module):
    """What typical contexts look like to the network: the summaries' principal components, and the range of the noise.

    The distance is the step-1 check of Li et al. (2026, arXiv 2409.04332): Mahalanobis distance of learned summaries,
    against its quantile on training simulations.

    Parameters
    ----------
    features
        Size of the summary.
    shared
        Size of what all points of a curve share, and of the residuals' wander, which comes last.
    """

    centre: Tensor
    axes: Tensor
    limit: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, features: int, shared: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("axes", torch.zeros(features, min(COMPONENTS, features)))
        self.register_buffer("limit", torch.ones(()))
        self.register_buffer("low", torch.zeros(shared))
        self.register_buffer("high", torch.zeros(shared))

    def measure(self, summary: Tensor, curve: Tensor) -> None:
        """Learn from the summaries (S, features) and curve features (S, curve_features) of training curves."""
        self.centre.copy_(summary.mean(0))
        _, spread, axes = torch.linalg.svd((summary - self.centre).double(), full_matrices=False)
        count = self.axes.shape[1]
        sds = spread[:count] / len(summary) ** 0.5
        self.axes.copy_(axes[:count].mT / sds.clamp(min=1e-6))
        self.limit.copy_(torch.quantile(self._distance(summary), SHARE))
        edges = torch.tensor([0.5 * (1 - SHARE), 0.5 * (1 + SHARE)], dtype=curve.dtype)
        low, high = torch.quantile(curve, edges, dim=0)
        self.low.copy_(low)
        self.high.copy_(high)

    def _distance(self, summary: Tensor) -> Tensor:
        return ((summary - self.centre) @ self.axes).square().sum(-1).sqrt()

    def remarks(self, summary: Tensor, curve: Tensor) -> list[list[str]]:
        """For each context what is untypical of it, in words; summaries (B, features), curve features (B, curve_features)."""
        distance = (self._distance(summary) / self.limit).tolist()
        outside = (curve < self.low) | (curve > self.high)
        found = []
        for far, features in zip(distance, outside.tolist(), strict=True):
            said = [name for index, name in NAMED.items() if features[index]]
            if far > 1.0:
                said.append(
                    f"the shape of the context ({far:.2g} times the distance that {SHARE:.1%} of the curves stay within)"
                )
            found.append(said)
        return found

"""The loss of a forecast: -log density of the t distribution that places the bars, and of the bars."""

import math

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from hybrid.amortized import training
from hybrid.amortized.coordinates import Tokens
from hybrid.amortized.network import Network, Prediction, placed
from hybrid.amortized.training import prediction_loss


def bars_log_density(logits: np.ndarray, tails: np.ndarray, edges: np.ndarray, u: float) -> float:
    """Uniform in each bin, exponential beyond the edges; a tail's scale is the width of the last bin over log 2, times exp."""
    mass = logits - np.logaddexp.reduce(logits)
    left, right = np.diff(edges)[[0, -1]] / math.log(2) * np.exp(tails)
    if u < edges[0]:
        return float(mass[0] - math.log(left) - (edges[0] - u) / left)
    if u >= edges[-1]:
        return float(mass[-1] - math.log(right) - (u - edges[-1]) / right)
    k = int(np.searchsorted(edges, u, side="right"))
    return float(mass[k] - math.log(edges[k] - edges[k - 1]))


def make_prediction(z: Tensor, scale: float = 1.0) -> tuple[Prediction, Tensor, Tokens, Tensor]:
    """A prediction with its edges and tokens, and the values v that lie at z relative to where it is placed."""
    generator = torch.Generator().manual_seed(0)
    shape = z.shape
    gate, centre, log_width = (scale * torch.randn(shape, generator=generator) for _ in range(3))
    logits, tails = (scale * torch.randn((*shape, size), generator=generator) for size in (12, 2))
    both = (*shape, 2)
    locs, sds = torch.randn(both, generator=generator).double(), torch.rand(both, generator=generator).double() + 0.1
    nothing = torch.empty(0)
    tokens = Tokens(*[nothing] * 5, locs, sds)
    prediction = Prediction(*(part.requires_grad_() for part in (gate, centre, log_width, logits, tails)))
    loc, sd = (part.detach() for part in placed(prediction, tokens))
    return prediction, Network(1, 8, 1, 8, 10, 1, 5, 0.0).edges, tokens, loc + sd * z


def test_prediction_loss_is_that_of_the_t_distribution_and_the_bars() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.cat([torch.randn((50, 6), generator=generator), 30 * torch.randn((50, 2), generator=generator)], 1).double()
    prediction, edges, tokens, v = make_prediction(z)
    loss = prediction_loss(prediction, edges, tokens, v)
    assert loss.shape == z.shape
    gate, centre, log_width, logits, tails = (part.detach().double().numpy() for part in prediction)
    width = np.exp(log_width)
    locs, sds = tokens.loc.numpy(), tokens.scale.numpy()
    unit = np.log(sds.min(-1))  # in units of the smaller sd

    def log_t(gate: np.ndarray) -> np.ndarray:
        """log density of v / unit by the t distribution, as a function of the gate."""
        trust = np.stack([special.expit(gate), special.expit(-gate)], -1) / sds**2
        sd = trust.sum(-1) ** -0.5
        at = (v.numpy() - (trust * locs).sum(-1) / trust.sum(-1)) / sd
        return np.asarray(stats.t.logpdf(at, 5, loc=centre, scale=width) - np.log(sd) + unit)

    expected = -log_t(gate)
    log_sd = np.log((np.stack([special.expit(gate), special.expit(-gate)], -1) / sds**2).sum(-1)) * -0.5
    u = (z.numpy() - centre) / width
    for i in np.ndindex(u.shape):
        expected[i] -= bars_log_density(logits[i], tails[i], edges.double().numpy(), u[i]) - log_width[i] - log_sd[i] + unit[i]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    outside = (u < float(edges[0])) | (u > float(edges[-1]))
    assert 20 < outside.sum() < 300  # tails and bins are both tried

    loss.sum().backward()
    grads = [part.grad.double().numpy() for part in prediction if part.grad is not None]
    by_gate = -(log_t(gate + 1e-5) - log_t(gate - 1e-5)) / 2e-5
    np.testing.assert_allclose(grads[0], by_gate, rtol=1e-3, atol=1e-4)  # of the t distribution alone, as the next two
    np.testing.assert_allclose(grads[1], -6 * u / (5 + u**2) / width, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grads[2], 1 - 6 * u**2 / (5 + u**2), rtol=1e-3, atol=1e-4)
    masses = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    k = np.searchsorted(edges.double().numpy(), u, side="right")
    np.testing.assert_allclose(grads[3], masses - np.eye(12)[k], atol=1e-5)
    left, right = np.diff(edges.double().numpy())[[0, -1]] / math.log(2)
    into = np.stack([(float(edges[0]) - u) / left, (u - float(edges[-1])) / right], -1) * np.exp(-tails)
    np.testing.assert_allclose(grads[4], np.where(into > 0, 1 - into, 0.0), rtol=1e-3, atol=1e-3)


def test_far_targets_are_clamped() -> None:
    far = torch.tensor([[2.0, 1e3, 1e9, 1e300]]) * training.FARTHEST
    for sign in (-1.0, 1.0):
        prediction, edges, tokens, v = make_prediction(sign * far.double(), scale=0.0)
        loss = prediction_loss(prediction, edges, tokens, v)
        loc, scale = placed(prediction, tokens)
        nearest = prediction_loss(prediction, edges, tokens, (loc + sign * training.FARTHEST * scale).detach())
        np.testing.assert_allclose(loss.detach(), nearest.detach(), rtol=1e-6)
        loss.sum().backward()
        assert all(part.grad is not None and bool(part.grad.isfinite().all()) for part in prediction)
    prediction, edges, tokens, v = make_prediction(torch.tensor([[0.5, 0.999]]).double() * training.FARTHEST, scale=0.0)
    inside = prediction_loss(prediction, edges, tokens, v).detach()
    assert inside[0, 0] < inside[0, 1] < nearest[0, 0]

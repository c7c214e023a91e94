"""Relative coordinates: what the network is told of a curve, and the line from which its forecasts are counted."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid.amortized.smoother import forecast, smooth, smoothed
from hybrid.models.coordinates import Frame

WAVES = (1, 2, 4, 8)
MOST_TOKENS = 64
CONTEXT_FEATURES = 9 + 2 * len(WAVES)
QUERY_FEATURES = 8 + 2 * len(WAVES)
CURVE_FEATURES = 14
DECADE = math.log(10.0)


class Tokens(NamedTuple):
    """A batch of curves as the network sees them. All but `mask` are float32, except `loc` and `scale`."""

    context: Tensor  #: (B, T, CONTEXT_FEATURES), T at most MOST_TOKENS
    mask: Tensor  #: (B, T) True on the tokens that hold points
    query: Tensor  #: (B, M, QUERY_FEATURES)
    curve: Tensor  #: (B, CURVE_FEATURES) what all points share
    loc: Tensor  #: (B, M) float64: the smoother's mean at the queries, in v
    scale: Tensor  #: (B, M) float64: the smoother's predictive sd there, in v


def _waves(u: Tensor) -> list[Tensor]:
    return [wave(math.pi * k * u) for k in WAVES for wave in (torch.sin, torch.cos)]


def to_value(y: Tensor, logarithmic: bool) -> Tensor:
    """The scale v on which the network works: log y where the noise is multiplicative, else y itself."""
    return y.log() if logarithmic else y


def _groups(u: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Which token each point joins, and the number of tokens. Points in order; `u` their place in the context, -1 to 0.

    Up to MOST_TOKENS points stand alone. More are merged with their neighbours where they are dense, in rank and in u alike.
    """
    rank = mask.cumsum(1) - 1
    count = mask.sum(1, keepdim=True)
    place = 0.5 * (rank / count) + 0.5 * (1.0 + u)
    merged = (place * MOST_TOKENS).long().clamp(0, MOST_TOKENS - 1)
    token = torch.where(count > MOST_TOKENS, merged, rank)
    return torch.where(mask, token, 0), min(int(count.max()), MOST_TOKENS)


def tokenize(x_context: Tensor, y_context: Tensor, mask: Tensor, x_query: Tensor, frame: Frame, logarithmic: bool) -> Tokens:
    """Describe contexts and queries in relative coordinates.

    Positions enter as log(x / last context x), in absolute size and as a share of the context's width; values relative to
    the smoothed value at the last context x, in units of the context's spread, and as residuals from the smoother in units
    of its noise.

    Parameters
    ----------
    x_context, y_context
        The contexts in the prior's coordinates, shape (B, N), float64, x in increasing order; y > 0. Where the mask is False
        both are anything positive.
    mask
        True on the first points of each row, the context, shape (B, N).
    x_query
        Positions of the forecasts in the prior's coordinates, shape (B, M), float64.
    frame
        Fields of shape (B, 1).
    logarithmic
        Whether the network works on log y.

    Returns
    -------
    Tokens
    """
    xi = torch.where(mask, (x_context / frame.last).log(), 0.0)
    xi_query = (x_query / frame.last).log()
    v = torch.where(mask, to_value(y_context, logarithmic), 0.0)
    fitted = smooth(xi, v, mask)
    fit, noise, width = smoothed(fitted, xi), fitted.noise(), fitted.width
    last = smoothed(fitted, torch.zeros_like(width))
    mean, sd = forecast(fitted, xi_query)
    u, u_query = xi / width, (xi_query / width).clamp(max=1.0)
    value = (v - fitted.centre) / fitted.spread
    residual = (value - fit) / noise

    token, size = _groups(u, mask)
    known = mask.to(v.dtype)
    parts = torch.stack([known, xi, xi.exp(), value - last, residual, residual.square(), fit - last], -1) * known[..., None]
    sums = parts.new_zeros(len(parts), size, parts.shape[-1])
    sums.scatter_add_(1, token[..., None].expand_as(parts), parts)
    number = sums[..., 0]
    means = sums[..., 1:] / number.clamp(min=1.0)[..., None]
    xi_mean, x_mean, value_mean, residual_mean, square_mean, fit_mean = means.unbind(-1)
    u_mean = xi_mean / width
    context = [
        xi_mean / 4.0,
        u_mean,
        x_mean,
        torch.asinh(2.0 * value_mean),
        torch.asinh(residual_mean),
        torch.asinh(residual_mean * number.sqrt()),
        torch.log1p(square_mean),
        number.clamp(min=1.0).log(),
        torch.asinh(2.0 * fit_mean),
        *_waves(u_mean),
    ]
    query = [
        xi_query / 4.0,
        torch.asinh(xi_query / width),
        xi_query.clamp(max=0.0).exp(),
        xi_query.clamp(min=0.0),
        torch.asinh(2.0 * (mean - last)),
        (sd / noise).log() / 4.0,
        sd.log() / 4.0,
        (xi_query > 0).to(xi.dtype),
        *_waves(u_query),
    ]
    level = fitted.centre + fitted.spread * last
    fall = fitted.spread * (smoothed(fitted, -width.clamp(min=DECADE)) - last)
    steep = fall.clamp(1e-4, 30.0)
    curve = [
        mask.sum(1, keepdim=True).log() / 3.0,
        width.log(),
        width / 8.0,
        noise.log() / 4.0,
        fitted.spread.log() / 4.0,
        level,
        fall,
        torch.asinh(fall),
        steep.log(),
        steep.expm1().log(),
        frame.last.log().expand_as(width),
        frame.first.log().expand_as(width) / 8.0,
        *fitted.probability.sum(-1)[:, 1:, None].unbind(1),
    ]
    return Tokens(
        torch.stack(context, -1).float(),
        number > 0,
        torch.stack(query, -1).float(),
        torch.cat(curve, -1).float(),
        fitted.centre + fitted.spread * mean,
        fitted.spread * sd,
    )

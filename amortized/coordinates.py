"""Relative coordinates: what the network is told of a curve, and the two lines from which its forecasts are counted."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid.amortized.groups import Groups, group, rows_of
from hybrid.amortized.law_frame import MODES, LawFrame, Modes
from hybrid.amortized.smoother import Smooth, forecast, smooth, smoothed
from hybrid.models.coordinates import Frame

WAVES = (1, 2, 4, 8)
MOST_TOKENS = 32
CONTEXT_FEATURES = 9 + 2 * len(WAVES) + 2 * MODES
QUERY_FEATURES = 8 + 2 * len(WAVES) + 6
SHARED_FEATURES = 14
ORDER_FEATURES = 4
DECADE = math.log(10.0)
EXTREME = 1e8  # of a number that the law gives for a forecast, in units of the smoother's


def curve_features(parameters: int) -> int:
    """Size of what all points of a curve share, for a law with so many parameters besides sigma."""
    return SHARED_FEATURES + 2 + MODES * mode_features(parameters)


def mode_features(parameters: int) -> int:
    """Size of what describes one mode of a law: its parameters, their sds and the noise."""
    return 2 * parameters + 2


class Described(NamedTuple):
    """A batch of contexts in relative coordinates."""

    context: Tensor  #: (B, T, CONTEXT_FEATURES) float32, T at most MOST_TOKENS
    mask: Tensor  #: (B, T) True on the tokens that hold points
    curve: Tensor  #: (B, curve_features) float32: what all points share
    by_mode: Tensor  #: (B, M, mode_features) float32: the part of `curve` that is about each mode
    order: Tensor  #: (B, ORDER_FEATURES) float32: how often one value rises above the one before, or falls below it
    wander: Tensor  #: (B, 1) float32: how alike neighbouring residuals from the law are; see `_wander`
    smooth: Smooth  #: the smoother
    modes: Modes  #: the law
    frame: Frame  #: fields (B, 1)

    def row(self, i: int) -> "Described":
        """One of the contexts, in memory of its own: a part of the batch would keep all of it."""
        return rows_of(self, torch.tensor([i], device=self.mask.device))  # type: ignore[no-any-return]


class Tokens(NamedTuple):
    """A batch of curves as the network sees them. All but `mask` are float32, except `loc` and `scale`."""

    context: Tensor  #: (B, T, CONTEXT_FEATURES)
    mask: Tensor  #: (B, T)
    query: Tensor  #: (B, M, QUERY_FEATURES)
    curve: Tensor  #: (B, curve_features)
    order: Tensor  #: (B, ORDER_FEATURES)
    loc: Tensor  #: (B, M, 2) float64: means of the law's and of the smoother's forecasts, in v
    scale: Tensor  #: (B, M, 2) float64: their sds, in v


def _waves(u: Tensor) -> list[Tensor]:
    return [wave(math.pi * k * u) for k in WAVES for wave in (torch.sin, torch.cos)]


def to_value(y: Tensor, logarithmic: bool) -> Tensor:
    """The scale v on which the network works: log y where the noise is multiplicative, else y itself."""
    return y.log() if logarithmic else y


def _spread_out(values: Tensor) -> Tensor:
    """asinh, for numbers of any size."""
    return torch.asinh(values.nan_to_num(0.0, EXTREME, -EXTREME).clamp(-EXTREME, EXTREME))


def describe(x: Tensor, y: Tensor, mask: Tensor, frame: Frame, law: LawFrame, starts: Tensor | None = None) -> Described:
    """Describe contexts in relative coordinates.

    Positions enter as log(x / last context x), in absolute size and as a share of the context's width; values relative to
    the smoothed value at the last context x, in units of the context's spread, and as residuals from the smoother and from
    the law, in units of the noise that each of them finds.

    Parameters
    ----------
    x, y
        The contexts in the prior's coordinates, shape (B, N), float64, x in increasing order; y > 0. Where the mask is False
        both are anything positive.
    mask
        True on the first points of each row, the context, shape (B, N).
    frame
        Fields of shape (B, 1).
    law
        The law that is fitted.
    starts
        Where its fit begins, if that is known.
    """
    xi = torch.where(mask, (x / frame.last).log(), 0.0)
    v = torch.where(mask, to_value(y, law.logarithmic), 0.0)
    fitted = smooth(xi, v, mask)
    fit, noise, width = smoothed(fitted, xi), fitted.noise(), fitted.width
    last = smoothed(fitted, torch.zeros_like(width))
    value = (v - fitted.centre) / fitted.spread
    residual = (value - fit) / noise
    groups = group(xi, v, mask, MOST_TOKENS)
    modes = law(xi, v, mask, groups, frame, starts)
    curves = law.along(modes, groups.x, frame)

    known = mask.to(v.dtype)
    parts = torch.stack([xi, xi.exp(), value - last, residual, residual.square(), fit - last], -1) * known[..., None]
    sums = parts.new_zeros(len(parts), groups.number.shape[1], parts.shape[-1])
    sums.scatter_add_(1, groups.token[..., None].expand_as(parts), parts)
    number = groups.number
    root = number.sqrt()
    means = sums / number.clamp(min=1.0)[..., None]
    xi_mean, x_mean, value_mean, residual_mean, square_mean, fit_mean = means.unbind(-1)
    u_mean = xi_mean / width
    context = [
        xi_mean / 4.0,
        u_mean,
        x_mean,
        torch.asinh(2.0 * value_mean),
        torch.asinh(residual_mean),
        torch.asinh(residual_mean * root),
        torch.log1p(square_mean),
        number.clamp(min=1.0).log(),
        torch.asinh(2.0 * fit_mean),
        *_waves(u_mean),
        *_law_residuals(curves, modes, groups, root),
    ]
    level = fitted.centre + fitted.spread * last
    fall = fitted.spread * (smoothed(fitted, -width.clamp(min=DECADE)) - last)
    steep = fall.clamp(1e-4, 30.0)
    by_mode = _by_mode(modes, fitted.spread * noise)
    curve = [
        mask.sum(1, keepdim=True).float().log() / 3.0,
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
        modes.weight[:, 1:],
        modes.weight[:, 1:].clamp(min=1e-6).log() / 4.0,
        by_mode.flatten(1),
    ]
    known_token = number > 0
    found = torch.stack(context, -1).float(), known_token, torch.cat(curve, -1).float(), by_mode.float()
    aside = _order(v, mask).float(), _wander(groups.v - curves[0], number).float()
    return Described(*found, *aside, fitted, modes, frame)


def _order(v: Tensor, mask: Tensor) -> Tensor:
    """Shares of steps from value to value that rise and that fall, and whether there is none; shape (B, ORDER_FEATURES).

    A context without a single step back, while its values scatter, holds the best results so far.
    """
    step = torch.where(mask[:, 1:], v.diff(dim=1), 0.0)
    count = mask[:, 1:].sum(1, keepdim=True).clamp(min=1).float()
    shares = torch.cat([(step > 0).sum(1, keepdim=True) / count, (step < 0).sum(1, keepdim=True) / count], 1)
    return torch.cat([shares, (shares == 0).to(shares.dtype)], 1)


def _wander(residual: Tensor, number: Tensor) -> Tensor:
    """Lag-1 autocorrelation of the tokens' residuals times the root of their number, at least 0; shape (B, 1).

    Of independent noise around the right law it is half a standard normal; of a curve that the law cannot follow it is large.
    """
    residual = torch.where(number > 0, residual * number.sqrt(), 0.0).nan_to_num(0.0, EXTREME, -EXTREME)
    size = residual.abs().amax(1, keepdim=True).clamp(min=1e-300)
    residual = residual / size
    alike = (residual[:, 1:] * residual[:, :-1]).sum(1) / residual.square().sum(1).clamp(min=1e-300)
    return (alike * (number > 0).sum(1).float().sqrt()).clamp(min=0.0)[:, None]


def _law_residuals(curves: Tensor, modes: Modes, groups: Groups, root: Tensor) -> list[Tensor]:
    """For each mode the tokens' residuals in units of sigma, as they are and in units of their own standard error."""
    found = []
    for k in range(MODES):
        scaled = torch.where(groups.number > 0, groups.v - curves[k], 0.0) * (-modes.log_sigma[:, k : k + 1]).exp()
        found += [_spread_out(scaled), _spread_out(scaled * root)]
    return found


def _by_mode(modes: Modes, noise: Tensor) -> Tensor:
    """What describes each mode, shape (B, M, mode_features)."""
    sds = modes.spread.square().sum(-1).sqrt()
    log_sigma = modes.log_sigma[..., None]
    parts = [modes.s.clamp(-8.0, 8.0) / 2.0, sds.clamp(min=1e-12).log() / 4.0, log_sigma / 4.0]
    return torch.cat([*parts, _spread_out(log_sigma - noise.log()[..., None])], -1)


def ask(described: Described, x: Tensor, law: LawFrame) -> Tokens:
    """The tokens for contexts and positions x (B, M), in the prior's coordinates, float64."""
    fitted, modes, frame = described.smooth, described.modes, described.frame
    relative = x / frame.last
    xi, width, noise = relative.log(), fitted.width, fitted.noise()
    mean, sd = forecast(fitted, xi)
    last = smoothed(fitted, torch.zeros_like(width))
    u = (xi / width).clamp(max=1.0)

    smooth_loc, smooth_scale = fitted.centre + fitted.spread * mean, fitted.spread * sd
    curves, sds, bends = law.forecast(modes, relative, frame)
    safe = (curves.isfinite() & sds.isfinite() & (sds < EXTREME * smooth_scale)).all(0)
    safe = safe & ((curves - smooth_loc).abs() < EXTREME * smooth_scale).all(0)
    curves, sds = torch.where(safe, curves, smooth_loc), torch.where(safe, sds, smooth_scale)
    weight = modes.weight.T[..., None]
    loc = (weight * curves).sum(0)
    scale = (weight * (sds.square() + (curves - loc).square())).sum(0).sqrt()
    query = [
        xi / 4.0,
        torch.asinh(xi / width),
        xi.clamp(max=0.0).exp(),
        xi.clamp(min=0.0),
        torch.asinh(2.0 * (mean - last)),
        (sd / noise).log() / 4.0,
        sd.log() / 4.0,
        (xi > 0).to(xi.dtype),
        *_waves(u),
        torch.asinh(2.0 * ((loc - fitted.centre) / fitted.spread - last)),
        _spread_out((smooth_loc - loc) / scale),
        (scale / smooth_scale).log() / 4.0,
        (sds[0] * (-modes.log_sigma[:, :1]).exp()).clamp(1e-6, EXTREME).log() / 4.0,
        _spread_out(bends[0] / sds[0]),
        _spread_out((curves[1] - curves[0]) / sds[0]),
    ]
    return Tokens(
        described.context,
        described.mask,
        torch.stack(query, -1).float(),
        described.curve,
        described.order,
        torch.stack([loc, smooth_loc], -1),
        torch.stack([scale, smooth_scale], -1),
    )

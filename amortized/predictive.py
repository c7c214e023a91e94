"""The predictive distribution that a network gives for one context, in the user's units."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hybrid.amortized.bar_distribution import BarDistribution
from hybrid.amortized.coordinates import Described, ask, describe, to_value
from hybrid.amortized.model import AmortizedModel
from hybrid.amortized.network import placed
from hybrid.amortized.positive import Positive
from hybrid.amortized.threads import one_thread, undisturbed
from hybrid.models.coordinates import Frame

Array = Any
DEEPEST = math.log(1e4)  # moments of y leave out the last 1e-4 of a tail's mass: that of exp(v) may have no mean
FARTHEST = 150.0  # of log y beyond the bins, for moments of y, whose squares are then finite
NARROW = 1e-5  # sd of log y below which it is that of y over its level: the difference of moments is lost to rounding
MOST_LOG = 700.0  # of log y in the curves that are drawn point after point: y and 1 / y are finite
FEWEST_CURVES = 200  # drawn together at least, so that ranks carry the dependence between positions
TOKENS = 200_000  # of a forward pass; more go through in parts
FEW = 128  # contexts that threads save little time on, and lose much where other work waits for the same cores
DELAY = 2.0  # seconds before a progress bar shows
ORDERED = 16  # positions that `sample` takes one after another; more are drawn given these


class Contexts:
    """A batch of contexts on a model's device, ready to be asked.

    Parameters
    ----------
    model
        The model, in evaluation mode.
    x, y
        Contexts in the prior's coordinates, shape (B, N), sorted by x; anything positive where the mask is False.
    mask
        True on the first points of each row, shape (B, N).
    frame
        Fields of shape (B, 1).
    starts
        Where the fit of the law begins, if that is known.
    described
        The contexts in relative coordinates, if they have been described already.
    """

    def __init__(
        self,
        model: AmortizedModel,
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        frame: Frame,
        starts: Tensor | None = None,
        described: Described | None = None,
    ) -> None:
        self.model, self.x, self.y, self.mask, self.frame = model, x, y, mask, frame
        self._starts, self._described = starts, described

    def row(self, i: int) -> "Contexts":
        """One of the contexts, without its padding and in memory of its own."""
        size = int(self.mask[i].sum())
        x, y, mask = (part[i : i + 1, :size].clone() for part in (self.x, self.y, self.mask))
        frame = Frame(*(field[i : i + 1].clone() for field in self.frame))
        return Contexts(self.model, x, y, mask, frame, described=self.described.row(i))

    @property
    def described(self) -> Described:
        """The contexts in relative coordinates; made once."""
        if self._described is None:
            with torch.inference_mode(), undisturbed(self.x.device, len(self.x) <= FEW):
                self._described = describe(self.x, self.y, self.mask, self.frame, self.model.law, self._starts)
        return self._described

    def bars(self, query: Tensor) -> BarDistribution:
        """The distribution of v, log y or y, at queries (B, M) in the prior's coordinates; float64."""
        return self.asked(query)[0]

    @torch.inference_mode()
    def asked(self, query: Tensor) -> tuple[BarDistribution, Tensor]:
        """What `bars` and `summary` give, from one pass."""
        described = self.described
        with undisturbed(query.device, len(query) <= FEW):
            tokens = ask(described, query, self.model.law)
            prediction, summaries = self.model.network(tokens)
            loc, scale = placed(prediction, tokens)
            loc = loc + scale * prediction.centre.double()
            scale = scale * prediction.log_width.double().exp()
            logits, tails = prediction.logits.double(), prediction.tails.double()
            bars = BarDistribution(logits, self.model.network.edges, loc, scale, tails, validate_args=False)
            return bars, summaries.flatten(1)

    @torch.inference_mode()
    def summary(self) -> Tensor:
        """The summaries of the contexts, shape (B, summaries * width), float32."""
        described = self.described
        with undisturbed(self.x.device, len(self.x) <= FEW):
            found: Tensor = self.model.network(ask(described, self.x[:, :0], self.model.law))[1].flatten(1)
        return found

    @property
    def features(self) -> Tensor:
        """What `Typical` looks at besides the summary, shape (B, curve_features + 1)."""
        return torch.cat([self.described.curve, self.described.wander], -1)


def of_value(bars: BarDistribution, model: AmortizedModel) -> BarDistribution | Positive:
    """The distribution of v: of y itself only what lies above 0, where all observations are, if they are."""
    return bars if model.logarithmic or not model.positive else Positive(bars)


def _trimmed_exponential(t: Tensor, sign: float, farthest: float) -> Tensor:
    """E[exp(sign U)] for U exponential with scale t, the last of its mass, and what lies beyond the farthest, left out."""
    depth = (t * DEEPEST).clamp(max=farthest)
    rate = sign - 1.0 / t
    grown = torch.where(rate.abs() < 1e-9, depth, torch.expm1(rate * depth) / rate)
    return grown / t / -torch.expm1(-depth / t)


def _exponential_moment(bars: BarDistribution, power: float) -> Tensor:
    """E[exp(power (v - loc))] under the bars, in closed form."""
    step, mass = power * bars.scale[..., None], bars.logits.softmax(-1)
    left, right = (part[..., None] for part in bars.tail_scales)
    low, high = step * bars.edges[:-1], step * bars.edges[1:]
    inside = low.exp() * torch.expm1(high - low) / (high - low)
    first = low[..., :1].exp() * _trimmed_exponential(step * left, -1.0, power * FARTHEST)
    last = high[..., -1:].exp() * _trimmed_exponential(step * right, 1.0, power * FARTHEST)
    return (mass * torch.cat([first, inside, last], -1)).sum(-1)


class AmortizedPredictive:
    """The predictive distribution of y given one context, as `hybrid.models.predictive.MixturePredictive` has it.

    Each x costs one pass through the network, whatever other x are asked for. Positions x are arrays of shape (n,), in the
    user's units.

    Parameters
    ----------
    contexts
        One context.
    frame
        The frame that maps between the coordinates and the user's units, as floats.
    """

    def __init__(self, contexts: Contexts, frame: Frame) -> None:
        self._contexts, self._frame = contexts, frame
        self._logarithmic = contexts.model.logarithmic
        self._latest: tuple[bytes, BarDistribution] | None = None
        self._latest_moments: tuple[BarDistribution, tuple[Tensor, Tensor]] | None = None

    @property
    def model(self) -> AmortizedModel:
        """The network that answers."""
        return self._contexts.model

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._contexts.x.device

    def _query(self, x: Array) -> Tensor:
        inside = self._frame.x_to(np.asarray(x, dtype=float))
        return torch.as_tensor(inside, dtype=torch.float64, device=self._contexts.x.device)[None]

    def _bars(self, x: Array) -> BarDistribution:
        query = self._query(x)
        key = query.cpu().numpy().tobytes()
        latest = self._latest
        if latest is None or latest[0] != key:  # mean, sd and quantiles are mostly asked for together
            self._latest = latest = key, self._contexts.bars(query)
        return latest[1]  # another thread may have asked for other x by now

    def _value(self, y: Array, x: Array) -> tuple[Tensor, Tensor]:
        """v of each y, and whether there is such a y; both of shape (1, n)."""
        inside = np.broadcast_to(np.asarray(y, dtype=float) / self._frame.y_scale, np.shape(x))
        level = torch.as_tensor(inside.copy(), device=self._contexts.x.device)[None]
        possible = (level > 0) | (not self.model.positive)
        return to_value(torch.where(possible, level, 1.0), self._logarithmic), possible

    @one_thread()
    def cdf(self, x: Array, y: Array) -> Array:
        """P(Y <= y) at x, for y of shape (n,) or scalar; shape (n,)."""
        bars, (v, possible) = self._bars(x), self._value(y, x)
        return torch.where(possible, of_value(bars, self.model).cdf(v), 0.0)[0].cpu().numpy()

    @one_thread()
    def log_density(self, x: Array, y: Array) -> Array:
        """log p(y | x, context) in nats per point, in the units of y as given; shape (n,)."""
        bars, (v, possible) = self._bars(x), self._value(y, x)
        found = of_value(bars, self.model).log_prob(v) - (v if self._logarithmic else 0.0) - math.log(self._frame.y_scale)
        return torch.where(possible, found, -torch.inf)[0].cpu().numpy()

    @one_thread()
    def quantile(self, x: Array, levels: Array) -> Array:
        """Quantiles of y at the given levels in (0, 1); shape (len(levels), n)."""
        return self._quantiles(self._bars(x), torch.as_tensor(np.asarray(levels, dtype=float))[:, None, None])[:, 0]

    def _quantiles(self, bars: BarDistribution, levels: Tensor) -> Array:
        v = of_value(bars, self.model).icdf(levels.to(bars.loc.device))
        return ((v.exp() if self._logarithmic else v) * self._frame.y_scale).cpu().numpy()

    def mean(self, x: Array) -> Array:
        """E[y] at x, shape (n,); see `sd`."""
        with np.errstate(over="ignore"):
            return self._moments(x)[0].numpy() * self._frame.y_scale

    def sd(self, x: Array) -> Array:
        """Standard deviation of y at x, shape (n,).

        Where the network works on log y, mean and sd leave out the last 1e-4 of the mass of each tail: an exponential tail
        of log y may have no mean in y.
        """
        with np.errstate(over="ignore"):
            return self._moments(x)[1].numpy() * self._frame.y_scale

    @one_thread()
    def _moments(self, x: Array) -> tuple[Tensor, Tensor]:
        """Mean and sd of y in coordinates; made once for the latest x, as both are mostly asked for."""
        bars, latest = self._bars(x), self._latest_moments
        if latest is None or latest[0] is not bars:
            if self._logarithmic:
                first, second = (_exponential_moment(bars, power)[0] for power in (1.0, 2.0))
                scale = bars.loc[0].exp()
                sd = torch.where(bars.stddev[0] < NARROW, bars.stddev[0], (second - first**2).clamp(min=0.0).sqrt())
                mean, sd = scale * first, scale * sd
                mean, sd = (torch.where(mean.isinf() | part.isnan(), torch.inf, part) for part in (mean, sd))  # overflowed
            else:
                found = of_value(bars, self.model)
                mean, sd = found.mean[0], found.stddev[0]
            self._latest_moments = latest = bars, (mean.cpu(), sd.cpu())
        return latest[1]

    @one_thread()
    def replicate(self, x: Array, n: int, seed: int) -> Array:
        """n independent draws at each x, shape (n, n_x), not joined to curves."""
        uniform = np.random.default_rng(seed).uniform(size=(np.shape(x)[0], n)).T
        return self._quantiles(self._bars(x), torch.as_tensor(uniform.copy())[:, None])[:, 0]

    def sample(self, x: Array, n: int, seed: int, progress: bool = False) -> Array:
        """n coherent curves, shape (n, n_x): autoregression over the positions, from the nearest to the farthest.

        The network draws y at one position, takes it into the context, and goes on to the next: one pass per position over
        n contexts. Of more than ORDERED positions that many, evenly spread, are drawn in turn and the others
        independently given those. The dependence between positions is what this gives; the values at each position are
        then put in the order of its ranks from the one-pass predictive (ensemble copula coupling, Schefzik, Thorarinsdottir
        and Gneiting 2013), so that the marginals are those of `quantile` and `cdf` exactly. Ranks say little among a few
        curves: at least FEWEST_CURVES are drawn, of which n are returned. With `progress` a bar shows where this takes long.
        """
        wanted, n = n, max(n, FEWEST_CURVES)
        rng = np.random.default_rng(seed)
        x = np.asarray(x, dtype=float)
        log_x, (first, last) = np.log(x), (math.log(self._frame.x_from(edge)) for edge in (self._frame.first, self._frame.last))
        order = np.lexsort((x, np.maximum(first - log_x, log_x - last).clip(min=0.0)))  # those inside by x
        chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), ORDERED)).round().astype(int))
        rest = np.setdiff1d(np.arange(len(x)), chosen)
        uniform = rng.uniform(size=(len(x), n))
        drawn = np.empty((n, len(x)))
        query = self._query(x[order])
        step = max(1, TOKENS // (self._contexts.x.shape[1] + len(chosen) + len(rest)))
        with tqdm(total=n * len(chosen), desc="curves", unit="point", delay=DELAY, disable=not progress) as bar:
            for rows in (slice(i, i + step) for i in range(0, n, step)):
                drawn[rows][:, order] = self._autoregress(query, chosen, rest, uniform[:, rows], bar)
        ranks = np.argsort(np.argsort(drawn, axis=0, kind="stable"), axis=0)
        levels = (np.arange(n)[:, None] + rng.uniform(size=(n, len(x)))) / n
        marginal = self._quantiles(self._bars(x), torch.as_tensor(levels)[:, None])[:, 0]
        return np.take_along_axis(marginal, ranks, 0)[:wanted]

    def _extended(self, x: Tensor, y: Tensor) -> tuple[Contexts, Tensor]:
        """Draws (n, N) as contexts, and the unit of their x. They share their x and most of y: the law is fitted from the modes
        of their mean.

        Ratio coordinates are over the last x of the draws, as in training.
        """
        c, known, last = self._contexts, torch.ones_like(x, dtype=torch.bool), x[:1, -1:]
        unit = last if c.model.prior.coordinates == "ratio" else torch.ones_like(last)
        old = c.frame
        first = torch.minimum(old.first, x[:1, :1])
        frame = Frame(old.x_shift, old.x_scale * unit, old.y_scale, first / unit, last / unit, old.horizon / unit)
        x = x / unit
        mean = y.log().mean(0, keepdim=True).exp() if self._logarithmic else y.mean(0, keepdim=True)
        starts = Contexts(c.model, x[:1], mean, known[:1], frame).described.modes.s.transpose(0, 1)
        wide = Frame(*(field.expand(len(x), 1) for field in frame))
        return Contexts(c.model, x, y, known, wide, starts.expand(-1, len(x), -1)), unit

    def _autoregress(self, query: Tensor, chosen: Array, rest: Array, uniform: Array, bar: Any) -> Array:
        """Curves at positions (1, n_x) in coordinates, in the order to draw them in; shape (draws, n_x), up to the y scale."""
        draws = uniform.shape[1]
        c, device = self._contexts, query.device
        x, y = (part.expand(draws, -1) for part in (c.x[c.mask][None], c.y[c.mask][None]))
        known = [(x, y)]
        found = torch.empty(draws, query.shape[1], dtype=torch.float64)
        for part in (*chosen[:, None], rest):
            if len(part) == 0:
                continue
            xs = torch.cat([pair[0] for pair in known], 1)
            by_x = xs.argsort(dim=1, stable=True)
            ys = torch.cat([pair[1] for pair in known], 1).gather(1, by_x)
            xs = xs.gather(1, by_x)
            batch, unit = self._extended(xs, ys)
            at = query[:, part].expand(draws, -1)
            bars = batch.bars(at / unit)
            v = of_value(bars, self.model).icdf(torch.as_tensor(uniform[part].T.copy(), device=device))
            if self._logarithmic:
                drawn = v.clamp(-MOST_LOG, MOST_LOG).exp()
            else:
                drawn = v.clamp(min=torch.finfo(torch.float64).tiny) if self.model.positive else v
            found[:, part] = drawn.cpu()
            known.append((at, drawn))
            bar.update(draws if part is not rest else 0)
        return found.numpy()

"""Curves for training, drawn straight from a shared prior: positions from a design, parameters and noise from the prior."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybrid.amortized.design import Design, DesignBatch, Reported, frames
from hybrid.models.coordinates import Frame, Unit
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.nslpfn import NslPfn
from hybrid.models.prior import AbstractPrior, Prior, expand
from hybrid.models.torch_random import seeded


class CurveBatch(NamedTuple):
    """A batch of curves in the prior's coordinates."""

    x_context: Tensor  #: (B, N) in increasing order; the last context x where the mask is False
    y_context: Tensor  #: (B, N); 1 where the mask is False
    mask: Tensor  #: (B, N) True on the points of the context
    x_target: Tensor  #: (B, M) in increasing order
    y_target: Tensor  #: (B, M)
    theta: dict[str, Tensor]  #: parameters by name, each (B,)
    frame: Frame  #: fields (B, 1); y_scale is 1

    @property
    def measured(self) -> Tensor:
        """All y (B, N + M), of context and targets; 1 where the mask is False."""
        return torch.cat([torch.where(self.mask, self.y_context, 1.0), self.y_target], 1)

    def within_floats(self, logarithmic: bool) -> "CurveBatch":
        """Without the curves that leave the floating-point numbers somewhere, as no measurement does: in log y also through 0.

        Under `nsl`, whose noise has outliers and grows with the level, a rare curve does. So is one left out where the law has
        none (NaN), of which training has made sure before that they are too rare to matter. A batch of which nothing would be
        left stays.
        """
        y = self.measured
        inside = (y.isfinite() & ~((y == 0.0) & logarithmic)).all(1)
        if inside.all() or not inside.any():
            return self
        return CurveBatch(
            self.x_context[inside],
            self.y_context[inside],
            self.mask[inside],
            self.x_target[inside],
            self.y_target[inside],
            {name: value[inside] for name, value in self.theta.items()},
            Frame(*(field[inside] for field in self.frame)),
        )


def _draw_shared(prior: Prior, x: Tensor, frame: Frame, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters and noisy curves at x (B, n) from a prior with a density."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with seeded(seed, x.device):
        theta = prior.draw_torch(x.shape[0], x.dtype, x.device)
        mean = prior.mean(theta, x, frame)
        return theta, prior.noise.torch(mean, expand(theta)).sample()


def _draw_nslpfn(
    prior: NslPfn, x: Tensor, hidden: Tensor, last: Tensor, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Family, noise scale and noisy curves at x (B, n) from the released sampler.

    Positions that are `hidden` (B, n), mere padding, are replaced by uniform ones, as its own curves have: a short context
    is one of which the network sees only some points.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    rng = np.random.default_rng(seed)
    raw = np.clip(x.detach().cpu().double().numpy(), Unit.low, 1.0)
    raw = np.where(hidden.cpu().numpy(), rng.uniform(Unit.low, 1.0, raw.shape), raw)
    found, _, y = prior.simulate_at(raw, last.cpu().double().numpy(), rng)
    theta = {name: torch.as_tensor(value, device=x.device) for name, value in found.items()}
    theta["sigma"] = theta["sigma"].to(x.dtype)
    return theta, torch.as_tensor(y, dtype=x.dtype, device=x.device)


def _report(x: Tensor, y: Tensor, mask: Tensor, reported: Reported, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts x, y and mask (B, N') from measurements (B, N): some of them the best so far, as a design has it."""
    last = mask.sum(1, keepdim=True) - 1
    sign = torch.where(y.gather(1, last) > y[:, :1], -1.0, 1.0)
    best = torch.where(mask, sign * y, torch.inf).cummin(1).values
    new = torch.nn.functional.pad(best.diff(dim=1) < 0, (1, 0))
    kept = reported.kept & (new | reported.always | ~reported.new_best[:, None])
    y = torch.where(reported.best[:, None] & mask, sign * best, y)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
    kept = kept.gather(1, order)
    return torch.where(kept, x.gather(1, order), frame.last), torch.where(kept, y.gather(1, order), 1.0), kept


def draw_curves(
    prior: AbstractPrior, designs: DesignBatch, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> CurveBatch:
    """Draw one curve for each design of a batch.

    Parameters
    ----------
    prior
        A `Prior`, or the simulator `nslpfn`.
    designs
        Positions in the raw scale, on the device of the generator, best in float64: they are turned into coordinates first
        and into `dtype` afterwards.
    generator
        Source of the seed of the draws.
    dtype
        Of the result, and of the evaluation of the law.

    Returns
    -------
    CurveBatch in the prior's coordinates.

    Raises
    ------
    EngineUnavailableError
        If the prior is neither a `Prior` nor `nslpfn`.
    InvalidArgumentError
        If the prior is in unit coordinates, and a target lies before the first context x.
    """
    if prior.coordinates == "unit" and bool((designs.x_target[:, :1] < designs.x_context[:, :1]).any()):
        raise InvalidArgumentError(
            f"prior {prior.name!r} is not defined before the first context x: set before to 0 in the design"
        )
    exact = frames(designs, prior.coordinates)
    width = designs.x_context.shape[1]
    x = exact.x_to(torch.cat([designs.x_context, designs.x_target], 1)).to(dtype)
    frame = Frame(*(field.to(dtype) for field in exact))
    if isinstance(prior, Prior):
        theta, y = _draw_shared(prior, x, frame, generator)
    elif isinstance(prior, NslPfn):
        hidden = torch.cat([~designs.mask, torch.zeros_like(designs.x_target, dtype=torch.bool)], 1)
        theta, y = _draw_nslpfn(prior, x, hidden, frame.last, generator)
    else:
        raise EngineUnavailableError(f"curves for training come from a Prior or from 'nslpfn', not from {type(prior).__name__}")
    x_context, y_context, mask = x[:, :width], torch.where(designs.mask, y[:, :width], 1.0), designs.mask
    if designs.reported is not None:
        x_context, y_context, mask = _report(x_context, y_context, mask, designs.reported, frame)
    return CurveBatch(x_context, y_context, mask, x[:, width:], y[:, width:], theta, frame)


def sample_curves(
    prior: AbstractPrior,
    batch: int,
    design: Design,
    generator: torch.Generator | int,
    device: Any = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CurveBatch:
    """Draw a batch of curves: their positions from the design, all else from the prior.

    Parameters
    ----------
    prior
        A `Prior`, or the simulator `nslpfn`.
    batch
        Number of curves B.
    design
        The distribution of the positions.
    generator
        A generator on `device`, which this call advances, or a seed.
    device
        Where the curves are drawn and returned. The same seed gives other curves on another kind of device.
    dtype
        Of the result.

    Returns
    -------
    CurveBatch in the prior's coordinates, with N the largest context of the batch and M = `design.targets`.

    Raises
    ------
    InvalidArgumentError
        If batch < 1, or if the prior is in unit coordinates and the design has targets before the first context x.
    EngineUnavailableError
        If the prior is neither a `Prior` nor `nslpfn`.
    """
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator(device).manual_seed(int(generator))
    return draw_curves(prior, design.sample(batch, generator), generator, dtype)

"""Training: one loop, resumable to the bit, on one device or many."""

import functools
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hybrid.amortized.bar_distribution import BarDistribution
from hybrid.amortized.checkpoint import Origin, TrainingState, load_state, save_state
from hybrid.amortized.coordinates import Tokens, ask, describe, to_value
from hybrid.amortized.design import Design, DesignBatch
from hybrid.amortized.futures import futures
from hybrid.amortized.interrupts import undivided
from hybrid.amortized.model import AmortizedModel, build_model
from hybrid.amortized.network import REFERENCE_DOF, Prediction, placed
from hybrid.amortized.posterior import FlowHead
from hybrid.amortized.sampler import CurveBatch, draw_curves
from hybrid.amortized.settings import Settings
from hybrid.models.errors import InvalidArgumentError, TrainingError
from hybrid.models.prior import AbstractPrior

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DOF = torch.tensor(REFERENCE_DOF, dtype=torch.float32)
REFERENCE = torch.distributions.StudentT(DOF, validate_args=False)  # what is not finite stops the run with advice
FARTHEST = 1e4  # a target further off, in the smoother's sds, counts as this far
POSITIONS = 2**31  # in place of a shard's number, for the random numbers that all shards share
UNSTABLE = (
    "the loss or gradient of step {} is not finite: delete the .training file, if there is one, and train again with a lower "
    "learning_rate"
)
SAVE_EVERY = 120.0  # seconds
ADAMW_SHARE = 1.0 / 3.0  # of the learning rate


class Trained(NamedTuple):
    """The end of a run."""

    model: AmortizedModel  #: on the CPU, ready for use
    state: TrainingState
    leads: bool  #: whether this process is the one that writes files


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """A source of randomness that depends on the key alone, so that any step can be drawn again."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def shards(design: Design, settings: Settings, step: int, device: torch.device, *run: int) -> list[DesignBatch]:
    """The positions of one step's curves, sorted by the size of the context, so that what is alike stays together.

    `run` are numbers of the run's origin, if it has one: weights that are trained further see other curves than before.
    """
    drawn = design.sample(settings.batch, generator_of(device, settings.seed, step, POSITIONS, *run))
    order = drawn.mask.sum(1).argsort(stable=True)
    found = []
    for rows in order.chunk(settings.shards):
        size = int(drawn.mask[rows[-1]].sum())
        found.append(drawn.rows(rows, size))
    return found


def prediction_loss(prediction: Prediction, edges: Tensor, tokens: Tokens, v: Tensor) -> Tensor:
    """-log density of the bars at v plus -log density of the t distribution that places them, nats, shape (..., B, M)."""
    loc, scale = placed(prediction, tokens)
    reach = 2.0 * FARTHEST * tokens.scale
    v = torch.clamp(v, (tokens.loc - reach).amin(-1), (tokens.loc + reach).amax(-1))  # further off, gradients overflow
    # Both densities are of v in units of the likelier frame's sd, so that the loss is a difference from that frame.
    unit = tokens.scale.amin(-1)
    z = ((v - loc) / scale).clamp(-FARTHEST, FARTHEST).float()
    centre, log_width = prediction.centre, prediction.log_width
    placing = log_width - REFERENCE.log_prob((z - centre) * (-log_width).exp()) + (scale / unit).log().float()
    affine = centre.detach(), log_width.detach().exp()
    bars = BarDistribution(prediction.logits, edges, *affine, prediction.tails, validate_args=False)
    loss: Tensor = placing - bars.log_prob(z.detach()) + (scale / unit).log().float().detach()
    return loss


def curve_loss(
    model: AmortizedModel, curves: CurveBatch, settings: Settings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The loss that is minimised and its part for the targets, nats per point, each the mean over the curves."""
    x, y = curves.x_target, curves.y_target
    targets = x.shape[1]
    if settings.context_weight:
        share = torch.rand(y.shape, generator=generator, device=y.device, dtype=torch.float64)
        seen = (share * curves.mask.sum(1, keepdim=True)).long()
        x, y = torch.cat([x, curves.x_context.gather(1, seen)], 1), torch.cat([y, curves.y_context.gather(1, seen)], 1)
    with torch.no_grad():
        described = describe(curves.x_context, curves.y_context, curves.mask, curves.frame, model.law)
        tokens = ask(described, x, model.law)
    prediction, summary = model.network(tokens, observed=x.shape[1] - targets)
    weight = y.new_ones(1, len(y))
    y = y[None]
    if settings.futures and isinstance(model.head, FlowHead):
        with torch.autocast(y.device.type, enabled=False):
            found, weight = futures(model.head, curves, summary.flatten(1).float(), described, settings.futures, generator)
        y = torch.cat([found, y[..., targets:].expand(len(found), -1, -1)], -1)
    points = prediction_loss(prediction, model.network.edges, tokens, to_value(y, model.logarithmic))
    points = (weight[..., None] * points).sum(0)
    forecast = points[:, :targets].mean()
    loss = forecast
    if settings.context_weight:
        loss = loss + settings.context_weight * points[:, targets:].mean()
    if model.head is not None and settings.parameter_weight:
        with torch.autocast(y.device.type, enabled=False):
            posterior = model.head.loss(curves.theta, summary.flatten(1).float(), described)
        loss = loss + settings.parameter_weight * posterior.mean()
    return loss, forecast.detach()


def rate(settings: Settings, step: int) -> float:
    """The learning rate of a step: a linear warm-up, a plateau, and a cosine to 0."""
    warm, fall = max(1.0, settings.warmup * settings.steps), settings.decay * settings.steps
    begin = settings.steps - fall
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if step < begin:
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - begin) / fall))


def make_optimizers(model: AmortizedModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the transformer's blocks, AdamW for all else.

    Muon's update is rescaled to the size of AdamW's, and bears three times the learning rate.
    """
    matrices = [value for value in model.network.blocks.parameters() if value.ndim == 2]
    chosen = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in chosen]
    shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return [
        torch.optim.Muon([{"params": matrices, "share": 1.0}], adjust_lr_fn="match_rms_adamw", **shared),
        torch.optim.AdamW([{"params": others, "share": ADAMW_SHARE}], betas=(0.9, 0.98), **shared),
    ]


class _UnstableError(Exception):
    """Torch found what is not finite on the way to the loss."""


class _Objective(nn.Module):
    """The loss as a module that Fabric can wrap. It draws the curves itself: tensors passed to it would lose their 64 bits."""

    def __init__(self, model: AmortizedModel, settings: Settings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, positions: Callable[[], DesignBatch], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        curves = draw_curves(self.model.prior, positions(), generator, torch.float64)
        curves = curves.within_floats(self.model.logarithmic)
        try:
            return curve_loss(self.model, curves, self.settings, generator)
        except ValueError as error:  # of a distribution whose parameters are not finite
            raise _UnstableError(str(error).splitlines()[0]) from error


def _processes(devices: int) -> tuple[int, int]:
    """Devices per machine and number of machines: what torchrun says where it started this process, else `devices` on one."""
    world, local = (int(os.environ.get(name, 0)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return (local, world // local) if world and local else (devices, 1)


def precision_for(device: str) -> str:
    """The precision that is quicker on a kind of device: half where it is not emulated, on GPUs and CPUs with AVX-512."""
    if device != "cpu" and torch.cuda.is_available():
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bf16-mixed" if quick else "32-true"


def _start(device: str, devices: int, settings: Settings) -> "Fabric":
    """Fabric on the devices, with all processes launched."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    local, nodes = _processes(devices)
    # Without a context-regression loss, or a parameter head, some weights get no gradient.
    strategy: Any = DDPStrategy(find_unused_parameters=True) if local * nodes > 1 else "auto"
    precision: Any = precision_for(device) if settings.precision == "auto" else settings.precision
    try:
        fabric = Fabric(accelerator=device, strategy=strategy, devices=local, num_nodes=nodes, precision=precision)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"cannot train on {devices} of device {device!r}: {error}") from None
    fabric.launch()
    return fabric


def train(
    prior: AbstractPrior,
    settings: Settings,
    design: Design,
    state_path: Path,
    device: str = "auto",
    devices: int = 1,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
    origin: Origin | None = None,
) -> Trained:
    """Train a network, going on from `state_path` where it holds an unfinished run of the same prior, settings and design.

    Parameters
    ----------
    prior, settings, design
        What is learnt, by what, and from which positions.
    state_path
        File of the run's state: weights, optimiser and counts, written every few minutes, at an interruption and at the end.
    device
        "auto", "cpu", "cuda" or another accelerator that Lightning Fabric knows.
    devices
        How many of them. Under torchrun, what torchrun says.
    progress
        Whether to show a progress bar.
    on_step
        Called after each step with its number and the loss of its targets.
    origin
        Weights to begin with, in place of random ones.

    Returns
    -------
    Trained

    Raises
    ------
    InvalidArgumentError
        If the devices are not there, the shards cannot be shared out evenly among them, or the run is already longer.
    TrainingError
        If the loss is no longer finite; the last good state is kept.
    FileFormatError
        If the state is damaged or of another run.
    """
    fabric = _start(device, devices, settings)
    if settings.shards % fabric.world_size:
        raise InvalidArgumentError(f"{settings.shards} shards cannot be shared out evenly among {fabric.world_size} processes")
    model = build_model(prior, settings)
    state = TrainingState.start(prior, settings, design, origin.digest if origin else "")
    if origin is not None:
        origin.give(model)
    objective, *optimizers = fabric.setup(_Objective(model, settings), *make_optimizers(model, settings))
    if state_path.exists():
        state = load_state(state_path, state, model, optimizers)
    if state.step > settings.steps:
        raise InvalidArgumentError(
            f"{state_path} has done {state.step} steps, more than the {settings.steps} asked for: ask for more"
        )
    run = origin.key if origin else ()
    mine = range(fabric.global_rank, settings.shards, fabric.world_size)
    seen, before, begun, saved, whole = state.step, state.seconds, time.monotonic(), time.monotonic(), True
    bar = tqdm(
        total=settings.steps, initial=seen, unit="step", disable=not (progress and fabric.is_global_zero), smoothing=0.02
    )
    try:
        for step in range(state.step, settings.steps):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate(settings, step) * group["share"]
            positions, total = shards(design, settings, step, fabric.device, *run), 0.0
            for i in mine:
                generator = generator_of(fabric.device, settings.seed, step, i, *run)
                with fabric.no_backward_sync(objective, enabled=i != mine[-1]):
                    try:
                        loss, forecast = objective(functools.partial(positions.__getitem__, i), generator)
                    except _UnstableError as error:
                        raise TrainingError(f"{UNSTABLE.format(step)} ({error})") from error
                    fabric.backward(loss / len(mine))
                total += float(forecast) / len(mine)
            gradient = nn.utils.clip_grad_norm_(objective.parameters(), settings.clip)
            mean: Any = fabric.all_reduce(torch.tensor(total), reduce_op="mean")
            total = float(mean)
            if not (math.isfinite(total) and math.isfinite(gradient)):
                raise TrainingError(UNSTABLE.format(step))
            with undivided():
                whole = False
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                state = state.after(total, before + time.monotonic() - begun, model)
                whole = True
            if on_step is not None:
                on_step(step, total)
            if bar.update():
                curves_per_second = settings.batch * (step + 1 - seen) / (time.monotonic() - begun)
                bar.set_postfix_str(f"loss {state.loss:.3f}, {curves_per_second:.0f} curves/s")
            if fabric.is_global_zero and time.monotonic() - saved > SAVE_EVERY:
                save_state(state_path, state, model, optimizers)
                saved = time.monotonic()
    finally:
        bar.close()
        if fabric.is_global_zero and state.step > seen and whole:  # else the last state that was saved holds
            save_state(state_path, state, model, optimizers)
    fabric.barrier()
    return Trained(state.result(model), state, fabric.is_global_zero)

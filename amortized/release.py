"""From a prior to a checkpoint in use: train, measure what is typical, write weights and card."""

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch
from tqdm import tqdm

from hybrid.amortized.cards import BEFORE, IN_PYTHON, Card, read_card, training_command, user_folder
from hybrid.amortized.checkpoint import Origin, save_checkpoint
from hybrid.amortized.design import Design
from hybrid.amortized.engine import choose_device
from hybrid.amortized.law_frame import frame_prior
from hybrid.amortized.model import AmortizedModel
from hybrid.amortized.predictive import Contexts
from hybrid.amortized.sampler import draw_curves
from hybrid.amortized.settings import Settings, check_names, design_for, preset_settings
from hybrid.amortized.training import curve_loss, generator_of, train
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.files import cannot_write, check_writable, make_folder, replacing
from hybrid.models.identity import law_values
from hybrid.models.prior import AbstractPrior
from hybrid.models.registry import PRIORS, get_prior

EVALUATED = 8192  # fresh curves on which the final loss and the range of typical contexts are measured
TOGETHER = 256
TRIED = 16384  # curves, at most, that are looked at before training
TRYING = 2**32 - 2  # in place of a step's number, for their random numbers
WRITTEN = (".json", ".safetensors", ".md")  # endings of what training writes
# Options of mallopt(3), the values with which it keeps what is freed, and those that it comes to by itself where large blocks
# are freed: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD.
HELD = {-3: (2**31 - 1, 2**25), -1: (2**31 - 1, 2**26), -2: (2**28, 2**17)}


@torch.inference_mode()
def evaluate(model: AmortizedModel, settings: Settings, design: Design, progress: bool = True) -> dict[str, Any]:
    """Measure on fresh curves what is typical of contexts, and the loss.

    Returns
    -------
    The scores for the card: the held-out loss as `prediction_loss` has it, that of placing the bars and that of the bars
    together, in nats per target, both relative to the sd of law or smoother, whichever is less.
    """
    plain = dataclasses.replace(settings, context_weight=0.0, parameter_weight=0.0, futures=0)
    summaries, features, losses = [], [], []
    for k in tqdm(range(EVALUATED // TOGETHER), desc="evaluating", disable=not progress):
        generator = generator_of(torch.device("cpu"), settings.seed, -1 % 2**32, k)
        curves = draw_curves(model.prior, design.sample(TOGETHER, generator), generator, torch.float64)
        curves = curves.within_floats(model.logarithmic)
        contexts = Contexts(model, curves.x_context, curves.y_context, curves.mask, curves.frame)
        summaries.append(contexts.summary())
        features.append(contexts.features)
        losses.append(float(curve_loss(model, curves, plain, generator)[1]))
    model.typical.measure(torch.cat(summaries), torch.cat(features))
    return {"held_out_loss": {"value": sum(losses) / len(losses), "curves": EVALUATED}}


def _require_curves(prior: AbstractPrior, design: Design, settings: Settings, progress: bool) -> None:
    """That the prior's law has a curve wherever training would ask for one, tried on some curves of the design.

    Raises
    ------
    InvalidArgumentError
        If it has none for some.
    """
    if prior in PRIORS:
        return
    count, without = min(settings.steps * settings.batch, TRIED), 0
    parts = tqdm(range(0, count, TOGETHER), desc="looking at the prior's curves", disable=not progress)
    for k, first in enumerate(parts):
        generator = generator_of(torch.device("cpu"), settings.seed, TRYING, k)
        curves = draw_curves(prior, design.sample(min(TOGETHER, count - first), generator), generator, torch.float64)
        without += int(curves.measured.isnan().any(1).sum())
    if without:
        raise InvalidArgumentError(
            f"{without:,} of {count:,} curves of prior {prior.name!r} have points without a value (NaN), and none can be "
            "trained on: change the distributions of its parameters, so that the law is defined for all of their values and at "
            "all x of the design, or let the law's `admits` leave those parameters out"
        )


@contextlib.contextmanager
def _holding_memory(wanted: bool) -> Iterator[None]:
    """Let glibc keep freed blocks inside: a step on a CPU frees and takes gigabytes, and new pages take time.

    Afterwards it is as usual, and what is free goes back to the system.
    """
    libc = None
    if wanted:
        with contextlib.suppress(OSError):
            libc = ctypes.CDLL("libc.so.6")
    if libc is None or not hasattr(libc, "mallopt"):  # another system, or another C library
        yield
        return
    for option, (value, _) in HELD.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, (_, usual) in HELD.items():
            libc.mallopt(option, usual)
        libc.malloc_trim(0)


def _hardware(device: str) -> str:
    if device != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    number = torch.get_num_threads()
    threads = "1 thread" if number == 1 else f"{number} threads"
    return f"{name}, {threads} of {os.cpu_count()} cores"


def _versions() -> dict[str, str]:
    packages = ("hybrid-scaling-laws", "torch", "zuko", "lightning-fabric", "numpy")
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}


def train_prior(
    prior: str | AbstractPrior,
    preset: str = "small",
    out: str | os.PathLike[str] | None = None,
    design: Design | None = None,
    device: str = "auto",
    devices: int = 1,
    progress: bool = True,
    origin: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Card | None:
    """Train a network for a prior, and write its weights and model card.

    An interrupted run goes on where it stopped when called again with the same arguments. Weights of the same prior that the
    folder holds are kept until the new ones are there, and then under their names with ".before" at the end.

    Parameters
    ----------
    prior
        A name in `hybrid.priors()`, or a prior object.
    preset
        "small", .9 to 1.1 million parameters, 1.5 to 4.2 hours on a shared CPU core; or "paper", the size of Lee et al.
        (2025), for GPUs.
    out
        Folder to write to. None takes the one where the engine looks first: $HYBRID_CHECKPOINTS, else the user's data folder.
    design
        The x positions to train on; None takes those for the prior.
    device, devices
        "auto", "cpu", "cuda" or another accelerator of Lightning Fabric, and how many. Under torchrun, as torchrun says.
    progress
        Whether to show a progress bar.
    origin
        A checkpoint whose weights the training begins with, in place of random ones: of the same prior to train it longer,
        or of one that is alike. Its network must be of the same size, or have fewer layers: those that are added begin as the
        identity. The name of a prior stands for its weights.
    **changes
        Settings that differ from the preset's, by name; see `hybrid.amortized.settings.Settings`.

    Returns
    -------
    The card; None in all processes but the first, where there are several.

    Raises
    ------
    UnknownNameError
        If there is no such prior or preset.
    InvalidArgumentError
        If a setting is unknown or outside what it may be, the prior's name is no file name, the folder cannot be written to or
        holds weights of another prior of that name, or what is no model card in the place of one, or another process trains
        there, or the design has contexts of the best so far and the prior a parameter flow, whose likelihood they do not have,
        or there are futures and no such flow, or the prior's law has no curve for some of its parameters.
    TrainingError
        If the loss is no longer finite.
    EngineUnavailableError
        If `origin` is the name of a prior without weights.
    FileFormatError
        If the folder holds the state of another unfinished run, or `origin` is no checkpoint.
    """
    prior = get_prior(prior)
    check_names(changes)
    settings = dataclasses.replace(preset_settings(preset), **changes)
    design = design or design_for(prior)
    has_flow = frame_prior(prior) is prior
    if design.best_so_far and has_flow:
        raise InvalidArgumentError(
            "a design with best_so_far above 0 needs a prior without a parameter flow, such as 'nsl': the likelihood that "
            "weighs the flow's draws is of measurements as they are. Set best_so_far to 0"
        )
    if settings.futures and not has_flow:
        raise InvalidArgumentError(
            f"futures above 0 need a prior with a parameter flow, such as 'bnsl', which {prior.name!r} has not: set it to 0"
        )
    begin = None if origin is None else Origin.read(origin)
    folder = weights_folder(out)
    if not re.fullmatch(r"[\w-]+", prior.name):
        raise InvalidArgumentError(f"the prior's name becomes the file's: use letters, digits, - and _, not {prior.name!r}")
    state_path = folder / f"{prior.name}.training"
    _check_free(folder / f"{prior.name}.json", prior)
    # It takes seconds: after what is asked at once, before anything is written.
    _require_curves(prior, design, settings, progress)
    make_folder(folder, state_path)
    check_writable(state_path)
    if device == "auto":
        device = choose_device(device).type
    with _alone(state_path), _holding_memory(device == "cpu"):
        model, state, leads = train(prior, settings, design, state_path, device, devices, progress, origin=begin)
        if not leads:
            return None
        scores, values = evaluate(model, settings, design, progress), law_values(prior)
        content = {
            "prior": prior.to_dict(),
            "fingerprint": prior.fingerprint,
            "design": design.to_dict(),
            "settings": settings.to_dict(),
            "steps": state.step,
            "curves": state.step * settings.batch,
            "seconds": round(state.seconds, 1),
            "hardware": _hardware(device),
            "versions": _versions(),
            "command": training_of(prior, preset, changes, design, None if origin is None else os.fspath(origin)),
            **({} if values is None else {"law_values": values}),
            **({} if begin is None else {"origin": begin.summary}),
            "scores": scores,
        }
        _keep(folder, prior.name)
        card = save_checkpoint(folder / prior.name, model, content)
        state_path.unlink(missing_ok=True)
        return card


def _check_free(path: Path, prior: AbstractPrior) -> None:
    """Weights of another prior that has the same name are not written over, nor is what is no model card."""
    try:
        card = read_card(path)
    except FileFormatError:
        if path.exists():
            raise InvalidArgumentError(
                f"{path} exists and is no model card, which training would write there: move it, or give another folder"
            ) from None
        return
    if not card.is_about(prior):
        raise InvalidArgumentError(
            f"{path} holds weights of another prior {card.name!r}, with fingerprint {card.fingerprint}: give this one another "
            "name, as by prior.replace(name=...), or another folder, or move those files away"
        )


def _keep(folder: Path, name: str) -> None:
    """Keep copies of the weights in a folder, if they are whole: of weights without their own card an earlier run died."""
    try:
        Origin.read(folder / f"{name}.json")
    except FileFormatError:
        return
    for there in (folder / f"{name}{ending}" for ending in WRITTEN):
        if there.exists():
            with replacing(there.with_name(f"{there.name}{BEFORE}")) as temporary:
                shutil.copyfile(there, temporary)


def weights_folder(out: str | os.PathLike[str] | None = None) -> Path:
    """Where training writes: `out`, or where the engine looks first."""
    return user_folder() if out is None else Path(out)


@contextlib.contextmanager
def _alone(state_path: Path) -> Iterator[None]:
    """One run at a time in a place: two would write over each other's state and weights.

    The system frees the lock with the process that holds it, however it ends. Of processes that train together the first
    holds it.
    """
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK")):
        yield
        return
    lock = filelock.FileLock(state_path.with_name(f".{state_path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InvalidArgumentError(
            f"another process trains {state_path.stem!r} in {state_path.parent}: wait for it, or give another folder"
        ) from None
    except OSError as error:
        raise cannot_write(state_path, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held: who makes it anew finds all work done
        lock.release()


def training_of(prior: AbstractPrior, preset: str, changes: dict[str, Any], design: Design, origin: str | None = None) -> str:
    """What trains the same again; a design of one's own is in the card, and so is what the training began with."""
    usual = design == design_for(prior)
    only_interpolated = design == dataclasses.replace(design_for(prior), interpolated=design.interpolated)
    command = training_command(prior)
    if command == IN_PYTHON:
        options = ["prior", repr(preset), *([] if usual else ["design=design"])]
        options += [] if origin is None else [f"origin={origin!r}"]
        return f"hybrid.train({', '.join([*options, *(f'{name}={value!r}' for name, value in changes.items())])})"
    settings = "".join(f" --set {shlex.quote(f'{name}={value}')}" for name, value in changes.items())
    positions = f" --interpolated {design.interpolated}" if only_interpolated else " --design design.json"
    begin = "" if origin is None else f" --from {shlex.quote(origin)}"
    return f"{command} --preset {preset}{'' if usual else positions}{begin}{settings}"

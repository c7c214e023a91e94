"""Files of weights: safetensors with a JSON card, written whole or not at all, read without running code."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hybrid.amortized.cards import FORMAT, Card, find_card, named_card, read_card, render
from hybrid.amortized.design import Design
from hybrid.amortized.model import AmortizedModel, build_model
from hybrid.amortized.settings import Settings
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.files import make_folder, replacing
from hybrid.models.identity import is_same_law, law_values
from hybrid.models.prior import AbstractPrior
from hybrid.models.registry import get_prior, prior_names

STATE_FORMAT = "hybrid training 1"
HALF = "network.blocks."  # these mostly trained in half precision, and are stored in it
CHANGEABLE = ("steps", "warmup", "decay")  # of the settings, while a run is unfinished
SIZES = ("layers", "width", "heads", "inner", "bins", "summaries", "transforms", "hidden")  # of the settings
SMOOTHING = 0.98  # of the loss that is shown
REMEDY = "install it again, or train with `hybrid train`"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    make_folder(path.parent, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise FileFormatError(f"there is no file {path}: {remedy}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged or not a file of weights ({error}): {remedy}") from None


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """How far a run is. The random numbers of a step follow from the seed and the step: none are kept."""

    key: str  #: a hash of prior, settings and design; not of the run's length
    step: int = 0
    loss: float = float("nan")  #: of the targets, a running mean
    seconds: float = 0.0
    average: Mapping[str, Tensor] | None = None  #: running mean of the weights
    law_values: list[float | None] | None = None  #: what a law of the user's own computes

    @classmethod
    def start(cls, prior: AbstractPrior, settings: Settings, design: Design, origin: str = "") -> "TrainingState":
        """The state before the first step; `origin` is a hash of the weights that it begins with, if they are not random."""
        fixed = {name: value for name, value in settings.to_dict().items() if name not in CHANGEABLE}
        text = json.dumps([prior.fingerprint, fixed, design.to_dict(), *([origin] if origin else [])], sort_keys=True)
        return cls(hashlib.sha256(text.encode()).hexdigest()[:16], law_values=law_values(prior))

    def after(self, loss: float, seconds: float, model: AmortizedModel) -> "TrainingState":
        """The state one step later."""
        shown = loss if self.step == 0 else SMOOTHING * self.loss + (1.0 - SMOOTHING) * loss
        average = self._averaged(model)
        return dataclasses.replace(self, step=self.step + 1, loss=shown, seconds=seconds, average=average)

    @torch.no_grad()
    def _averaged(self, model: AmortizedModel) -> Mapping[str, Tensor] | None:
        decay = min(model.settings.average, (self.step + 1) / (self.step + 10))  # the first weights are soon forgotten
        if not model.settings.average:
            return None
        if self.average is None:
            return {name: value.detach().clone() for name, value in model.named_parameters()}
        for name, value in model.named_parameters():
            self.average[name].lerp_(value, 1.0 - decay)
        return self.average

    def result(self, model: AmortizedModel) -> AmortizedModel:
        """The model with the weights that training arrived at, on the CPU, ready for use."""
        found = build_model(model.prior, model.settings)
        found.load_state_dict({k: v.detach().cpu() for k, v in model.state_dict().items()})
        if self.average is not None:
            found.load_state_dict({k: v.cpu() for k, v in self.average.items()}, strict=False)
        return found.eval()


@dataclasses.dataclass(frozen=True)
class Origin:
    """The weights of another checkpoint, to begin with: of the same prior to go on training, or of one that is alike."""

    card: Card
    parts: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Origin":
        """Read a checkpoint, given the path of its card or of its weights, or the name of a prior whose weights are found.

        `bnsl` is the prior, `./bnsl` or `bnsl.json` a file.

        Raises
        ------
        EngineUnavailableError
            If it is the name of a prior without weights.
        FileFormatError
            If card or weights are missing, damaged or foreign.
        InvalidArgumentError
            If it is not a path.
        """
        try:
            is_name = os.fspath(path) == path and path in prior_names()  # and not a Path of that name
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"origin must be the path of a card or of weights, or the name of a prior, got {path!r}"
            ) from None
        card = find_card(get_prior(str(path))) if is_name else named_card(path, "origin")
        return cls(card, _read_weights(card.weights, card.content["weights_sha256"]))

    @property
    def digest(self) -> str:
        """The hash of the file of weights."""
        return str(self.card.content["weights_sha256"])

    @property
    def key(self) -> tuple[int, ...]:
        """Numbers that tell the random numbers of a run that begins here from those of others with the same seed."""
        return (int(self.digest[:8], 16),)

    @property
    def summary(self) -> dict[str, Any]:
        """What a card says of the weights that its training began with; `curves` counts all that led to them."""
        card = self.card
        found = {"prior": card.name, "fingerprint": card.fingerprint, "weights": self.digest, "curves": card.curves}
        notes = [str(of["note"]) for of in (card.content.get("origin", {}), card.content) if of.get("note")]
        return {**found, "note": " ".join(notes)} if notes else found

    @torch.no_grad()
    def give(self, model: AmortizedModel) -> None:
        """Copy the weights that fit, of network and parameter head; what belongs to the prior stays as it is.

        A law with another number of parameters has other features of the whole curve: their layer begins at random. A model
        with more layers gets them before the last, and they begin as the identity: it computes what the origin does (after
        Net2Net: Chen, Goodfellow and Shlens 2016).

        Raises
        ------
        InvalidArgumentError
            If the networks differ in size, but for layers that are added.
        """
        was, now = Settings.from_dict(self.card.content["settings"]).to_dict(), model.settings.to_dict()
        last, added = now["layers"] - 1, now["layers"] - was["layers"]
        differing = [
            f"{name} {was[name]} for {now[name]}"
            for name in SIZES
            if was[name] != now[name] and not (name == "layers" and added > 0)
        ]
        if differing:
            raise InvalidArgumentError(
                f"{self.card.path} holds a network of another size ({', '.join(differing)}): begin with one of equal settings, "
                "or with fewer layers"
            )
        moved = (f"{HALF}{last - added}.", f"{HALF}{last}.")
        parts = {name.replace(*moved): value for name, value in self.parts.items()}
        model.network.skip(last - added, last)
        for name, value in model.named_parameters():
            found = parts.get(name)
            if found is not None and found.shape == value.shape:
                value.copy_(found)


def _parts(
    model: AmortizedModel, optimizers: Sequence[torch.optim.Optimizer], average: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    parts = {f"model/{name}": value for name, value in model.state_dict().items()}
    moments = {value: found for optimizer in optimizers for value, found in optimizer.state.items()}
    for name, value in model.named_parameters():
        parts |= {f"optimizer/{name}/{key}": moment for key, moment in moments.get(value, {}).items()}
    return parts | {f"average/{name}": value for name, value in (average or {}).items()}


def _digest(parts: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(name.encode())
        found.update(parts[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_state(path: Path, state: TrainingState, model: AmortizedModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Write all that a run needs to go on."""
    parts = {k: v.detach().cpu().contiguous() for k, v in _parts(model, optimizers, state.average).items()}
    counts = {name: getattr(state, name) for name in ("key", "step", "loss", "seconds", "law_values")}
    counts["sum"] = _digest(parts)
    write_bytes(path, save(parts, {"format": STATE_FORMAT, "counts": json.dumps(counts)}))


def load_state(
    path: Path, start: TrainingState, model: AmortizedModel, optimizers: Sequence[torch.optim.Optimizer]
) -> TrainingState:
    """Put a model and its optimizer back where `save_state` left them.

    Raises
    ------
    FileFormatError
        If the file is damaged, or of a run with another prior, other settings or another design.
    """
    remedy = "delete it to train from the start"
    parts, metadata = read_tensors(path, remedy)
    try:
        counts: dict[str, Any] = json.loads(metadata["counts"]) if metadata["format"] == STATE_FORMAT else {}
        if counts["key"] != start.key:
            raise FileFormatError(f"{path} belongs to a run with another prior, other settings or another design: {remedy}")
        if not is_same_law(model.prior, counts.get("law_values")):
            raise FileFormatError(f"{path} belongs to a run with a law of the same name that computed something else: {remedy}")
        if counts["sum"] != _digest(parts):
            raise FileFormatError(f"{path} is damaged: {remedy}")
        average = {k.removeprefix("average/"): v for k, v in parts.items() if k.startswith("average/")}
        weights = {k.removeprefix("model/"): v for k, v in parts.items() if k.startswith("model/")}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if unexpected or any(not name.startswith("typical.") for name in missing):  # measured at the end
            raise FileFormatError(f"{path} holds another network: {remedy}")
        owners = {id(value): optimizer for optimizer in optimizers for g in optimizer.param_groups for value in g["params"]}
        for name, value in model.named_parameters():
            prefix = f"optimizer/{name}/"
            found = {k.removeprefix(prefix): v for k, v in parts.items() if k.startswith(prefix)}
            # AdamW keeps its count of steps on the CPU.
            owners[id(value)].state[value] = {k: v if k == "step" else v.to(value.device) for k, v in found.items()}
        loaded = {k: v.to(dict(model.named_parameters())[k].device) for k, v in average.items()}
        done = {name: counts[name] for name in ("step", "loss", "seconds")}
        return dataclasses.replace(start, **done, average=loaded or None)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is not the state of a run of this version of Hybrid ({error}): {remedy}") from None


def save_checkpoint(path: Path, model: AmortizedModel, content: Mapping[str, Any]) -> Card:
    """Write weights and, once they are in place, their card.

    Parameters
    ----------
    path
        Of either; the endings are `.safetensors` and `.json`.
    model
        The trained model, on the CPU.
    content
        The card, without the format and the hash of the weights.

    Raises
    ------
    InvalidArgumentError
        If they cannot be written.
    """
    # One entry of metadata: safetensors writes several in random order, and equal weights would get different hashes.
    parts = {k: v.half() if k.startswith(HALF) and v.ndim == 2 else v for k, v in model.state_dict().items()}
    weights = save({k: v.contiguous() for k, v in parts.items()}, {"format": FORMAT})
    write_bytes(path.with_suffix(".safetensors"), weights)
    content = {"format": FORMAT, **content, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    return _write_card(path.with_suffix(".json"), content)


def _write_card(path: Path, content: Mapping[str, Any]) -> Card:
    """Write a card, and beside it the same in Markdown."""
    page = render(Card(path, content))
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
    write_bytes(path.with_suffix(".md"), page.encode())
    return read_card(path)


def _read_weights(weights: Path, digest: str) -> dict[str, Tensor]:
    parts, metadata = read_tensors(weights, REMEDY)
    if metadata.get("format") != FORMAT or hashlib.sha256(weights.read_bytes()).hexdigest() != digest:
        raise FileFormatError(f"{weights} is not the file that its model card describes: {REMEDY}")
    return parts


@functools.lru_cache(maxsize=8)
def _load(
    weights: Path, changed: float, digest: str, prior: AbstractPrior, settings: Settings, best: bool, device: str
) -> AmortizedModel:
    del changed
    parts, model = _read_weights(weights, digest), build_model(prior, settings)
    try:
        model.load_state_dict(parts)  # half precision is raised on the way
    except RuntimeError as error:
        raise FileFormatError(f"{weights} does not fit the network of this version of Hybrid ({error}): {REMEDY}") from None
    model.reads_best = best
    return model.eval().to(device)


def trained_with(card: Card) -> tuple[Settings, Design]:
    """The settings of the network that a card is about, and the design of the curves that it was trained on.

    Raises
    ------
    FileFormatError
        If the card is of another version.
    """
    try:
        return Settings.from_dict(card.content["settings"]), Design.from_dict(card.content["design"])
    except FileFormatError as error:
        raise FileFormatError(
            f"the model card {card.path} is of another version ({error}): train with `hybrid train`"
        ) from None


def load_checkpoint(
    prior: AbstractPrior, path: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> tuple[AmortizedModel, Card]:
    """The model for a prior, from `path` or from wherever its weights are found, and its card. Loaded once per process.

    Raises
    ------
    EngineUnavailableError
        If there are no weights that were trained on this prior.
    FileFormatError
        If card or weights are missing, damaged or foreign.
    """
    card = find_card(prior, path)
    settings, design = trained_with(card)
    if not card.weights.exists():
        raise FileFormatError(
            f"there is no file {card.weights} beside its model card: install it again, or train with `hybrid train`"
        )
    changed = card.weights.stat().st_mtime
    return _load(card.weights, changed, card.content["weights_sha256"], prior, settings, design.best_so_far > 0, device), card


def write_scores(card: Card, name: str, figures: Mapping[str, Any], command: str) -> None:
    """Add measured figures to a card, with the command that measured them.

    Raises
    ------
    InvalidArgumentError
        If a figure is not a number, or the card is about other weights by now.
    FileFormatError
        If the card is gone or damaged.
    """
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidArgumentError(f"figure {key!r} must be a number, got {value!r}")
    content = read_card(card.path).content  # another measurement may have added its own since
    if content["weights_sha256"] != card.content["weights_sha256"]:
        raise InvalidArgumentError(f"{card.path} is about other weights than those that were measured: measure again")
    _write_card(card.path, {**content, "scores": {**content["scores"], name: {**figures, "command": command}}})

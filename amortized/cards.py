"""Model cards: what a checkpoint was trained on and how good it is. Reading them needs no torch."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
from hybrid.models.identity import is_same_law
from hybrid.models.prior import AbstractPrior

FORMAT = "hybrid pfn 1"
SHIPPED = Path(__file__).parent / "weights"
FOLDER_VARIABLE = "HYBRID_CHECKPOINTS"
BEFORE = ".before"  # ends the names of weights and cards that training keeps when it writes new ones
IN_PYTHON = "hybrid.train(prior)"
_FIELDS = {
    "format": str,
    "prior": dict,
    "fingerprint": str,
    "design": dict,
    "settings": dict,
    "steps": int,
    "curves": int,
    "seconds": float,
    "hardware": str,
    "versions": dict,
    "command": str,
    "weights_sha256": str,
    "scores": dict,
}
_MAYBE = {"origin": dict, "note": str, "law_values": list}  # fields that a card need not have
_ORIGIN = {"prior": str, "fingerprint": str, "weights": str, "curves": int}


@dataclasses.dataclass(frozen=True)
class Card:
    """The JSON card beside a file of weights.

    Attributes
    ----------
    path
        The card; the weights lie beside it, as `.safetensors`.
    content
        What it says: prior and its fingerprint, design, settings, steps, curves seen, wall time in seconds, hardware, versions,
        the command that trained it, a hash of the weights, scores with the command that measured each, and maybe a note.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the prior."""
        return str(self.content["prior"]["name"])

    @property
    def curves(self) -> int:
        """Curves that training has seen, in the runs that led to what it began with too."""
        return int(self.content["curves"]) + int(self.content.get("origin", {}).get("curves", 0))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the prior."""
        return str(self.content["fingerprint"])

    def is_about(self, prior: AbstractPrior) -> bool:
        """Whether the weights were trained on this prior: its fingerprint and, for a law of one's own, what it computes."""
        return self.fingerprint == prior.fingerprint and is_same_law(prior, self.content.get("law_values"))

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return _with_ending(self.path, ".safetensors")


def _with_ending(path: Path, ending: str) -> Path:
    """The file beside a card or weights, or that itself; of those that are kept the one that is kept, too."""
    kept = BEFORE if path.name.endswith(BEFORE) else ""
    return path.with_name(path.name.removesuffix(kept)).with_suffix(f"{ending}{kept}")


def read_card(path: Path) -> Card:
    """Read a card, given its path or that of its weights; either may end in `.before`, as training keeps earlier ones.

    Raises
    ------
    FileFormatError
        If there is none, it is damaged, or of another format.
    """
    path = _with_ending(path, ".json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(
            f"there is no model card {path}: weights and card travel together; train with `hybrid train`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"the model card {path} is damaged ({error}): train again with `hybrid train`") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a model card of this version of Hybrid: train again with `hybrid train`")
    for name, kind in {**_FIELDS, **{name: kind for name, kind in _MAYBE.items() if name in content}}.items():
        value: Any = content.get(name)
        sound = _is(value, kind)
        if sound and name == "prior":
            sound = isinstance(value.get("name"), str)
        if sound and name == "origin":
            sound = all(_is(value.get(part), of) for part, of in _ORIGIN.items()) and _is(value.get("note", ""), str)
        if not sound:
            raise FileFormatError(
                f"the model card {path} lacks {name!r} or holds nonsense there: train again with `hybrid train`"
            )
    return Card(path, content)


def _is(value: Any, kind: type) -> bool:
    """Whether a field of a card is of its kind; numbers are counts or times, and none is below 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        return False
    return not isinstance(value, (int, float)) or 0 <= value < math.inf


_TITLES = {"held_out_loss": "held-out loss of training, nats per target: of placing and of the bars"}


def _before(design: Mapping[str, Any]) -> str:
    return (
        f"- {design['before']:.0%} of the targets lie before the first context x, down to 1/{design['horizon'][1]:g} of it at "
        "the farthest."
    )


def _best(share: float) -> str:
    return (
        f"- {share:.0%} of the contexts are the best result so far at each x, thinned, as many published curves are; targets "
        "are always measurements as they are."
    )


def render(card: Card) -> str:
    """The card as a page of Markdown."""
    c = card.content
    design, settings = c["design"], c["settings"]
    spacing = ", ".join(f"{name} {share:.0%}" for name, share in design["spacing"])
    parameters = [p["name"] for p in c["prior"].get("parameters", [])] or ["sigma"]
    lines = [
        f"# {card.name}",
        "",
        f"An amortized posterior for the prior `{card.name}` of Hybrid (fingerprint `{card.fingerprint}`): what "
        f'`hybrid.fit(curve, {card.name!r}, engine="pfn")` uses. Law `{c["prior"]["law"]}`; '
        + (f"{len(parameters)} parameters." if len(parameters) > 8 else f"parameters {', '.join(parameters)}."),
        "",
        "## Training",
        "",
        f"- {c['curves']:,} curves from the prior in {c['steps']:,} steps, {c['seconds'] / 60:.0f} minutes on {c['hardware']}.",
        f"- Network: {settings['layers']} layers, width {settings['width']}, {settings['heads']} heads, "
        f"{settings['bins']} bins.",
        f"- Contexts of {design['context'][0]} to {design['context'][1]} points over {design['decades'][0]:g} to "
        f"{design['decades'][1]:g} decades of x ({spacing}); horizons {design['horizon'][0]:g} to {design['horizon'][1]:g} "
        "times the last context x. Outside of this the fit says so.",
        *([_before(design)] if design["before"] else []),
        *([_best(design["best_so_far"])] if design["best_so_far"] else []),
        f"- `{c['command']}`, with " + ", ".join(f"{name} {version}" for name, version in c["versions"].items()) + ".",
        *([_began(c["origin"])] if "origin" in c else []),
        *([f"- {c['note']}"] if c.get("note") else []),
        "",
        "## Measured",
        "",
    ]
    for name, figures in c["scores"].items():
        values = {key: value for key, value in figures.items() if key != "command"}
        title = _TITLES.get(name, name.replace("_", " "))
        lines += [f"**{title}**" + (f", `{figures['command']}`" if "command" in figures else ""), ""]
        lines += ["| | |", "|---|---|"]
        for key, value in values.items():
            figure = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
            lines.append(f"| {key.replace('_', ' ')} | {figure} |")
        lines += [""]
    lines += [
        "## Limits",
        "",
        "It approximates the posterior under its own prior, law and noise included: curves that the prior does not hold are "
        "beyond it, as they are beyond exact inference. Its weights are data, not code; they load through safetensors.",
        "",
    ]
    return "\n".join(lines)


def _began(origin: Mapping[str, Any]) -> str:
    return (
        f"- It began with the weights of `{origin['prior']}` (fingerprint `{origin['fingerprint']}`, weights "
        f"`{origin['weights'][:16]}`), which {origin['curves']:,} curves had led to."
        + (f" {origin['note']}" if origin.get("note") else "")
    )


def user_folder() -> Path:
    """Where `hybrid train` writes and the engine looks first: $HYBRID_CHECKPOINTS, else a folder of the user's data.

    Raises
    ------
    InvalidArgumentError
        If the user has no home.
    """
    if found := os.environ.get(FOLDER_VARIABLE):
        return Path(found)
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "hybrid" / "checkpoints"
    except RuntimeError:
        raise InvalidArgumentError(f"there is no home directory for weights: name a folder in {FOLDER_VARIABLE}") from None


@functools.lru_cache
def _cards(files: tuple[tuple[Path, int, int], ...]) -> tuple[Card, ...]:
    found = []
    for path, *_ in files:
        try:
            found.append(read_card(path))
        except FileFormatError:
            continue  # a foreign or damaged card is reported where it is asked for by name
    return tuple(found)


def _cards_in(find: Callable[[], Path]) -> tuple[Card, ...]:
    """The cards in a folder; none where there is no such folder or it cannot be read, as in another user's home."""
    try:
        there = [(path, path.stat()) for path in sorted(find().glob("*.json"))]
        return _cards(tuple((path, about.st_mtime_ns, about.st_size) for path, about in there))
    except (OSError, InvalidArgumentError):
        return ()


def cards() -> tuple[Card, ...]:
    """All cards that can be found: the user's own first, then those that ship."""
    return (*_cards_in(user_folder), *_cards_in(lambda: SHIPPED))


def find_card(prior: AbstractPrior, path: str | os.PathLike[str] | None = None) -> Card:
    """The card of the weights for a prior.

    Parameters
    ----------
    prior
        The prior; only weights that were trained on its very fingerprint serve.
    path
        A card or a file of weights; by default all that can be found are searched.

    Raises
    ------
    EngineUnavailableError
        If no weights were trained on this prior.
    FileFormatError
        If `path` is not a checkpoint.
    InvalidArgumentError
        If `path` is not a path.
    """
    known = cards() if path is None else (named_card(path),)
    for card in known:
        if card.is_about(prior):
            return card
    known = tuple(card for card in known if path is not None or card.name == prior.name)
    weights = f"the weights for prior {prior.name!r}" if path is None else f"the weights of {path}"
    if prior.fingerprint in (card.fingerprint for card in known):
        problem = f"{weights} were trained on a law of the same name and attributes that computed something else"
    elif known:
        theirs = ", ".join(f"{card.name!r} with fingerprint {card.fingerprint}" for card in known)
        problem = f"{weights} were trained on {theirs}, and this prior, {prior.name!r}, has {prior.fingerprint}"
    else:
        problem = f"no amortized weights for prior {prior.name!r} are installed"
    command, law = training_command(prior), getattr(prior, "law", None)
    if command == IN_PYTHON and law is not None and not law.is_own:
        command += " or, on the command line, `hybrid train --prior FILE.json` with what prior.to_json() gives"
    raise EngineUnavailableError(f"{problem}; train them: {command}")


def named_card(path: str | os.PathLike[str], argument: str = "checkpoint") -> Card:
    """The card at a path, or beside the weights there, that an argument of this name gave.

    Raises
    ------
    FileFormatError
        If there is no checkpoint.
    InvalidArgumentError
        If it is not a path.
    """
    try:
        return read_card(Path(path))
    except FileFormatError:
        raise
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{argument} must be the path of a card or of weights, got {path!r}") from None


def training_command(prior: AbstractPrior) -> str:
    """How to train weights for a prior: on the command line where it ships, else from Python."""
    from hybrid.models.registry import PRIORS

    shipped = next((found for found in PRIORS if found.fingerprint == prior.fingerprint), None)
    return IN_PYTHON if shipped is None else f"hybrid train --prior {shipped.name}"

"""A small checkpoint, what to do to it, and what must then be said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.amortized import cards
from hybrid.amortized.cards import Card
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.design import Design
from hybrid.amortized.model import AmortizedModel
from hybrid.amortized.settings import Settings
from hybrid.models.errors import FileFormatError, HybridError
from hybrid.models.registry import get_prior

PRIOR = get_prior("m1")
NARROW = PRIOR.replace(sigma={"loc": -6.0})
DESIGN = Design(context=(3, 20), targets=4)
SETTINGS = Settings(layers=2, width=32, heads=2, inner=64, bins=20, summaries=2, transforms=1, hidden=16, steps=6, batch=32)
CONTENT: dict[str, Any] = {
    "prior": PRIOR.to_dict(),
    "fingerprint": PRIOR.fingerprint,
    "design": DESIGN.to_dict(),
    "settings": SETTINGS.to_dict(),
    **{"steps": 6, "curves": 192, "seconds": 1.5},
    **{"hardware": "an abacus", "versions": {"python": "3.11"}, "command": "hybrid train --prior m1"},
    "scores": {"held_out_loss": {"value": 1.25, "curves": 1024}},
}
TRAIN = "hybrid train"
IN_FORMAT = {"format": cards.FORMAT}


def make_model() -> AmortizedModel:
    """A model without a zero among its weights, as after training."""
    torch.manual_seed(3)
    made = AmortizedModel(PRIOR, SETTINGS)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    made.typical.measure(torch.randn(200, 64), torch.randn(200, len(made.typical.low)))
    return made.eval()


def check_message(error: pytest.ExceptionInfo[HybridError], *words: object) -> None:
    assert isinstance(error.value, HybridError)
    for word in words:
        assert str(word) in str(error.value)


def check_refused(path: Path, *words: object) -> None:
    """Neither the card at this path nor its weights are loaded."""
    with pytest.raises(FileFormatError) as error:
        load_checkpoint(PRIOR, path)
    check_message(error, *words, TRAIN)


def change(card: Card, **changes: Any) -> None:
    content = {**card.content, **changes}
    card.path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

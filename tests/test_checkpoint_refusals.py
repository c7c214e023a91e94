"""More ways in which a checkpoint can be wrong, and what must not change when it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONTENT, PRIOR, SETTINGS, TRAIN, change, check_message, check_refused, contents, make_model

import hybrid
from hybrid.amortized import cards, checkpoint
from hybrid.amortized.cards import Card, find_card
from hybrid.amortized.checkpoint import load_checkpoint, save_checkpoint
from hybrid.amortized.model import AmortizedModel
from hybrid.models.errors import EngineUnavailableError, FileFormatError, HybridError, InvalidArgumentError
from hybrid.models.registry import get_prior

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's own weights nor those that ship are found."""
    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(tmp_path / "user"))
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "shipped")


@pytest.fixture(scope="module")
def model() -> AmortizedModel:
    return make_model()


@pytest.fixture
def card(tmp_path: Path, model: AmortizedModel) -> Card:
    return save_checkpoint(tmp_path / "m1", model, CONTENT)


def test_loading_leaves_the_global_random_state_alone(card: Card) -> None:
    checkpoint._load.cache_clear()
    state = torch.get_rng_state()
    load_checkpoint(PRIOR, card.path)
    assert torch.equal(torch.get_rng_state(), state)


def test_hash_is_reproducible(tmp_path: Path, model: AmortizedModel) -> None:
    assert len({save_checkpoint(tmp_path / "m1", model, CONTENT).content["weights_sha256"] for _ in range(20)}) == 1


@pytest.mark.parametrize("changes", [{"settings": {}}, {"settings": {**SETTINGS.to_dict(), "learning_rate": "x"}}])
def test_bad_settings_name_the_card(card: Card, changes: dict[str, Any]) -> None:
    change(card, **changes)
    check_refused(card.path, card.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "x"},
        {"origin": {"prior": "m1", "fingerprint": "0", "weights": "0", "curves": "many"}},
        {"origin": {"prior": "m1", "fingerprint": "0", "weights": "0", "curves": 1, "note": 3}},
        {"note": 3},
        {"law_values": {}},
        {"curves": -1},
        {"seconds": float("inf")},
    ],
)
def test_nonsense_in_a_card_is_named(card: Card, changes: dict[str, Any]) -> None:
    change(card, **changes)
    check_refused(card.path, card.path, next(iter(changes)))


def test_a_card_nested_too_deep_is_damaged(card: Card) -> None:
    card.path.write_text("[" * 100_000, encoding="utf-8")
    check_refused(card.path, card.path, "damaged")


def test_card_without_name_of_prior(card: Card, tmp_path: Path) -> None:
    change(card, prior={})
    (tmp_path / "user").mkdir()
    card.path.rename(tmp_path / "user" / "m1.json")
    with pytest.raises(EngineUnavailableError):
        find_card(get_prior("m2"))


def test_empty_path() -> None:
    with pytest.raises(HybridError):
        load_checkpoint(PRIOR, "")


def test_renamed_prior_gets_a_command_that_works() -> None:
    with pytest.raises(EngineUnavailableError, match=r"hybrid train --prior m1$"):
        find_card(PRIOR.replace(name="mine"))


@pytest.mark.parametrize("name", ["file/x", "x" * 300])
def test_write_bytes_raises_what_it_says(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        checkpoint.write_bytes(tmp_path / name, b"")


def test_scores_that_cannot_be_shown_leave_the_card_alone(card: Card) -> None:
    before = contents(card.path.parent)
    with pytest.raises(InvalidArgumentError, match="must be a number"):
        checkpoint.write_scores(card, "by prior", {"value": "text"}, "python")
    assert contents(card.path.parent) == before


def test_a_bad_design_names_the_card(card: Card) -> None:
    change(card, design={})
    with pytest.raises(FileFormatError) as error:
        hybrid.fit(hybrid.Curve([1.0, 2, 4, 8], [4.0, 3, 2, 1.5]), "m1", engine="pfn", checkpoint=card.path)
    check_message(error, card.path, TRAIN)


def test_a_card_that_is_written_over_is_read_again(card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    assert cards.find_card(PRIOR).content["curves"] == CONTENT["curves"]
    text = card.path.read_text(encoding="utf-8")
    with card.path.open("r+", encoding="utf-8") as file:  # in place: the folder itself does not change
        file.write(text.replace('"curves": 192', '"curves": 193'))
    assert cards.find_card(PRIOR).content["curves"] == CONTENT["curves"] + 1

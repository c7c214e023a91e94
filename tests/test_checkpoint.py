"""Files of weights and their cards: they come back as they were written, and whatever is damaged or foreign is refused."""

import dataclasses
import hashlib
import itertools
import json
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CONTENT,
    DESIGN,
    IN_FORMAT,
    NARROW,
    PRIOR,
    SETTINGS,
    change,
    check_message,
    check_refused,
    contents,
    make_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import hybrid
from hybrid.amortized import cards, checkpoint
from hybrid.amortized.cards import Card, find_card, read_card, user_folder
from hybrid.amortized.checkpoint import HALF, TrainingState, load_checkpoint, load_state, save_checkpoint, save_state
from hybrid.amortized.coordinates import ask, describe
from hybrid.amortized.design import Design
from hybrid.amortized.model import AmortizedModel
from hybrid.amortized.sampler import sample_curves
from hybrid.amortized.settings import Settings
from hybrid.amortized.training import make_optimizers
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
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


@torch.no_grad()
def answers(model: AmortizedModel) -> list[Tensor]:
    """What a model says about fresh curves, parameters and typicality included."""
    curves = sample_curves(PRIOR, 40, DESIGN, 5, dtype=torch.float64)
    described = describe(curves.x_context, curves.y_context, curves.mask, curves.frame, model.law)
    prediction, summary = model.network(ask(described, curves.x_target, model.law))
    assert model.head is not None
    return [*prediction, summary, model.head.loss(curves.theta, summary.flatten(1), described)]


def check_state_refused(path: Path, start: "Run", *words: object) -> None:
    with pytest.raises(FileFormatError) as error:
        load_state(path, *start)
    check_message(error, path, "delete it to train from the start", *words)


def forge(card: Card, tensors: dict[str, Tensor], metadata: dict[str, str] | None = IN_FORMAT) -> None:
    """Put other tensors in the place of the weights, with a card that vouches for them."""
    save_file(tensors, card.weights, metadata)
    change(card, weights_sha256=hashlib.sha256(card.weights.read_bytes()).hexdigest())


def test_weights_come_back_in_half_precision_where_they_were_trained_in_it(card: Card, model: AmortizedModel) -> None:
    loaded, same = load_checkpoint(PRIOR, card.path)
    assert same == card
    assert loaded.settings == SETTINGS
    assert loaded.prior == PRIOR
    assert not loaded.training
    expected, found = model.state_dict(), loaded.state_dict()
    assert set(found) == set(expected)
    halved = {name for name, value in expected.items() if name.startswith(HALF) and value.ndim == 2}
    assert len(halved) == 2 * 5
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value.half().float() if name in halved else value), name
    for one, other in zip(answers(loaded), answers(model), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)
    assert not torch.equal(answers(loaded)[0], answers(model)[0])  # something was rounded


def test_loading_twice_gives_the_same(card: Card) -> None:
    first, _ = load_checkpoint(PRIOR, card.path)
    assert load_checkpoint(PRIOR, str(card.weights))[0] is first  # once per process
    checkpoint._load.cache_clear()
    second, _ = load_checkpoint(PRIOR, card.path.with_suffix(""))
    assert second is not first
    for one, other in zip(answers(first), answers(second), strict=True):
        assert torch.equal(one, other)


def test_saving_again_writes_the_same_weights(card: Card, tmp_path: Path) -> None:
    loaded, _ = load_checkpoint(PRIOR, card.path)
    again = save_checkpoint(tmp_path / "again", loaded, CONTENT)
    expected, found = load_file(card.weights), load_file(again.weights)
    assert set(found) == set(expected)
    assert {value.dtype for value in expected.values()} >= {torch.float16, torch.float32}
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_new_weights_under_the_same_name_are_loaded(card: Card, model: AmortizedModel) -> None:
    before, _ = load_checkpoint(PRIOR, card.path)
    torch.manual_seed(4)
    other = AmortizedModel(PRIOR, SETTINGS)
    save_checkpoint(card.path, other, CONTENT)
    after, _ = load_checkpoint(PRIOR, card.path)
    assert torch.equal(after.network.of_query.weight, other.network.of_query.weight)
    assert torch.equal(before.network.of_query.weight, model.network.of_query.weight)


def test_the_card_says_what_it_was_given(card: Card, tmp_path: Path) -> None:
    assert (card.name, card.fingerprint) == ("m1", PRIOR.fingerprint)
    assert (card.path, card.weights) == (tmp_path / "m1.json", tmp_path / "m1.safetensors")
    digest = hashlib.sha256(card.weights.read_bytes()).hexdigest()
    assert card.content == {"format": cards.FORMAT, **CONTENT, "weights_sha256": digest}
    assert set(card.content) == set(cards._FIELDS)
    assert json.loads(card.path.read_text()) == card.content
    assert hybrid.prior_from_json(json.dumps(card.content["prior"])).fingerprint == card.fingerprint
    assert Design.from_dict(card.content["design"]) == DESIGN
    assert Settings.from_dict(card.content["settings"]) == SETTINGS
    for path in (card.path, card.weights, tmp_path / "m1"):
        assert read_card(path) == card


def test_find_card_prefers_the_users_own(tmp_path: Path, model: AmortizedModel) -> None:
    with pytest.raises(EngineUnavailableError, match=r"no amortized weights for prior 'm1'.*: hybrid train --prior m1$"):
        find_card(PRIOR)
    shipped = save_checkpoint(tmp_path / "shipped" / "m1", model, CONTENT)
    assert find_card(PRIOR) == shipped
    with pytest.raises(EngineUnavailableError, match=r"prior 'm2'.*hybrid train --prior m2$"):
        find_card(get_prior("m2"))
    users = save_checkpoint(tmp_path / "user" / "any name", model, {**CONTENT, "hardware": "two abaci"})
    assert find_card(PRIOR) == users
    assert cards.cards() == (users, shipped)
    time.sleep(0.05)  # a file system may count the time of a change in ticks
    change(users, fingerprint=NARROW.fingerprint)
    users.path.rename(tmp_path / "user" / "narrow.json")
    assert find_card(PRIOR) == shipped
    assert find_card(NARROW).path == tmp_path / "user" / "narrow.json"


def test_a_damaged_card_does_not_hide_the_others(card: Card, tmp_path: Path, model: AmortizedModel) -> None:
    shipped = save_checkpoint(tmp_path / "shipped" / "m1", model, CONTENT)
    (tmp_path / "user").mkdir()
    change(card, steps=None)
    card.path.rename(tmp_path / "user" / "m1.json")
    (tmp_path / "user" / "a.json").write_text("{")
    (tmp_path / "user" / "b.json").mkdir()
    assert find_card(PRIOR) == shipped


def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_folder() == tmp_path / "user"
    monkeypatch.delenv(cards.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data" / "hybrid" / "checkpoints"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert user_folder() == Path.home() / ".local" / "share" / "hybrid" / "checkpoints"


def test_weights_for_another_prior_are_refused(card: Card, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError) as error:
        load_checkpoint(NARROW, card.path)
    check_message(error, card.path, PRIOR.fingerprint, NARROW.fingerprint, "hybrid.train(prior) or, on the command line")
    with pytest.raises(EngineUnavailableError) as error:
        load_checkpoint(get_prior("m2"), card.path)
    check_message(error, card.path, "'m1'", "'m2'", "hybrid train --prior m2")
    assert load_checkpoint(PRIOR.replace(name="mine"), card.path)[1] == card  # a name alone makes no other prior
    (tmp_path / "user").mkdir()
    card.path.rename(tmp_path / "user" / "m1.json")
    with pytest.raises(EngineUnavailableError) as error:
        load_checkpoint(NARROW)
    check_message(error, PRIOR.fingerprint, NARROW.fingerprint, "hybrid.train(prior)")


def flip(whole: bytes, place: float) -> bytes:
    i = int(place * len(whole))
    return whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "header only": lambda whole: whole[:8],
    "half": lambda whole: whole[: len(whole) // 2],
    "one byte short": lambda whole: whole[:-1],
    "one byte long": lambda whole: whole + b"\0",
    "text": lambda whole: b"not a file of this kind, but long enough to have a header",
    "pickle": lambda whole: pickle.dumps({"weights": [1.0, 2.0]}),
    "size of the header": lambda whole: b"\xff" * 8 + whole[8:],
}
FLIPS = {f"flipped at {place}": partial(flip, place=place) for place in (0.0, 0.001, 0.3, 0.7, 0.9999)}


@pytest.mark.parametrize("damage", {**DAMAGES, **FLIPS}.values(), ids={**DAMAGES, **FLIPS}.keys())
def test_damaged_weights_are_refused(card: Card, damage: Callable[[bytes], bytes]) -> None:
    card.weights.write_bytes(damage(card.weights.read_bytes()))
    check_refused(card.path, card.weights)


def test_foreign_weights_are_refused(card: Card, model: AmortizedModel) -> None:
    save_file({"a": torch.ones(3)}, card.weights, IN_FORMAT)
    check_refused(card.path, card.weights, "its model card")
    forge(card, {"a": torch.ones(3)}, None)
    check_refused(card.path, card.weights, "its model card")
    forge(card, {"a": torch.ones(3)})
    check_refused(card.path, card.weights, "does not fit the network")
    weights = dict(model.state_dict())
    forge(card, weights)
    assert load_checkpoint(PRIOR, card.path)[1].weights == card.weights
    del weights["network.norm.weight"]
    forge(card, weights)
    check_refused(card.path, card.weights, "network.norm.weight")


@pytest.mark.parametrize("changes", [{"width": 16}, {"layers": 1}, {"bins": 21}, {"summaries": 1}, {"hidden": 8}])
def test_weights_of_another_network_are_refused(card: Card, changes: dict[str, int]) -> None:
    change(card, settings={**SETTINGS.to_dict(), **changes})
    check_refused(card.path, card.weights, "does not fit the network")


def test_weights_or_card_missing(card: Card, tmp_path: Path) -> None:
    check_refused(tmp_path / "none.safetensors", tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    check_refused(tmp_path / "folder.json", tmp_path / "folder.json")
    card.weights.unlink()
    with pytest.raises(FileFormatError) as error:
        load_checkpoint(PRIOR, card.path)
    check_message(error, card.weights, "train")
    for path in (3, b"m1.json", object()):
        with pytest.raises(InvalidArgumentError, match="path"):
            load_checkpoint(PRIOR, path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", cards._FIELDS)
@pytest.mark.parametrize("value", [None, [1, 2]])
def test_a_card_without_a_field_is_refused(card: Card, name: str, value: Any) -> None:
    change(card, **{name: value})
    check_refused(card.path, card.path, "of this version" if name == "format" else repr(name))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x89PNG\xff", b"3", b"[]", b"{}", b'{"format": "hybrid pfn 0"}', b'{"format": {"hybrid": 1}}']
)
def test_a_card_of_another_format_is_refused(card: Card, content: bytes) -> None:
    card.path.write_bytes(content)
    for path in (card.path, card.weights):
        check_refused(path, card.path)


Run = tuple[TrainingState, AmortizedModel, list[torch.optim.Optimizer]]


def make_run(steps: int, seed: int = 0) -> Run:
    """A run some steps old, with moments and a running mean of the weights, without the cost of training."""
    settings = dataclasses.replace(SETTINGS, average=0.9, seed=seed)
    torch.manual_seed(seed)
    model = AmortizedModel(PRIOR, settings)
    optimizers = make_optimizers(model, settings)
    state = TrainingState.start(PRIOR, settings, DESIGN)
    for step in range(steps):
        loss = sum(((value - 0.1) ** 2).sum() for value in model.parameters())
        assert isinstance(loss, Tensor)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state = state.after(float(loss.detach()), 10.0 * (step + 1), model)
    return state, model, optimizers


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Run]:
    run = make_run(3)
    save_state(tmp_path / "m1.training", *run)
    return tmp_path / "m1.training", run


def moments(model: AmortizedModel, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    by_value = {value: state for optimizer in optimizers for value, state in optimizer.state.items()}
    return {f"{name} {key}": found for name, value in model.named_parameters() for key, found in by_value[value].items()}


def test_a_state_comes_back_as_it_was(saved: tuple[Path, Run]) -> None:
    path, (state, model, optimizers) = saved
    start, other, others = make_run(0)
    found = load_state(path, start, other, others)
    assert (found.key, found.step, found.loss, found.seconds) == (state.key, 3, state.loss, 30.0)
    assert found.average is not None
    assert state.average is not None
    moments_of_both = (moments(other, others), moments(model, optimizers))
    for one, expected in ((other.state_dict(), model.state_dict()), (found.average, state.average), moments_of_both):
        assert set(one) == set(expected)
        assert len(expected) > 20
        for name, value in expected.items():
            assert one[name].dtype == value.dtype
            assert torch.equal(one[name], value), name
    assert not torch.equal(found.average["network.norm.weight"], other.state_dict()["network.norm.weight"])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_state_is_refused(saved: tuple[Path, Run], damage: Callable[[bytes], bytes]) -> None:
    path = saved[0]
    path.write_bytes(damage(path.read_bytes()))
    content = path.read_bytes()
    check_state_refused(path, make_run(0))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("prior", "settings", "design"),
    [
        *((prior, {}, {}) for prior in (NARROW, get_prior("m2"))),
        *((PRIOR, {name: value}, {}) for name, value in [("seed", 1), ("width", 16), ("learning_rate", 0.1), ("average", 0.9)]),
        (PRIOR, {}, {"targets": 5}),
    ],
)
def test_the_state_of_another_run_is_refused(
    tmp_path: Path, prior: Any, settings: dict[str, Any], design: dict[str, Any]
) -> None:
    model = AmortizedModel(PRIOR, SETTINGS)
    optimizers = make_optimizers(model, SETTINGS)
    path = tmp_path / "m1.training"
    save_state(path, TrainingState.start(PRIOR, SETTINGS, DESIGN), model, optimizers)
    start = TrainingState.start(prior, dataclasses.replace(SETTINGS, **settings), dataclasses.replace(DESIGN, **design))
    check_state_refused(path, (start, model, optimizers), "another prior, other settings or another design")


def test_a_foreign_state_is_refused(saved: tuple[Path, Run], card: Card) -> None:
    path, (state, *_) = saved
    whole, start = load_file(path), make_run(0)
    counts = {"key": state.key, "step": 3, "loss": 1.0, "seconds": 2.0, "sum": checkpoint._digest(whole)}
    metadata = {"format": checkpoint.STATE_FORMAT, "counts": json.dumps(counts)}
    tensors: list[dict[str, Tensor]] = [
        {},
        {k: v for k, v in whole.items() if k != "model/network.norm.weight"},
        {**whole, "model/network.norm.other": torch.ones(2)},
        {**whole, "model/network.norm.weight": torch.ones(2)},
    ]
    without_step = json.dumps({"key": state.key})
    said = [None, {**metadata, "format": "another"}, *({**metadata, "counts": text} for text in ("{", "[]", without_step))]
    for content, description in [*((t, metadata) for t in tensors), *((whole, m) for m in said)]:
        save_file(content, path, description)
        check_state_refused(path, start)
    save_file(whole, path, metadata)
    assert load_state(path, *start).step == 3
    check_state_refused(card.weights, start)
    forge(card, whole, metadata)
    check_refused(card.path, card.weights)


Write = Callable[[Path, Card, AmortizedModel], object]
WRITES: dict[str, Write] = {
    "checkpoint": lambda path, card, model: save_checkpoint(path / "m1", AmortizedModel(PRIOR, SETTINGS), CONTENT),
    "scores": lambda path, card, model: checkpoint.write_scores(card, "coverage", {"value": 0.5}, "python"),
    "state": lambda path, card, model: save_state(path / "m1.training", *make_run(1, seed=2)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("failing", ["replace", "write_bytes"])
def test_files_are_written_whole_or_not_at_all(
    saved: tuple[Path, Run], card: Card, model: AmortizedModel, monkeypatch: pytest.MonkeyPatch, write: Write, failing: str
) -> None:
    folder = card.path.parent
    before = contents(folder)

    def fail(path: Path, argument: Any) -> None:
        if failing == "write_bytes":
            with path.open("wb") as file:
                file.write(argument[: len(argument) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fail)
        with pytest.raises(InvalidArgumentError) as error:
            write(folder, card, model)
    check_message(error, "cannot write", folder, "No space left on device")
    assert contents(folder) == before
    for one, other in zip(answers(load_checkpoint(PRIOR, card.path)[0]), answers(model), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)
    write(folder, card, model)
    after = contents(folder)
    assert set(after) == set(before)  # and no temporary file when all goes well
    assert after != before


def test_weights_whose_card_could_not_be_written_are_refused(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are written first: a card that is there never vouches for weights that are not, or for others."""
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        save_checkpoint(tmp_path / "m1", AmortizedModel(PRIOR, SETTINGS), CONTENT)
    assert read_card(card.path) == card
    check_refused(card.path, card.weights, "not the file that its model card describes")


def test_scores_are_added_and_all_else_is_kept(card: Card) -> None:
    weights = card.weights.read_bytes()
    checkpoint.write_scores(card, "coverage", {"q90": 0.88, "curves": 500}, "python benchmarks/calibration.py")
    read, added = read_card(card.path), {"q90": 0.88, "curves": 500, "command": "python benchmarks/calibration.py"}
    assert read.content == {**card.content, "scores": {**CONTENT["scores"], "coverage": added}}
    assert list(read.content) == list(card.content)
    checkpoint.write_scores(read, "coverage", {"q90": 0.9}, "python")
    again = read_card(card.path)
    assert again.content == {**card.content, "scores": {**CONTENT["scores"], "coverage": {"q90": 0.9, "command": "python"}}}
    assert card.weights.read_bytes() == weights
    assert load_checkpoint(PRIOR, card.path)[1] == again


def test_scores_that_another_measurement_added_are_kept(card: Card) -> None:
    checkpoint.write_scores(card, "coverage", {"q90": 0.88}, "python")
    checkpoint.write_scores(card, "agreement", {"cdf": 0.01}, "python")  # by what was read before
    assert set(read_card(card.path).content["scores"]) == {*CONTENT["scores"], "coverage", "agreement"}
    save_checkpoint(card.path.with_suffix(""), make_model(), CONTENT)
    change(read_card(card.path), weights_sha256="0" * 64)
    with pytest.raises(InvalidArgumentError, match="about other weights"):
        checkpoint.write_scores(card, "coverage", {"q90": 0.88}, "python")


def check_is_plain_safetensors(path: Path, **said: str) -> None:
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    metadata = header.pop("__metadata__")
    assert said.items() <= metadata.items()
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())
    assert spans[0][0] == 0
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
    assert 8 + size + spans[-1][1] == len(whole)


def test_nothing_is_pickled(card: Card, saved: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    check_is_plain_safetensors(card.weights, format=cards.FORMAT)
    check_is_plain_safetensors(saved[0], format=checkpoint.STATE_FORMAT)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (torch.serialization, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    assert load_checkpoint(PRIOR, card.path)[1] == card
    assert load_state(saved[0], *make_run(0)).step == 3

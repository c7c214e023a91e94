"""Training that begins with the weights of another checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import DESIGN, SETTINGS
from click.testing import CliRunner

import hybrid
from hybrid.amortized import release, training
from hybrid.amortized.cards import Card
from hybrid.amortized.checkpoint import Origin, TrainingState, load_checkpoint
from hybrid.amortized.release import train_prior
from hybrid.amortized.sampler import CurveBatch, draw_curves
from hybrid.cli import main
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

SMALL: dict[str, Any] = {
    name: value for name, value in SETTINGS.to_dict().items() if name not in ("steps", "seed", "learning_rate", "batch")
}


def trained(folder: Path, prior: str | Prior, steps: int, **changes: Any) -> Card:
    options = {**SMALL, "batch": 32, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "EVALUATED", 256)
        card = train_prior(prior, "small", folder, DESIGN, "cpu", progress=False, steps=steps, **options)
    assert card is not None
    return card


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return trained(tmp_path_factory.mktemp("first"), "m2", 3)


def weights_of(card: Card, prior: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(get_prior(prior), card.path)[0].state_dict()


def test_begins_with_the_weights_of_the_same_prior(first: Card, tmp_path: Path) -> None:
    """Steps so small that they change nothing leave the weights of the origin, which random ones are not."""
    still = trained(tmp_path / "still", "m2", 1, origin=first.path, learning_rate=1e-12)
    for name, value in weights_of(first, "m2").items():
        if not name.startswith("typical."):
            torch.testing.assert_close(weights_of(still, "m2")[name], value, atol=1e-6, rtol=0.0, msg=name)
    random = trained(tmp_path / "random", "m2", 1, learning_rate=1e-12)
    name = "network.of_query.weight"
    assert not torch.allclose(weights_of(random, "m2")[name], weights_of(first, "m2")[name])


def test_a_run_that_goes_on_draws_other_curves(first: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the seed of the run before, its curves must not come again, nor their positions."""
    drawn: list[torch.Tensor] = []

    def watch(*args: Any) -> CurveBatch:
        found = draw_curves(*args)
        drawn.append(found.y_context.sum() + found.x_target.sum())
        return found

    monkeypatch.setattr(training, "draw_curves", watch)
    second = trained(tmp_path / "second", "m2", 2, origin=first.path)
    trained(tmp_path / "third", "m2", 2, origin=second.path)
    trained(tmp_path / "again", "m2", 2)
    training_draws = [float(value) for value in drawn]
    assert len(training_draws) == len(set(training_draws)) >= 6


def test_another_prior_keeps_what_belongs_to_it(first: Card, tmp_path: Path) -> None:
    """The network is taken over; the bank of starts, the prior's location and its parameter head are its own."""
    shipped = get_prior("m2")
    assert isinstance(shipped, Prior)
    quiet = shipped.replace(sigma={"loc": -6.0})
    found = trained(tmp_path, quiet, 1, origin=first.path)
    parts, before = load_checkpoint(quiet, found.path)[0].state_dict(), weights_of(first, "m2")
    assert torch.allclose(parts["network.of_query.weight"], before["network.of_query.weight"], atol=0.02)
    assert float(parts["law.noise"][0]) == pytest.approx(-6.0, abs=0.1)
    assert float(before["law.noise"][0]) == pytest.approx(-4.5, abs=0.1)


def test_a_law_with_more_parameters_takes_the_transformer_over(first: Card, tmp_path: Path) -> None:
    card = trained(tmp_path, "bnsl", 1, origin=first.path, learning_rate=1e-12)
    found, before = weights_of(card, "bnsl"), weights_of(first, "m2")
    assert found["network.of_curve.weight"].shape != before["network.of_curve.weight"].shape
    name = "network.blocks.0.query.weight"
    torch.testing.assert_close(found[name], before[name], atol=1e-3, rtol=0.0)


def test_the_card_says_where_it_began(first: Card, tmp_path: Path) -> None:
    second = trained(tmp_path / "second", "m2", 2, origin=first.path)
    third = trained(tmp_path / "third", "m2", 1, origin=second.path)
    origin = third.content["origin"]
    assert origin["prior"] == "m2"
    assert origin["fingerprint"] == get_prior("m2").fingerprint
    assert origin["weights"] == second.content["weights_sha256"]
    assert origin["curves"] == (3 + 2) * 32
    assert f"--from {second.path}" in third.content["command"]
    assert "160 curves" in third.path.with_suffix(".md").read_text(encoding="utf-8")


def test_an_unfinished_run_knows_its_origin() -> None:
    """The state of a run that began elsewhere is not mistaken for one that began here."""
    states = [TrainingState.start(get_prior("m2"), SETTINGS, DESIGN, origin) for origin in ("", "a", "b")]
    assert len({state.key for state in states}) == 3


def test_layers_that_are_added_change_nothing_at_first(first: Card, tmp_path: Path) -> None:
    """The last block, in which only the queries attend, stays the last."""
    deeper = trained(tmp_path, "m2", 1, origin=first.path, learning_rate=1e-12, layers=SMALL["layers"] + 2)
    curve = hybrid.Curve([1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 0.8, 0.66, 0.59, 0.52])
    levels, ahead = np.array([0.05, 0.5, 0.95]), np.array([16.0, 32.0, 100.0])
    before, after = (hybrid.fit(curve, "m2", "pfn", checkpoint=card.path).predictive for card in (first, deeper))
    np.testing.assert_allclose(after.quantile(ahead, levels), before.quantile(ahead, levels), rtol=1e-3)
    blocks = [block.down.weight.abs().max().item() for block in load_checkpoint(get_prior("m2"), deeper.path)[0].network.blocks]
    assert [size > 1e-6 for size in blocks] == [True, False, False, True]


@pytest.mark.parametrize("change", [{"width": 64}, {"layers": 1}, {"heads": 1}, {"bins": 7}, {"summaries": 3}])
def test_refuses_a_network_of_another_size(first: Card, tmp_path: Path, change: dict[str, int]) -> None:
    assert all(SMALL[name] != value for name, value in change.items())
    with pytest.raises(InvalidArgumentError, match=f"another size.*{next(iter(change))}"):
        trained(tmp_path, "m2", 1, origin=first.path, **change)


def test_refuses_what_is_no_checkpoint(first: Card, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no model card"):
        Origin.read(tmp_path / "nothing")
    card = tmp_path / "m2.json"
    card.write_text(json.dumps(dict(first.content)), encoding="utf-8")
    card.with_suffix(".safetensors").write_bytes(first.weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(FileFormatError, match="not the file"):
        Origin.read(card)


def test_a_name_stands_for_its_weights(first: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CHECKPOINTS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert Origin.read("m4").card.path.name == "m4.json"
    with pytest.raises(EngineUnavailableError, match="m2"):
        Origin.read("m2")
    monkeypatch.setenv("HYBRID_CHECKPOINTS", str(first.path.parent))
    assert Origin.read("m2").digest == first.content["weights_sha256"]
    monkeypatch.chdir(first.path.parent)  # files of that name are named as such
    assert Origin.read(Path("m2")).card.path == Path("m2.json")
    assert Origin.read("./m2").card.path == Path("m2.json")
    monkeypatch.setenv("HYBRID_CHECKPOINTS", str(tmp_path / "none"))
    with pytest.raises(EngineUnavailableError, match="m2"):
        Origin.read("m2")


def test_the_command_in_the_card_names_what_was_given(first: Card, tmp_path: Path) -> None:
    card = trained(tmp_path, "m2", 1, origin=first.path)
    assert f"--from {first.path}" in card.content["command"]


def test_on_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["train", "--prior", "m2", "--from", str(tmp_path / "none"), "--out", str(tmp_path), "--set", "steps=1"]
    )
    assert result.exit_code == 2
    assert "no model card" in result.output


def test_a_name_on_the_command_line(first: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the cards' own commands have it, which must run as they stand."""
    monkeypatch.setenv("HYBRID_CHECKPOINTS", str(first.path.parent))
    monkeypatch.setattr(release, "EVALUATED", 256)
    settings = {**SMALL, "batch": 32, "steps": 1}
    arguments = ["train", "--prior", "m2", "--from", "m2", "--out", str(tmp_path), "--device", "cpu"]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "m2.json").read_text(encoding="utf-8"))
    assert content["origin"]["weights"] == first.content["weights_sha256"]
    assert " --from m2 " in content["command"]


@pytest.mark.parametrize("origin", ["", ".", "/", 5, b"m2"])
def test_what_is_no_path_is_refused(origin: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="origin must be the path"):
        hybrid.train("m2", out=tmp_path, origin=origin, steps=1, progress=False)
    assert list(tmp_path.iterdir()) == []

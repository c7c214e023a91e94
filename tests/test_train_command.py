"""`hybrid train`: from a prior to weights that the engine uses, resumed where it was interrupted."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import hybrid
from hybrid.amortized import cards, checkpoint, engine, release, training
from hybrid.amortized.cards import Card, read_card
from hybrid.amortized.design import Design
from hybrid.amortized.release import training_of
from hybrid.amortized.settings import DESIGNS, design_for, preset_settings
from hybrid.cli import main
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError, UnknownNameError
from hybrid.models.prior import AbstractPrior

DESIGN = Design(context=(3, 20), targets=4)
USUAL = design_for(hybrid.get_prior("m1"))
INTERPOLATED = dataclasses.replace(USUAL, interpolated=0.5)
TINY: dict[str, Any] = {
    **{"layers": 1, "width": 16, "heads": 2, "inner": 32, "bins": 20, "summaries": 1, "transforms": 1, "hidden": 8},
    **{"steps": 3, "batch": 16, "shards": 1, "precision": "32-true"},
}
X = np.geomspace(1.0, 100.0, 12)
CURVE = hybrid.Curve(X, (0.3 + 0.6 * X**-0.4) * np.exp(0.01 * np.random.default_rng(0).standard_normal(12)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few curves to measure on, and none but the test's own weights."""
    monkeypatch.setattr(release, "EVALUATED", 1024)
    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(tmp_path / "user"))
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "shipped")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def settings(**changes: Any) -> list[str]:
    return [word for name, value in {**TINY, **changes}.items() for word in ("--set", f"{name}={value}")]


def call(tmp_path: Path, *arguments: str | Path, **changes: Any) -> Result:
    """`hybrid train` with tiny settings, and small designs unless another is given."""
    words = ["train", "--device", "cpu", *settings(**changes), *map(str, arguments)]
    if "--design" not in words:
        path = tmp_path / "design.json"
        path.write_text(json.dumps(DESIGN.to_dict()), encoding="utf-8")
        words += ["--design", str(path)]
    return CliRunner().invoke(main, words)


def check_written(result: Result, folder: Path, name: str = "m1") -> Card:
    assert result.exit_code == 0, result.output
    card = read_card(folder / f"{name}.json")
    assert f"wrote {card.weights} and {card.path.name}" in result.stdout
    assert {f"{name}.json", f"{name}.safetensors"} <= {p.name for p in folder.iterdir()}
    assert not [p for p in folder.iterdir() if p.suffix in (".training", ".tmp")]
    return card


def check_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    for word in words:
        assert word in result.stderr


def test_weights_and_card_are_written_and_used(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = check_written(call(tmp_path, "--prior", "m1", "--out", out), out)
    prior = hybrid.get_prior("m1")
    assert (card.name, card.fingerprint) == ("m1", prior.fingerprint)
    assert card.content["prior"] == prior.to_dict()
    assert card.content["design"] == DESIGN.to_dict()
    assert card.content["settings"] == {**preset_settings("small").to_dict(), **TINY}
    assert (card.content["steps"], card.content["curves"]) == (3, 48)
    assert 0 <= card.content["seconds"] < 60
    assert card.content["versions"]["torch"] == torch.__version__
    assert card.content["command"].startswith("hybrid train --prior m1 --preset small --design design.json --set layers=1")
    assert np.isfinite(card.content["scores"]["held_out_loss"]["value"])
    assert card.content["scores"]["held_out_loss"]["curves"] == 1024

    given = hybrid.fit(CURVE, "m1", engine="pfn", checkpoint=out / "m1.json")
    assert given.engine == "pfn"
    assert given.info["weights_sha256"] == card.content["weights_sha256"]
    assert "a network that saw 48 curves" in given.verdict
    assert np.all(np.isfinite(given.predict([200.0, 900.0])["quantiles"]))
    with pytest.raises(EngineUnavailableError, match="hybrid train --prior m1"):
        hybrid.fit(CURVE, "m1", engine="pfn")
    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(out))
    found = hybrid.fit(CURVE, "m1", engine="pfn")
    assert found.predict([200.0, 900.0]).identical(given.predict([200.0, 900.0]))
    assert hybrid.priors().loc["m1", "checkpoint"] == "m1.safetensors"
    assert "pfn" in hybrid.priors().loc["m1", "engines"]


def test_contexts_are_measured_after_training(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve of the training design is not called untypical, and one far from it is."""
    monkeypatch.setattr(engine, "MIN_TRAINED", 0)
    check_written(call(tmp_path, "--prior", "m1", "--out", out), out)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(CURVE.x.size))
    power_law = hybrid.Curve(CURVE.x, 0.9 * CURVE.x**-0.2 * noise)
    usual = hybrid.fit(power_law, "m1", engine="pfn", checkpoint=out / "m1.json", y_scale=1.0)
    assert usual.status == "ok", usual.reasons
    odd = hybrid.fit(CURVE, "m1", engine="pfn", checkpoint=out / "m1.json", y_scale=1e-6)
    assert "the level of y" in odd.reasons[0]
    many = hybrid.Curve(np.geomspace(1, 100, 40), np.geomspace(0.9, 0.4, 40))
    assert "number of points" in hybrid.fit(many, "m1", engine="pfn", checkpoint=out / "m1.json").reasons[0]


def test_the_default_folder_is_where_the_engine_looks_first(tmp_path: Path) -> None:
    card = check_written(call(tmp_path, "--prior", "m1"), tmp_path / "user")
    assert hybrid.fit(CURVE, "m1", engine="pfn").info["weights_sha256"] == card.content["weights_sha256"]


def test_a_prior_from_a_file(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = hybrid.get_prior("m1").replace(name="narrow", sigma={"loc": -6.0})
    (tmp_path / "narrow.json").write_text(prior.to_json(), encoding="utf-8")
    card = check_written(call(tmp_path, "--prior", tmp_path / "narrow.json", "--out", out), out, "narrow")
    assert card.fingerprint == prior.fingerprint != hybrid.get_prior("m1").fingerprint
    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(out))
    assert hybrid.fit(CURVE, prior, engine="pfn").info["weights_sha256"] == card.content["weights_sha256"]
    with pytest.raises(EngineUnavailableError, match="'m1'"):
        hybrid.fit(CURVE, "m1", engine="pfn")


def test_what_is_no_model_card_is_not_written_over(tmp_path: Path, out: Path) -> None:
    """The prior's own description lies where its card would go."""
    out.mkdir()
    text = hybrid.get_prior("m1").replace(name="mine", sigma={"loc": -6.0}).to_json()
    (out / "mine.json").write_text(text, encoding="utf-8")
    check_refused(call(tmp_path, "--prior", out / "mine.json", "--out", out), "mine.json", "is no model card", "another folder")
    assert (out / "mine.json").read_text(encoding="utf-8") == text
    assert [p.name for p in out.iterdir()] == ["mine.json"]


def test_designs_and_the_share_of_interpolated_targets(tmp_path: Path, out: Path) -> None:
    card = check_written(call(tmp_path, "--prior", "m1", "--out", out, "--interpolated", "0.5"), out)
    assert card.content["design"] == {**DESIGN.to_dict(), "interpolated": 0.5}


@pytest.mark.parametrize(("prior", "design"), [("m2", USUAL), ("nslpfn", DESIGNS["nslpfn"])])
@pytest.mark.parametrize("share", [None, 0.0, 0.75])
def test_options_reach_the_training(monkeypatch: pytest.MonkeyPatch, prior: str, design: Design, share: float | None) -> None:
    taken: list[tuple[Any, ...]] = []

    def record(*arguments: Any, **changes: Any) -> None:
        taken.append((*arguments, changes))

    monkeypatch.setattr(release, "train_prior", record)
    words = ["--prior", prior, "--preset", "paper", "--out", "here", "--device", "cuda", "--devices", "4"]
    words += ["--set", "steps=9", "--set", "learning_rate=1e-3", "--set", "precision=32-true"]
    result = CliRunner().invoke(main, ["train", *words, *([] if share is None else ["--interpolated", str(share)])])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""  # nothing was written by this process
    expected = design.to_dict() if share is None else {**design.to_dict(), "interpolated": share}
    found_prior, preset, folder, found, device, devices, changes = taken[0]
    assert (found_prior, preset, folder) == (hybrid.get_prior(prior), "paper", Path("here"))
    assert (found.to_dict(), device, devices) == (expected, "cuda", 4)
    assert changes == {"origin": None, "steps": 9, "learning_rate": 1e-3, "precision": "32-true"}
    assert isinstance(changes["steps"], int)


def test_the_same_from_python(tmp_path: Path, out: Path) -> None:
    check_written(call(tmp_path, "--prior", "m1", "--out", out), out)
    card = hybrid.train("m1", out=str(tmp_path / "python"), design=DESIGN, device="cpu", progress=False, **TINY)
    assert card is not None
    expected, found = load_file(out / "m1.safetensors"), load_file(card.weights)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for key in ("prior", "fingerprint", "design", "settings", "steps", "curves", "scores", "command"):
        assert card.content[key] == read_card(out / "m1.json").content[key]
    with pytest.raises(UnknownNameError, match="m4"):
        hybrid.train("absent")
    with pytest.raises(InvalidArgumentError, match="learning_rate"):
        hybrid.train("m1", rate=1.0)


def interrupt(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let a user press Ctrl-C after some shards."""

    def interrupted(*arguments: Any) -> Any:
        if next(count) == calls:
            raise KeyboardInterrupt
        return curve_loss(*arguments)

    count, curve_loss = itertools.count(), training.curve_loss
    monkeypatch.setattr(training, "curve_loss", interrupted)


def test_the_same_command_resumes_after_an_interruption(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check_written(call(tmp_path, "--prior", "m1", "--out", tmp_path / "whole"), tmp_path / "whole")
    for calls in (2, 0):  # in the third step, then at once
        with monkeypatch.context() as patch:
            interrupt(patch, calls)
            result = call(tmp_path, "--prior", "m1", "--out", out)
        assert result.exit_code == 1
        assert "Aborted!" in result.stderr
        assert f"{out / 'm1'}.training is kept, and the same command goes on from there" in result.stderr
        assert [p.name for p in out.iterdir()] == ["m1.training"]
    refused = call(tmp_path, "--prior", "m1", "--out", out, seed=1)
    check_refused(refused, str(out / "m1.training"), "another prior, other settings or another design", "delete it")
    card = check_written(call(tmp_path, "--prior", "m1", "--out", out), out)
    assert (card.content["steps"], card.content["curves"]) == (3, 48)
    assert card.content["scores"] == whole.content["scores"]
    expected, found = load_file(whole.weights), load_file(card.weights)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_an_interruption_after_the_last_step_costs_no_training(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 3 + 2)  # while the loss is measured on fresh curves
        patch.setattr(release, "curve_loss", lambda *arguments: training.curve_loss(*arguments))
        assert call(tmp_path, "--prior", "m1", "--out", out).exit_code == 1
    assert [p.name for p in out.iterdir()] == ["m1.training"]
    with monkeypatch.context() as patch:
        interrupt(patch, 0)  # no step is left to be interrupted
        check_written(call(tmp_path, "--prior", "m1", "--out", out), out)


def test_training_again_replaces_weights_and_card(tmp_path: Path, out: Path) -> None:
    before = check_written(call(tmp_path, "--prior", "m1", "--out", out), out)
    first = hybrid.fit(CURVE, "m1", engine="pfn", checkpoint=out / "m1.json").predict(200.0)
    again = call(tmp_path, "--prior", "m1", "--out", out, seed=1)
    after = check_written(again, out)
    assert "the weights that were there are kept as m1.safetensors.before" in again.stdout
    assert after.content["settings"] == {**before.content["settings"], "seed": 1}
    kept = {name: (out / f"{name}.before").read_bytes() for name in ("m1.json", "m1.safetensors", "m1.md")}
    assert json.loads(kept["m1.json"]) == before.content
    assert (
        hashlib.sha256(kept["m1.safetensors"]).hexdigest()
        == before.content["weights_sha256"]
        != after.content["weights_sha256"]
    )
    assert sorted(p.name for p in out.glob("*.json")) == ["m1.json"]  # what is kept is not found, but can be named
    for name in ("m1.json.before", "m1.safetensors.before"):
        assert hybrid.fit(CURVE, "m1", engine="pfn", checkpoint=out / name).predict(200.0).identical(first)
    assert not hybrid.fit(CURVE, "m1", engine="pfn", checkpoint=out / "m1.json").predict(200.0).identical(first)


def die(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_dies_before_its_card_loses_no_earlier_weights(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = check_written(call(tmp_path, "--prior", "m1", "--out", out), out)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_card", die)
        assert call(tmp_path, "--prior", "m1", "--out", out, seed=1).exit_code == 1
    after = check_written(call(tmp_path, "--prior", "m1", "--out", out, seed=1), out)
    kept = {name: (out / f"{name}.before").read_bytes() for name in ("m1.json", "m1.safetensors")}
    assert json.loads(kept["m1.json"]) == before.content
    assert hashlib.sha256(kept["m1.safetensors"]).hexdigest() == before.content["weights_sha256"]
    assert after.content["weights_sha256"] != before.content["weights_sha256"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prior", "absent"], ["absent", "m4"]),
        (["--prior", "absent.json"], ["absent.json"]),
        (["--prior", "list.json"], ["not a description of a prior"]),
        (["--prior", "text.json"], ["JSON"]),
        (["--prior", "m1", "--preset", "huge"], ["huge", "small", "paper"]),
        (["--prior", "m1", "--set", "nonsense=3"], ["nonsense", "learning_rate"]),
        (["--prior", "m1", "--set", "steps"], ["NAME=VALUE", "steps"]),
        (["--prior", "m1", "--set", "=3"], ["no setting ''"]),
        (["--prior", "m1", "--set", "steps="], ["steps"]),
        (["--prior", "m1", "--set", "steps=many"], ["steps", "many"]),
        (["--prior", "m1", "--set", "steps=0"], ["steps", "at least 1"]),
        (["--prior", "m1", "--set", "steps=1.5"], ["steps", "integer"]),
        (["--prior", "m1", "--set", "width=15"], ["width", "heads"]),
        (["--prior", "m1", "--set", "shards=5"], ["batch", "shards"]),
        (["--prior", "m1", "--set", "learning_rate=0"], ["learning_rate"]),
        (["--prior", "m1", "--set", "clip=nan"], ["clip"]),
        (["--prior", "m1", "--set", "learning_rate=fast"], ["learning_rate", "fast"]),
        (["--prior", "m1", "--set", "weight_decay=inf"], ["weight_decay"]),
        (["--prior", "m1", "--set", "seed=-1"], ["seed", "-1"]),
        (["--prior", "m1", "--set", "seed=0.5"], ["seed", "0.5"]),
        (["--prior", "m1", "--set", "average=1"], ["average"]),
        (["--prior", "m1", "--set", "parameter_weight=-1"], ["parameter_weight"]),
        (["--prior", "m1", "--set", "precision=16"], ["precision", "bf16-mixed"]),
        (["--prior", "m1", "--interpolated", "1.5"], ["interpolated", "1.5"]),
        (["--prior", "m1", "--interpolated", "nan"], ["interpolated"]),
        (["--prior", "m1", "--design", "absent.json"], ["absent.json"]),
        (["--prior", "m1", "--design", "text.json"], ["text.json", "not JSON"]),
        (["--prior", "m1", "--design", "image.json"], ["image.json", "not text in UTF-8"]),
        (["--prior", "m1", "--design", "list.json"], ["list.json: not a description of a design"]),
        (["--prior", "m1", "--design", "."], [". cannot be read"]),
    ],
)
def test_bad_options_give_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("not JSON at all")
    (tmp_path / "image.json").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    result = call(tmp_path, *arguments, "--out", "out")
    check_refused(result, *words)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--prior"]),
        (["--prior", "m1", "--devices", "0"], ["--devices"]),
        (["--prior", "m1", "--devices", "two"], ["two"]),
        (["--prior", "m1", "--interpolated", "half"], ["half"]),
        (["--prior", "m1", "--nonsense"], ["--nonsense"]),
    ],
)
def test_options_that_click_refuses(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    check_refused(call(tmp_path, *arguments, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["file", "file/deeper"])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    check_refused(call(tmp_path, "--prior", "m1", "--out", tmp_path / name), str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "a file"


def test_a_damaged_state_is_refused_and_kept(tmp_path: Path, out: Path) -> None:
    out.mkdir()
    (out / "m1.training").write_bytes(b"what was left after a crash of the disk")
    check_refused(call(tmp_path, "--prior", "m1", "--out", out), str(out / "m1.training"), "delete it to train from the start")
    assert (out / "m1.training").read_bytes() == b"what was left after a crash of the disk"
    (out / "m1.training").unlink()
    check_written(call(tmp_path, "--prior", "m1", "--out", out), out)


NARROW = hybrid.get_prior("m1").replace(name="narrow", sigma={"loc": -6.0})
NONSENSE = (
    *("learning_rate=abc", "learning_rate=inf", "clip=x", "warmup=abc", "decay=x", "average=x", "weight_decay=x"),
    *("context_weight=x", "seed=abc", "seed=-1", "seed=1.5"),
)
NO_SETTINGS = ("prior=m2", "device=cpu", "devices=2", "out=x", "design=x", "preset=paper", "progress=0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *((["--prior", "m1", "--set", text], [text.partition("=")[0]]) for text in NONSENSE),
        *((["--prior", "m1", "--set", text], ["no setting"]) for text in NO_SETTINGS),
        (["--prior", "m1", "--device", "tpux"], ["device"]),
        (["--prior", "m1", "--device", "cuda"], ["device"]),
        (["--prior", "image.json"], ["image.json"]),
        (["--prior", "nslpfn.json"], ["nslpfn.json: "]),
        (["--prior", "law.json"], ["law.json: "]),
    ],
)
def test_bad_requests_of_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.json").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    (tmp_path / "nslpfn.json").write_text('{"law": "nslpfn"}')
    (tmp_path / "law.json").write_text('{"law": ["m1"]}')
    check_refused(call(tmp_path, *arguments, "--out", "out"), *words)


def test_out_is_checked_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file")
    interrupt(monkeypatch, 0)
    check_refused(call(tmp_path, "--prior", "m1", "--out", tmp_path / "file"), "file")


def test_prior_names_stay_in_the_folder(tmp_path: Path, out: Path) -> None:
    (tmp_path / "p.json").write_text(hybrid.get_prior("m1").replace(name="../evil").to_json())
    check_refused(call(tmp_path, "--prior", tmp_path / "p.json", "--out", out), "use letters, digits, - and _, not '../evil'")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("prior", "design", "changes", "expected"),
    [
        (hybrid.get_prior("m1"), USUAL, {}, "hybrid train --prior m1 --preset small"),
        (hybrid.get_prior("m1"), USUAL, {"steps": 3}, "hybrid train --prior m1 --preset small --set steps=3"),
        (hybrid.get_prior("m1"), INTERPOLATED, {}, "hybrid train --prior m1 --preset small --interpolated 0.5"),
        (hybrid.get_prior("m1"), DESIGN, {}, "hybrid train --prior m1 --preset small --design design.json"),
        (NARROW, USUAL, {"steps": 3}, "hybrid.train(prior, 'small', steps=3)"),
        (NARROW, DESIGN, {}, "hybrid.train(prior, 'small', design=design)"),
    ],
)
def test_the_card_says_what_trains_the_same_again(
    prior: AbstractPrior, design: Design, changes: dict[str, Any], expected: str
) -> None:
    assert training_of(prior, "small", changes, design) == expected


def test_an_error_in_drawing_curves_is_what_it_is(tmp_path: Path) -> None:
    """Not a loss that is no number: no other learning rate would help."""
    before = dataclasses.replace(DESIGN, before=0.5)
    with pytest.raises(InvalidArgumentError, match="set before to 0"):
        hybrid.train("nslpfn", out=tmp_path, design=before, steps=1, batch=8, progress=False)

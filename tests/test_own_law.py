"""Laws of one's own: told apart by what they are and by what they compute, and refused with a reason where they cannot work."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hybrid
from hybrid.amortized import cards, release
from hybrid.cli import main
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
from hybrid.models.identity import identity
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior, prior_from_json

X = np.geomspace(1.0, 100.0, 8)
CURVE = hybrid.Curve(X, 2.0 * X**-0.5 * np.exp(0.01 * np.random.default_rng(0).standard_normal(8)))
A = hybrid.Parameter("a", hybrid.Distribution("LogNormal", loc=0.0, scale=1.0))
SIGMA = hybrid.Parameter("sigma", hybrid.Distribution("LogNormal", loc=-4.0, scale=1.0))
EXPONENT = 0.1


class Power(hybrid.Law):
    """A power law of a fixed exponent."""

    name = "power"

    def __init__(self, exponent: Any) -> None:
        self.exponent = exponent
        self._seen = 0  # private: says nothing of the law

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        return theta["a"] * xp.exp(-np.asarray(self.exponent).item() * xp.log(x))


class Global(hybrid.Law):
    """A power law that reads its exponent from its module, as one in a notebook does."""

    name = "global"

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Any) -> Any:
        return theta["a"] * xp.exp(-EXPONENT * xp.log(x))


def prior_of(law: hybrid.Law) -> Prior:
    return Prior("mine", law, (A, SIGMA))


def fitted_sigma(prior: Prior) -> float:
    return float(hybrid.fit(CURVE, prior, "least_squares", progress=False).result.draws["sigma"].item())


def test_attributes_are_part_of_the_fingerprint() -> None:
    one, other = prior_of(Power(0.1)), prior_of(Power(0.5))
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == prior_of(Power(0.1)).fingerprint
    assert one != other
    assert prior_of(Power(np.array([0.1]))).fingerprint == prior_of(Power([0.1])).fingerprint
    assert "law_attributes" not in get_prior("bnsl").to_dict()


def test_a_description_is_for_the_law_it_was_written_for() -> None:
    text = prior_of(Power(0.1)).to_json()
    assert prior_from_json(text, Power(0.1)) == prior_of(Power(0.1))
    with pytest.raises(FileFormatError, match=r"'exponent': 0\.1.*'exponent': 0\.5"):
        prior_from_json(text, Power(0.5))


def test_a_saved_fit_is_loaded_with_its_own_law(tmp_path: Path) -> None:
    hybrid.fit(CURVE, prior_of(Power(0.5)), "least_squares", progress=False).save(tmp_path / "fit.nc")
    assert hybrid.load_fit(tmp_path / "fit.nc", law=Power(0.5)).prior.fingerprint == prior_of(Power(0.5)).fingerprint
    with pytest.raises(FileFormatError, match="exponent"):
        hybrid.load_fit(tmp_path / "fit.nc", law=Power(0.1))
    with pytest.raises(FileFormatError, match="an instance of a Law"):
        hybrid.load_fit(tmp_path / "fit.nc", law=Power)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1, 2}, {5}),
        ({(1, 2): 0.5}, {(1, 2): 2.0}),
        ({(1, 2): 0.5}, {(1, 3): 0.5}),
        (MappingProxyType({"a": 1}), MappingProxyType({"a": 2})),
    ],
)
def test_sets_and_keys_of_any_kind_are_part_of_the_fingerprint(one: Any, other: Any) -> None:
    laws = []
    for value in (one, other):
        laws.append(Power(0.5))
        laws[-1].table = [value]  # type: ignore[attr-defined]
    assert prior_of(laws[0]).fingerprint != prior_of(laws[1]).fingerprint
    with pytest.raises(FileFormatError, match="table"):
        prior_from_json(prior_of(laws[0]).to_json(), laws[1])


def test_attributes_that_refer_to_themselves_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidArgumentError, match="cannot be stated"):
        prior_of(Power(0.1)).law.__class__(circle).attributes  # noqa: B018


def test_programs_follow_what_the_law_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least squares shares compiled programs among fits: not beyond a change of what they were compiled from."""
    right = fitted_sigma(prior_of(Power(0.5)))
    assert right < 0.02
    law = Power(0.1)
    assert fitted_sigma(prior_of(law)) > 0.1
    law.exponent = 0.5
    assert fitted_sigma(prior_of(law)) == pytest.approx(right)
    assert fitted_sigma(prior_of(Power(0.1))) > 0.1
    assert fitted_sigma(prior_of(Global())) > 0.1
    monkeypatch.setattr(f"{__name__}.EXPONENT", 0.5)
    assert fitted_sigma(prior_of(Global())) == pytest.approx(right)


def test_probe_is_the_same_while_nothing_changes() -> None:
    assert prior_of(Power(0.3)).probe == prior_of(Power(0.3)).probe
    assert prior_of(Power(0.3)).probe != prior_of(Power(0.4)).probe
    assert get_prior("m4").probe is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": (SIGMA,)}, "has a parameter 'a'"),
        ({"parameters": (A, SIGMA, hybrid.Parameter("draw", A.distribution))}, "'draw' is the name of something else"),
        ({"parameters": (A, SIGMA, hybrid.Parameter("mean", A.distribution))}, "'mean' is the name of something else"),
        ({"law": Power}, "an instance of a Law"),
        ({"law": "power"}, "an instance of a Law"),
    ],
)
def test_what_cannot_be_fitted_is_refused_when_it_is_declared(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        Prior(**{"name": "mine", "law": Power(0.1), "parameters": (A, SIGMA), **change})


def test_a_law_without_a_name_is_refused() -> None:
    class Nameless(Power):
        name = None  # type: ignore[assignment]

    with pytest.raises(InvalidArgumentError, match="a `name`"):
        prior_of(Nameless(0.1))


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_commands_take_a_prior_from_a_file(tmp_path: Path, command: str) -> None:
    table, described = tmp_path / "runs.csv", tmp_path / "tight.json"
    table.write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y in zip(CURVE.x, CURVE.y, strict=True)), encoding="utf-8")
    described.write_text(get_prior("m1").replace(name="tight", sigma={"loc": -5.0}).to_json(), encoding="utf-8")
    arguments = [command, str(table), "--prior", str(described), *(["--engine", "least_squares"] if command == "fit" else [])]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert "tight" in found.output
    described.write_text(json.dumps({"format": 1}), encoding="utf-8")
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2
    assert "Error" in found.output
    found = CliRunner().invoke(main, [command, str(table), "--prior", str(tmp_path / "none.json")])
    assert "there is no file" in found.output


def test_density_outside_the_support_is_zero_in_both_libraries() -> None:
    import torch

    prior = get_prior("m4")
    assert isinstance(prior, Prior)
    x, y = np.array([0.1, 0.3, 1.0]), np.array([1.0, 0.8, 0.6])
    inside = {p.name: 0.4 for p in prior.parameters}
    changes = [{}, {"y_ratio": -0.5}, {"floor": 1.5}, {"sigma": -0.1}, {"saturation": np.nan}, {"alpha": 0.0}]
    theta = {k: np.array([{**inside, **change}[k] for change in changes]) for k in inside}
    by_jax = np.asarray(prior.log_density(theta, x, y))
    tensors = {k: torch.as_tensor(v) for k, v in theta.items()}
    by_torch = prior.log_density(tensors, torch.as_tensor(x), torch.as_tensor(y)).numpy()
    assert np.isfinite(by_jax[0])
    assert np.all(by_jax[1:] == -np.inf)
    np.testing.assert_allclose(by_torch, by_jax, rtol=1e-10)


@pytest.mark.parametrize("engine", ["pfn", "least_squares"])
def test_fits_are_pickled_with_what_they_predict(engine: str) -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), "m4", engine, progress=False)
    again = pickle.loads(pickle.dumps(fit))
    at = fit.curve.x[-1] * np.array([1.5, 3.0])
    np.testing.assert_allclose(again.predict(at)["median"], fit.predict(at)["median"], rtol=1e-6)
    assert set(again.result.draws) == set(fit.result.draws)


def test_what_is_kept_of_a_law_is_not_taken_for_that_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A law that reads what a later cell changes has the same name, attributes and fingerprint."""
    held = CURVE.hold_out(2)
    rows = [f"D,c,{x},{y},context" for x, y in zip(held.x, held.y, strict=True)]
    rows += [f"D,c,{x},{y},target" for x, y in zip(held.x_target, held.y_target, strict=True)]
    (tmp_path / "curves.csv").write_text("\n".join(["domain,curve,x,y,split", *rows]))

    def error() -> float:
        method = ("least_squares", prior_of(Global()))
        found = hybrid.benchmark(tmp_path / "curves.csv", [method], tmp_path / "out", figures=False, progress=False)
        return float(found.table["rmsle"].iloc[0])

    far = error()
    assert error() == far
    before = identity(prior_of(Global()))
    monkeypatch.setattr(f"{__name__}.EXPONENT", 0.5)
    assert identity(prior_of(Global())) != before
    assert error() < 0.1 * far


def test_weights_of_a_law_are_not_taken_for_those_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "EVALUATED", 256)
    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(tmp_path))
    tiny = {"layers": 1, "width": 16, "heads": 2, "inner": 32, "bins": 20, "summaries": 1, "transforms": 1, "hidden": 8}
    card = hybrid.train(prior_of(Global()), out=tmp_path, device="cpu", progress=False, steps=1, batch=8, **tiny)
    assert card is not None
    assert card.is_about(prior_of(Global()))
    assert hybrid.fit(CURVE, prior_of(Global()), "pfn").engine == "pfn"
    monkeypatch.setattr(f"{__name__}.EXPONENT", 0.5)
    for checkpoint in (None, card.path):
        with pytest.raises(EngineUnavailableError, match="computed something else; train them"):
            hybrid.fit(CURVE, prior_of(Global()), "pfn", checkpoint=checkpoint)

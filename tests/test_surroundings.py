"""What surrounds a process: folders that cannot be read, other runs in the same place, devices that are not asked for."""

import ctypes
import os
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import pytest
import torch
from numpyro.infer.util import log_density

import hybrid
from hybrid.amortized import cards, release
from hybrid.models import compilation
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.numpyro_model import numpyro_model
from hybrid.models.prior import Prior, double_precision
from hybrid.models.registry import get_prior
from hybrid.models.torch_random import seeded


class AtHorizon(hybrid.Law):
    """A power law that is stated at the horizon, and so reads the frame."""

    name = "at_horizon"
    formula = "y = top (x / horizon)^-slope"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["y_first"] * xp.exp(-theta["y_ratio"] * (xp.log(x) - xp.log(frame.horizon) + xp.log(frame.last)))


CURVE = hybrid.load_example("cerebras_gpt_pile", holdout=2)
TINY: dict[str, Any] = {"layers": 1, "width": 32, "inner": 32, "hidden": 16, "transforms": 1, "bins": 20, "batch": 16}


def test_a_home_that_cannot_be_read_holds_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, stat = tmp_path / "closed", Path.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if path.is_relative_to(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(Path, "stat", refused)
    assert hybrid.fit(CURVE, "m4", "pfn").status == "ok"
    assert hybrid.fit(CURVE, "m1", "least_squares").status == "ok"


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (cards.FOLDER_VARIABLE, "XDG_DATA_HOME", "XDG_CACHE_HOME", "HYBRID_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert hybrid.fit(CURVE, "m4", "pfn").status == "ok"
    with pytest.raises(InvalidArgumentError, match=f"no home directory .* {cards.FOLDER_VARIABLE}"):
        hybrid.train("m1", progress=False, steps=1)
    compilation.use_compilation_cache()  # finds no folder, and says nothing


def test_programs_are_not_kept_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    changed: list[str] = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: changed.append(name))
    monkeypatch.setattr(compilation, "_configured", lambda: False)
    monkeypatch.setenv("HYBRID_CACHE_DIR", str(tmp_path / "file"))
    compilation.use_compilation_cache()
    assert changed == []
    monkeypatch.setenv("HYBRID_CACHE_DIR", str(tmp_path / "new"))
    compilation.use_compilation_cache()
    assert "jax_compilation_cache_dir" in changed
    assert (tmp_path / "new" / "xla").is_dir()


def test_seeding_leaves_devices_alone_that_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail(f"seeded all devices with {seed}"))
    before = torch.get_rng_state()
    with seeded(3):
        one = torch.rand(3)
    with seeded(3, torch.device("cpu")):
        assert torch.equal(torch.rand(3), one)
    get_prior("m4").sample(2, x=[0.1, 1.0], seed=1, backend="torch")
    assert torch.equal(torch.get_rng_state(), before)


def test_one_run_at_a_time_trains_in_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(release, "EVALUATED", 256)
    lock = filelock.FileLock(tmp_path / ".m1.training.lock")
    with lock, pytest.raises(InvalidArgumentError, match=r"another process trains 'm1' in .*: wait for it"):
        hybrid.train("m1", "small", tmp_path, device="cpu", progress=False, steps=1, **TINY)
    card = hybrid.train("m1", "small", tmp_path, device="cpu", progress=False, steps=1, **TINY)
    assert card is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m1.json", "m1.md", "m1.safetensors"]


@pytest.mark.parametrize("name", ["m2", "unit"])
def test_the_numpyro_model_is_the_prior_at_the_frame_of_its_samples(name: str) -> None:
    prior = get_prior("m1" if name == "unit" else name)
    assert isinstance(prior, Prior)
    if name == "unit":
        prior = Prior("unit", AtHorizon(), prior.parameters, prior.noise.name, "unit")
    x = np.array([0.01, 0.1, 0.3, 0.5])
    drawn = prior.sample(1, x=x, seed=0)
    theta, y = {p.name: float(drawn[p.name][0]) for p in prior.parameters}, drawn["y"].to_numpy()[0]
    with double_precision():
        density, _ = log_density(numpyro_model(prior), (x,), {"y": y}, theta)
        expected = prior.log_density(theta, x, y)
    assert float(density) == pytest.approx(float(expected), rel=1e-9)


def test_memory_is_kept_only_while_a_network_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            calls.append((f"option {option}", value))

        def malloc_trim(self, pad: int) -> None:
            calls.append(("trim", pad))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    with release._holding_memory(True):
        assert len(calls) == len(release.HELD)
    held, usual = dict(calls[: len(release.HELD)]), dict(calls[len(release.HELD) :])
    assert usual.pop("trim") == 0
    assert held.keys() == usual.keys()
    assert all(held[name] > usual[name] for name in held)
    calls.clear()
    with release._holding_memory(False):
        pass
    assert calls == []

"""The commands behind the figures of the model cards and the README run."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hybrid
from hybrid.amortized import release
from hybrid.amortized.settings import design_for

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY: dict[str, Any] = {"layers": 1, "width": 32, "inner": 32, "hidden": 16, "transforms": 1, "bins": 20, "batch": 16}


def run(script: str, *arguments: str, folder: Path) -> dict[str, float]:
    """The figures that a script prints, one in a line after its name."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2}


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, BENCHMARKS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_calibration_of_a_network_with_parameters(tmp_path: Path) -> None:
    figures = run("calibration.py", "--prior", "m4", "--curves", "250", folder=tmp_path)
    assert figures["curves"] == 250
    assert 0.85 < figures["coverage_90"] < 0.95
    assert figures["rank_outside_band_floor"] < 0.1


@pytest.mark.slow
def test_agreement_of_a_network_with_exact_inference(tmp_path: Path) -> None:
    figures = run("agreement.py", "--prior", "m4", "--curves", "6", "--workers", "1", folder=tmp_path)
    assert figures["curves"] >= 5
    assert 0.8 < figures["crps_ratio"] < 1.25
    assert figures["cdf_distance"] < 0.06
    assert figures["c2st"] < 0.65
    assert (tmp_path / "out" / "agreement_m4_6_1.npz").exists()


def test_the_ablation_trains_again_where_its_budget_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = load("ablation")
    monkeypatch.setattr(release, "EVALUATED", 256)
    prior, design = ablation.VARIANTS["M3"], design_for(hybrid.get_prior("nslpfn"))
    card = tmp_path / f"{prior.name}.json"
    assert not ablation.is_trained(card, prior, 2, design)
    hybrid.train(prior, "small", tmp_path, design, "cpu", progress=False, steps=2, **TINY)
    assert ablation.is_trained(card, prior, 2, design)
    assert not ablation.is_trained(card, prior, 3, design)
    assert not ablation.is_trained(card, prior, 2, design_for(prior))
    assert not ablation.is_trained(card, ablation.VARIANTS["M4"], 2, design)

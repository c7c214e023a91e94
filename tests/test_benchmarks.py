"""The commands behind the figures of the model cards run."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_calibration_of_a_network_with_parameters(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "calibration.py"), "--prior", "m4", "--curves", "250"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    figures = {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    assert figures["curves"] == 250
    assert 0.85 < figures["coverage_90"] < 0.95
    assert figures["rank_outside_band_floor"] < 0.1

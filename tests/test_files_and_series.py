"""What is read is read once, what is written replaces nothing that is protected, and what is ambiguous is refused."""

import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import hybrid
from hybrid.benchmark_cases import read_cases
from hybrid.cli import main
from hybrid.models.errors import InvalidArgumentError, InvalidCurveError

X = np.geomspace(1.0, 128.0, 8)
CURVES = {
    name: hybrid.Curve(X, scale * (1.0 + X**-0.5) * np.exp(0.01 * np.random.default_rng(0).standard_normal(8)))
    for name, scale in (("z", 1.0), ("a", 10.0))
}
TABLE = "domain,curve,x,y,split\n" + "\n".join(f"D,one,{x:g},{1 + x**-0.5:.4f},{'target' if x > 50 else 'context'}" for x in X)


def fit() -> hybrid.Fit:
    return hybrid.fit(CURVES["z"], "m2", "least_squares", progress=False)


@pytest.mark.parametrize("name", ["y_scale", "horizon"])
def test_a_series_with_names_says_nothing_of_the_order(name: str) -> None:
    values = pd.Series({"a": 1000.0, "z": 2000.0})
    with pytest.raises(InvalidArgumentError, match=f"{name} is a Series with an index of its own"):
        hybrid.fit_many(CURVES, "m2", "least_squares", progress=False, **{name: values})
    fits = hybrid.fit_many(CURVES, "m2", "least_squares", progress=False, **{name: values[list(CURVES)].reset_index(drop=True)})
    assert [getattr(found, name) for found in fits] == [2000.0, 1000.0]


def test_a_protected_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "fit.nc"
    path.write_text("kept", encoding="utf-8")
    path.chmod(0o444)
    with pytest.raises(InvalidArgumentError, match="write-protected"):
        fit().save(path)
    assert path.read_text(encoding="utf-8") == "kept"


def test_domains_without_curves_are_not_pooled(tmp_path: Path) -> None:
    path = tmp_path / "domains.csv"
    path.write_text("domain,x,y\na,1,3\na,2,2\na,4,1.5\nb,1,30\nb,2,20\nb,3,15\n", encoding="utf-8")
    with pytest.raises(InvalidCurveError, match=r"several domains .*no column 'curve'"):
        hybrid.read_csv(path)
    path.write_text("domain,x,y\na,1,3\na,2,2\na,4,1.5\n", encoding="utf-8")
    assert len(hybrid.read_csv(path).x) == 3


def test_the_horizon_that_is_advised_is_enough() -> None:
    x = 123.4564449
    curve = hybrid.Curve([10.0, 20.0, 40.0, 80.0], [2.0, 1.7, 1.5, 1.4])
    found = hybrid.fit(curve, "lcpfn", "pfn", horizon=100.0, progress=False)
    with pytest.raises(InvalidArgumentError, match="fit again with horizon=") as told:
        found.predict(x)
    advised = re.search(r"horizon=([0-9.e+]+)", str(told.value))
    assert advised is not None
    again = hybrid.fit(curve, "lcpfn", "pfn", horizon=float(advised[1]), progress=False)
    assert np.isfinite(again.predict(x)["median"].item())


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_report_of_a_folder_is_refused_in_a_line(place: str) -> None:
    told = CliRunner().invoke(main, ["report", place])
    assert told.exit_code == 2
    assert len(told.stderr.strip().splitlines()) == 1


def test_what_is_said_of_a_forecast_is_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y in zip(X, CURVES["z"].y, strict=True)), encoding="utf-8")
    told = CliRunner().invoke(main, ["fit", str(path), "--prior", "m4", "--engine", "pfn", "--at", "1e-9", "--threshold", "1"])
    assert told.exit_code == 0
    (line,) = [line for line in told.stderr.splitlines() if "x_new = 1e-09" in line]
    assert line.startswith("Warning: x_new = 1e-09 lies before")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TABLE,), daemon=True)
    writer.start()
    (case,) = read_cases(pipe)
    assert len(case.curve.x) + len(case.curve.x_target) == len(X)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": 5}, "methods must be"),
        ({"data": 5}, "data must be"),
        ({"data": [5]}, "data must be the path"),
        ({"out": 5}, "out must be the path"),
        ({"domains": 5}, "domains must be"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        hybrid.benchmark(**{"methods": "least_squares:m1", "progress": False, **arguments})
    with pytest.raises(InvalidArgumentError, match="path must be the path of a file or a folder, got 5"):
        hybrid.write_report(fit(), 5)  # type: ignore[arg-type]


def test_the_error_of_a_calibration_that_does_not_vary_is_unknown(tmp_path: Path) -> None:
    """Of targets that are all outside every interval the bootstrap says nothing, of the coverage as of what follows from it."""
    path = tmp_path / "curves.csv"
    second = TABLE.split("\n", 1)[1].replace("one", "two")
    far = re.sub(r",[0-9.]+,target", ",500,target", f"{TABLE}\n{second}")
    path.write_text(far, encoding="utf-8")
    table = hybrid.benchmark(path, "pfn:m4", progress=False).table
    assert table["msce"].item() > 0.1
    assert np.isnan([table["msce_se"].item(), table["msce_pooled_se"].item(), table["pooled_coverage_0.9_se"].item()]).all()
    assert np.isfinite(table["rmsle_se"].item())

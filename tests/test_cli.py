"""The command line: what it prints and writes, and one clear line with exit code 2 for every bad input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

import hybrid
from hybrid.cli import main
from hybrid.models.errors import EngineUnavailableError

PNG = b"\x89PNG"
QUICK = ["--engine", "least_squares"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_table(path: Path, x: str = "flops", y: str = "loss", n: int = 12) -> Path:
    scale = np.geomspace(1e18, 1e22, n)
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=n))
    loss = (1.7 + (scale / 1e18) ** -0.2) * noise
    rows = "\n".join(f"{a!r},{b!r}" for a, b in zip(scale.tolist(), loss.tolist(), strict=True))
    path.write_text(f"{x},{y}\n{rows}\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "runs.csv")


def test_fit_forecasts_and_writes(table: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "fit.nc", tmp_path / "fit.png"
    arguments = ["--x", "flops", "--y", "loss", "--at", "1e23", "--at", "1e24", "--threshold", "1.8", "--seed", "3"]
    result = call("fit", table, *arguments, *QUICK, "--out", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    fit = hybrid.load_fit(out)
    assert (fit.engine, fit.prior.name, fit.seed, fit.horizon) == ("least_squares", "m4", 3, 1e24)
    assert fit.verdict in result.stdout
    assert "horizon 1e+24" in result.stdout
    for x in (1e23, 1e24):
        row = next(line for line in result.stdout.splitlines() if line.startswith(f"{x:.4g} "))
        forecast = fit.predict(x)
        assert f"{forecast['median'].item():.4g}" in row
        assert row.endswith(f"{fit.prob_below(x, 1.8).item():.3f}")
        low, high = forecast["quantiles"].to_numpy()[[0, -1], 0]
        assert f"{low:.4g} to {high:.4g}" in row
    assert plot.read_bytes().startswith(PNG)
    assert {p.name for p in tmp_path.iterdir()} == {"runs.csv", "fit.nc", "fit.png"}  # no temporary file stays behind


@pytest.mark.parametrize(
    ("extra", "horizon"),
    [([], 1e23), (["--at", "5e22"], 1e23), (["--at", "1e23"], 1e23), (["--at", "1e25"], 1e25), (["--horizon", "3e22"], 3e22)],
)
def test_horizon_is_stated(table: Path, tmp_path: Path, extra: list[str], horizon: float) -> None:
    result = call("fit", table, "--x", "flops", "--y", "loss", *QUICK, *extra, "--out", tmp_path / "fit.nc")
    assert result.exit_code == 0, result.output
    moved = " (moved there by --at)" if horizon == 1e25 else ""
    assert f"horizon {horizon:.4g}{moved}," in result.stdout
    np.testing.assert_allclose(hybrid.load_fit(tmp_path / "fit.nc").horizon, horizon, rtol=1e-12)


def test_fit_an_example_against_its_held_out_points() -> None:
    result = call("fit", "example:porian_optimal_loss", "--holdout", "2", *QUICK)
    assert result.exit_code == 0, result.output
    curve = hybrid.load_example("porian_optimal_loss", holdout=2)
    assert "10 points" in result.stdout
    assert "2 held out" in result.stdout
    assert curve.x_target is not None
    assert curve.y_target is not None
    for x, y in zip(curve.x_target, curve.y_target, strict=True):
        row = next(line for line in result.stdout.splitlines() if line.startswith(f"{x:.4g} "))
        assert f"{y:.4g}" in row
        assert row.endswith(("yes", "no"))


def test_a_curve_is_found_by_its_name_without_the_spaces_around_it(tmp_path: Path) -> None:
    rows = [f"d, {name}, {x}, {2 + 1 / x}" for name in "ab" for x in (1.0, 2.0, 4.0, 8.0)]
    (tmp_path / "spaced.csv").write_text("\n".join(["domain,curve,x,y", *rows]))
    for name in ("a", "d/a"):
        assert call("fit", tmp_path / "spaced.csv", "--curve", name, *QUICK).exit_code == 0


@pytest.mark.parametrize("option", ["--x", "--y", "--curve"])
def test_columns_are_not_for_examples(option: str) -> None:
    result = call("fit", "example:cerebras_gpt_pile", option, "nope", *QUICK)
    assert result.exit_code == 2
    assert "are for files" in result.output


def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys; from hybrid.cli import main; sys.argv = ['hybrid', 'examples']; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert said == b""


def test_demo_checks_its_folder_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr("hybrid.cli._compare", lambda *_, **__: 1 / 0)
    result = call("demo", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "File exists" in result.output
    assert (tmp_path / "file").read_text() == "kept"


def test_one_curve_of_several(tmp_path: Path) -> None:
    rows = [f"{name},{x},{3 * x**-0.1}" for name in ("a", "b") for x in (1.0, 10.0, 100.0, 1000.0)]
    path = tmp_path / "many.csv"
    path.write_text("\n".join(["curve,x,y", *rows]), encoding="utf-8")
    assert call("fit", path, *QUICK, "--prior", "m1", "--curve", "b").exit_code == 0
    refused = call("fit", path, *QUICK)
    assert refused.exit_code == 2
    assert "several curves" in refused.stderr


def check_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no rows"),
        (b"x,y\n", "no rows"),
        (b"a,b\n1,2\n2,3\n3,4\n", "no column 'x'"),
        (b"x;y\n1;2\n2;3\n3;4\n", "separated by commas"),
        (b"x,y\n1,2\n2,three\n3,4\n", "line 3"),
        (b"x,y\n1,2\n2\n3,4\n", "line 3"),
        (b"x,y\n1,2\n2,nan\n3,4\n", "finite"),
        (b"x,y\n1,2\n2,-1\n3,4\n", "above 0"),
        (b"x,y\n0,2\n2,1\n3,4\n", "above 0"),
        (b"x,y\n1,2\n2,1\n", "distinct x"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    result = call("fit", path, *QUICK)
    check_refused(result, word)
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fit", "absent.csv"], "absent.csv"),
        (["fit", "."], ". cannot be read"),
        (["fit", "example:absent"], "cerebras_gpt_pile"),
        (["fit", "example:porian_optimal_loss", "--prior", "absent"], "m4"),
        (["fit", "example:porian_optimal_loss", "--engine", "absent"], "nuts"),
        (["fit", "example:porian_optimal_loss", "--prior", "nslpfn"], "nslpfn"),
        (["fit", "example:porian_optimal_loss", "--horizon", "1e10"], "horizon"),
        (["fit", "example:porian_optimal_loss", "--horizon", "nan"], "finite"),
        (["fit", "example:porian_optimal_loss", "--y-scale", "0"], "above 0"),
        (["fit", "example:porian_optimal_loss", "--at", "-1"], "above 0"),
        (["fit", "example:porian_optimal_loss", "--at", "inf"], "finite"),
        (["fit", "example:porian_optimal_loss", "--at", "1e300"], "1e+300"),
        (["fit", "example:porian_optimal_loss", "--at", "soon"], "soon"),
        (["fit", "example:porian_optimal_loss", "--threshold", "nan"], "finite"),
        (["fit", "example:porian_optimal_loss", "--seed", "-1"], "seed"),
        (["fit", "example:porian_optimal_loss", "--holdout", "11"], "distinct x"),
        (["fit", "example:porian_optimal_loss", "--holdout", "99"], "hold out must be an integer from 0 to 9, got 99"),
        (["fit", "example:porian_optimal_loss", "--out", "fit.csv"], ".nc"),
        (["fit", "example:porian_optimal_loss", "--out", "no/such/fit.nc"], "no/such"),
        (["fit", "example:porian_optimal_loss", "--plot", "fit.doc"], ".png"),
        (["compare", "example:porian_optimal_loss", "--plot", "fit"], ".png"),
        (["compare", "example:absent"], "cerebras_gpt_pile"),
        (["compare", "example:porian_optimal_loss", "--prior", "absent"], "m4"),
        (["absent"], "absent"),
        (["fit"], "SOURCE"),
    ],
)
def test_bad_requests_are_refused(arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(call(*arguments), word)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder", encoding="utf-8")
    check_refused(call("fit", "example:porian_optimal_loss", *QUICK, "--plot", tmp_path / "out" / "fit.png"), "out")
    folder = tmp_path / "fit.nc"
    folder.mkdir()
    check_refused(call("fit", "example:porian_optimal_loss", *QUICK, "--out", folder), "directory")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "fit.nc"
    out.write_bytes(b"old")

    def fail(self: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", fail)
    check_refused(call("fit", "example:porian_optimal_loss", *QUICK, "--out", out), "No space left")
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_compare_names_engines_that_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = hybrid.fit

    def without_draws(curve: hybrid.Curve, prior: str, engine: str, *rest: Any) -> hybrid.Fit:
        if engine == "nuts":
            raise EngineUnavailableError("no draws today")
        return fitted(curve, prior, engine, *rest)

    monkeypatch.setattr("hybrid.fitting.fit", without_draws)
    plot = tmp_path / "engines.png"
    result = call("compare", "example:porian_optimal_loss", "--prior", "m2", "--at", "1e20", "--plot", plot)
    assert result.exit_code == 0, result.output
    assert "nuts: skipped, no draws today" in result.stdout
    assert "pfn: skipped, " in result.stdout
    assert "by least_squares" in result.stdout
    assert plot.read_bytes().startswith(PNG)


def test_compare_shows_agreement() -> None:
    result = call("compare", "example:porian_optimal_loss", "--prior", "m2", "--holdout", "2")
    assert result.exit_code == 0, result.output
    _, agreement = result.stdout.split("\nagreement\n")
    header, *rows = [line.split() for line in agreement.strip().splitlines()]
    assert header[-1] == "nuts"
    assert ["(noise alone)" in line for line in agreement.strip().splitlines()[1:]] == [False, True] * 2
    assert [row[1] for row in rows] == ["nuts", "least_squares"] * 2
    for row in rows[::2]:
        assert row[-2:] == ["1.000", "1.000"]
    for row in rows[1::2]:
        assert 0.9 < float(row[-2]) < 1.1


def test_demo_does_the_main_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("demo")
    assert result.exit_code == 0, result.output
    assert "by nuts" in result.stdout
    assert "by least_squares" in result.stdout
    assert "held out" in result.stdout
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"demo.nc", "demo.png", "demo_engines.png"}
    fit = hybrid.load_fit(tmp_path / "out" / "demo.nc")
    assert fit.engine == "nuts"
    assert fit.verdict in result.stdout
    for name in written:
        assert f"wrote out/{name}" in result.stdout


def test_priors_and_examples_are_listed() -> None:
    listed = call("priors")
    assert listed.exit_code == 0
    rows = [line.split()[0] for line in listed.stdout.splitlines()[1:]]
    assert rows == list(hybrid.priors().index)
    listed = call("examples")
    assert listed.exit_code == 0
    for name, row in hybrid.examples().iterrows():
        assert f"{name}: {row['points']} points" in listed.stdout
        assert row["citation"] in listed.stdout


def test_every_command_and_option_has_help() -> None:
    assert call("--help").exit_code == 0
    assert "hybrid, version" in call("--version").stdout
    for name, command in main.commands.items():
        assert call(name, "--help").exit_code == 0
        assert command.help
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help


def test_the_command_starts_light() -> None:
    code = "import sys; from hybrid.cli import main; main(['examples'], standalone_mode=False); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.splitlines()[-1].split()
    for heavy in ("jax", "torch", "matplotlib", "scipy", "xarray", "arviz_stats"):
        assert heavy not in loaded


def test_module_runs_as_the_command() -> None:
    run = subprocess.run([sys.executable, "-m", "hybrid", "fit", "absent.csv"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "Error: there is no file absent.csv: check the path\n"

"""Reports: one page that needs no network, with the verdict first; and the commands that write them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import few_joint_curves

import hybrid
from hybrid import reporting
from hybrid.amortized.design import Design
from hybrid.cli import main

FETCHED = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?://")
MEGABYTES = 5


@pytest.fixture(scope="module")
def calibration() -> hybrid.Calibration:
    with few_joint_curves():
        return hybrid.calibrate("m4", "pfn", 32, Design(context=(5, 30), targets=4), progress=False)


def check_page(path: Path, *words: str) -> str:
    page = path.read_text(encoding="utf-8")
    assert len(page) < MEGABYTES * 2**20
    assert not FETCHED.search(page)
    for word in words:
        assert word in page, word
    return page


def test_report_of_a_calibration_opens_with_the_verdict(calibration: hybrid.Calibration, tmp_path: Path) -> None:
    path = hybrid.write_report(calibration, tmp_path / "report.html", "hybrid calibrate --prior m4 {x}")
    page = check_page(path, "Calibration of", "y_first", "joint held-out points (TARP)", "numpy")
    assert "hybrid calibrate --prior m4 {x}" in re.sub(r"<[^>]+>", "", page)
    body = page[page.index("<body") :]
    assert body.index("32 curves of its prior") < body.index("<img")
    assert body.count('src="data:image/png;base64') == 3
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["nuts", "pfn"])
def test_report_of_a_fit(engine: str, tmp_path: Path) -> None:
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile", holdout=2), "m4", engine)
    fit.save(tmp_path / "fit.nc")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "fit.nc")])
    assert result.exit_code == 0, result.output
    assert fit.verdict in result.output
    page = check_page(tmp_path / "fit.html", "forecast by", "held out", "elpd", "y_ratio", "diagnosis", "noise-free")
    assert ("R-hat" if engine == "nuts" else "k-hat of the parameter draws") in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "engine", "curve", "said"),
    [
        ("nsl", "pfn", hybrid.load_example("cerebras_gpt_pile"), "no draws of all parameters"),
        ("lcpfn", "pfn", hybrid.load_example("cerebras_gpt_pile"), "The engine gives no parameters"),
        ("m4", "least_squares", hybrid.load_example("cerebras_gpt_pile"), "a point estimate has no draws to check"),
        ("m4", "pfn", hybrid.Curve([1.0, 10.0, 100.0], [3.0, 2.0, 1.5]), "at least 3 different x"),
    ],
)
def test_report_of_a_fit_says_which_checks_are_not_for_it(
    prior: str, engine: str, curve: hybrid.Curve, said: str, tmp_path: Path
) -> None:
    fit = hybrid.fit(curve, prior, engine, progress=False)
    check_page(hybrid.write_report(fit, tmp_path / "fit.html"), "Not for this fit" if said[0] != "T" else said, said)


@pytest.mark.slow
def test_report_shows_names_and_numbers_as_they_are(tmp_path: Path) -> None:
    x = np.arange(1.0, 13.0)
    y = 1e-6 * (2.0 + 3.0 * x**-0.5)
    targets = {"x_target": [20.0, 100.0, 200.0], "y_target": [2.5e-6, 2.3e-6, 2.2e-6]}
    curve = hybrid.Curve(x, y, "x<y", "loss", **targets, name="<script>alert(1)</script> *two* of _three_")
    fit = hybrid.fit(curve, "lcpfn", "pfn", progress=False)
    foreign = hybrid.get_prior("m2").replace("x`<script>alert(2)</script>`")
    other = hybrid.fit(curve, foreign, "least_squares", progress=False)
    other.data.attrs["versions"] = json.dumps({"<script>alert(3)</script>": "<script>alert(4)</script>"})
    other.save(tmp_path / "other.nc")
    second = check_page(hybrid.write_report(hybrid.load_fit(tmp_path / "other.nc"), tmp_path / "other.html"))
    assert "<script>alert(" not in second
    for number in (2, 3, 4):
        assert f"&lt;script&gt;alert({number})&lt;/script&gt;" in second
    page = check_page(hybrid.write_report(fit, tmp_path / "fit.html"))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; *two* of _three_" in page
    assert "x&lt;y" in page
    assert (
        "Held-out points left out: 1; the prior is not defined" in page
    )  # beyond ten times the last context x, where this prior ends
    assert "2.5e-06" in page
    assert "5e-06" in page  # of the leave-one-out table


def test_a_kernel_that_does_not_start_is_said_to_be_so(
    calibration: hybrid.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tmp_path / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    with pytest.raises(hybrid.ReportError, match=r"the kernel .* did not run .*install ipykernel"):
        hybrid.write_report(calibration, tmp_path / "report.html")


def test_a_cell_that_fails_leaves_no_page(
    calibration: hybrid.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "CALIBRATION_CELLS", (("code", "raise RuntimeError('broken cell')"),))
    with pytest.raises(hybrid.ReportError, match="broken cell"):
        hybrid.write_report(calibration, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_wrong_paths_are_named(calibration: hybrid.Calibration, tmp_path: Path) -> None:
    with pytest.raises(hybrid.InvalidArgumentError, match=r"must end in \.html"):
        hybrid.write_report(calibration, tmp_path / "report.pdf")
    with pytest.raises(hybrid.InvalidArgumentError, match="about a fit or a calibration, got int"):
        hybrid.write_report(3, tmp_path / "report.html")  # type: ignore[arg-type]
    (tmp_path / "folder.html").mkdir()
    for arguments, words in (
        (["calibrate", "--out", "report.pdf"], "must end in .html"),
        (["calibrate", "--out", str(tmp_path / "none" / "report.html")], "there is no directory"),
        (["calibrate", "--engine", "magic", "--out", str(tmp_path / "a.html")], "nuts, pfn"),
        (["report", str(tmp_path / "none.nc")], "there is no file"),
        (["calibrate", "--out", str(tmp_path / "folder.html")], "is a directory"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, arguments
        assert words in result.output


def test_calibrate_command_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    monkeypatch.setattr(reporting, "_page", lambda cells, values, title, folder: pages.append(values["command"]) or "<html>")
    out, saved = tmp_path / "report.html", tmp_path / "found.nc"
    options = ["--prior", "m4", "--simulations", "16", "--seed", "3", "--out", str(out), "--save", str(saved)]
    with few_joint_curves():
        result = CliRunner().invoke(main, ["calibrate", *options])
    found = hybrid.load_calibration(saved)
    assert result.exit_code == (0 if found.ok else 1), result.output
    assert found.verdict in result.output
    assert "x / last context x" in result.output
    assert out.read_text() == "<html>"
    assert pages == [f"hybrid calibrate --prior m4 --engine pfn --simulations 16 --seed 3 --out {out} --save {saved}"]
    assert found.data["predictive"].sizes["draw"] == 16


def test_agreement_of_a_fit_with_itself_and_with_another() -> None:
    curve = hybrid.load_example("cerebras_gpt_pile", holdout=2)
    pfn = hybrid.fit(curve, "m4", "pfn")
    same = hybrid.agreement(pfn, pfn)
    assert same.ok
    assert float(same.table["cdf"].max()) < 1e-6
    assert float(same.table["wasserstein"].max()) == 0.0
    assert "agree" in same.verdict
    assert list(same.table["x_ratio"]) == pytest.approx([1, 1.5, 2, 3, 5, 10])
    vague = hybrid.Fit(curve, pfn.prior, "pfn", pfn.horizon, pfn.y_scale, 0, _shifted(pfn), {})
    far = hybrid.agreement(pfn, vague)
    assert not far.ok
    assert "differ" in far.verdict
    assert np.allclose(far.table["median"], 1.5)
    with pytest.raises(hybrid.InvalidArgumentError, match="different horizons"):
        hybrid.agreement(pfn, hybrid.fit(curve, "m4", "pfn", horizon=2 * pfn.horizon))
    with pytest.raises(hybrid.InvalidArgumentError, match="same prior"):
        hybrid.agreement(pfn, hybrid.fit(curve, "bnsl", "pfn"))


def _shifted(fit: hybrid.Fit) -> object:
    """The result of a fit with all forecasts half as high again."""
    import dataclasses

    inner = fit.predictive

    class Shifted:
        def quantile(self, x: np.ndarray, levels: np.ndarray) -> np.ndarray:
            return 1.5 * inner.quantile(x, levels)

        def cdf(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return inner.cdf(x, np.asarray(y) / 1.5)

    return dataclasses.replace(fit.result, predictive=Shifted())


@pytest.mark.slow
def test_report_of_a_fit_with_a_law_of_ones_own(tmp_path: Path) -> None:
    class Own(hybrid.Law):
        name = "own"

        def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
            return theta["a"] * xp.exp(-theta["c"] * xp.log(x))

    positive = hybrid.Distribution("LogNormal", loc=-1.0, scale=1.0)
    prior = hybrid.Prior("own", Own(), [hybrid.Parameter(name, positive) for name in ("a", "c", "sigma")])
    fit = hybrid.fit(hybrid.load_example("cerebras_gpt_pile"), prior, "nuts", progress=False)
    check_page(hybrid.write_report(fit, tmp_path / "own.html"), "forecast by", "R-hat")


@pytest.mark.slow
def test_report_of_a_fit_with_a_law_of_ones_own_module(tmp_path: Path) -> None:
    """As of a script beside its module, which the page's process does not find by itself."""
    (tmp_path / "some_laws.py").write_text(
        "import hybrid\n\nclass Fall(hybrid.Law):\n    name = 'fall'\n\n    def mean(self, xp, x, theta, frame):\n"
        "        return theta['a'] * xp.exp(-theta['c'] * xp.log(x))\n"
    )
    (tmp_path / "script.py").write_text(
        "import hybrid, some_laws\n"
        "positive = hybrid.Distribution('LogNormal', loc=-1.0, scale=1.0)\n"
        "parameters = [hybrid.Parameter(name, positive) for name in ('a', 'c', 'sigma')]\n"
        "prior = hybrid.Prior('fall', some_laws.Fall(), parameters)\n"
        "fit = hybrid.fit(hybrid.load_example('cerebras_gpt_pile'), prior, 'nuts', progress=False)\n"
        "hybrid.write_report(fit, 'own.html')\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, str(tmp_path / "script.py")], check=True, cwd=elsewhere)
    check_page(elsewhere / "own.html", "forecast by", "R-hat")

"""What is written takes the place of nothing else, and what is shown is about all that it is said to be about."""

import html
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from nbconvert.filters import markdown2html

mpl.use("Agg")

from matplotlib import pyplot as plt

import hybrid
from hybrid import benchmark_scores
from hybrid.amortized import posterior
from hybrid.benchmark_cases import read_cases
from hybrid.benchmark_methods import as_method, run_method
from hybrid.benchmark_plots import plot_calibration
from hybrid.benchmark_scores import render, summarise
from hybrid.cli import main
from hybrid.diagnostics import datatree
from hybrid.diagnostics.scores import MSCE_LEVELS
from hybrid.models.errors import InvalidArgumentError
from hybrid.output import as_markdown, as_table
from hybrid.result import first_shown

X = np.geomspace(1.0, 100.0, 8)
Y = 0.3 + 0.5 * X**-0.4


def write(path: Path, domain: str = "A", before: bool = False) -> Path:
    splits = ["target" if i >= 6 or (before and i == 0) else "context" for i in range(8)]
    rows = [f"{domain},one,{x},{y},{split}" for x, y, split in zip(X, Y, splits, strict=True)]
    path.write_text("\n".join(["domain,curve,x,y,split", *rows]) + "\n", encoding="utf-8")
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_benchmark_does_not_write_over_its_data(tmp_path: Path) -> None:
    data = write(tmp_path / "curves.csv")
    text = data.read_text(encoding="utf-8")
    result = call("benchmark", "--data", data, "--method", "least_squares:m2", "--no-figures", "--out", tmp_path)
    assert result.exit_code == 2
    assert "would be overwritten by the benchmark's own curves.csv: give another folder" in result.output
    with pytest.raises(InvalidArgumentError, match="would be overwritten"):
        hybrid.benchmark(iter([data]), "least_squares:m2", tmp_path, progress=False)
    assert data.read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["curves.csv"]
    (tmp_path / "out" / "table.csv").mkdir(parents=True)
    with pytest.raises(InvalidArgumentError, match="is a directory"):
        hybrid.benchmark(data, "least_squares:m2", tmp_path / "out", progress=False)


def test_figures_of_an_earlier_benchmark_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hybrid.benchmark(write(tmp_path / "a.csv"), "least_squares:m2", out, progress=False)
    (out / "sheets" / "mine.png").write_bytes(b"")
    hybrid.benchmark(write(tmp_path / "b.csv", "B"), "pfn:m4", out, progress=False)
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["B-pfn_m4-1.png", "mine.png"]
    assert (out / "cost.png").exists()
    hybrid.benchmark(tmp_path / "b.csv", "pfn:m4", out, figures=False, progress=False)
    assert sorted(path.name for path in out.rglob("*.png")) == ["mine.png"]


def test_means_over_different_curves_are_not_compared() -> None:
    figures = [column.figure for column in (*benchmark_scores._ACCURACY, *benchmark_scores._CALIBRATION)]
    rows = [
        {"domain": "A", "method": name, "curves": curves, "groups": 1, "points": 4, "failed": 2 - curves}
        | dict.fromkeys(figures, value)
        | {f"{figure}_se": 0.1 for figure in figures}
        for name, curves, value in (("one", 1, 0.2), ("two", 2, 0.4))
    ]
    text = render(pd.DataFrame(rows))
    assert "one (1 of 2 curves)" in text
    assert "*0" not in text
    assert "*0" in render(pd.DataFrame([{**row, "failed": 0} for row in rows]))


def test_a_share_of_all_has_no_standard_error() -> None:
    """The bootstrap replicates of 1, 1, 1 are all 1, which says nothing of how far from 1 the share may be."""
    means = dict.fromkeys(benchmark_scores.MEANS, 0.4)
    shares = {f"coverage_{level:g}": 1.0 if level > 0.8 else 0.5 for level in MSCE_LEVELS}
    rows = [
        {"domain": "A", "method": "pfn:m4", "group": group, "points": 3, "status": "ok", **means, "in_90": 1.0, **shares}
        | {"in_50": in_50, "coverage_0.5": in_50}
        for group, in_50 in (("a", 0.2), ("b", 0.6), ("c", 0.4))
    ]
    table = summarise(pd.DataFrame(rows))
    row = table.iloc[0]
    assert row["in_90"] == row["pooled_coverage_0.99"] == 1.0
    assert np.isnan([row["in_90_se"], row["pooled_coverage_0.99_se"]]).all()
    assert row["in_50_se"] == pytest.approx(0.2 / 3**0.5, rel=0.05)
    assert row["pooled_coverage_0.5_se"] == pytest.approx(row["in_50_se"])
    assert "1.000 ±" not in render(table)
    assert "0.400 ± 0.1" in render(table)
    ax = plot_calibration(table).axes[0]
    bars = ax.containers[0].lines[2][0].get_segments()
    lengths = [float(np.ptp(bar[:, 1])) for bar in bars]
    assert lengths[0] == pytest.approx(2 * row["in_50_se"])
    assert lengths[-1] == 0.0
    assert ax.get_title(loc="left") == "A\n9 points, 3 groups"


def test_a_fit_is_kept_whatever_its_table(tmp_path: Path) -> None:
    path, out = write(tmp_path / "x.csv", before=True), tmp_path / "fit.nc"
    result = call("fit", path, "--prior", "lcpfn", "--engine", "pfn", "--out", out)
    assert result.exit_code == 0, result.output
    assert "1 held-out point before the first context x or beyond the horizon is left out" in result.output
    assert hybrid.load_fit(out).prior.name == "lcpfn"
    out.unlink()
    result = call("fit", path, "--prior", "lcpfn", "--engine", "pfn", "--out", out, "--at", 0.5)
    assert result.exit_code == 2
    assert "lies before the first context x" in result.output
    assert out.exists()
    result = call("fit", path, "--prior", "m4", "--engine", "pfn", "--at", "1e-300")
    assert "is below 1e-100, the smallest x there is" in result.output


@pytest.mark.parametrize("text", ["engine 'pfn' of \"m4\"", "<b>1 & 2</b>", "a_b * c # d ~ e | f $g$", "x&#x27;y"])
def test_text_on_a_page_reads_as_it_is(text: str) -> None:
    assert html.unescape(markdown2html(as_markdown(text))).strip() == f"<p>{text}</p>"


def test_numbers_of_a_table() -> None:
    table = pd.DataFrame({"value": [680960.0, 0.12345, np.nan], "ok": [True, False, True], "what": ["<b>", "b", "c"]})
    page = as_table(table).to_html()
    assert all(f">{text}</td>" in page for text in ("680,960", "0.123", "nan", "True", "&lt;b&gt;"))


def test_the_forecast_is_drawn_where_points_are_held_out_before_the_context() -> None:
    curve = hybrid.Curve(X[2:6], Y[2:6], x_target=X[[0, 1, 7]], y_target=Y[[0, 1, 7]])
    for prior, first in (("m4", X[0]), ("lcpfn", X[2])):
        ax = hybrid.fit(curve, prior, "pfn", horizon=200.0).plot()
        median = next(line for line in ax.lines if line.get_label() == "median")
        assert np.min(np.asarray(median.get_xdata())) == pytest.approx(first)
        plt.close("all")


def test_many_points_do_not_cover_the_forecast() -> None:
    x = np.geomspace(1.0, 100.0, 1000)
    for points, below in ((x, True), (x[::10], False)):
        ax = hybrid.fit(hybrid.Curve(points, 0.3 + 0.5 * points**-0.4), "m2", "least_squares", progress=False).plot()
        scattered = next(c for c in ax.collections if c.get_label() == "context")
        median = next(line for line in ax.lines if line.get_label() == "median")
        assert (scattered.get_zorder() < median.get_zorder()) == below
        plt.close("all")


def test_checks_of_three_points_are_drawn_without_leave_one_out() -> None:
    fit = hybrid.fit(hybrid.Curve(X[:3], Y[:3]), "m4", "pfn")
    figure = hybrid.plot_checks(fit)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["prior predictive", "posterior predictive", "leave-one-out PIT"]
    assert "leaving one out needs at least" in " ".join(figure.axes[2].texts[0].get_text().split())
    assert len(figure.axes[1].collections) == 3
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in figure.axes[0].yaxis.get_ticklabels()]
    assert len([tick for tick in ticks if tick]) >= 3
    with pytest.raises(InvalidArgumentError, match="point estimate"):
        hybrid.plot_checks(hybrid.fit(hybrid.Curve(X, Y), "m2", "least_squares", progress=False))
    plt.close("all")


@pytest.mark.parametrize("prior", ["m4", "nsl"])
def test_a_long_curve_does_not_fill_the_memory(prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = hybrid.Curve(X, Y * np.exp(0.01 * np.sin(7.0 * X)))
    whole = hybrid.fit(curve, prior, "pfn")
    assert whole.data["posterior_predictive"]["y"].shape == (1, 2000, 8)
    monkeypatch.setattr(datatree, "LARGEST", 8 * 250)
    fit = hybrid.fit(curve, prior, "pfn")
    assert fit.data["posterior_predictive"]["y"].shape == (1, 250, 8)
    np.testing.assert_array_equal(fit.data["posterior_predictive"]["draw"], np.arange(250) * (8 if prior == "m4" else 1))
    assert "log_likelihood" not in fit.data.children
    fit.save(tmp_path / "fit.nc")
    assert hybrid.load_fit(tmp_path / "fit.nc") == fit
    median = float(np.median(fit.data["posterior_predictive"]["y"][0, :, -1]))
    assert median == pytest.approx(float(np.median(whole.data["posterior_predictive"]["y"][0, :, -1])), rel=0.01)
    if prior == "m4":
        refused: tuple[Any, ...] = (
            hybrid.sensitivity,
            lambda f: hybrid.loo(hybrid.fit(f.curve, "m4", "pfn", forecast="draws")),
        )
        for check in refused:
            with pytest.raises(InvalidArgumentError, match="is not kept for each draw"):
                check(fit)


def test_the_density_of_a_long_curve_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = hybrid.Curve(X, Y * np.exp(0.01 * np.sin(7.0 * X)))
    whole = hybrid.fit(curve, "m4", "pfn").result.sample_stats
    monkeypatch.setattr(posterior, "BLOCK", 1)
    parts = hybrid.fit(curve, "m4", "pfn").result.sample_stats
    np.testing.assert_allclose(parts["lp"], whole["lp"], rtol=1e-9)
    np.testing.assert_allclose(parts["log_ratio"], whole["log_ratio"], rtol=1e-6, atol=1e-6)


def test_sheets_of_a_benchmark_begin_at_early_held_out_points(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path / "early.csv", before=True))
    (record,) = run_method(as_method("least_squares:m2"), [case], 0)
    assert record["grid"][[0, -1]].tolist() == [X[0], X[-1]]
    assert np.all(np.diff(record["grid"]) > 0)
    (case,) = read_cases(write(tmp_path / "usual.csv"))
    (record,) = run_method(as_method("pfn:nslpfn"), [case], 0)
    assert record["grid"][[0, -1]].tolist() == [X[0], X[-1]]


def test_a_fit_says_where_it_is_defined_and_what_its_network_was_trained_for() -> None:
    curve = hybrid.Curve(X, Y, x_target=[X[0] / 1e4, 2 * X[-1]], y_target=[2.0, 0.3])
    exact = hybrid.fit(curve, "m2", "least_squares")
    assert exact.defined_for == exact.trained_for == (0.0, np.inf)
    assert first_shown(exact, curve.x_target) == X[0] / 1e4
    network = hybrid.fit(curve, "m4", "pfn", horizon=1e6)
    assert network.defined_for == (0.0, np.inf)
    assert network.trained_for == pytest.approx((X[0] / 300, 1e6))  # what was asked for is judged by the status
    assert first_shown(network, curve.x_target) == pytest.approx(X[0] / 300)
    assert first_shown(network, None) == X[0]
    published = hybrid.fit(curve, "nslpfn", "pfn", horizon=500.0)
    assert published.defined_for == (X[0], 500.0)
    assert first_shown(published, curve.x_target) == X[0]


def test_forecasts_that_cannot_be_kept_are_still_scored(tmp_path: Path) -> None:
    data, out = write(tmp_path / "a.csv"), tmp_path / "out"
    first = hybrid.benchmark(data, "least_squares:m2", out, figures=False, progress=False)
    (entry, *_) = (out / "cache").iterdir()
    entry.unlink()
    entry.mkdir()
    with pytest.warns(UserWarning, match="forecasts are not kept, and would be made again by another run: .*directory"):
        again = hybrid.benchmark(data, "least_squares:m2", out, figures=False, progress=False)
    np.testing.assert_allclose(again.table["rmsle"], first.table["rmsle"], rtol=1e-9)

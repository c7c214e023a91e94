"""Where a benchmark's curves come from and where its figures go: what is refused, and who is named."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hybrid
from hybrid import benchmark_methods, benchmarking, nslpfn_data
from hybrid.benchmark_cases import group_of, read_cases
from hybrid.benchmark_methods import as_method, forecast_batch, run_method
from hybrid.benchmark_plots import _file_name
from hybrid.models.errors import FileFormatError, InvalidArgumentError

COLPRET = {f"curve-{i}": np.array([np.arange(1.0, 40.0), np.linspace(4.0 + i, 3.0, 39)]) for i in range(3)}


def rows(domain: str, name: str, first_target: float) -> list[str]:
    context = [f"{domain},{name},{x},{2 + 1 / x},context" for x in (2.0, 4.0, 8.0, 16.0)]
    return [*context, f"{domain},{name},{first_target},2.1,target", f"{domain},{name},32,2.03,target"]


def write(path: Path, *curves: list[str]) -> Path:
    path.write_text("\n".join(["domain,curve,x,y,split", *(row for curve in curves for row in curve)]), encoding="utf-8")
    return path


def test_no_file_is_no_request_for_the_examples() -> None:
    with pytest.raises(InvalidArgumentError, match="data names no file"):
        hybrid.benchmark([], "least_squares:m1", progress=False)


def test_the_curve_at_fault_is_the_one_that_is_named(tmp_path: Path) -> None:
    cases = read_cases(write(tmp_path / "curves.csv", rows("D", "good", 20.0), rows("D", "bad", 1.0), rows("D", "fine", 20.0)))
    with pytest.raises(InvalidArgumentError, match=r"^pfn:lcpfn on D/bad: x_new = 1 lies before the first context x"):
        forecast_batch(as_method("pfn:lcpfn"), cases, 0)
    records = run_method(as_method("pfn:lcpfn"), cases, 0)
    assert [bool(record.get("failed", False)) for record in records] == [False, True, False]


def test_a_curve_that_cannot_be_forecast_loses_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "curves.csv", rows("D", "good", 20.0), rows("D", "bad", 1.0), rows("E", "worse", 1.0))
    out = tmp_path / "out"
    found = hybrid.benchmark(path, ["pfn:lcpfn", "pfn:nsl"], out, progress=False)
    assert [status == "failed" for status in found.curves["status"]] == [False, True, True, False, False, False]
    table = found.table.set_index(["domain", "method"])
    assert list(table["failed"]) == [1, 0, 1, 0]
    assert list(table["curves"]) == [1, 2, 0, 1]
    alone = hybrid.benchmark(write(tmp_path / "one.csv", rows("D", "good", 20.0)), "pfn:lcpfn", progress=False).table
    assert table.loc[("D", "pfn:lcpfn"), "ll"] == pytest.approx(float(alone["ll"].iloc[0]), rel=1e-6)
    assert np.isnan(table.loc[("E", "pfn:lcpfn"), "ll"])
    assert "pfn:lcpfn on D/bad failed, and is left out: x_new = 1 lies before the first context x" in str(found)
    assert (out / "sheets").is_dir()
    with pytest.raises(InvalidArgumentError, match="pfn:lcpfn forecasts none of the curves: x_new = 1 lies before"):
        hybrid.benchmark(write(tmp_path / "none.csv", rows("D", "bad", 1.0)), "pfn:lcpfn", progress=False)


def test_rows_that_are_written_twice_are_pooled_once(tmp_path: Path) -> None:
    plain, other = rows("D", "one", 20.0), rows("D", "two", 30.0)
    twice = [row for row in plain for _ in range(9 if ",target" in row else 1)]
    figures = []
    for name, curve in (("plain", plain), ("twice", twice)):
        table = hybrid.benchmark(write(tmp_path / f"{name}.csv", curve, other), "pfn:m4", progress=False).table
        figures.append(table[[c for c in table if c.startswith(("points", "pooled", "msce_pooled"))]])
    pd.testing.assert_frame_equal(*figures)


@pytest.mark.parametrize(
    ("domain", "name", "group"),
    [
        ("IC", "bird_10/ViT/S/16", "bird/ViT/S/16"),
        ("IC", "bird_25/ViT/S/16", "bird/ViT/S/16"),
        ("IC", "mine", "mine"),
        ("LM", "bird_10/ViT/S/16", "bird_10/ViT/S"),
        ("ColPret", "pythia-1.4b-deduped-5shot-v0", "pythia"),
    ],
)
def test_group_by_domain_and_name(domain: str, name: str, group: str) -> None:
    assert group_of(domain, name) == group


def test_forecasts_are_made_once_before_they_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = read_cases(write(tmp_path / "curves.csv", rows("D", "one", 20.0)))
    done: list[str] = []

    def recorded(name: str) -> Any:
        original = getattr(hybrid.Fit, name)
        return lambda self, *args, **kwargs: done.append(name) or original(self, *args, **kwargs)

    monkeypatch.setattr(hybrid.Fit, "predict", recorded("predict"))
    benchmark_methods._warm_up(as_method("least_squares:m1"), cases, 0)
    assert done == ["predict"]


def test_sheets_of_different_domains_have_different_names() -> None:
    assert _file_name("IC", "pfn:nsl", 1) == "IC-pfn_nsl-1"
    names = {_file_name(domain, "least_squares:m1", 1) for domain in ("A+B", "A B", "A_B", "A/B", "A:B")}
    assert len(names) == 5
    assert not any(set(name) & set("+ /:") for name in names)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "colpret.npz"
    np.savez_compressed(path, **COLPRET)
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            nslpfn_data.read_nslpfn(tmp_path, ["ColPret"])
        except FileFormatError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("domain", ["ColPret", "Nano"])
def test_text_in_place_of_numbers_is_refused(domain: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "colpret.npz", a=np.array([["one", "two"], ["three", "four"]]))
    for name in nslpfn_data.NANO_FILES.values():
        np.save(tmp_path / name, np.full((1, len(nslpfn_data.NANO_WIDTHS)), "x"))
    with pytest.raises(FileFormatError, match="must hold"):
        nslpfn_data.read_nslpfn(tmp_path, [domain])


def test_the_context_is_the_first_half_by_x(tmp_path: Path) -> None:
    x = np.array([8.0, 1.0, 4.0, 2.0, 32.0, 16.0])
    np.savez(tmp_path / "colpret.npz", a=np.array([x, 5.0 - np.log(x)]))
    (found,) = nslpfn_data.read_nslpfn(tmp_path, ["ColPret"])
    assert list(found.x) == [1.0, 2.0, 4.0]
    assert list(found.x_target) == [8.0, 16.0, 32.0]
    np.testing.assert_allclose(found.y_target, 5.0 - np.log(found.x_target))


class Line(hybrid.Law):
    """A line in log x, without a value where it is below 0."""

    name = "line"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        found = theta["level"] - theta["slope"] * xp.log(x)
        return xp.where(found > 0.0, found, xp.full_like(found, float("nan")))


def test_forecasts_that_are_no_numbers_are_left_out_and_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Not a figure is made of them: a PIT that is NaN lies outside of every interval."""
    of = {name: hybrid.Distribution("LogNormal", loc=0.0, scale=1.0) for name in ("level", "slope", "sigma")}
    prior = hybrid.Prior("line", Line(), [hybrid.Parameter(name, found) for name, found in of.items()])
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 1e3])
    falling = [f"D,ends,{x},{float(1.0 - 0.2 * np.log(x))},context" for x in x[:5].tolist()]
    path = write(tmp_path / "curves.csv", [*falling, "D,ends,1000.0,0.1,target"], rows("D", "one", 20.0))
    found = hybrid.benchmark(path, [("least_squares", prior), "pfn:m4"], progress=False)
    own = found.curves.set_index(["method", "curve"]).loc[("least_squares:line", "ends")]
    assert own["status"] == "failed"
    assert "is none at x" in own["reasons"]
    assert own[[name for name in own.index if name.startswith(("in_", "coverage_", "msce", "ll", "rmsle"))]].isna().all()
    table = found.table.set_index("method")
    assert table.loc["least_squares:line", ["curves", "failed"]].tolist() == [1, 1]
    assert np.isfinite(table.loc["least_squares:line", "msce_pooled"])
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


def test_a_method_that_fails_everywhere_loses_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "none.csv", rows("D", "bad", 1.0))
    found = hybrid.benchmark(path, ["pfn:lcpfn", "pfn:nsl"], progress=False)
    assert found.table.set_index("method")["curves"].to_dict() == {"pfn:lcpfn": 0, "pfn:nsl": 1}


def test_what_nuts_compiles_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fit more for every number of points that it has another program for, and no more."""
    fitted: list[int] = []

    def recorded(self: Any, cases: Any, seed: int) -> list[Any]:
        fitted.append(cases[0].context.x.size)
        fits = hybrid.fit_many([case.context for case in cases], "m1", "least_squares", progress=False)
        return [dataclasses.replace(fit, engine="nuts") for fit in fits]

    monkeypatch.setattr(benchmark_methods.Method, "fit", recorded)
    monkeypatch.setattr(benchmark_methods, "_warmed", set())
    method = as_method("nuts:m1")
    for size in (17, 20, 24, 25, 31, 20):
        x = np.geomspace(1.0, 10.0, size).tolist()
        points = [f"D,c{size},{x},{x**-0.3},context" for x in x]
        (case,) = read_cases(write(tmp_path / f"{size}.csv", [*points, f"D,c{size},20.0,0.4,target"]))
        benchmark_methods._warm_up(method, [case], 0)
    assert fitted == [17, 25]


def test_an_interruption_between_results_ends_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def made(*_: Any) -> Iterator[tuple[int, Any]]:
        try:
            yield 0, [{}]
        except GeneratorExit:
            ended.append(True)
            raise

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarking, "spread", made)
    monkeypatch.setattr(benchmarking._Cache, "write", interrupt)
    path = write(tmp_path / "curves.csv", rows("D", "one", 20.0))
    with pytest.raises(KeyboardInterrupt) as caught:  # its traceback holds the generator until the test ends
        hybrid.benchmark(path, "pfn:nsl", tmp_path / "out", progress=False)
    assert ended == [True]
    assert caught.traceback


def test_groups_that_some_rows_leave_blank(tmp_path: Path) -> None:
    text = "domain,curve,x,y,split,group\n" + "".join(f"D,a,{k},{3 - 0.1 * k},context,{'g' * (k % 2)}\n" for k in range(1, 6))
    path = tmp_path / "groups.csv"
    path.write_text(text + "D,a,9,2,target,g\n")
    with pytest.raises(hybrid.InvalidCurveError, match="groups g, none; give one, in every row"):
        read_cases(path)

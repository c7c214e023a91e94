"""`hybrid benchmark`: its figures against hand-made ones, its cache, its sources of curves, and one line for bad input."""

import importlib.metadata
import importlib.util
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose

import hybrid
from hybrid import benchmark_methods, benchmarking, nslpfn_data
from hybrid.benchmark_cases import Case, read_cases
from hybrid.benchmark_methods import Method, Record, as_method, run_method
from hybrid.benchmark_scores import MEANS, summarise
from hybrid.cli import main
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError

PNG = b"\x89PNG"
METHODS = ("least_squares:m1", "least_squares:m2")
HEADER = "domain,curve,x,y,split,x_label,y_label"


def rows_of(domain: str, name: str, n: int, seed: int, targets: int = 3, floor: float = 0.4) -> list[str]:
    x = np.geomspace(1e3, 1e6, n)
    y = 3.0 * (floor + (x / 1e3) ** -0.3) * np.exp(0.01 * np.random.default_rng(seed).standard_normal(n))
    splits = ["context"] * (n - targets) + ["target"] * targets
    return [f"{domain},{name},{a!r},{b!r},{s},tokens,loss" for a, b, s in zip(x.tolist(), y.tolist(), splits, strict=True)]


def write_curves(path: Path, *curves: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *(row for curve in curves for row in curve)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two domains; IC is scored in the units of y, the other over the largest context y."""
    named = [("IC", "bird/ViT-1"), ("IC", "bird/ViT-2"), ("IC", "car/BiT-1"), ("LM", "small"), ("LM", "large")]
    curves = [rows_of(domain, name, 10 + i, i) for i, (domain, name) in enumerate(named)]
    return write_curves(tmp_path / "curves.csv", *curves)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["benchmark", *(str(a) for a in arguments)])


def without_time(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=[c for c in ("ms", "ms_se") if c in frame])


def test_scores_of_a_curve_by_hand(data: Path) -> None:
    found = hybrid.benchmark(data, METHODS[0], progress=False)
    curves = hybrid.read_curves(data)
    for row in found.curves.to_dict("records"):
        curve = curves[f"{row['domain']}/{row['curve']}"]
        unit = 1.0 if row["domain"] == "IC" else curve.y.max()
        fit = hybrid.fit(curve, "m1", "least_squares", curve.x_target.max(), progress=False)
        x, y = curve.x_target, curve.y_target
        low, lower, median, upper, high = fit.predict(x)["quantiles"].to_numpy()
        assert row["points"] == y.size == 3
        assert_allclose(row["rmsle"], np.sqrt(np.mean(np.log(median / y) ** 2)), rtol=1e-6)
        assert_allclose(row["ll"], np.mean(fit.log_density(x, y)) + np.log(unit), rtol=1e-6)
        assert_allclose(row["in_50"], np.mean((lower <= y) & (y <= upper)))
        assert_allclose(row["in_90"], np.mean((low <= y) & (y <= high)))
        assert_allclose(row["width_90"], np.mean((high - low) / y), rtol=1e-6)
        assert_allclose(row["width_50"], np.mean((upper - lower) / y), rtol=1e-6)
        outside = np.maximum(low - y, 0.0) + np.maximum(y - high, 0.0)
        assert_allclose(row["interval_score_90"], np.mean(high - low + 20.0 * outside) / unit, rtol=1e-6)
        levels = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
        inside = [np.mean(abs(2 * fit.prob_below(x, y).to_numpy() - 1) <= q) for q in levels]
        assert_allclose(row["msce"], np.mean((inside - levels) ** 2))
        z = np.linspace(0.2 * low.min(), 3 * high.max(), 20_001)  # the CRPS by its definition, on a fine grid
        crps = [
            np.trapezoid((fit.prob_below(np.full_like(z, a), z).to_numpy() - (z >= b)) ** 2, z)
            for a, b in zip(x, y, strict=True)
        ]
        assert_allclose(row["crps"], np.mean(crps) / unit, rtol=0.02)
        assert row["status"] == "ok"
        assert row["prior"] == "m1"
        assert row["ms"] > 0


def test_table_is_the_mean_over_curves_and_pools_points(data: Path) -> None:
    found = hybrid.benchmark(data, METHODS, progress=False)
    assert list(found.table["domain"]) == ["IC", "IC", "LM", "LM"]
    assert list(found.table["method"]) == list(METHODS) * 2
    row = found.table.iloc[1]
    own = found.curves[(found.curves["domain"] == "IC") & (found.curves["method"] == METHODS[1])]
    assert (row["curves"], row["groups"], row["points"]) == (3, 2, 9)  # bird/ViT-1 and -2 are related
    for figure in ("rmsle", "ll", "crps", "msce", "in_90", "width_50", "ms", "interval_score_90"):
        assert_allclose(row[figure], own[figure].mean())
        assert row[f"{figure}_se"] > 0 or own[figure].nunique() == 1
    pooled = [np.average(own[f"coverage_{q:g}"], weights=own["points"]) for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)]
    assert_allclose(row["pooled_coverage_0.9"], pooled[4])
    assert_allclose(row["msce_pooled"], np.mean(np.square(np.array(pooled) - [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])))
    text = str(found)
    assert "IC: 3 curves, 2 groups, 9 held-out points; LL and CRPS of y as given\n" in text
    assert f"*{found.table['rmsle'][:2].min():.4f}" in text


def test_a_group_column_and_repeated_rows(tmp_path: Path) -> None:
    first, second = (rows_of("LM", name, 9, i) for i, name in enumerate(("a-1", "a-2")))
    curves = [[f"{row},{group}" for row in rows for _ in range(4)] for rows, group in ((first, "x"), (second, ""))]
    cases = read_cases(write_curves(tmp_path / "c.csv", *curves, header=f"{HEADER},group"))
    assert [case.group for case in cases] == ["x", "a"]
    assert cases[0].raw_context.x.size == 24
    assert cases[0].context.x.size == 6
    assert cases[0].curve.x_target.size == 12  # targets are scored as they stand
    assert cases[0].horizon == 1e6


def test_contexts_are_merged_for_all_but_least_squares(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def record(curves: Sequence[hybrid.Curve], *_: Any, **__: Any) -> list[Any]:
        seen.extend(curve.x.size for curve in curves)
        return []

    monkeypatch.setattr(benchmark_methods, "fit_many", record)
    case = read_cases(data)[0]
    twice = hybrid.Curve(np.repeat(case.curve.x, 2), np.repeat(case.curve.y, 2), x_target=[1e6], y_target=[1.0], name="twice")
    for method in ("nuts:m1", "least_squares:m1"):
        as_method(method).fit([Case("LM", "twice", twice)], 0)
    assert seen == [7, 14]


def test_the_number_of_breaks_follows_a_held_out_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With m1 and m2 in place of one and two breaks, which compile faster."""
    monkeypatch.setattr(benchmark_methods, "BREAKS", ("m1", "m2"))
    curves = [rows_of("LM", "floor", 30, 0), rows_of("LM", "power", 30, 1, floor=0.0), rows_of("LM", "short", 6, 2)]
    cases = read_cases(write_curves(tmp_path / "c.csv", *curves))
    method = as_method("least_squares:bnsl_auto")
    chosen = []
    for case in cases[:2]:
        head, tail = slice(0, -5), slice(-5, None)  # a fifth of 27 points
        errors = []
        for prior in ("m1", "m2"):
            context = hybrid.Curve(case.curve.x[head], case.curve.y[head])
            fit = hybrid.fit(context, prior, "least_squares", case.curve.x[-1], case.unit, progress=False)
            median = fit.predict(case.curve.x[tail])["median"].to_numpy()
            errors.append(np.mean(np.log(median / case.curve.y[tail]) ** 2))
        chosen.append(("m1", "m2")[int(np.argmin(errors))])
    assert chosen[0] == "m2"
    fits = method.fit(cases, 0)
    assert [fit.prior.name for fit in fits] == [*chosen, "m1"]  # 3 points leave nothing to hold out
    assert [fit.curve.x.size for fit in fits] == [27, 27, 3]  # refitted to the whole context
    assert str(run_method(method, cases[:1], 0)[0]["prior"]) == "m2"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that are fitted; batches hold 2 curves."""
    sizes: list[int] = []

    def run(method: Method, cases: Sequence[Case], seed: int) -> list[Record]:
        sizes.append(len(cases))
        return run_method(method, cases, seed)

    monkeypatch.setattr(benchmarking, "run_method", run)
    monkeypatch.setitem(benchmark_methods.BATCH, "least_squares", 2)
    return sizes


def test_an_interrupted_run_goes_on_to_the_same_figures(
    data: Path, tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hybrid.benchmark(data, METHODS, progress=False)
    out = tmp_path / "out"
    run, calls = benchmarking.run_method, 3

    def fail(*arguments: Any) -> list[Record]:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(benchmarking, "run_method", fail)
    with pytest.raises(KeyboardInterrupt):
        hybrid.benchmark(data, METHODS, out, figures=False, progress=False)
    assert len(list((out / "cache").iterdir())) == 5  # batches of 2, 2 and 1
    assert not (out / "table.csv").exists()
    monkeypatch.setattr(benchmarking, "run_method", run)
    counted.clear()
    resumed = hybrid.benchmark(data, METHODS, out, figures=False, progress=False)
    assert counted == [2, 2, 1]
    pd.testing.assert_frame_equal(without_time(resumed.table), without_time(whole.table), check_exact=True)
    pd.testing.assert_frame_equal(without_time(resumed.curves), without_time(whole.curves), check_exact=True)
    again = hybrid.benchmark(data, METHODS, out, figures=False, progress=False)
    assert counted == [2, 2, 1]
    pd.testing.assert_frame_equal(again.table, resumed.table, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), resumed.table, check_exact=False, check_dtype=False)
    assert not list(out.rglob(".*"))


def test_what_is_kept_is_used_only_for_what_it_was_made_from(data: Path, tmp_path: Path, counted: list[int]) -> None:
    out = tmp_path / "out"

    def run(**options: Any) -> pd.DataFrame:
        counted.clear()
        return hybrid.benchmark(
            **{"data": data, "methods": METHODS[0], "out": out, **options}, figures=False, progress=False
        ).curves

    first = run(domains="LM")
    assert counted == [2]
    run()
    assert sum(counted) < 5 + 2
    assert run(seed=1)["rmsle"].size == sum(counted)
    kept = sorted((out / "cache").iterdir())
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])  # as a full disk would leave them
    pd.testing.assert_frame_equal(without_time(run(domains="LM")), without_time(first), check_exact=True)
    assert counted == [2]
    run(domains="LM", fresh=True)
    assert counted == [2]
    narrow = hybrid.get_prior("m1").replace(sigma={"loc": -6.0})
    run(domains="LM", methods=[("least_squares", narrow)])
    assert counted == [2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "99")
        run(domains="LM")
        assert counted == [2]  # another version of Hybrid may forecast otherwise
    with pytest.MonkeyPatch.context() as patch:
        for weights, expected in (("one", [2]), ("one", []), ("other", [2])):
            card = SimpleNamespace(content={"weights_sha256": weights})
            patch.setattr(benchmark_methods, "find_card", lambda prior, card=card: card)
            run(domains="LM", methods="pfn:m4")
            assert counted == expected, weights
    data.write_text(
        data.read_text(encoding="utf-8").replace(",context,", ",context,", 1).replace("LM,small", "LM,tiny"), encoding="utf-8"
    )
    assert list(run(domains="LM")["curve"]) == ["tiny", "large"]
    assert counted == []  # the same points under another name


def test_processes_give_the_same_figures(data: Path) -> None:
    one, two = (hybrid.benchmark(data, METHODS, workers=n, progress=False) for n in (1, 2))
    pd.testing.assert_frame_equal(without_time(one.curves), without_time(two.curves), check_exact=False, rtol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs the extra [cluster]")
@pytest.mark.filterwarnings("default")  # Dask's own
def test_a_dask_cluster_gives_the_same_figures(data: Path) -> None:
    import distributed

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        found = hybrid.benchmark(data, METHODS, dask=cluster.scheduler_address, progress=False)
    here = hybrid.benchmark(data, METHODS, progress=False)
    pd.testing.assert_frame_equal(without_time(found.curves), without_time(here.curves), check_exact=False, rtol=1e-6)


def test_a_missing_dask_says_what_to_install(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install .*distributed"):
        hybrid.benchmark(data, METHODS[0], dask="tcp://localhost:1", progress=False)


def test_command_prints_and_writes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    result = call("--data", data, "--method", METHODS[0], "--method", METHODS[1], "--out", out)
    assert result.exit_code == 0, result.output
    for text in (
        "IC: 3 curves",
        "LM: 2 curves",
        "RMSLE",
        "MSCE pooled",
        "in 90 %",
        "ms per curve",
        f"wrote {out / 'table.csv'}",
    ):
        assert text in result.stdout
    assert len(pd.read_csv(out / "table.csv")) == 4
    assert len(pd.read_csv(out / "curves.csv")) == 10
    images = sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))
    sheets = [f"sheets/{d}-least_squares_{m}-1.png" for d in ("IC", "LM") for m in ("m1", "m2")]
    assert images == sorted(["calibration.png", "cost.png", *sheets])
    assert all((out / image).read_bytes().startswith(PNG) for image in images)


def test_short_form_and_examples() -> None:
    result = call("--prior", "m1", "--engine", "least_squares")
    assert result.exit_code == 0, result.output
    assert f"examples: {len(hybrid.examples())} curves" in result.stdout
    assert "least_squares:m1" in result.stdout
    assert "*" not in result.stdout  # one method is not the best of anything


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "m1"], ["ENGINE:PRIOR", "m1"]),
        (["--method", "magic:m1"], ["no engine called 'magic'", "least_squares"]),
        (["--method", "least_squares:m9"], ["m9"]),
        (["--method", "nuts:bnsl_auto"], ["least_squares:bnsl_auto"]),
        (["--method", "nuts:nslpfn"], ["nslpfn"]),
        (["--method", "least_squares:m1", "--method", "least_squares:m1"], ["twice"]),
        (["--method", "least_squares:m1", "--prior", "m1"], ["--method", "not both"]),
        (["--method", "least_squares:nowhere.json"], ["nowhere.json"]),
        (["--prior", "m1", "--engine", "least_squares", "--domain", "XX"], ["no curve of domain 'XX'", "IC, LM"]),
        (["--prior", "m1", "--engine", "least_squares", "--workers", "2", "--dask", "tcp://localhost:1"], ["not both"]),
    ],
)
def test_bad_arguments_give_one_line(data: Path, arguments: list[str], words: list[str]) -> None:
    check_refused(call("--data", data, *arguments), *words)


def check_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("curve,x,y,split\na,1,1,context\n", ["no column 'domain'", "domain, curve, x, y, split"]),
        ("domain,curve,x,y\nd,a,1,1\n", ["no column 'split'"]),
        (f"{HEADER}\n" + "\n".join(rows_of("d", "a", 6, 0, targets=0)), ["curve 'a' of 'd'", "split=target"]),
        (
            f"{HEADER}\n" + "\n".join(rows_of("d", "a", 6, 0)).replace("context", "train", 1),
            ["'train'", "'context' or 'target'"],
        ),
        (f"{HEADER}\n" + "\n".join(rows_of("d", "a", 5, 0)), ["d/a", "3 or more distinct x"]),
    ],
)
def test_bad_files_give_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    check_refused(call("--data", path, "--method", "least_squares:m1"), str(path), *words)


def test_missing_files_and_folders(data: Path, tmp_path: Path) -> None:
    quick = ["--method", "least_squares:m1"]
    check_refused(call("--data", tmp_path / "none.csv", *quick), "there is no file")
    check_refused(call("--data", data, "--data", data, *quick), "given twice")
    check_refused(call("--data", data, "--out", data, *quick), f"cannot write {data}")
    check_refused(call("--nslpfn-data", tmp_path, *quick), "there is no file", "benchmark.vision.csv")


def make_folder(folder: Path) -> Path:
    """A folder as that of NSL-PFN's repository, with few curves."""
    columns = "Domain,Task,Model,Training,Seen Examples,Loss"
    x = [10.0, 20.0, 40.0, 80.0, 160.0]
    for file, keys in (
        ("vision", [("IC", "bird_5", "ViT/S/16")]),
        (
            "lang",
            [("NMT", "upstream", "6 Enc, 6 Dec"), ("LM", "upstream", "1.07e+09"), ("BB", "('qa', '1-shot')", "2.62e+08 Param")],
        ),
    ):
        rows = [
            f'{domain},"{task}","{model}",{int(i < 4)},{x[i]},{x[i] ** -0.3}'
            for domain, task, model in keys
            for i in (1, 0, 2, 4, 3)
        ]
        (folder / f"benchmark.{file}.csv").write_text("\n".join([columns, *rows]), encoding="utf-8")
    losses = np.linspace(3.0, 2.0, 7) * np.array([[1.0], [1.1]])
    np.save(folder / "min_val_loss_over_n_embd.npy", losses)
    np.save(folder / "final_val_loss_over_n_embd.npy", losses[:1])
    np.savez(folder / "colpret.npz", **{"pythia-70m": np.array([np.arange(1.0, 10.0), np.linspace(4, 3, 9)])})
    grid = np.arange(1, 8)
    (folder / "dd_data.pkl").write_bytes(
        pickle.dumps([("dd-b", "width", "error", grid, 1.0 / grid), ("dd-a", "width", "error", list(range(1, 8)), [0.5] * 7)])
    )
    return folder


def test_the_data_folder_of_nslpfn(tmp_path: Path) -> None:
    found = {(p.domain, p.name): p for p in nslpfn_data.read_nslpfn(make_folder(tmp_path))}
    names = [
        "IC bird_5/ViT/S/16",
        "NLP BB/('qa', '1-shot')",
        "NLP LM/1.07e+09",
        "NLP NMT/6 Enc, 6 Dec",
        "Nano minval_hyp0",
        "Nano minval_hyp1",
    ]
    names += ["Nano finalval_hyp0", "ColPret pythia-70m", "DD dd-a", "DD dd-b"]
    assert [" ".join(key) for key in found] == names
    vision = found["IC", "bird_5/ViT/S/16"]
    assert_allclose(vision.x, [10, 20, 40, 80])
    assert_allclose(vision.x_target, [160])
    assert_allclose(vision.y_target, 160**-0.3)
    assert_allclose(found["Nano", "minval_hyp1"].x_target, [384])
    assert_allclose(found["Nano", "minval_hyp1"].y_target, [2.2])
    assert found["ColPret", "pythia-70m"].x.size == 5  # half of 9 points, rounded up
    assert (found["DD", "dd-b"].x.size, found["DD", "dd-b"].x_target.size) == (4, 3)
    result = call("--nslpfn-data", tmp_path, "--method", "least_squares:m1", "--domain", "Nano", "--domain", "NLP")
    assert result.exit_code == 0, result.output
    assert "Nano: 3 curves, 2 groups, 3 held-out points" in result.stdout
    (tmp_path / "dd_data.pkl").unlink()
    assert len(nslpfn_data.read_nslpfn(tmp_path, ["Nano"])) == 3
    with pytest.raises(FileFormatError, match=r"dd_data.pkl.*choose the domains"):
        nslpfn_data.read_nslpfn(tmp_path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    strange = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    made = {"a": [strange, ("t", 1, 2.5, None, True)], "s": {1, 2}, "n": np.float64(0.1), "text": np.array(["x", "yz"])}
    made["mixed"] = np.array([1, 2.5], dtype=object)
    path.write_bytes(pickle.dumps(made, protocol))
    found = nslpfn_data.read_arrays_pickle(path)
    assert_allclose(found["a"][0], strange)
    assert found["a"][1] == ("t", 1, 2.5, None, True)
    assert (found["s"], found["n"], found["text"].tolist()) == ({1, 2}, 0.1, ["x", "yz"])
    assert_allclose(found["mixed"].astype(float), [1, 2.5])


class _Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickles_that_call_are_refused_before_they_do(tmp_path: Path, protocol: int) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pkl"
    evils = [
        _Evil(os.system, f"touch {mark}"),
        _Evil(eval, f"open({str(mark)!r}, 'w')"),
        _Evil(np.load, "x.npy"),
        _Evil(getattr, 1, "real"),
    ]
    for evil in [*evils, np.array([evils[0]], dtype=object), [{"x": evils[1]}], hybrid.Curve([1, 2, 3], [1, 2, 3])]:
        path.write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(FileFormatError, match="only NumPy arrays and plain containers"):
            nslpfn_data.read_arrays_pickle(path)
    assert not mark.exists()


def test_damaged_pickles_and_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    content = pickle.dumps([np.arange(100.0)])
    for damaged in (b"", b"text", content[:-20], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="get it from its source again"):
            nslpfn_data.read_arrays_pickle(path)
    path.write_bytes(pickle.dumps(np.empty(2, dtype=[("a", "f8")])))
    with pytest.raises(FileFormatError, match="asks for an array of dtype"):
        nslpfn_data.read_arrays_pickle(path)
    folder = make_folder(tmp_path)
    np.save(folder / "min_val_loss_over_n_embd.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(FileFormatError, match="min_val_loss"):
        nslpfn_data.read_nslpfn(folder, ["Nano"])
    (folder / "dd_data.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(FileFormatError, match=r"dd_data.pkl must hold"):
        nslpfn_data.read_nslpfn(folder, ["DD"])


def test_python_refuses_what_is_no_method() -> None:
    for methods in ([], [3], [("pfn",)], [("least_squares", 3)]):
        with pytest.raises(InvalidArgumentError):
            hybrid.benchmark(methods=methods, progress=False)  # type: ignore[arg-type]


def test_the_error_of_pooled_calibration_weighs_curves_by_their_points() -> None:
    """Of two groups one is a single point: what is drawn of both is as good as the other alone, in 3 of 4 replicates."""
    levels = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    rows = [
        {"method": "m", "domain": "LM", "group": group, "curve": group, "status": "ok", "points": points}
        | dict.fromkeys(MEANS, 0.1)
        | {f"coverage_{q:g}": covered * q for q in levels}
        for group, points, covered in (("a", 1, 0.0), ("b", 10**6, 1.0))
    ]
    (row,) = summarise(pd.DataFrame(rows)).to_dict("records")
    worst = np.mean(np.square(levels))
    assert row["msce_pooled"] == pytest.approx(0.0, abs=1e-6)
    assert row["msce_pooled_se"] == pytest.approx(worst * np.sqrt(2 * 3 / 16), rel=0.05)


@pytest.mark.parametrize(("method", "published"), [("pfn:nslpfn", True), ("pfn:m4", False)])
def test_fits_are_about_the_last_target_on_the_scale_of_their_prior(data: Path, method: str, published: bool) -> None:
    cases = [case for case in read_cases(data) if case.name in ("bird/ViT-1", "small")]
    for fit, case in zip(as_method(method).fit(cases, 0), cases, strict=True):
        assert fit.horizon == case.horizon == case.curve.x_target[-1]
        largest = float(case.curve.y.max())
        assert case.unit == (1.0 if case.domain == "IC" else largest)
        assert fit.y_scale == (case.unit if published else largest)

"""What happens to a user's files, plots and long runs at the edges: nothing is lost, and what is wrong is said."""

import contextlib
import itertools
import json
import os
import signal
import stat
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner

import hybrid
from hybrid import benchmarking, spreading
from hybrid.benchmark_plots import plot_calibration, plot_cost, plot_sheet
from hybrid.cli import main
from hybrid.diagnostics import simulate as simulating
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
from hybrid.models.files import check_writable, replacing
from hybrid.models.parallel import run_tasks
from hybrid.plotting import as_label

mpl.use("agg")
X = np.geomspace(1e6, 1e8, 8)
CURVE = hybrid.Curve(X, 2.0 * (X / 1e6) ** -0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(8)))


def test_a_choice_that_needs_review_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="needs review - Outside what the network was trained on: the horizon"):
        hybrid.next_points(CURVE, [1e9, 1e13], prior="nsl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hybrid.next_points(CURVE, [2e8, 1e9], prior="nsl")


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("cost in US$ and $", r"cost in US\$ and \$"),
        ("$ 5 to $ 9", r"\$ 5 to \$ 9"),
        (r"$10^{21}$ at 5\$ or $x$", r"$10^{21}$ at 5\$ or $x$"),
        ("d$^$e", r"d\$^\$e"),
    ],
)
def test_dollars_of_prices_are_dollars(label: str, shown: str) -> None:
    assert as_label(label) == shown


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> hybrid.Benchmark:
    """Curves with a domain that looks like a formula, in units far from 1, over less than a decade."""
    folder = tmp_path_factory.mktemp("odd")
    curves = {"wide": (np.geomspace(1e9, 1e14, 10), 5.0), "narrow": (np.geomspace(1.1e9, 1.9e9, 10), 3e12)}
    lines = ["domain,curve,x,y,split"]
    for name, (x, level) in curves.items():
        y = level * (x / x[0]) ** -0.1
        lines += [f"d$^$e,{name},{a},{b},{'context' if i < 7 else 'target'}" for i, (a, b) in enumerate(zip(x, y, strict=True))]
    (folder / "curves.csv").write_text("\n".join(lines), encoding="utf-8")
    return hybrid.benchmark(folder / "curves.csv", ["pfn:nsl"], progress=False)


def test_figures_of_a_benchmark_take_any_name(odd: hybrid.Benchmark, tmp_path: Path) -> None:
    for figure in (plot_calibration(odd.table), plot_cost(odd.table)):
        figure.savefig(tmp_path / "figure.png")
        assert r"d\$^\$e" in figure.axes[0].get_title(loc="left")


def test_axes_of_sheets_are_readable(odd: hybrid.Benchmark) -> None:
    """Few ticks that do not cover one another, and no factor hidden in a corner."""
    records = odd.records["pfn:nsl"]
    figure = plot_sheet(odd.cases, records, "odd")
    figure.draw_without_rendering()
    for ax in figure.axes[:2]:
        assert ax.yaxis.get_offset_text().get_text() == ""
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        inside = sorted((box.x0, box.x1) for box in boxes if ax.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= ax.bbox.x1 + 1)
        assert len(inside) >= 2
        assert all(one[1] < other[0] for one, other in itertools.pairwise(inside))
    narrow = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("narrow"))
    assert all("e+12" in label.get_text() for label in narrow.get_yticklabels())


@pytest.mark.parametrize("y", [3e12, 4e-40, 1.234567])
def test_y_is_read_off_a_plot_whole(y: float) -> None:
    """Every tick's label is the number at which it stands."""
    values = y * (1.0 + 1e-5 * np.arange(8)[::-1])
    ax = hybrid.fit(hybrid.Curve(X, values), "m2", "least_squares").plot()
    ax.get_figure().draw_without_rendering()
    assert ax.yaxis.get_offset_text().get_text() == ""
    labels = [label.get_text() for label in ax.get_yticklabels()]
    np.testing.assert_allclose([float(label) for label in labels], ax.get_yticks(), rtol=1e-6)
    assert len(set(labels)) == len(labels)


def dying(number: int) -> int:
    """End the process at one of the calls, as the kernel does where memory runs out."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_ends_early_is_said_and_the_next_run_works() -> None:
    with pytest.raises(EngineUnavailableError, match=r"a process that worked on a part has ended.*take fewer workers"):
        list(run_tasks(dying, [(number,) for number in range(4)], workers=2))
    assert sorted(run_tasks(dying, [(0,), (2,)], workers=2)) == [(0, 0), (1, 2)]


def slow(number: int) -> int:
    """Take a while."""
    time.sleep(0.5)
    return number


def test_a_cluster_that_is_lost_is_said() -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    results = spreading.spread(slow, [(number,) for number in range(40)], dask=cluster.scheduler_address)
    assert next(iter(results))[0] in range(40)
    cluster.close()
    with pytest.raises(EngineUnavailableError, match=r"the cluster at .* was lost"):
        list(results)


def test_a_cluster_without_workers_is_said_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(spreading, "CONNECT_SECONDS", 2)
    options = {"n_workers": 0, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:

        def start(message: str, **_: int) -> None:
            said.append(message)
            cluster.scale(1)

        said: list[str] = []
        monkeypatch.setattr(warnings, "warn", start)
        results = spreading.spread(slow, [(3,)], dask=cluster.scheduler_address)
        assert list(results) == [(0, 3)]
    (message,) = said
    assert "has no workers as yet" in message
    assert f"`dask worker {cluster.scheduler_address} --nthreads 1`" in message


def flipped(content: bytes) -> list[bytes]:
    """A file with single bytes changed in its headers, where they say how it is to be read."""
    places = range(0, len(content), max(1, len(content) // 150))
    return [content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :] for at in places for mask in (0x01, 0x80, 0xFF)]


def test_a_damaged_forecast_is_made_anew(tmp_path: Path) -> None:
    lines = [
        "domain,curve,x,y,split",
        *(f"d,c,{x},{y},context" for x, y in zip(CURVE.x, CURVE.y, strict=True)),
        "d,c,2e8,.7,target",
    ]
    (tmp_path / "curves.csv").write_text("\n".join(lines), encoding="utf-8")

    def made() -> float:
        found = hybrid.benchmark(
            tmp_path / "curves.csv", ["least_squares:m2"], out=tmp_path / "out", progress=False, figures=False
        )
        return float(found.table["rmsle"].iloc[0])

    right = made()
    (kept,) = (tmp_path / "out" / "cache").iterdir()
    content = kept.read_bytes()
    method = benchmarking.as_method("least_squares:m2")
    (case,) = benchmarking.collect_cases(tmp_path / "curves.csv", None, ())
    cache = benchmarking._Cache(kept.parent, 0)
    assert cache.read(method, case) is not None
    for damaged in flipped(content):
        kept.write_bytes(damaged)
        cache.read(method, case)  # whole or None, and no error
    kept.write_bytes(content[:-30])
    assert cache.read(method, case) is None
    assert made() == right


def test_damaged_draws_are_refused(tmp_path: Path) -> None:
    path, names = tmp_path / "draws.npz", ["a", "sigma"]
    whole = {name: np.ones((3, 5)) for name in names} | {"status": np.array(["ok"] * 3), "ess": np.ones(3)}
    simulating._write(path, "key", whole)
    assert set(simulating._read(path, "key", names)) == set(whole)
    content = path.read_bytes()
    for damaged in flipped(content):
        path.write_bytes(damaged)
        with contextlib.suppress(FileFormatError):  # refused, or whole
            assert set(simulating._read(path, "key", names)) == set(whole)
    simulating._write(path, "key", {name: value for name, value in whole.items() if name != "ess"})
    with pytest.raises(FileFormatError, match="it lacks a part"):
        simulating._read(path, "key", names)


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def test_files_are_written_where_links_point_with_the_permissions_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real.nc", tmp_path / "link.nc"
    write(real, "before")
    usual = stat.S_IMODE(real.stat().st_mode)
    assert usual & stat.S_IRUSR
    link.symlink_to(real)
    real.chmod(0o600)
    write(link, "after")
    assert link.is_symlink()
    assert real.read_text() == "after"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    real.chmod(0o444)
    with pytest.raises(InvalidArgumentError, match="write-protected"):
        check_writable(link)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["real.nc"]


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.txt"
    check_writable(path)
    write(path, "text")
    assert path.read_text() == "text"


def test_weights_are_not_what_exact_draws_are_calibrated_with() -> None:
    with pytest.raises(InvalidArgumentError, match="leave checkpoint out"):
        hybrid.calibrate("m2", "nuts", 16, checkpoint="absent.json")


def csv(path: Path, x: np.ndarray) -> str:
    path.write_text("x,y\n" + "\n".join(f"{a},{b}" for a, b in zip(x, CURVE.y, strict=True)), encoding="utf-8")
    return str(path)


def test_the_default_horizon_stays_within_what_can_be_computed(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["fit", csv(tmp_path / "far.csv", np.geomspace(1e97, 5e99, 8)), "--engine", "pfn"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(main, ["fit", csv(tmp_path / "near.csv", X), "--engine", "pfn", "--at", "1e300"])
    assert run.exit_code == 2
    assert "--at 1e+300 is beyond 1e+100" in run.output


@pytest.mark.parametrize(
    ("content", "words"),
    [("[" * 100_000, "not JSON"), ("[1, 2]", "not a description of a"), ("{", "not JSON")],
    ids=["deep", "list", "cut short"],
)
@pytest.mark.parametrize("option", ["--prior", "--design"])
def test_json_that_is_no_prior_or_design_is_named(tmp_path: Path, content: str, words: str, option: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content, encoding="utf-8")
    other: list[Any] = [] if option == "--prior" else ["--prior", "m1"]
    run = CliRunner().invoke(main, ["train", option, str(path), *other, "--out", str(tmp_path / "out")])
    assert run.exit_code == 2, run.output
    assert words in run.output
    assert str(path) in run.output


def test_json_of_other_editors_is_read(tmp_path: Path) -> None:
    path, prior = tmp_path / "mine.json", hybrid.get_prior("m2").replace(name="mine", sigma={"loc": -6.0})
    path.write_text(prior.to_json(), encoding="utf-8-sig")
    run = CliRunner().invoke(main, ["fit", csv(tmp_path / "c.csv", X), "--prior", str(path), "--engine", "least_squares"])
    assert run.exit_code == 0, run.output
    assert json.loads(prior.to_json())["name"] in run.output

"""Curves and the files they come from: what is accepted, and that bad input raises documented errors only."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hybrid
from hybrid import Curve, FileFormatError, HybridError, InvalidArgumentError, InvalidCurveError, UnknownNameError
from hybrid.cli import main

X, Y = [1e18, 1e19, 1e20, 1e21], [3.1, 2.6, 2.3, 2.1]

scalars = st.one_of(
    st.floats(),
    st.integers(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.binary(max_size=2),
    st.dates(),
)
dtypes = st.sampled_from(["float16", "float32", "int8", "uint64", "bool", "complex128", "U3", "M8[s]", "m8[s]", "O"])
anything = st.one_of(
    scalars,
    st.lists(scalars, max_size=6),
    st.lists(st.floats(min_value=1e-5, max_value=1e5), min_size=2, max_size=6),
    st.lists(st.lists(scalars, max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=1), scalars, max_size=2),
    st.sets(st.integers(), max_size=3),
    st.tuples(dtypes, st.integers(0, 5)).map(lambda pair: np.zeros(pair[1], dtype=pair[0])),
    st.builds(lambda values: np.ma.masked_less(np.asarray(values, dtype=float), 0), st.lists(st.floats(-1, 9), max_size=5)),
)


@given(anything, anything, anything, anything, st.one_of(st.text(max_size=2), st.none(), st.integers()))
@settings(max_examples=400, deadline=None)
def test_any_input_gives_a_curve_or_a_hybrid_error(x: Any, y: Any, x_target: Any, y_target: Any, label: Any) -> None:
    with contextlib.suppress(HybridError):
        curve = Curve(x, y, x_label=label, x_target=x_target, y_target=y_target)
        assert np.all(np.diff(curve.x) >= 0)
        assert np.all(np.isfinite(curve.y) & (curve.y > 0))
        assert np.unique(curve.x).size >= 3


@given(st.lists(st.tuples(st.floats(1e-90, 1e90), st.floats(1e-90, 1e90)), min_size=3, unique_by=lambda p: p[0]))
def test_points_are_sorted_and_kept(points: list[tuple[float, float]]) -> None:
    x, y = zip(*points, strict=True)
    curve = Curve(x, y)
    assert list(zip(curve.x, curve.y, strict=True)) == sorted(points)


@pytest.mark.parametrize(
    "kind",
    [list, tuple, np.array, np.ma.array, pd.Series, xr.DataArray, lambda values: pd.array(values, dtype="Float64")],
)
def test_accepted_kinds(kind: Any) -> None:
    assert Curve(kind(X), kind(Y)) == Curve(X, Y)


def test_integers_and_no_shared_memory() -> None:
    x = np.array([1, 2, 4])
    curve = Curve(x, [3, 2, 1])
    x[0] = 9
    assert curve.x.dtype == float
    assert curve.x[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        curve.x[0] = 2


def test_replicates_and_duplicate_rows_are_kept() -> None:
    curve = Curve([4, 1, 2, 2, 1], [1, 5, 3, 2, 5])
    assert curve.x.tolist() == [1, 1, 2, 2, 4]
    assert curve.y.tolist() == [5, 5, 3, 2, 1]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2], "x has 3 values but y has 2"),
        ([1, 2, np.nan], [1, 2, 3], r"x\[2\] = nan.*finite"),
        ([0, 1, 2], [1, 2, 3], r"x\[0\] = 0.*above 0"),
        ([1, 2, 3], [1, -2, 3], r"y\[1\] = -2.*accuracy"),
        ([1, 2, 3], [1, np.inf, 3], r"y\[1\] = inf"),
        ([1, 2, 1e300], [1, 2, 3], r"change the units"),
        ([1, 2, 2], [1, 2, 3], "3 or more distinct x"),
        ([[1, 2, 3]], [1, 2, 3], r"one-dimensional, got shape \(1, 3\)"),
        (["1", "2", "3"], [1, 2, 3], "real numbers, got dtype"),
        ([1, None, 3], [1, 2, 3], r"x\[1\] = None"),
        ([True, False, True], [1, 2, 3], "dtype bool"),
        ([1, 2 + 1j, 3], [1, 2, 3], "dtype complex"),
        (np.array([], dtype=complex), [1, 2, 3], "dtype complex"),
        ("123", [1, 2, 3], "got str"),
        (np.ma.masked_equal([1, 2, 3], 2), [1, 2, 3], "masked"),
        (pd.array([1, None, 3], dtype="Int64"), [1, 2, 3], r"x\[1\] = (<NA>|nan)"),
        ([[1], [1, 2]], [1, 2, 3], "cannot be read"),
        ([10**400, 1, 2], [1, 2, 3], "cannot be converted|cannot be read"),
    ],
)
def test_messages_name_the_entry(x: Any, y: Any, message: str) -> None:
    with pytest.raises(InvalidCurveError, match=message):
        Curve(x, y)


def test_targets_come_in_pairs() -> None:
    with pytest.raises(InvalidCurveError, match="both"):
        Curve(X, Y, x_target=[1e22])
    assert Curve(X, Y, x_target=[], y_target=[]).x_target is None


def test_hold_out() -> None:
    curve = Curve(X, Y, name="a").hold_out(1)
    assert curve == Curve(X[:3], Y[:3], x_target=X[3:], y_target=Y[3:], name="a")
    assert curve.hold_out(0) == curve
    assert pickle.loads(pickle.dumps(curve)) == curve
    assert "1 held out" in repr(curve)
    with pytest.raises(InvalidCurveError, match="distinct"):
        curve.hold_out(1)
    for bad in (-1, 9, 1.5, True, "1"):
        with pytest.raises(InvalidArgumentError):
            curve.hold_out(bad)  # type: ignore[arg-type]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "curves.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffflops, loss \n1e19,2.6\n1e18,3.1\n\n1e20,2.3\n1e21,2.1\n")
    assert hybrid.read_csv(path, x="flops", y="loss") == Curve(X, Y, x_label="flops", y_label="loss")
    assert hybrid.read_csv(str(path), x="flops", y="loss").x.size == 4


def test_read_csv_with_split_and_several_curves(tmp_path: Path) -> None:
    rows = [f"{d},{c},{x},{2 / x},{s},FLOPs,loss" for d in "ab" for c in "cd" for x, s in SPLIT]
    path = write(tmp_path, "domain,curve,x,y,split,x_label,y_label\n" + "\n".join(rows))
    curves = hybrid.read_curves(path)
    assert list(curves) == ["a/c", "a/d", "b/c", "b/d"]
    assert curves["a/c"] == hybrid.read_csv(path, curve="a/c")
    assert curves["a/c"].x_target.tolist() == [8]
    assert curves["a/c"].x_label == "FLOPs"
    for name, message in ((None, "choose one with curve"), ("c", "several"), ("z", "no curve 'z'")):
        with pytest.raises(InvalidCurveError, match=message):
            hybrid.read_csv(path, curve=name)


SPLIT = [(1, "context"), (2, "context"), (4, "context"), (8, "target")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", FileFormatError, "no rows"),
        ("x,y\n", FileFormatError, "no rows"),
        ("x,z\n1,2\n", FileFormatError, "no column 'y'; it has x, z"),
        ("x;y\n1;2\n", FileFormatError, "separated by commas"),
        ("x,x,y\n1,2,3\n", FileFormatError, "twice"),
        ("x,y\n1,2,3\n", FileFormatError, "line 2: 3 cells"),
        ("x,y\n1,3\n2,two\n3,1\n", InvalidCurveError, "line 3: y = 'two'"),
        ("x,y\n1,3\n2,\n3,1\n", InvalidCurveError, "line 3: y = ''"),
        ("x,y\n1,3\n2,nan\n3,1\n", InvalidCurveError, "line 3: y = nan: every value must be finite"),
        ("x,y\n1,3\n0,2\n3,1\n", InvalidCurveError, "line 3: x = 0: a scale"),
        ("x,y,split\n1,3,context\n\n2,-2,target\n", InvalidCurveError, "line 4: y = -2: a loss or error must be above 0"),
        ("y,x\n1e-200,3\n", InvalidCurveError, "line 2: y = 1e-200: values must lie between"),
        ("x,y,split\n1,3,train\n", InvalidCurveError, "line 2: split = 'train'"),
        ("x,y\n1,3\n2,2\n", InvalidCurveError, "distinct"),
        (b"\x89HDF\r\n\x1a\n\x00\x00\xff", FileFormatError, "UTF-8"),
        ("x,y\n1,ä\n".encode("latin-1"), FileFormatError, "UTF-8"),
        ('x,y\n1,"3\n', FileFormatError, "CSV"),
    ],
)
def test_bad_files(tmp_path: Path, text: str | bytes, error: type[HybridError], message: str) -> None:
    with pytest.raises(error, match=message):
        hybrid.read_csv(write(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no file"):
        hybrid.read_csv(tmp_path / "none.csv")
    with pytest.raises(FileFormatError):
        hybrid.read_csv(tmp_path)
    with pytest.raises(FileFormatError):
        hybrid.read_curves("a\0b")
    with pytest.raises(FileFormatError, match="no column 'curve'"):
        hybrid.read_csv(write(tmp_path, "x,y\n1,2\n"), curve="a")


cells = st.one_of(st.floats().map(repr), st.text(max_size=3), st.sampled_from(["context", "target", "x", "y", "curve"]))
tables = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map(
    lambda rows: "\n".join(["x,y", *rows]).encode(errors="replace")
)


@given(st.one_of(st.binary(max_size=60), tables))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_a_curve_or_a_hybrid_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with contextlib.suppress(HybridError):
        hybrid.read_csv(path)
    with contextlib.suppress(HybridError):
        hybrid.read_curves(path)


def test_examples() -> None:
    table = hybrid.examples()
    assert 10 <= len(table) <= 12
    assert (table[["citation", "licence", "source", "shape"]] != "").to_numpy().all()
    for name in table.index:
        curve = hybrid.load_example(name, holdout=2)
        assert curve.x.size + curve.x_target.size == table.loc[name, "points"]
        assert curve.name == name
    assert hybrid.load_example("cerebras_gpt_pile").y[-1] == 1.572
    with pytest.raises(UnknownNameError, match="cerebras_gpt_pile"):
        hybrid.load_example("nothing")


def test_two_curves_of_one_name_are_not_merged(tmp_path: Path) -> None:
    rows = [f"{domain},{curve},{x},{1 / x}" for domain, curve in (("a/b", "c"), ("a", "b/c")) for x in (1, 2, 4)]
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(["domain,curve,x,y", *rows]), encoding="utf-8")
    with pytest.raises(InvalidCurveError, match=r"both be called 'a/b/c' \(line 5\)"):
        hybrid.read_curves(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y\n1e18,5,00189\n3e18,4,5\n1e19,4,1\n", "line 2: 3 cells, but the header has 2; .*decimals with points"),
        ("# my runs\nx,y\n1,2\n2,1.5\n3,1.2\n", "the first line must be the header: leave the comment out"),
        ("x,y\n1,2\n2\n3,1.2\n", "line 3: 1 cells, but the header has 2$"),
    ],
)
def test_rows_that_do_not_fit_the_header_say_why(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=words):
        hybrid.read_csv(write(tmp_path, text))


def test_series_of_different_index_are_not_paired_by_position() -> None:
    table = pd.DataFrame({"x": X, "y": Y})
    with pytest.raises(InvalidCurveError, match=r"x and y are Series of different index: align them, or pass x\.to_numpy\(\)"):
        Curve(table["x"], table["y"].sort_values())
    assert Curve(table["x"], table["y"]) == Curve(X, Y)
    assert Curve(table["x"].to_numpy(), table["y"].sort_values()).y[0] == min(Y)


def test_a_row_without_the_name_of_its_curve_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "curve,x,y\nA,1,4\nA,2,3\nA,4,2.5\n,8,2.2\n,16,2.1\n,32,2.0\n")
    for read in (hybrid.read_curves, hybrid.read_csv):
        with pytest.raises(InvalidCurveError, match="line 5 does not name its curve: repeat the name in every row"):
            read(path)


def test_what_a_spreadsheet_leaves_behind_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="2 columns without a name: remove them"):
        hybrid.read_csv(write(tmp_path, "x,y,,\n1,4,,\n2,3,,\n4,2.5,,\n"))
    with pytest.raises(FileFormatError, match="line 2: 3 cells, but the header has 2; remove the comma at its end"):
        hybrid.read_csv(write(tmp_path, "x,y\n1,4,\n2,3,\n4,2.5,\n"))
    with pytest.raises(InvalidCurveError, match=r"x = '1,000' is not a number, such as 1500 or 1\.5e3"):
        hybrid.read_csv(write(tmp_path, 'x,y\n"1,000",4\n2000,3\n4000,2.5\n'))
    indexed = write(tmp_path, ",x,y\n0,1,4\n1,2,3\n2,4,2.5\n")  # what pandas writes
    assert hybrid.read_csv(indexed).x.tolist() == [1, 2, 4]


def test_rows_that_were_written_twice_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "curve,x,y\nA,1,4\nA,1,4\nA,2,3\nA,4,2.5\nB,1,4\nB,2,3\nB,2,3.1\nB,4,2.5\n")
    with pytest.warns(
        UserWarning, match=r"1 row \(of A\) repeats the x and y of another exactly.*remove what was written twice"
    ):
        curves = hybrid.read_curves(path)
    assert curves["A"].x.size == 4
    assert hybrid.read_csv(path, curve="B").x.size == 4  # replicates that differ are nothing to tell
    result = CliRunner().invoke(main, ["fit", str(path), "--curve", "A", "--prior", "m1", "--engine", "least_squares"])
    assert result.exit_code == 0
    assert f"Warning: {path}: 1 row (of A) repeats the x and y of another exactly" in result.stderr


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda curve: pickle.loads(pickle.dumps(curve))])
def test_copies_cannot_be_written_to_either(copied: Callable[[Curve], Curve]) -> None:
    curve = Curve([1.0, 2.0, 4.0], [3.0, 2.0, 1.5], x_target=[8.0], y_target=[1.2])
    found = copied(curve)
    assert found == curve
    for name in ("x", "y", "x_target", "y_target"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(found, name)[0] = 9.0

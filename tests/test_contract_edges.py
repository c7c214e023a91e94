"""What the contract promises to the letter: copies, numbers in whatever wrapping, equal priors, one line for each error."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import hybrid
from hybrid.cli import main
from hybrid.models.registry import PRIORS

CURVE = hybrid.load_example("cerebras_gpt_pile")


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior.name)
def test_priors_are_copied_and_pickled(prior: Any) -> None:
    for other in (pickle.loads(pickle.dumps(prior)), copy.deepcopy(prior)):
        assert other == prior
        assert other.fingerprint == prior.fingerprint


@pytest.mark.parametrize("wrap", [np.array, xr.DataArray, np.float32], ids=["array", "xarray", "float32"])
def test_horizons_and_scales_may_be_arrays_without_a_dimension(wrap: Any) -> None:
    fit = hybrid.fit(CURVE, "m4", "pfn", horizon=wrap(2.0**76), y_scale=wrap(2.0))
    assert (fit.horizon, fit.y_scale) == (2.0**76, 2.0)


def test_many_horizons_may_be_an_xarray() -> None:
    horizons = [2.0**75, 2.0**76]
    fits = hybrid.fit_many([CURVE, CURVE], "m4", "pfn", horizon=xr.DataArray(horizons))
    assert [fit.horizon for fit in fits] == horizons
    with pytest.raises(hybrid.InvalidArgumentError, match="y_scale must be a positive number") as caught:
        hybrid.fit(CURVE, "m4", "pfn", y_scale=np.eye(2)[:1])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_minus_nought_is_nought() -> None:
    one, other = (hybrid.Distribution("Normal", loc=loc, scale=1.0) for loc in (0.0, -0.0))
    assert one == other
    shared = hybrid.get_prior("m1")
    priors = [shared.replace(y_first={"loc": loc}) for loc in (0.0, -0.0)]
    assert priors[0] == priors[1]
    assert priors[0].fingerprint == priors[1].fingerprint
    assert hash(priors[0]) == hash(priors[1])


def test_numbers_that_overflow_are_infinite_without_a_word() -> None:
    """Warnings are errors here."""
    wide = hybrid.Curve([1.0, 2.0, 3.0, 4.0], [1e100, 1e10, 1.0, 1e-100])
    for engine in ("pfn", "least_squares"):
        fit = hybrid.fit(wide, "m4", engine)
        assert fit.sample([2.0, 30.0], 5).shape == (5, 2)
        assert np.all(fit.predict([2.0, 30.0])["mean"] > 0)
    far = hybrid.fit(hybrid.Curve(CURVE.x * 1e25, CURVE.y * 1e-30), "m4", "pfn")
    assert "y_first" in far.summary().index


def test_wrong_kinds_are_named() -> None:
    with pytest.raises(hybrid.InvalidCurveError, match="fit_many takes a list or mapping of curves, got NoneType"):
        hybrid.fit_many(None)  # type: ignore[arg-type]
    with pytest.raises(hybrid.UnknownNameError, match="no example called"):
        hybrid.load_example(["a"])  # type: ignore[arg-type]
    with pytest.raises(hybrid.InvalidArgumentError, match=r"it has .*workers"):
        hybrid.fit(CURVE, "m4", "nuts", foo=1)
    for candidates in (["1e22"], [True]):
        with pytest.raises(hybrid.InvalidArgumentError, match="candidates"):
            hybrid.next_points(CURVE, candidates)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "runs.csv", "--at", "abc"], "'abc' is not a valid float"),
        (["train"], "Missing option '--prior'"),
        (["fit", "--prior"], "Option '--prior' requires an argument"),
        (["magic"], "No such command 'magic'"),
        (["--magic"], "No such option"),
    ],
)
def test_wrong_options_give_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [])
    assert "Commands:" in result.output
    assert "benchmark" in result.output

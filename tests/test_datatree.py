"""The DataTree: ArviZ runs on it as it is, and it survives the way to a file and back."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz_plots
import arviz_stats
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats
from synthetic import SPREAD, TRUTH, Y_SCALE, X, make_curve, make_fit, make_result

import hybrid
from hybrid import FileFormatError, Fit, InvalidArgumentError
from hybrid.models.engine import EngineResult
from hybrid.models.law import Law
from hybrid.models.prior import Parameter, Prior
from hybrid.models.registry import get_prior

mpl.use("Agg")


@pytest.fixture(scope="module")
def fit() -> Fit:
    return make_fit()


def test_groups_and_attributes(fit: Fit) -> None:
    tree = fit.data
    assert list(tree.children) == [
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "log_likelihood",
        "log_prior",
        "observed_data",
        "constant_data",
    ]
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "point")
    assert tree["posterior_predictive"]["y"].shape == (4, 250, 12)
    assert set(TRUTH) | {"epsilon_inf", "epsilon_0", "beta", "c"} == set(tree["posterior"].data_vars)
    assert set(tree["log_prior"].data_vars) == set(TRUTH)
    assert_allclose(tree["observed_data"]["y"], fit.curve.y)
    assert_allclose(tree["constant_data"]["x"], X)
    assert_allclose(tree["constant_data"]["y_target"], fit.curve.y_target)
    assert tree.attrs["fingerprint"] == fit.prior.fingerprint
    assert json.loads(tree.attrs["versions"]) == {"numpy": np.__version__}
    assert tree.attrs["horizon"] == 1e23
    assert tree.attrs["engine"] == "nuts"


def test_log_likelihood_is_in_the_users_units(fit: Fit) -> None:
    frame = fit.frame
    theta = {name: value[1, 7] for name, value in fit.result.draws.items()}
    mean = fit.prior.mean(theta, frame.x_to(X), frame) * Y_SCALE
    expected = stats.lognorm.logpdf(fit.curve.y, theta["sigma"], scale=mean)
    assert_allclose(fit.data["log_likelihood"]["y"].to_numpy()[1, 7], expected, rtol=1e-10)
    average = np.log(np.mean(np.exp(fit.data["log_likelihood"]["y"]), axis=(0, 1)))
    assert_allclose(fit.log_density(X, fit.curve.y), average, rtol=1e-10)


def test_log_prior_agrees_with_scipy_in_both_backends(fit: Fit) -> None:
    other = make_fit(engine="pfn").data["log_prior"]
    for name in TRUTH:
        assert_allclose(other[name], fit.data["log_prior"][name], rtol=1e-10, atol=1e-12)
    sigma = fit.prior.parameters[-1].distribution
    expected = stats.lognorm.logpdf(fit.result.draws["sigma"], sigma["scale"], scale=np.exp(sigma["loc"]))
    assert_allclose(fit.data["log_prior"]["sigma"], expected, rtol=1e-10)


def test_textbook_parameters_solve_the_law_in_the_users_units(fit: Fit) -> None:
    p = {name: value.to_numpy()[0, :3, None] for name, value in fit.data["posterior"].data_vars.items()}
    y = Y_SCALE * fit.prior.mean({k: p[k][:, 0] for k in TRUTH}, fit.frame.x_to(X), fit.frame)
    left = np.log(y - p["epsilon_inf"]) - p["alpha"] * np.log(p["epsilon_0"] - y)
    assert_allclose(left, np.log(p["beta"]) - p["c"] * np.log(X), rtol=1e-8)


CALLS: list[Callable[[xr.DataTree], Any]] = [
    arviz_stats.summary,
    arviz_stats.loo,
    arviz_stats.ess,
    arviz_stats.rhat,
    arviz_stats.mcse,
    arviz_stats.hdi,
    arviz_stats.psense,
    arviz_stats.psense_summary,
    arviz_stats.loo_pit,
    arviz_plots.plot_trace,
    arviz_plots.plot_rank,
    arviz_plots.plot_forest,
    arviz_plots.plot_ppc_dist,
    arviz_plots.plot_energy,
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_arviz_runs_without_changes(fit: Fit, call: Callable[[xr.DataTree], Any]) -> None:
    assert call(fit.data) is not None
    plt.close("all")


def test_loo_is_trustworthy_on_good_draws(fit: Fit) -> None:
    assert not arviz_stats.loo(fit.data).warning


def test_summary(fit: Fit) -> None:
    table = fit.summary()
    assert list(table.columns[:5]) == ["mean", "sd", "q5", "q50", "q95"]
    assert table.loc["sigma", "r_hat"] == pytest.approx(1, abs=0.02)
    assert table.loc["y_ratio", "sd"] == pytest.approx(SPREAD["y_ratio"], rel=0.1)
    assert table.loc["c", "ess_bulk"] > 500
    draws = fit.data["posterior"]["alpha"]
    np.testing.assert_allclose(table.loc["alpha", ["q5", "q50", "q95"]].astype(float), np.quantile(draws, [0.05, 0.5, 0.95]))
    point = make_fit(result=make_result(1, 1), engine="least_squares").summary()
    assert list(point.columns) == ["value"]
    assert point.loc["y_first", "value"] == make_result(1, 1).draws["y_first"].item()


@pytest.mark.parametrize("targets", [True, False])
def test_a_saved_fit_is_read_back_equal(tmp_path: Path, targets: bool) -> None:
    fit = make_fit(curve=make_curve(targets))
    path = tmp_path / "fit.nc"
    fit.save(path)
    read = hybrid.load_fit(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]
    assert read == fit
    assert read.data.identical(fit.data)
    assert read.curve == fit.curve
    assert read.prior == fit.prior
    assert (read.engine, read.horizon, read.y_scale, read.seed) == (fit.engine, fit.horizon, fit.y_scale, fit.seed)
    assert read.info == fit.info
    assert read.verdict == fit.verdict
    assert read.result.sample_stats["diverging"].dtype == bool
    assert read.predict([1e20, 1e23]).identical(fit.predict([1e20, 1e23]))
    assert read.sample([1e23]).identical(fit.sample([1e23]))
    read.save(path)
    assert hybrid.load_fit(path) == fit


def test_status_and_odd_labels_survive(tmp_path: Path) -> None:
    result = EngineResult(make_result(2, 5).draws, {}, "needs_review", ("Chains disagree: use more.", "Δ"), {"n": np.int64(3)})
    curve = hybrid.Curve(X, make_curve().y, x_label="", y_label="Größe\n(µ)")
    fit = make_fit(result=result, curve=curve)
    fit.save(tmp_path / "fit.nc")
    read = hybrid.load_fit(tmp_path / "fit.nc")
    assert read.status == "needs_review"
    assert read.reasons == result.reasons
    assert read.curve == curve
    assert "sample_stats" not in read.data.children


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "fit.nc"
    make_fit().save(path)
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        make_fit(curve=hybrid.Curve(X, make_curve().y, x_label="a\0b")).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        make_fit().save(tmp_path / "no folder" / "fit.nc")


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "fit.nc"
    make_fit().save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a file of this kind", whole[: len(whole) // 2], whole[:100] + bytes(400) + whole[500:]):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"fit\.save"):
            hybrid.load_fit(path)
    xr.Dataset({"a": ("b", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(FileFormatError, match=r"not a fit.*fit.save"):
        hybrid.load_fit(path)
    tree = make_fit().data.copy()
    del tree["posterior"]["alpha"]
    tree.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(FileFormatError, match="alpha"):
        hybrid.load_fit(path)
    tree = make_fit().data.copy()
    tree.attrs["fingerprint"] = "0" * 16
    tree.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(FileFormatError, match="another prior"):
        hybrid.load_fit(path)
    with pytest.raises(FileFormatError, match="no file"):
        hybrid.load_fit(tmp_path / "none.nc")
    with pytest.raises(FileFormatError):
        hybrid.load_fit(tmp_path)


class Exponential(Law):
    """A user's own law."""

    name = "exponential"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        del frame
        return theta["level"] * xp.exp(-x)


def test_a_users_own_law_is_passed_to_load_fit(tmp_path: Path) -> None:
    m4 = get_prior("m4").parameters
    prior = Prior("mine", Exponential(), (Parameter("level", m4[0].distribution), m4[-1]))
    draws = {name: make_result().draws[other] for name, other in (("level", "y_first"), ("sigma", "sigma"))}
    fit = make_fit(prior=prior, result=EngineResult(draws))
    fit.save(tmp_path / "fit.nc")
    assert hybrid.load_fit(tmp_path / "fit.nc", law=Exponential()) == fit
    with pytest.raises(FileFormatError, match="law="):
        hybrid.load_fit(tmp_path / "fit.nc")


def test_replicates_follow_the_seed_of_the_fit() -> None:
    one, same, other = (make_fit(seed=seed).data["posterior_predictive"]["y"].to_numpy() for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.any(one == other)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning", "ignore::RuntimeWarning")
def test_a_point_that_the_draws_cannot_leave_out_has_an_infinite_k_hat() -> None:
    """Of weights that are all but 0 beside the largest ArviZ's own k-hat is small."""
    curve = make_curve()
    y = curve.y.copy()
    y[3] *= 5.0
    with pytest.warns(UserWarning, match=f"at x = .*{curve.x[3]:.6g}".replace("+", "[+]")):
        found = hybrid.loo(make_fit(curve=dataclasses.replace(curve, y=y)))
    assert found["k_hat"].iloc[3] == np.inf
    assert found["elpd"].iloc[3] == found["elpd"].min() < -100.0  # by the one draw that comes nearest to it: no hole in the sum
    assert found["pit"].iloc[3] == pytest.approx(1.0)

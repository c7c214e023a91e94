"""The amortized engine as users meet it, on the weights that ship."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from synthetic import power_law_curve

import hybrid
from hybrid.amortized import engine, predictive
from hybrid.amortized.bar_distribution import BarDistribution
from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.coordinates import to_value
from hybrid.amortized.design import Design
from hybrid.amortized.predictive import Contexts
from hybrid.amortized.sampler import sample_curves
from hybrid.amortized.threads import one_thread
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
from hybrid.models.registry import get_prior
from hybrid.result import Fit

SHIPPED = ("m4", "bnsl", "nsl", "nslpfn", "lcpfn")
FLOWS = ("m4", "bnsl")


STEP = hybrid.Curve(np.geomspace(1, 100, 60), np.where(np.arange(60) < 30, 0.1, 1.0))  # no law of m4 rises


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    return {name: hybrid.fit(power_law_curve(), name, "pfn", horizon=500.0, y_scale=1.0) for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_simple_curve_is_forecast(name: str, fits: dict[str, Fit]) -> None:
    x = np.array([120.0, 200.0, 400.0])
    forecast = fits[name].predict(x)
    truth = 0.3 + 0.6 * x**-0.4
    assert fits[name].status == "ok", fits[name].reasons
    # The noise of the published priors is several times that of this curve, and none of their families is this law.
    np.testing.assert_allclose(forecast["median"], truth, rtol=0.05 if name in ("nslpfn", "lcpfn") else 0.04)
    assert np.all(forecast["quantiles"].sel(quantile=0.05) < truth)
    assert np.all(forecast["quantiles"].sel(quantile=0.95) > truth)


@pytest.mark.parametrize("name", SHIPPED)
def test_density_cdf_and_quantiles_are_one_distribution(name: str, fits: dict[str, Fit]) -> None:
    fit, x = fits[name], 300.0
    levels = [0.02, 0.3, 0.5, 0.8, 0.99]
    quantiles = fit.predict(x, levels)["quantiles"].to_numpy()[:, 0]
    at = np.full(len(levels), x)
    np.testing.assert_allclose(fit.prob_below(at, quantiles), levels, atol=1e-6)
    low, high = fit.predict(x, [1e-7, 1 - 1e-7])["quantiles"].to_numpy()[:, 0]
    grid = np.linspace(low, high, 40_001)
    density = np.exp(fit.log_density(np.full(grid.size, x), grid).to_numpy())
    step = grid[1] - grid[0]
    assert np.sum(density) * step == pytest.approx(1.0, abs=2e-3)
    mean = np.sum(grid * density) * step
    assert float(fit.predict(x)["mean"].item()) == pytest.approx(mean, rel=1e-3)
    assert float(fit.predict(x)["sd"].item()) == pytest.approx(np.sqrt(np.sum((grid - mean) ** 2 * density) * step), rel=0.03)


@pytest.mark.parametrize("name", SHIPPED)
def test_units_do_not_matter(name: str, fits: dict[str, Fit]) -> None:
    other = hybrid.fit(power_law_curve(scale=7.0, unit=1e9), name, "pfn", horizon=500e9, y_scale=7.0)
    x = np.array([50.0, 300.0])
    np.testing.assert_allclose(other.predict(x * 1e9)["quantiles"], 7.0 * fits[name].predict(x)["quantiles"], rtol=1e-5)
    y = np.array([0.4, 0.36])
    expected = fits[name].log_density(x, y).to_numpy() - np.log(7.0)
    np.testing.assert_allclose(other.log_density(x * 1e9, 7.0 * y), expected, atol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_batch_of_different_lengths_equals_one_by_one(name: str) -> None:
    curves = [power_law_curve(n, seed=n) for n in (4, 30, 200)]
    for curve, fit in zip(curves, hybrid.fit_many(curves, name, "pfn"), strict=True):
        alone = hybrid.fit(curve, name, "pfn")
        np.testing.assert_allclose(
            fit.predict([150.0, 900.0])["quantiles"], alone.predict([150.0, 900.0])["quantiles"], rtol=1e-5
        )
        assert fit.reasons == alone.reasons


def test_no_forecast_depends_on_the_others_asked_for(fits: dict[str, Fit]) -> None:
    together = fits["m4"].predict([20.0, 150.0, 400.0])["quantiles"]
    np.testing.assert_allclose(together.sel(x=[150.0]), fits["m4"].predict(150.0)["quantiles"], rtol=1e-5)


def test_forecasts_are_of_the_positions_asked_for_last_and_the_users_to_change(fits: dict[str, Fit]) -> None:
    near, far = (fits["m4"].predict(x).copy(deep=True) for x in (120.0, 400.0))
    again = fits["m4"].predict(120.0)
    xr.testing.assert_identical(again, near)
    for name in ("mean", "sd"):
        assert not np.allclose(near[name], far[name])
        again[name][:] = 0.0
    xr.testing.assert_identical(fits["m4"].predict(120.0), near)


@pytest.mark.parametrize("name", FLOWS)
def test_tree_of_a_prior_with_parameters(name: str, fits: dict[str, Fit]) -> None:
    tree = fits[name].data
    names = {p.name for p in get_prior(name).parameters}
    assert names <= set(tree["posterior"].data_vars)
    assert tree["posterior"].sizes == {"chain": 1, "draw": 2000}
    assert tree["log_likelihood"]["y"].shape == (1, 2000, 12) == tree["posterior_predictive"]["y"].shape
    assert set(tree["log_prior"].data_vars) == names
    assert np.all(np.isfinite(tree["sample_stats"]["log_q"]))
    inside = tree["posterior_predictive"]["y"].mean(("chain", "draw"))
    np.testing.assert_allclose(inside, tree["observed_data"]["y"], rtol=0.05)


def test_moved_draws_are_of_the_same_posterior(fits: dict[str, Fit], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "m4"
    assert fits[name].pareto_k < 0.7  # so that the resampled draws are right
    monkeypatch.setattr(engine, "UNEVEN", -1.0)  # weights are never even enough
    monkeypatch.setattr(engine, "PROPOSALS", (1,))  # so that a third of those chosen are copies before they are moved
    moved = hybrid.fit(power_law_curve(), name, "pfn", horizon=500.0, y_scale=1.0)
    one, other = (fit.data["posterior"].dataset for fit in (fits[name], moved))
    for parameter in get_prior(name).parameters:
        a, b = one[parameter.name].to_numpy()[0], other[parameter.name].to_numpy()[0]
        assert len(np.unique(b)) > 1900
        assert stats.ks_2samp(a, b).statistic < 0.08
    stats_of = moved.data["sample_stats"]
    assert np.all(np.isfinite(stats_of["lp"]))
    log_ratio = (stats_of["lp"] - stats_of["log_q"]).to_numpy()[0]
    assert np.median(log_ratio) == pytest.approx(np.median(fits[name].data["sample_stats"]["log_ratio"]), abs=1.0)


@pytest.mark.parametrize("name", FLOWS)
def test_joint_log_density_of_the_draws(name: str, fits: dict[str, Fit]) -> None:
    """lp = log prior + log likelihood + log-Jacobian: their difference must be a function of the parameters alone."""
    tree = fits[name].data
    density = sum(tree["log_prior"][v] for v in tree["log_prior"].data_vars) + tree["log_likelihood"]["y"].sum("point")
    jacobian = (tree["sample_stats"]["lp"] - density).to_numpy().ravel()
    expected = np.zeros_like(jacobian)
    for p in get_prior(name).parameters:
        value = tree["posterior"][p.name].to_numpy().ravel()
        if p.distribution.family in ("Uniform", "Beta"):
            expected += np.log(value) + np.log1p(-value)
        elif p.distribution.family == "LogNormal":
            expected += np.log(value)
    ordinary = np.isfinite(expected) & (np.abs(expected) < 50)
    np.testing.assert_allclose(jacobian[ordinary], expected[ordinary], atol=1e-3)
    assert np.isfinite(fits[name].pareto_k)


@pytest.mark.parametrize(("name", "columns"), [("nsl", ["family", "breaks"]), ("nslpfn", ["family"])])
def test_classes_of_a_mixture(name: str, columns: list[str], fits: dict[str, Fit]) -> None:
    table = fits[name].summary()
    assert list(table.index.names) == columns
    assert table["probability"].sum() == pytest.approx(1.0)
    families = table["probability"].groupby(level="family").sum()
    assert families.loc[[0, 1]].sum() > 0.7  # it falls
    assert "log_likelihood" not in fits[name].data.children
    assert fits[name].data["posterior_predictive"]["y"].shape == (1, 2000, 12)
    assert np.isnan(fits[name].pareto_k)


@pytest.mark.parametrize("name", ["m4", "nsl"])
def test_joint_curves_have_the_marginals_of_the_forecast(name: str, fits: dict[str, Fit]) -> None:
    fit, x = fits[name], np.array([400.0, 30.0, 110.0])
    draws = fit.sample(x, 400, seed=3)
    assert draws.dims == ("draw", "x")
    for i, at in enumerate(x):
        pit = fit.prob_below(np.full(400, at), draws.to_numpy()[:, i])
        assert stats.kstest(pit, "uniform").pvalue > 1e-3
    xr.testing.assert_identical(draws, fit.sample(x, 400, seed=3))
    assert not np.array_equal(draws, fit.sample(x, 400, seed=4))


def test_joint_curves_hang_together() -> None:
    """Where the law is uncertain and the noise small, neighbours far out move together, as draws of the parameters do."""
    rng = np.random.default_rng(1)
    x = np.geomspace(1.0, 30.0, 8)
    curve = hybrid.Curve(x, (0.3 + 0.6 * x**-0.4) * np.exp(0.002 * rng.standard_normal(8)))
    fit = hybrid.fit(curve, "m4", "pfn", horizon=3000.0, y_scale=1.0)
    y = fit.sample([1000.0, 1500.0], 300, seed=0).to_numpy()
    assert np.corrcoef(np.log(y).T)[0, 1] > 0.7


@pytest.mark.parametrize("name", ["m4", "nsl"])
def test_each_position_is_drawn_given_all_before_it(name: str) -> None:
    """Neighbours far out move together, also where a nearer position is drawn first, which tells little of them."""
    y = hybrid.fit(power_law_curve(6), name, "pfn", progress=False).sample([110.0, 900.0, 990.0], 500, progress=False)
    assert stats.spearmanr(y[:, 1], y[:, 2]).statistic > 0.6


def test_more_positions_than_are_drawn_in_turn(fits: dict[str, Fit]) -> None:
    draws = fits["m4"].sample(np.geomspace(1.0, 400.0, 25), 30)
    assert draws.shape == (30, 25)
    assert bool((draws > 0).all())


@pytest.mark.parametrize("name", ["m4", "nsl"])
def test_saved_fits_forecast_again(name: str, fits: dict[str, Fit], tmp_path: Path) -> None:
    fits[name].save(tmp_path / "fit.nc")
    again = hybrid.load_fit(tmp_path / "fit.nc")
    assert again == fits[name]
    np.testing.assert_allclose(again.predict(300.0)["quantiles"], fits[name].predict(300.0)["quantiles"], rtol=1e-5)
    assert "draws" not in again.verdict
    assert again.verdict == fits[name].verdict


def test_a_saved_fit_whose_weights_are_gone(fits: dict[str, Fit], tmp_path: Path) -> None:
    fits["m4"].save(tmp_path / "fit.nc")
    again = hybrid.load_fit(tmp_path / "fit.nc")
    again.result.info["weights_sha256"] = "0" * 64  # type: ignore[index]
    assert again.data["posterior"].sizes["draw"] == 2000
    with pytest.raises(EngineUnavailableError, match="weights for 'm4' that are not here"):
        again.predict(300.0)


@pytest.mark.parametrize("damage", ["no weights", "another card", "nothing"])
def test_a_saved_fit_finds_the_same_weights_elsewhere(damage: str, fits: dict[str, Fit], tmp_path: Path) -> None:
    """Those of the copy that made it are gone, the same ones ship."""
    shipped = find_card(get_prior("m4")).path
    for suffix in (".json", ".safetensors"):
        shutil.copy(shipped.with_suffix(suffix), tmp_path / f"copy{suffix}")
    fit = hybrid.fit(fits["m4"].curve, "m4", "pfn", checkpoint=tmp_path / "copy.json")
    fit.save(tmp_path / "fit.nc")
    if damage == "another card":
        (tmp_path / "copy.json").write_text("{}", encoding="utf-8")
    else:
        (tmp_path / "copy.safetensors").unlink()
        if damage == "nothing":
            (tmp_path / "copy.json").unlink()
    again = hybrid.load_fit(tmp_path / "fit.nc").predict(300.0)
    np.testing.assert_allclose(again["quantiles"], fit.predict(300.0)["quantiles"], rtol=1e-5)


@pytest.mark.parametrize(
    ("curve", "options", "said"),
    [
        (power_law_curve(600), {}, "number of points"),
        (power_law_curve(), {"horizon": 1e6}, "horizon"),
        (hybrid.Curve([1.0, 1.001, 1.002, 1.003], [1.0, 0.99, 0.98, 0.985]), {}, "width"),
        (STEP, {"y_scale": 1.0}, "residuals follow one another"),
        (power_law_curve(), {"y_scale": 1e-4}, "level"),
    ],
)
def test_contexts_outside_the_training_are_said_to_be(curve: hybrid.Curve, options: dict[str, float], said: str) -> None:
    fit = hybrid.fit(curve, "m4", "pfn", **options)  # type: ignore[arg-type]
    assert fit.status == "needs_review"
    assert said in fit.reasons[0]
    assert re.search(r"hybrid[ .]train\b", fit.reasons[0])
    assert np.all(np.isfinite(fit.predict(fit.horizon)["quantiles"]))


def test_auto_takes_the_amortized_engine_and_falls_back_to_the_exact_one() -> None:
    usual, unusual = hybrid.fit_many([power_law_curve(5), STEP], "m4", "auto", y_scale=1.0, progress=False)
    assert usual.engine == "pfn"
    assert unusual.engine == "nuts"
    assert "auto" not in usual.info
    assert "taken by 'auto', as the network has reasons against it" in unusual.verdict
    assert unusual.info["network_reasons"] == list(hybrid.fit(STEP, "m4", "pfn", y_scale=1.0).reasons)
    without = hybrid.fit(power_law_curve(), "m2", "auto", progress=False)
    assert without.engine == "nuts"
    assert "taken by 'auto', as there is no network for this prior" in without.verdict
    with pytest.raises(InvalidArgumentError, match="no option 'draws'"):
        hybrid.fit(power_law_curve(), "m4", "auto", draws=5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"device": "abacus"}, InvalidArgumentError, "device"),
        ({"device": 3.5}, InvalidArgumentError, "device"),
        ({"draws": 0}, InvalidArgumentError, "draws"),
        ({"draws": True}, InvalidArgumentError, "draws"),
        ({"tempo": 3}, InvalidArgumentError, "no option 'tempo'"),
        ({"checkpoint": "nowhere.json"}, FileFormatError, "nowhere.json"),
        ({"checkpoint": 5}, InvalidArgumentError, "checkpoint"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        hybrid.fit(power_law_curve(), "m4", "pfn", **options)  # type: ignore[arg-type]


def test_a_changed_prior_needs_its_own_weights() -> None:
    narrow = get_prior("m4").replace(sigma={"loc": -6.0})
    with pytest.raises(EngineUnavailableError, match=r"fingerprint.*hybrid\.train\(prior\).*engine='nuts'"):
        hybrid.fit(power_law_curve(), narrow, "pfn")


def test_seeds_and_number_of_draws() -> None:
    first, same = (hybrid.fit(power_law_curve(), "m4", "pfn", seed=5, draws=50) for _ in range(2))
    other = hybrid.fit(power_law_curve(), "m4", "pfn", seed=6, draws=50)
    assert first == same
    assert first.data["posterior"].sizes["draw"] == 50
    assert not np.array_equal(first.data["posterior"]["alpha"], other.data["posterior"]["alpha"])


def test_each_curve_has_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(engine, "_draw_posterior", lambda *arguments: seeds.append(arguments[-1]) or 1 / 0)
    for fit in hybrid.fit_many([power_law_curve(seed=k) for k in (0, 1, 0)], "m4", "pfn", progress=False):
        with pytest.raises(ZeroDivisionError):
            fit.result.draws["sigma"]
    assert seeds[0] == seeds[2] != seeds[1]


def test_draws_do_not_depend_on_the_place_in_a_batch() -> None:
    curves = [power_law_curve(), hybrid.Curve(np.geomspace(1, 50, 9), 2.0 * np.geomspace(1, 50, 9) ** -0.3)]
    options = {"engine": "pfn", "draws": 200, "progress": False}
    batch = hybrid.fit_many([*curves, curves[0]], "m4", **options)
    alone = [hybrid.fit(curve, "m4", **options) for curve in curves]
    for one, other in ((batch[0], alone[0]), (batch[1], alone[1]), (batch[2], alone[0])):
        np.testing.assert_allclose(one.result.draws["floor"], other.result.draws["floor"], atol=1e-3)
    assert not np.allclose(batch[0].result.draws["floor"], batch[1].result.draws["floor"], atol=1e-3)


def test_duplicate_positions_in_any_order_of_y() -> None:
    x = np.repeat(np.geomspace(1, 100, 6), 3)
    rng = np.random.default_rng(0)
    y = (0.3 + 0.6 * x**-0.4) * np.exp(0.02 * rng.standard_normal(18))
    swapped = y.reshape(6, 3)[:, ::-1].ravel()
    one, two = (hybrid.fit(hybrid.Curve(x, values), "m4", "pfn").predict(300.0)["quantiles"] for values in (y, swapped))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize(("places", "repeats"), [(3, 10), (4, 8)])
def test_repeated_measurements_alone_are_no_reason_for_a_review(places: int, repeats: int) -> None:
    """Sorted by y, repeats would rise at every x and fall from each x to the next: 7 in 10 of these curves were remarked on."""
    x = np.repeat(np.geomspace(1, 100, places), repeats)
    rng = np.random.default_rng(1)
    curves = [hybrid.Curve(x, (0.3 + 0.6 * x**-0.4) * np.exp(0.02 * rng.standard_normal(x.size))) for _ in range(60)]
    reviewed = [fit.status != "ok" for fit in hybrid.fit_many(curves, "m4", "pfn", progress=False)]
    assert np.mean(reviewed) < 0.1


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_card_is_complete(name: str) -> None:
    folder = Path(hybrid.__file__).parent / "amortized" / "weights"
    card = json.loads((folder / f"{name}.json").read_text())
    assert card["fingerprint"] == get_prior(name).fingerprint
    assert card["curves"] == card["steps"] * card["settings"]["batch"]
    assert card["scores"]["calibration"]["command"].startswith("python benchmarks/calibration.py")
    assert (folder / f"{name}.safetensors").stat().st_size < 10e6


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_coverage_on_fresh_curves_of_the_prior(name: str) -> None:
    """4000 curves, one target each: the standard error of a coverage is below .008, and the network may be off by .01.

    Of the last level by .003: tails that are too short are seen there, and hardly before.
    """
    prior = get_prior(name)
    model, card = load_checkpoint(prior)
    design = Design.from_dict(card.content["design"])
    generator = torch.Generator().manual_seed(20)
    found = []
    for _ in range(16):
        curves = sample_curves(prior, 250, design, generator, dtype=torch.float64)
        contexts = Contexts(model, curves.x_context, curves.y_context, curves.mask, curves.frame)
        at = torch.randint(design.targets, (250, 1), generator=generator)
        bars = contexts.bars(curves.x_target.gather(1, at))
        lost = 0.0 if model.logarithmic else bars.cdf(torch.zeros_like(bars.loc))
        v = to_value(curves.y_target.gather(1, at), model.logarithmic)
        found.append(((bars.cdf(v) - lost) / (1.0 - lost))[:, 0])
    pit = torch.cat(found)
    for level in (0.5, 0.8, 0.9, 0.95, 0.998):
        inside = ((pit - 0.5).abs() <= 0.5 * level).double()
        off = 0.003 if level > 0.99 else 0.01
        assert float(inside.mean()) == pytest.approx(level, abs=off + 3 * float(inside.std()) / len(pit) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_both_engines_agree_on_fresh_curves(name: str) -> None:
    """Eight curves, as near as the networks are so far; benchmarks/agreement.py measures many, against the aim of .03."""
    x = np.geomspace(0.02, 1.0, 15)
    y = get_prior(name).sample(8, np.append(x, [2.0, 5.0]), seed=5)["y"].to_numpy()
    curves = [hybrid.Curve(x, row[:15]) for row in y]
    exact = hybrid.fit_many(curves, name, "nuts", y_scale=1.0, progress=False, workers=2)
    quick = hybrid.fit_many(curves, name, "pfn", y_scale=1.0)
    distances, gains = [], []
    for nuts, pfn, row in zip(exact, quick, y, strict=True):
        q = nuts.predict([2.0, 5.0], levels=np.linspace(0.02, 0.98, 25))["quantiles"].transpose("quantile", "x").to_numpy()
        cdf = np.stack([pfn.prob_below([2.0, 5.0], row_q) for row_q in q])
        distances.append(np.median(np.abs(cdf - np.linspace(0.02, 0.98, 25)[:, None])))
        gains.append((nuts.log_density([2.0, 5.0], row[15:]) - pfn.log_density([2.0, 5.0], row[15:])).mean().item())
    assert np.mean(distances) < 0.1
    assert np.median(distances) < 0.06
    assert -0.1 < np.mean(gains) < 0.25


def test_small_batches_run_on_one_thread_and_leave_the_number_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original, before = [], predictive.describe, torch.get_num_threads()

    def describe(*arguments: object) -> object:
        seen.append(torch.get_num_threads())
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predictive, "describe", describe)
    torch.set_num_threads(2)
    try:
        hybrid.fit(power_law_curve(), "m4", "pfn").predict([200.0])
        assert torch.get_num_threads() == 2
        hybrid.fit_many([power_law_curve(seed=k) for k in range(predictive.FEW + 1)], "m4", "pfn")
        assert seen == [1, 2]
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("prior", ["m4", "nslpfn"])
def test_what_is_asked_of_one_fit_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch, prior: str) -> None:
    """On a busy machine two threads wait for one another, and forecasts took three times as long."""
    seen: dict[str, int] = {}
    for name in ("cdf", "icdf", "log_prob"):
        original = getattr(BarDistribution, name)

        def watched(self: BarDistribution, *args: Any, name: str = name, original: Any = original) -> Any:
            seen[name] = max(torch.get_num_threads(), seen.get(name, 0))
            return original(self, *args)

        monkeypatch.setattr(BarDistribution, name, watched)
    fit = hybrid.fit(power_law_curve(), prior, "pfn", horizon=200.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit.predict([150.0])
        fit.prob_below([150.0], [0.5])
        fit.log_density([150.0], [0.5])
        fit.predictive.replicate(np.array([150.0]), 5, 0)
        assert seen == dict.fromkeys(("cdf", "icdf", "log_prob"), 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""The amortized engine where numbers or files run out: negative y, flat curves, missed curves, names that are taken."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import hybrid
from hybrid import choosing
from hybrid.amortized import cards, engine, release
from hybrid.amortized.sampler import sample_curves
from hybrid.amortized.settings import design_for, preset_settings
from hybrid.amortized.training import train
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.prior import AbstractPrior

SIZES = {"layers": 1, "width": 32, "inner": 32, "hidden": 16, "transforms": 1, "bins": 20, "batch": 16}
TINY: dict[str, Any] = {**SIZES, "progress": False, "device": "cpu"}
CURVE = hybrid.Curve([1.0, 3.0, 10.0, 30.0, 100.0], [1.0, 0.6, 0.5, 0.15, 0.2])


def power_law(sign: float = -1.0, noise: str = "lognormal", log_sigma: float = -2.0) -> hybrid.Prior:
    """y = top x^(sign slope): laws that differ in what they compute, not in name or attributes."""

    class Power(hybrid.Law):
        name = "edge"
        formula = "y = top x^-slope"

        def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
            return theta["top"] * xp.exp(sign * theta["slope"] * xp.log(x))

    named = {"top": (-1.0, 0.5), "slope": (-1.0, 0.5), "sigma": (log_sigma, 0.3)}
    parameters = [
        hybrid.Parameter(name, hybrid.Distribution("LogNormal", loc=loc, scale=scale), name)
        for name, (loc, scale) in named.items()
    ]
    return hybrid.Prior("edge", Power(), parameters, noise=noise)


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "EVALUATED", 256)
    monkeypatch.setenv(cards.FOLDER_VARIABLE, str(tmp_path / "user"))


def stopped_after(steps: int) -> Callable[[int, float], None]:
    def stop(step: int, loss: float) -> None:
        if step + 1 == steps:
            raise KeyboardInterrupt

    return stop


def test_observations_may_be_negative_where_the_noise_is_normal(tmp_path: Path) -> None:
    prior = power_law(noise="normal")
    hybrid.train(prior, steps=3, **TINY)
    fit = hybrid.fit(CURVE, prior, "pfn", horizon=1e4, y_scale=1.0)
    x = np.array([300.0, 1e4])
    below = fit.prob_below(x, 0.0).to_numpy()
    assert np.all(below > 1e-4)
    assert np.all(np.isfinite(fit.log_density(x, -0.05)))
    np.testing.assert_allclose(fit.prob_below(x, fit.predict(x, [1e-5])["quantiles"].to_numpy()[0]), 1e-5, rtol=1e-6)
    assert float(fit.predict(x, [1e-5])["quantiles"].max()) < 0.0
    y = fit.sample(x, 400).to_numpy()
    assert np.mean(y < 0.0, axis=0) == pytest.approx(below, abs=0.01)
    grid = np.linspace(-30.0, 30.0, 60_001)
    density = np.exp(fit.log_density(np.full(grid.size, 300.0), grid).to_numpy())
    assert np.sum(density[grid < 0.0]) * (grid[1] - grid[0]) == pytest.approx(below[0], rel=0.05)


def test_a_run_does_not_go_on_with_another_law(tmp_path: Path) -> None:
    fall, rise = power_law(-1.0), power_law(1.0)
    assert fall.fingerprint == rise.fingerprint
    settings = dataclasses.replace(preset_settings("small"), steps=6, **SIZES)
    state = tmp_path / "user" / "edge.training"
    state.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(fall, settings, design_for(fall), state, "cpu", 1, False, on_step=stopped_after(2))
    before = state.read_bytes()
    with pytest.raises(FileFormatError, match=r"a law of the same name that computed something else: delete it"):
        hybrid.train(rise, steps=6, **TINY)
    assert state.read_bytes() == before
    card = hybrid.train(power_law(-1.0), steps=6, **TINY)
    assert card is not None
    assert card.content["steps"] == 6


def test_weights_of_another_prior_are_not_written_over(tmp_path: Path) -> None:
    one, other = (hybrid.get_prior("m1").replace(sigma={"loc": loc}) for loc in (-6.0, -5.0))
    card = hybrid.train(one, steps=1, **TINY)
    assert card is not None
    before = card.weights.read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"holds weights of another prior 'm1'.*replace\(name=\.\.\.\)"):
        hybrid.train(other, steps=1, **TINY)
    assert card.weights.read_bytes() == before
    assert hybrid.fit(CURVE, one, "pfn").engine == "pfn"
    hybrid.train(one, steps=2, **TINY)  # the same again is a better one
    hybrid.train(other.replace(name="other"), steps=1, **TINY)
    assert hybrid.fit(CURVE, other.replace(name="other"), "pfn").engine == "pfn"


def test_a_fit_with_weights_of_its_own_folder_is_loaded_with_them(tmp_path: Path) -> None:
    prior = hybrid.get_prior("m1").replace(sigma={"loc": -6.0})
    card = hybrid.train(prior, out=tmp_path / "elsewhere", steps=1, **TINY)
    assert card is not None
    fit = hybrid.fit(CURVE, prior, "pfn", checkpoint=card.path)
    fit.save(tmp_path / "fit.nc")
    assert hybrid.load_fit(tmp_path / "fit.nc").predict([200.0]).identical(fit.predict([200.0]))


@pytest.mark.parametrize("prior", ["m4", "bnsl"])
def test_draws_that_miss_the_curve_are_not_trusted(prior: str) -> None:
    x = 1e6 * np.exp(np.linspace(0.0, 1e-3, 5))
    fit = hybrid.fit(hybrid.Curve(x, [3.0, 2.9, 2.8, 2.75, 2.7]), prior, "pfn", forecast="draws", draws=200)
    assert fit.pareto_k == np.inf
    assert any("k-hat inf" in reason for reason in fit.reasons)


def test_draws_do_not_depend_on_the_other_curves_of_a_batch() -> None:
    prior, rng = hybrid.get_prior("bnsl"), np.random.default_rng(2)
    curves = []
    for seed, size in enumerate((4, 29, 11, 17)):
        x = np.append(np.sort(10.0 ** rng.uniform(-3.0, 0.0, size)), 1.0)
        curves.append(hybrid.Curve(x, prior.sample(1, x=x, seed=seed)["y"].to_numpy()[0]))
    for together, curve in zip(hybrid.fit_many(curves, prior, "pfn", draws=100), curves, strict=True):
        alone = hybrid.fit(curve, prior, "pfn", draws=100)
        for name, values in alone.result.draws.items():
            np.testing.assert_array_equal(together.result.draws[name], values)


@pytest.mark.parametrize("prior", ["lcpfn", "nslpfn"])
def test_a_horizon_beyond_all_digits_of_linear_coordinates_is_refused(prior: str) -> None:
    curve = hybrid.Curve([1e3, 1e4, 1e5, 1e6], [3.0, 2.0, 1.5, 1.2])
    for horizon in (1e20, 1e24):
        with pytest.raises(InvalidArgumentError, match=r"the horizon 1e\+2[04] lies too far beyond the first context x 1000"):
            hybrid.fit(curve, prior, "pfn", horizon=horizon)
    with pytest.raises(InvalidArgumentError, match="too far beyond"):
        hybrid.fit_many([curve, hybrid.Curve([1.0, 2.0, 4.0, 1e17], [3.0, 2.0, 1.0, 1.0])], prior, "pfn")


@pytest.mark.parametrize("prior", ["m4", "nsl"])
def test_the_sd_of_a_narrow_forecast_is_that_of_its_quantiles(prior: str) -> None:
    fit = hybrid.fit(hybrid.Curve(np.geomspace(1.0, 1e3, 8), np.full(8, 2.0)), prior, "pfn")
    found = fit.predict([1.0, 30.0, 1e3, 1e4], [0.05, 0.95])
    width = found["quantiles"].diff("quantile").to_numpy()[0] / 3.29
    assert np.all(width > 0.0)
    assert np.all(found["sd"].to_numpy() / width > 0.5)


def test_neighbours_with_heavy_tails_are_known_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    t = np.random.default_rng(0).standard_cauchy(1000)
    other = np.random.default_rng(1).normal(size=1000)

    class Heavy:
        status, prior = "ok", hybrid.get_prior("nslpfn")

        def positions(self, x: np.ndarray, name: str) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray, levels: Sequence[float]) -> xr.Dataset:
            sd = np.array([3.0, 2.9, 0.5]) if len(x) == 3 else np.full(len(x), 0.1)
            return xr.Dataset({"quantiles": (("x", "quantile"), sd[:, None] * np.array(levels))})

        def sample(self, x: np.ndarray, draws: int, progress: bool) -> xr.DataArray:
            return xr.DataArray(np.stack([t, np.arctan(t), other], 1))

    def fit(*arguments: Any, **options: Any) -> Heavy:
        return Heavy()

    assert np.corrcoef(t, np.arctan(t))[0, 1] < 0.5
    monkeypatch.setattr(choosing, "fit", fit)
    assert hybrid.next_points(CURVE, [1.0, 2.0, 3.0], 2).tolist() == [1.0, 3.0]


def test_only_plain_normal_noise_admits_negative_observations() -> None:
    prior: AbstractPrior
    for prior in map(hybrid.get_prior, ("m4", "lcpfn", "nslpfn", "nsl")):
        assert release.AmortizedModel(prior, dataclasses.replace(preset_settings("small"), **SIZES)).positive


@pytest.mark.parametrize(
    ("prior", "place"),
    [*((prior, place) for prior in ("m4", "bnsl", "nsl") for place in (300.0, 0.02)), ("nslpfn", 300.0)],
)
def test_a_drawn_point_is_a_point_of_the_context(prior: str, place: float) -> None:
    """Joint curves: after a draw the network is asked as if the point had been observed, in coordinates of its training."""
    rng = np.random.default_rng(2)
    x = np.geomspace(1.0, 100.0, 9)
    curve = hybrid.Curve(x, (0.3 + 0.7 * x**-0.4) * np.exp(0.01 * rng.standard_normal(9)))
    fit = hybrid.fit(curve, prior, "pfn", horizon=1000.0, y_scale=1.0)
    drawn = float(fit.predict(place)["median"][0])
    order = np.argsort(np.append(x, place))
    longer = hybrid.Curve(np.append(x, place)[order], np.append(curve.y, drawn)[order])
    frame, query = fit.frame, np.array([150.0, 500.0, 1000.0])
    at, y = (torch.tensor(v)[None] for v in (frame.x_to(longer.x), longer.y))
    contexts, unit = fit.predictive._extended(at, y)
    bars = contexts.bars(torch.as_tensor(frame.x_to(query))[None] / unit)
    asked = hybrid.fit(longer, prior, "pfn", horizon=1000.0, y_scale=1.0)
    levels = asked.predict(query, levels=(0.1, 0.5, 0.9))["quantiles"].to_numpy()
    v = torch.as_tensor(levels)
    found = bars.cdf(v.log() if contexts.model.logarithmic else v).numpy()
    np.testing.assert_allclose(found, [[0.1] * 3, [0.5] * 3, [0.9] * 3], atol=0.003)


def test_a_network_that_was_hardly_trained_is_said_to_be_so() -> None:
    prior = power_law()
    hybrid.train(prior, steps=3, **TINY)
    fit = hybrid.fit(CURVE, prior, "pfn")
    assert fit.status == "needs_review"
    (reason,) = (reason for reason in fit.reasons if reason.startswith("The network saw 48 curves in training"))
    path = str(cards.user_folder() / "edge.json")
    assert reason.endswith(f"train it on with `hybrid.train(prior, origin={path!r})`.")
    longer = hybrid.train(prior, steps=3, origin=path, **TINY)
    assert longer is not None
    assert longer.curves == 96
    assert not fit.is_trusted
    row = hybrid.health(fit).loc["curves seen in training"]
    assert (row["value"], row["ok"]) == (48.0, False)
    assert hybrid.fit(CURVE, prior, "auto", progress=False).engine == "nuts"


def test_a_saved_fit_forecasts_after_its_weights_were_trained_anew(tmp_path: Path) -> None:
    """They are kept beside the new ones."""
    prior = power_law()
    hybrid.train(prior, steps=3, **TINY)
    fit = hybrid.fit(CURVE, prior, "pfn")
    fit.save(tmp_path / "fit.nc")
    forecast = fit.predict([200.0, 900.0])
    hybrid.train(prior, steps=4, **TINY)
    assert not hybrid.fit(CURVE, prior, "pfn").predict([200.0, 900.0]).identical(forecast)
    assert hybrid.load_fit(tmp_path / "fit.nc", law=prior.law).predict([200.0, 900.0]).identical(forecast)


class Sinking(hybrid.Law):
    """A level less a multiple of log x: below 0, and so no curve, for some parameters."""

    name = "sinking"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["top"] + self.share * theta["slope"] * xp.log(x)

    def __init__(self, share: float) -> None:
        self.share = share


def test_a_law_without_a_curve_is_told_before_training(tmp_path: Path) -> None:
    parameters = power_law().parameters
    with pytest.raises(InvalidArgumentError, match=r"\d+ of 48 curves of prior 'sinking' have points without a value"):
        hybrid.train(hybrid.Prior("sinking", Sinking(-1.0), parameters), steps=3, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_rare_curve_without_a_value_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "TRIED", 0)
    prior = hybrid.Prior("sinking", Sinking(-0.1), power_law().parameters)
    curves = sample_curves(prior, 256, design_for(prior), 0, dtype=torch.float64)
    without = int(curves.y_target.isnan().any(1).sum())
    assert 0 < without < 100
    assert not curves.within_floats(logarithmic=True).y_target.isnan().any()
    card = hybrid.train(prior, steps=3, **TINY)
    assert card is not None
    assert np.isfinite(card.content["scores"]["held_out_loss"]["value"])


def test_draws_far_less_likely_than_a_mode_of_the_law_have_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = hybrid.load_example("cerebras_gpt_pile")
    assert hybrid.fit(curve, "m4", "pfn", draws=200).pareto_k < 0.7
    monkeypatch.setattr(engine, "MISSED", -1e6)  # as if the best of them were that much less likely
    fit = hybrid.fit(curve, "m4", "pfn", draws=200)
    assert fit.pareto_k == np.inf
    assert not fit.is_trusted

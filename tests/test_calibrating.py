"""Simulation-based calibration from end to end: the posterior of a small model passes, spoilt ones are found."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz_plots
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import hybrid
from hybrid import calibrating
from hybrid.amortized import cards
from hybrid.amortized.design import Design
from hybrid.calibrating import JOINT, PREDICTIVE
from hybrid.cli import main
from hybrid.diagnostics import sbc
from hybrid.diagnostics.datatree import write_datatree
from hybrid.diagnostics.simulate import ExactDraws, exact_draws, simulate
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

mpl.use("agg")
SHARED = get_prior("m1")
assert isinstance(SHARED, Prior)
# Few points and much noise: importance sampling from the prior then gives the exact posterior.
VAGUE = SHARED.replace("vague", sigma={"loc": -1.5, "scale": 0.5})
DESIGN = Design(context=(3, 6), targets=8, horizon=(1.2, 20.0))
POOL = 20_000
NAMES = [p.name for p in VAGUE.parameters]
QUANTITIES = [*NAMES, "f_horizon", "log_likelihood"]


def resampled(error: str) -> Any:
    """In place of `exact_draws`: draws by sampling-importance-resampling from the prior, spoilt as asked."""

    def draw(prior: Prior, problems: Sequence[Problem], draws: int, *ignored: Any) -> ExactDraws:
        rng = np.random.default_rng(0)
        pool = {k: v.numpy().astype(float) for k, v in prior.draw_torch(POOL).items()}
        found: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
        for problem in problems:
            level = np.asarray(prior.mean(pool, problem.x, problem.frame))
            log_weight = prior.noise.log_prob(problem.y[:, None], level.T, pool).sum(0)
            weight = np.exp(log_weight - log_weight.max()) * (error != "prior") + (error == "prior")
            index = rng.choice(POOL, draws, p=weight / weight.sum())
            for name in NAMES:
                to, back = (
                    (np.log, np.exp) if name != "y_ratio" else (lambda v: np.log(v / (1 - v)), lambda u: 1 / (1 + np.exp(-u)))
                )
                u = to(pool[name][index])
                if error == "narrow":
                    u = u.mean() + 0.8 * (u - u.mean())
                if error == "shift":
                    u = u + 0.3 * u.std()
                found[name].append(back(u))
        return ExactDraws(
            {name: np.stack(value) for name, value in found.items()},
            np.full(len(problems), "ok"),
            np.full(len(problems), 1000.0),
        )

    return draw


def calibrated(
    monkeypatch: pytest.MonkeyPatch, error: str = "", seed: int = 0, design: Design = DESIGN, prior: Prior = VAGUE
) -> hybrid.Calibration:
    import torch

    torch.manual_seed(5)
    monkeypatch.setattr(sbc, "exact_draws", resampled(error))
    return hybrid.calibrate(prior, "nuts", 256, design, seed, progress=False)


def test_the_right_posterior_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = calibrated(monkeypatch)
    assert list(found.checks) == [*QUANTITIES, PREDICTIVE, JOINT]
    assert found.ok, found.verdict
    assert "of 7 quantities pass at 99% each, and all of them at 99% together" in found.verdict
    table = found.table()
    assert table["ok"].sum() >= 6
    assert float(table.loc["y_first", "contraction"]) > 0.7
    assert float(table.loc["y_first", "recovery"]) > 0.9
    coverage = found.coverage()
    assert coverage.loc["all", "points"] == 256 * 8
    assert abs(coverage.loc["all", "90 %"] - 0.9) < 0.03
    assert coverage["points"].iloc[1:].sum() == 256 * 8
    assert "before" not in coverage.index
    assert found.coverage(0.9)["90 %"].equals(coverage["90 %"])
    with pytest.raises(InvalidArgumentError, match="levels must be above 0 and below 1"):
        found.coverage([0.9, 1.0])
    for figure in (found.plot(), found.plot_coverage(), found.plot_recovery()):
        figure.savefig(tmp_path / "figure.png")
    path = tmp_path / "found.nc"
    found.save(path)
    again = hybrid.load_calibration(path)
    assert again.verdict == found.verdict
    assert again.data.identical(found.data)


def test_numbers_that_stand_for_names_have_no_contraction_or_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(calibrating.NOMINAL) <= {p.name for p in get_prior("nsl").parameters}
    monkeypatch.setattr(calibrating, "NOMINAL", ("y_first",))
    found = calibrated(monkeypatch)
    table = found.table()[["contraction", "recovery"]].astype(float)
    assert table.loc["y_first"].isna().all()
    assert table.loc["y_ratio"].notna().all()
    titles = [ax.get_title(loc="left") for ax in found.plot_recovery().axes]
    assert "y_ratio" in titles
    assert "y_first" not in titles


def test_what_fails_alone_is_told_from_what_the_verdict_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrated(monkeypatch)
    right = found._check
    small = {"y_first": 0.004, "sigma": 1e-6}  # below half of 1 %, and one of them below a seventh of that

    def check(_: Any, level: float) -> dict[str, Any]:
        return {k: v._replace(p=small.get(k, 1.0), excess=0.0) for k, v in right(level).items()}

    monkeypatch.setattr(hybrid.Calibration, "_check", check)
    found = hybrid.Calibration(found.data)
    table = found.table()
    assert list(table.index[~table["ok"]]) == ["y_first", "sigma"]
    assert list(table.index[~table["ok_together"]]) == list(found.failed) == ["sigma"]
    titles = {ax.get_title(loc="left") for ax in found.plot().axes}
    assert {"y_first: fails alone", "sigma: fails", "y_ratio"} <= titles


def test_the_picture_of_recovery_shows_every_truth_and_says_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrated(monkeypatch)
    truth = found.data["truth"]
    assert {name: truth[name].attrs["scale"] for name in ("y_first", "y_ratio", "sigma")} == {
        "y_first": "log",
        "y_ratio": "logit",
        "sigma": "log",
    }
    truth["y_first"][7] = -50.0
    figure = found.plot_recovery()
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    assert panels["y_first"].get_xlim()[0] < -50.0
    assert panels["y_ratio"].get_xlabel() == "logit of the truth"
    assert panels["y_ratio"].get_ylabel() == "posterior mean ± sd"
    assert figure.get_suptitle() == "the first 200 of 256 curves"


def test_points_before_the_context_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage = calibrated(monkeypatch, design=dataclasses.replace(DESIGN, before=0.3)).coverage()
    assert coverage["points"].iloc[1:].sum() == 256 * 8
    assert coverage.loc["before", "points"] / (256 * 8) == pytest.approx(0.3, abs=0.03)
    assert abs(coverage.loc["before", "90 %"] - 0.9) < 0.05


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        # Ranks over the prior alone pass a posterior that equals the prior; what depends on the data does not.
        ("prior", {"y_first", "y_ratio", "f_horizon", "log_likelihood", PREDICTIVE, JOINT}),
        ("narrow", {"y_first"}),
        ("shift", {"y_first", "y_ratio", "sigma"}),
    ],
)
def test_a_wrong_posterior_is_caught(monkeypatch: pytest.MonkeyPatch, error: str, caught: set[str]) -> None:
    found = calibrated(monkeypatch, error)
    assert caught <= set(found.failed), found.verdict
    assert not found.ok
    assert ": miscalibrated: " in found.verdict


def test_ranks_are_read_by_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrated(monkeypatch)
    assert arviz_plots.plot_ecdf_pit(found.data, var_names=["y_first", "sigma"], backend="matplotlib") is not None


@pytest.mark.parametrize(("prior", "engine"), [(VAGUE, "nuts"), ("m4", "pfn")])
def test_what_weighs_by_likelihoods_is_not_asked_about_the_best_so_far(prior: Any, engine: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"engine '{engine}' weighs parameters.*set best_so_far of the design to 0"):
        hybrid.calibrate(prior, engine, 16, dataclasses.replace(DESIGN, best_so_far=0.1), progress=False)


def test_curves_that_did_not_converge_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = resampled("")

    def some_bad(*arguments: Any) -> ExactDraws:
        found = draw(*arguments)
        status = found.status.astype("<U12")
        status[::4] = "needs_review"
        return found._replace(status=status, ess=np.linspace(20, 500, len(status)))

    monkeypatch.setattr(sbc, "exact_draws", some_bad)
    found = hybrid.calibrate(VAGUE, "nuts", 64, DESIGN, progress=False)
    assert found.curves == 48
    assert found.data.attrs["needs_review"] == pytest.approx(0.25)
    assert "25.0 % more left out as needs_review" in found.verdict
    simulated = simulate(VAGUE, 64, DESIGN, 0)
    kept = np.arange(64) % 4 > 0
    last = np.array([problem.y[-1] for problem in simulated.problems])
    np.testing.assert_allclose(found.data["features"]["the last observed y"], last[kept])
    np.testing.assert_allclose(found.data["truth"]["sigma"], np.log(simulated.theta["sigma"][kept]))
    *_, spaced = sbc._exact(VAGUE, simulated, None, 1, False)
    np.testing.assert_array_equal(spaced, np.minimum(np.linspace(20, 500, 64), 200).astype(int))  # as many as are independent


def test_draws_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = simulate(VAGUE, 3, DESIGN, 0).problems
    cache = tmp_path / "draws.npz"
    monkeypatch.setattr("hybrid.diagnostics.simulate.CHUNK", 1)
    whole = exact_draws(VAGUE, problems, 50, progress=False)
    calls = []
    run = __import__("hybrid.models.nuts", fromlist=["run_nuts"]).run_nuts

    def interrupted(prior: Any, part: Any, **options: Any) -> Any:
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(prior, part, **options)

    monkeypatch.setattr("hybrid.models.nuts.run_nuts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exact_draws(VAGUE, problems, 50, cache, progress=False)
    again = exact_draws(VAGUE, problems, 50, cache, progress=False)
    assert len(calls) == 4
    for name in NAMES:
        np.testing.assert_array_equal(again.draws[name], whole.draws[name])
    frame = problems[1].frame
    farther = dataclasses.replace(problems[1], frame=frame._replace(horizon=2.0 * frame.horizon))
    for others in (problems[:2], [problems[0], farther, problems[2]]):  # a law may read the horizon
        with pytest.raises(hybrid.FileFormatError, match="other curves: delete it"):
            exact_draws(VAGUE, others, 50, cache, progress=False)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(hybrid.InvalidArgumentError, match="cannot write"):
        exact_draws(VAGUE, problems, 50, tmp_path / "file" / "draws.npz", progress=False)
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.raises(hybrid.FileFormatError, match="damaged"):
        exact_draws(VAGUE, problems, 50, cache, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"engine": "least_squares"}, hybrid.EngineUnavailableError, "no posterior of its own"),
        ({"engine": "magic"}, hybrid.UnknownNameError, "nuts, pfn"),
        ({"simulations": 3}, hybrid.InvalidArgumentError, "simulations"),
        ({"prior": "nsl", "engine": "nuts", "simulations": 16}, hybrid.EngineUnavailableError, "cannot serve prior 'nsl'"),
        ({"prior": "m9"}, hybrid.UnknownNameError, "m9"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        hybrid.calibrate(**{"progress": False, **arguments})


def test_other_files_are_no_calibrations(tmp_path: Path) -> None:
    with pytest.raises(hybrid.FileFormatError, match="there is no file"):
        hybrid.load_calibration(tmp_path / "none.nc")
    curve = hybrid.Curve([1.0, 2.0, 4.0, 8.0], [1.0, 0.8, 0.7, 0.65])
    fit = hybrid.fit(curve, "m1", "least_squares")
    fit.save(tmp_path / "fit.nc")
    with pytest.raises(hybrid.FileFormatError, match="is not a calibration of this version"):
        hybrid.load_calibration(tmp_path / "fit.nc")


def test_files_that_lack_a_part_of_a_calibration_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree, path = calibrated(monkeypatch).data, tmp_path / "part.nc"
    for name in ("predictive", "tarp", "features"):
        parts = {group: tree[group].to_dataset() for group in tree.children if group != name}
        part = xr.DataTree.from_dict(parts)
        part.attrs = dict(tree.attrs)
        write_datatree(part, path)
        with pytest.raises(hybrid.FileFormatError, match=f"lacks a part of a calibration .*{name}"):
            hybrid.load_calibration(path)
    del tree.attrs["needs_review"]
    write_datatree(tree, path)
    with pytest.raises(hybrid.FileFormatError, match=r"lacks a part of a calibration \(needs_review\): calibrate again"):
        hybrid.load_calibration(path)


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_a_right_posterior_passes_with_few_targets(monkeypatch: pytest.MonkeyPatch, targets: int) -> None:
    found = calibrated(monkeypatch, design=dataclasses.replace(DESIGN, targets=targets))
    assert found.checks[JOINT].ok, found.verdict


def test_a_right_posterior_passes_where_noise_makes_y_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    additive = Prior("additive", VAGUE.law, VAGUE.parameters, "normal")
    assert min(p.y.min() for p in simulate(additive, 256, DESIGN, 0).problems) < 0
    found = calibrated(monkeypatch, prior=additive)
    assert found.ok, found.verdict
    assert all(np.isfinite(feature).all() for feature in found.data["features"].data_vars.values())
    assert not calibrated(monkeypatch, "prior", prior=additive).ok


class Anything:
    """A forecast of no matter what."""

    def cdf(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.full(x.size, 0.5)

    def quantile(self, x: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        return np.ones((len(levels), x.size))


def test_distances_are_ratios_of_x_in_the_units_of_x() -> None:
    """Coordinates of this prior are shifted: their ratios are others."""
    prior = get_prior("nslpfn")
    simulated = simulate(prior, 16, Design(), 0)
    group = sbc._predictive_group(simulated, [Anything()] * 16, np.arange(16), np.random.default_rng(0), False)
    distance, first = group["distance"].to_numpy(), group["first"].to_numpy()
    for i, problem in enumerate(simulated.problems):
        ends = problem.frame.x_from(np.array([problem.frame.first, problem.frame.last]))
        np.testing.assert_allclose(distance[i], problem.frame.x_from(simulated.x_target[i]) / ends[1])
        assert first[i] == pytest.approx(ends[0] / ends[1])
    assert not np.allclose(distance, simulated.x_target / np.array([[p.frame.last] for p in simulated.problems]))


def test_too_few_fits_to_judge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def hardly_any(prior: Prior, problems: Sequence[Problem], *arguments: Any) -> ExactDraws:
        found = resampled("")(prior, problems, *arguments)
        return found._replace(status=np.where(np.arange(len(problems)) < 7, "ok", "needs_review"))

    monkeypatch.setattr(sbc, "exact_draws", hardly_any)
    with pytest.raises(InvalidArgumentError, match="7 of 16 fits do not need review, and 8 are needed"):
        hybrid.calibrate(VAGUE, "nuts", 16, DESIGN, progress=False)


class Logarithmic(hybrid.Law):
    """Linear in log x, and so below 0 far ahead."""

    name = "logarithmic"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["top"] * (1.0 - theta["slope"] * xp.log(x / frame.first))


def test_curves_that_are_not_numbers_are_refused() -> None:
    parameters = [
        hybrid.Parameter("top", hybrid.Distribution("LogNormal", loc=0.0, scale=0.1)),
        hybrid.Parameter("slope", hybrid.Distribution("Uniform", low=0.0, high=0.3)),
        hybrid.Parameter("sigma", hybrid.Distribution("LogNormal", loc=-3.0, scale=0.1)),
    ]
    prior = hybrid.Prior("logarithmic", Logarithmic(), parameters)
    with pytest.raises(InvalidArgumentError, match=r"\d+ of 64 curves of prior 'logarithmic' are not numbers"):
        hybrid.calibrate(prior, "nuts", 64, dataclasses.replace(DESIGN, horizon=(20.0, 300.0)), progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_loses_no_more_than_the_curves_in_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """One curve is sampled at once, or a few for each process; the draws do not depend on how many."""
    problems = simulate(VAGUE, 20, DESIGN, 0).problems
    cache, seen = tmp_path / "draws.npz", []
    monkeypatch.setattr("hybrid.diagnostics.simulate.CHUNK", 10)

    def made_up(prior: Prior, part: Sequence[Problem], seed: int, workers: int) -> list[EngineResult]:
        seen.append((seed, len(part)))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return [
            EngineResult(
                {name: np.full((4, 20), 1.0 + seed + p.y[0]) for name in NAMES}, info={"min_ess_bulk": 9.0, "min_ess_tail": 8.0}
            )
            for p in part
        ]

    monkeypatch.setattr("hybrid.models.nuts.run_nuts", made_up)
    with pytest.raises(KeyboardInterrupt):
        exact_draws(VAGUE, problems, 50, cache, workers, progress=False)
    with np.load(cache) as kept:
        assert len(kept["status"]) == sum(size for _, size in seen[:2]) == {1: 2, 2: 10}[workers]
    found = exact_draws(VAGUE, problems, 50, cache, workers, progress=False)
    expected = [1.0 + 10 * (i // 10) + p.y[0] for i, p in enumerate(problems)]
    np.testing.assert_array_equal(found.draws[NAMES[0]], np.tile(np.array(expected)[:, None], 50))
    assert all(seed % 10 == 0 and size <= 10 for seed, size in seen)


def test_an_interruption_says_where_the_draws_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        arguments[5].write_bytes(b"draws")
        raise KeyboardInterrupt

    monkeypatch.setattr(sbc, "exact_draws", lambda *_: interrupted(*[None] * 5, tmp_path / "page.draws.npz"))
    command = ["calibrate", "--prior", "m1", "--engine", "nuts", "--simulations", "16", "--out", str(tmp_path / "page.html")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert f"the draws so far are in {tmp_path / 'page.draws.npz'}" in result.stderr


def test_a_network_is_calibrated_where_it_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the prior is called; by NUTS positions follow from the law."""
    seen: list[Design] = []

    def run(prior: object, engine: str, count: int, design: Design, *rest: object) -> None:
        seen.append(design)
        raise EngineUnavailableError("enough")

    monkeypatch.setattr("hybrid.diagnostics.sbc.run_sbc", run)
    for prior in (hybrid.get_prior("lcpfn"), hybrid.get_prior("lcpfn").replace(name="mine")):
        with pytest.raises(EngineUnavailableError, match="enough"):
            hybrid.calibrate(prior, "pfn", simulations=16)
    trained = Design.from_dict(json.loads((cards.SHIPPED / "lcpfn.json").read_text(encoding="utf-8"))["design"])
    assert seen == [trained, trained]
    with pytest.raises(EngineUnavailableError, match="enough"):
        hybrid.calibrate("m1", "nuts", simulations=16)
    assert seen[-1] == dataclasses.replace(Design(before=0.1), context=(5, 60))

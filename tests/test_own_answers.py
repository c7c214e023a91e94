"""An amortized fit answers for its own curve, whatever lies beside it, whichever thread asks, and wherever it is called."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hybrid
from hybrid.amortized import engine, posterior
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.engine import run_pfn, stack
from hybrid.amortized.posterior import FlowHead
from hybrid.amortized.predictive import AmortizedPredictive
from hybrid.amortized.settings import design_for
from hybrid.diagnostics.simulate import simulate
from hybrid.models.engine import Problem
from hybrid.models.registry import get_prior

pytestmark = pytest.mark.usefixtures("one_thread")


def curve(points: int, seed: int = 0) -> hybrid.Curve:
    rng = np.random.default_rng(seed)
    x = np.geomspace(1.0, 1000.0, points)
    return hybrid.Curve(x, (0.3 + 0.8 * x**-0.4 / (1.0 + x / 60.0) ** 0.3) * np.exp(0.02 * rng.standard_normal(points)))


@pytest.mark.parametrize("prior", ["bnsl", "m4", "nsl"])
def test_a_short_curve_beside_a_long_one(prior: str, tmp_path: Path) -> None:
    """33 points and more are merged to tokens, and fitted in more rounds: of this a neighbour must see nothing."""
    x = np.array([500.0, 2000.0, 30_000.0])
    for seed in range(4):
        own = curve(13, seed)
        alone = hybrid.fit(own, prior, "pfn").predict(x)["quantiles"]
        fit = hybrid.fit_many([own, curve(60, seed + 1)], prior, "pfn", progress=False)[0]
        np.testing.assert_allclose(fit.predict(x)["quantiles"], alone, rtol=1e-4)
    fit.save(tmp_path / "fit.nc")
    np.testing.assert_allclose(hybrid.load_fit(tmp_path / "fit.nc").predict(x)["quantiles"], alone, rtol=1e-4)


def test_contexts_that_are_hard_to_fit_beside_a_long_one() -> None:
    prior = get_prior("bnsl")
    design = dataclasses.replace(design_for(prior), context=(3, 32))
    problems = simulate(prior, 64, design, 11).problems
    (long,) = simulate(prior, 1, dataclasses.replace(design, context=(40, 40)), 12).problems
    for problem, alone, beside in zip(problems, run_pfn(prior, problems), run_pfn(prior, [*problems, long]), strict=False):
        assert alone.predictive is not None
        assert beside.predictive is not None
        x = problem.frame.x_from(np.array([0.5, 1.5, problem.frame.horizon]))
        levels = np.array([0.05, 0.5, 0.95])
        found, expected = (np.log(result.predictive.quantile(x, levels)) for result in (beside, alone))
        assert np.all(np.abs(found - expected) < 0.01 * (expected[2] - expected[0]) + 1e-6)


class Disturbed(AmortizedPredictive):
    """One of which other threads ask at other x, all the time: whatever it keeps is theirs."""

    theirs: tuple[Any, Any] = (None, None)

    def __setattr__(self, name: str, value: Any) -> None:
        kept = {"_latest": self.theirs[0], "_latest_moments": self.theirs[1]}
        super().__setattr__(name, value if kept.get(name) is None else kept[name])


def test_threads_that_ask_at_other_x() -> None:
    fit = hybrid.fit(curve(20), "m4", "pfn")
    predictive: Any = fit.predictive
    ours, theirs = np.array([2000.0, 3000.0]), np.array([5.0, 6.0])
    expected = {name: np.asarray(fit.predict(ours)[name]) for name in ("mean", "sd", "quantiles")}
    predictive.mean(theirs)
    disturbed = Disturbed(predictive._contexts, predictive._frame)
    disturbed.theirs = predictive._latest, predictive._latest_moments
    np.testing.assert_array_equal(disturbed.mean(ours), expected["mean"])
    np.testing.assert_array_equal(disturbed.sd(ours), expected["sd"])
    np.testing.assert_array_equal(disturbed.quantile(ours, [0.05]), expected["quantiles"][:1])


def test_many_curves_are_looked_at_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "AT_ONCE", 3)
    monkeypatch.setattr(engine, "POINTS", 100)
    sizes = [5, 70, 3, 8, 40, 300, 5, 4, 45]
    parts = list(engine._parts(sizes))
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert all(len(part) <= 3 and (len(part) == 1 or len(part) * max(sizes[i] for i in part) <= 100) for part in parts)
    curves = [curve(n, n) for n in sizes]
    fits = hybrid.fit_many(curves, "m4", "pfn", progress=False)
    assert [len(fit.curve.x) for fit in fits] == sizes
    for own, fit in zip(curves, fits, strict=True):
        np.testing.assert_allclose(
            fit.predict(2000.0)["median"], hybrid.fit(own, "m4", "pfn").predict(2000.0)["median"], rtol=1e-4
        )


def test_a_fit_keeps_no_other_curve_in_memory() -> None:
    fits: Any = hybrid.fit_many([curve(12), *(curve(200, seed) for seed in range(40))], "m4", "pfn", progress=False)
    contexts = fits[0].predictive._contexts
    tensors = [contexts.x, contexts.mask, contexts.described.context, contexts.described.modes.root]
    assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in tensors)


def test_the_autocast_of_a_caller_changes_nothing() -> None:
    own, x = curve(20), np.array([500.0, 2000.0])
    plain = hybrid.fit(own, "m4", "pfn", draws=200)
    expected, k = np.asarray(plain.predict(x)["quantiles"]), plain.pareto_k
    with torch.autocast("cpu", torch.bfloat16):
        fit = hybrid.fit(own, "m4", "pfn", draws=200)
        np.testing.assert_array_equal(fit.predict(x)["quantiles"], expected)
        assert fit.pareto_k == k


def test_draws_go_through_the_flow_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "TOGETHER", 70)
    prior, own = get_prior("m4"), curve(20)
    model, _ = load_checkpoint(prior)
    head: Any = model.head
    frame = hybrid.fit(own, "m4", "least_squares").frame
    contexts = stack([Problem(frame.x_to(own.x), own.y / frame.y_scale, frame)], model, torch.device("cpu"))
    theta, log_q = head.sample(contexts.summary(), contexts.described, 200)
    assert log_q.shape == theta["sigma"].shape == (200, 1)
    again = head.log_prob(theta, contexts.summary(), contexts.described)
    torch.testing.assert_close(again, log_q, rtol=1e-6, atol=1e-6)
    fit = hybrid.fit(own, "m4", "pfn", draws=100)
    assert fit.data["posterior"].sizes["draw"] == 100


def test_impossible_parameters_have_no_density() -> None:
    prior, own = get_prior("m4"), curve(20)
    head = load_checkpoint(prior)[0].head
    assert isinstance(head, FlowHead)
    fit = hybrid.fit(own, "m4", "pfn", draws=50)
    theta = {name: torch.as_tensor(fit.data["posterior"][name].to_numpy()[0].copy()) for name in head.names}
    at = (torch.as_tensor(fit.frame.x_to(own.x)), torch.as_tensor(own.y / fit.y_scale), fit.frame)
    sound = head.log_joint(theta, *at)
    assert bool(sound.isfinite().all())
    theta["sigma"][0], theta["y_first"][1], theta["alpha"][2] = 0.0, torch.inf, torch.nan
    found = head.log_joint(theta, *at)
    assert found[:3].tolist() == [-np.inf] * 3
    torch.testing.assert_close(found[3:], sound[3:])


def test_positions_before_the_context_are_drawn_from_the_nearest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fit: Any = hybrid.fit(curve(15), "m4", "pfn")
    asked: list[float] = []
    original = AmortizedPredictive._autoregress

    def record(self: AmortizedPredictive, query: torch.Tensor, *rest: Any) -> Any:
        asked.extend((query[0] * 1000.0).tolist())
        return original(self, query, *rest)

    monkeypatch.setattr(AmortizedPredictive, "_autoregress", record)
    fit.sample([0.02, 4000.0, 0.3, 10.0, 1500.0, 5.0], 200, progress=False)
    np.testing.assert_allclose(asked[:6], [5.0, 10.0, 1500.0, 0.3, 4000.0, 0.02], rtol=1e-9)


@pytest.mark.parametrize("prior", ["nslpfn", "lcpfn"])
def test_a_near_horizon_is_named_as_such(prior: str) -> None:
    x = np.linspace(1.0, 20.0, 20)
    own = hybrid.Curve(x, 0.3 + 0.5 * x**-0.5 * np.exp(0.01 * np.random.default_rng(0).standard_normal(20)))
    (reason,) = hybrid.fit(own, prior, "pfn", horizon=20.5).reasons
    assert "the horizon (1.025 times the last context x; at least 1.1 in training: state a farther one)" in reason
    assert "width" not in reason
    assert hybrid.fit(own, prior, "pfn", horizon=100.0).status == "ok"
    narrow = hybrid.Curve(x + 100.0, own.y)
    assert (
        "the width of the context in log x (0.075 decades; at least 0.3 in training)"
        in hybrid.fit(narrow, prior, "pfn").reasons[0]
    )

"""A network's forecast that rises under a prior whose curves all fall, or that misses the points it was given."""

import numpy as np
import pytest
import torch
from scipy import stats

import hybrid
from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.design import Design
from hybrid.amortized.engine import stack
from hybrid.amortized.model import falls
from hybrid.amortized.predictive import Contexts
from hybrid.amortized.sampler import sample_curves
from hybrid.amortized.sanity import MISSED, RISEN, look
from hybrid.models.engine import Problem

NAME = "datablations_overfit_75epochs_vs_params"  # falls, and turns up at its last points
RISES = "rises by 5 %, as no curve of prior 'm4' does"


def test_priors_whose_curves_all_fall() -> None:
    found = {name: falls(hybrid.get_prior(name)) for name in ("m1", "m2", "m3", "m4", "bnsl", "nsl", "nslpfn", "lcpfn")}
    assert [name for name, yes in found.items() if yes] == ["m1", "m2", "m3", "m4"]
    either_way = hybrid.get_prior("m4").replace(y_ratio=hybrid.Distribution("LogNormal", loc=0.0, scale=0.5))
    assert not falls(either_way)


def test_a_forecast_that_rises_needs_review_unless_draws_make_it() -> None:
    curve = hybrid.load_example(NAME, holdout=2)
    horizon = float(curve.x_target[-1])
    fit = hybrid.fit(curve, "m4", "pfn", horizon=horizon, progress=False)
    assert fit.status == "needs_review"
    assert RISES in fit.reasons[-1]
    median = fit.predict(np.geomspace(curve.x[0], horizon, 60))["median"].to_numpy()
    assert median[median.argmin() :].max() / median.min() == pytest.approx(1.05, abs=0.01)
    assert not fit.is_trusted
    by_draws = hybrid.fit(curve, "m4", "pfn", horizon=horizon, forecast="draws", draws=200, progress=False)
    assert not any("rises by" in reason for reason in by_draws.reasons)
    assert np.all(np.diff(by_draws.predict(np.geomspace(curve.x[0], horizon, 60))["median"]) < 1e-9)
    assert not any("rises by" in reason for reason in hybrid.fit(curve, "bnsl", "pfn", horizon=horizon).reasons)


def test_forecasts_for_curves_of_the_prior_do_not_rise() -> None:
    prior = hybrid.get_prior("m4")
    design = Design.from_dict(find_card(prior, None).content["design"])
    model, _ = load_checkpoint(prior, None)
    drawn = sample_curves(prior, 400, design, 3, dtype=torch.float64)
    contexts = Contexts(model, drawn.x_context, drawn.y_context, drawn.mask, drawn.frame)
    found = look(contexts, design.horizon[1])
    assert float(found.risen.max()) < RISEN
    assert float(found.score.abs().max()) < MISSED
    torch.testing.assert_close(found.summary, contexts.summary(), rtol=1e-4, atol=1e-4)


def test_a_forecast_that_misses_the_last_points_needs_review() -> None:
    x = np.geomspace(1e18, 1e21, 16)
    step = hybrid.Curve(x, np.where(np.arange(16) < 9, 1.0, 0.02))  # read as best results so far among great noise
    fit = hybrid.fit(step, "nsl", "pfn", progress=False)
    assert fit.predict(x[-1])["median"].item() > 1.0
    assert fit.status == "needs_review"
    assert "misses the last 4 points of the context, which lie 3.1 sds below it in the mean" in fit.reasons[-1]


@pytest.mark.parametrize("name", ["nsl", "nslpfn"])  # of log y, and of y above 0
def test_what_is_asked_of_the_last_points_is_their_own_distribution(name: str) -> None:
    curves = [hybrid.load_example("cerebras_gpt_pile"), hybrid.load_example(NAME, holdout=2)]
    curves.append(hybrid.Curve(curves[0].x[:3], curves[0].y[:3]))
    model, _ = load_checkpoint(hybrid.get_prior(name), None)
    fits = hybrid.fit_many(curves, name, "pfn", progress=False)
    problems = [Problem(f.frame.x_to(f.curve.x), f.curve.y / f.frame.y_scale, f.frame) for f in fits]
    found = look(stack(problems, model, torch.device("cpu")), 300.0)
    for k, fit in enumerate(fits):
        last = np.maximum(np.arange(fit.curve.x.size - 4, fit.curve.x.size), 0)
        below = fit.prob_below(fit.curve.x[last], fit.curve.y[last]).to_numpy()
        assert float(found.score[k]) == pytest.approx(stats.norm.ppf(below).mean(), abs=1e-3)

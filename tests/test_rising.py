"""A network's forecast that rises under a prior whose curves all fall."""

import numpy as np
import pytest
import torch

import hybrid
from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.design import Design
from hybrid.amortized.model import falls
from hybrid.amortized.predictive import Contexts
from hybrid.amortized.rising import RISEN, rise
from hybrid.amortized.sampler import sample_curves

NAME = "datablations_overfit_75epochs_vs_params"  # falls, and turns up at its last points
RISES = "rises by 8 %, as no curve of prior 'm4' does"


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
    assert median[median.argmin() :].max() / median.min() == pytest.approx(1.08, abs=0.01)
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
    found, summary = rise(contexts, design.horizon[1])
    assert float(found.max()) < RISEN
    torch.testing.assert_close(summary, contexts.summary(), rtol=1e-4, atol=1e-4)

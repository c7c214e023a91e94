"""Targets anew: their mean over curves is that of plain targets, whatever the head proposes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SETTINGS
from torch import Tensor

from hybrid.amortized import release, training
from hybrid.amortized.coordinates import Described, ask, describe
from hybrid.amortized.design import Design
from hybrid.amortized.futures import futures
from hybrid.amortized.model import AmortizedModel, build_model
from hybrid.amortized.posterior import FlowHead
from hybrid.amortized.release import train_prior
from hybrid.amortized.sampler import CurveBatch, sample_curves
from hybrid.models.errors import InvalidArgumentError
from hybrid.models.registry import get_prior

DESIGN = Design(context=(3, 12), targets=3)


def drawn(model: AmortizedModel, batch: int, seed: int) -> tuple[CurveBatch, Tensor, Described]:
    curves = sample_curves(model.prior, batch, DESIGN, seed, dtype=torch.float64)
    with torch.no_grad():
        described = describe(curves.x_context, curves.y_context, curves.mask, curves.frame, model.law)
        summary = model.network(ask(described, curves.x_target, model.law))[1].flatten(1).float()
    return curves, summary, described


def head_of(model: AmortizedModel) -> FlowHead:
    assert isinstance(model.head, FlowHead)
    return model.head


def several(prior: str, count: int, batch: int = 2000) -> tuple[CurveBatch, Tensor, Tensor]:
    """Curves, their futures and the weights, by a head that has learnt nothing."""
    model = build_model(get_prior(prior), SETTINGS).eval()
    curves, summary, described = drawn(model, batch, 5)
    y, weight = futures(head_of(model), curves, summary, described, count, torch.Generator().manual_seed(6))
    assert y.shape == (1 + count, *curves.y_target.shape)
    assert weight.shape == (1 + count, batch)
    return curves, y, weight


@pytest.mark.parametrize("prior", ["m2", "m4"])
def test_the_mean_is_that_of_plain_targets(prior: str) -> None:
    """Moments and tails of log y, relative to the last observation; equal weights in place of the right ones would fail."""
    curves, y, weight = several(prior, 8)
    assert torch.equal(y[0], curves.y_target)
    torch.testing.assert_close(weight.sum(0), torch.ones(len(curves.y_target), dtype=torch.float64))
    assert float(weight[0].mean()) < 0.8  # the others have a part
    last = curves.y_context.gather(1, curves.mask.sum(1, keepdim=True) - 1)
    change = (y / last).log()
    equal = torch.full_like(weight, 1.0 / len(weight))
    functions = (
        change.clamp(-3.0, 3.0),
        change.clamp(-3.0, 3.0).square(),
        (change.abs() > 0.1).double(),
        (change > 0).double(),
    )

    def deviations(weights: Tensor) -> list[float]:
        found = []
        for value in functions:
            away = ((weights[..., None] * value).sum(0) - value[0]).mean(1)
            found.append(float(away.mean() / (away.std() / len(away) ** 0.5)))
        return found

    assert max(abs(z) for z in deviations(weight)) < 3.5
    assert max(abs(z) for z in deviations(equal)) > 6.0


def test_they_say_more_than_one_target() -> None:
    """Where the futures come from a fair proposal, the mean of log y over them varies less than one draw of it."""
    curves, y, weight = several("m2", 32)
    size = 1.0 / weight.square().sum(0)
    assert float(size.median()) > 2.0
    own = curves.y_target.log().clamp(-3.0, 3.0)
    mean = (weight[..., None] * y.log().clamp(-3.0, 3.0)).sum(0)
    assert float(mean.var()) < float(own.var())


def test_parameters_that_the_head_cannot_propose_keep_their_own_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(get_prior("m2"), SETTINGS).eval()
    curves, summary, described = drawn(model, 4, 1)
    monkeypatch.setattr(FlowHead, "log_prob", lambda self, theta, *_: torch.full_like(theta["sigma"], -torch.inf))
    weight = futures(head_of(model), curves, summary, described, 5, torch.Generator().manual_seed(2))[1]
    torch.testing.assert_close(weight[0], torch.ones(4, dtype=torch.float64))


def test_where_a_law_overflows_a_future_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(get_prior("m2"), SETTINGS).eval()
    curves, summary, described = drawn(model, 4, 1)
    plain = head_of(model).prior.mean

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(get_prior("m2"), name)

        def mean(self, theta: Any, x: Tensor, frame: Any) -> Tensor:
            found: Tensor = plain(theta, x, frame)
            found[2, 1] = torch.nan
            return found

    monkeypatch.setattr(head_of(model), "log_joint", lambda theta, *_: torch.zeros_like(theta["sigma"]))
    monkeypatch.setattr(head_of(model), "prior", Broken())
    y, weight = futures(head_of(model), curves, summary, described, 5, torch.Generator().manual_seed(2))
    assert float(weight[3, 1]) == 0.0
    assert bool(y.isfinite().all())
    assert int((weight == 0.0).sum()) == 1


def test_a_mask_leaves_points_out_of_the_joint_density() -> None:
    model = build_model(get_prior("m2"), SETTINGS).eval()
    curves, _, _ = drawn(model, 6, 3)
    theta = {name: curves.theta[name][None] for name in head_of(model).names}
    found = head_of(model).log_joint(theta, curves.x_context, curves.y_context, curves.frame, curves.mask)
    for i in range(6):
        size = int(curves.mask[i].sum())
        frame = type(curves.frame)(*(field[i] for field in curves.frame))
        x, y = curves.x_context[i, :size], curves.y_context[i, :size]
        alone = head_of(model).log_joint({k: v[:, i] for k, v in theta.items()}, x, y, frame)
        torch.testing.assert_close(found[:, i], alone)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_proposals_are_made_in_single_precision(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision a proposal of a bounded parameter may round to its bound."""
    seen = []

    def spied(*arguments: Any) -> tuple[Tensor, Tensor]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return futures(*arguments)

    monkeypatch.setattr(training, "futures", spied)
    monkeypatch.setattr(release, "EVALUATED", 256)
    sizes = {"layers": 1, "width": 32, "inner": 32, "hidden": 16, "transforms": 1, "bins": 20, "batch": 16}
    options: dict[str, Any] = {**sizes, "steps": 3, "futures": 4, "precision": precision}
    assert train_prior("bnsl", "small", tmp_path, DESIGN, device="cpu", progress=False, **options) is not None
    assert seen
    assert not any(seen)


def test_a_prior_without_a_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="parameter flow"):
        train_prior("nsl", "small", tmp_path, device="cpu", progress=False, futures=4)
    assert list(tmp_path.iterdir()) == []


def test_parameters_whose_density_rounds_to_nought_keep_their_own_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """They made the context: whatever rounding says, weights are numbers, and there is a target."""
    model = build_model(get_prior("m2"), SETTINGS).eval()
    curves, summary, described = drawn(model, 4, 1)
    monkeypatch.setattr(head_of(model), "log_joint", lambda theta, *_: torch.full_like(theta["sigma"], -torch.inf))
    weight = futures(head_of(model), curves, summary, described, 5, torch.Generator().manual_seed(2))[1]
    torch.testing.assert_close(weight[0], torch.ones(4, dtype=torch.float64))

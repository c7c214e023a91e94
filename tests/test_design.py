"""Designs: what is declared is what is drawn, and frames agree with the coordinates of single curves."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.amortized.design import SPACINGS, Design, DesignBatch, frames
from hybrid.models.coordinates import COORDINATES
from hybrid.models.errors import FileFormatError, InvalidArgumentError


def draw(design: Design, batch: int = 500, seed: int = 0, dtype: torch.dtype = torch.float64) -> DesignBatch:
    return design.sample(batch, torch.Generator().manual_seed(seed), dtype)


def only(spacing: str, **changes: object) -> Design:
    return dataclasses.replace(Design(repeated=0.0), spacing=((spacing, 1.0),), **changes)


def context(drawn: DesignBatch, row: int) -> Tensor:
    return drawn.x_context[row][drawn.mask[row]]


def test_over_more_decades_than_a_float_has_digits_x_stays_positive() -> None:
    drawn = draw(only("linear", decades=(17.0, 17.0)), 20)
    assert float(drawn.x_context.min()) == pytest.approx(1e-17, rel=1e-6)
    assert float(drawn.x_target.min()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_keep_what_the_design_declares(dtype: torch.dtype) -> None:
    design = Design()
    drawn = draw(design, 2000, dtype=dtype)
    size = drawn.mask.sum(1)
    assert drawn.x_context.shape == drawn.mask.shape == (2000, int(size.max()))
    assert drawn.x_target.shape == (2000, design.targets)
    assert drawn.x_context.dtype == drawn.x_target.dtype == drawn.horizon.dtype == dtype
    assert int(size.min()) == 3
    assert 480 < int(size.max()) <= 500
    assert bool((drawn.mask.long().diff(dim=1) <= 0).all())
    assert bool((drawn.x_context[~drawn.mask] == 1).all())
    assert bool((drawn.x_context.diff(dim=1) >= 0).all())
    assert bool((drawn.x_context[:, -1] == 1).all())
    assert bool((drawn.x_context >= 1e-7 * (1 - 1e-5)).all())
    assert bool((drawn.x_target.diff(dim=1) >= 0).all())
    assert bool((drawn.x_target <= drawn.horizon[:, None] * (1 + 1e-5)).all())
    assert bool((drawn.x_target >= drawn.x_context[:, :1] * (1 - 1e-5)).all())
    assert float(drawn.horizon.min()) == pytest.approx(1.2, rel=0.05)
    assert float(drawn.horizon.max()) == pytest.approx(300, rel=0.05)
    inside = float((drawn.x_target < 1).double().mean())
    assert inside == pytest.approx(design.interpolated, abs=0.01)


def test_sizes_and_horizons_are_log_uniform() -> None:
    drawn = draw(Design(), 20_000)
    for values, low, high in ((drawn.mask.sum(1).double() + 0.5, 3, 501), (drawn.horizon, 1.2, 300)):
        share = (values / low).log() / np.log(high / low)
        for point in (0.3, 0.5, 0.7, 0.9):
            assert float((share < point).double().mean()) == pytest.approx(point, abs=0.03)


def test_each_spacing_is_what_its_name_says() -> None:
    linear = draw(only("linear"), 50)
    log, geometric = draw(only("log"), 50), draw(only("geometric"), 50)
    irregular = draw(only("irregular", context=(50, 500)), 50)
    for row in range(50):
        steps = context(linear, row).diff()
        assert float(steps.max() / steps.min()) == pytest.approx(1, rel=1e-6)
        for drawn in (log, geometric):
            steps = context(drawn, row).log().diff()
            assert float(steps.max() / steps.min()) == pytest.approx(1, rel=1e-6)
        for steps in (context(irregular, row).diff(), context(irregular, row).log().diff()):
            assert float(steps.max() / steps.min()) > 2
    for drawn in (linear, log, irregular):
        decades = -drawn.x_context[:, 0].log10()
        assert 1 <= float(decades.min()) < 1.5
        assert 6.5 < float(decades.max()) <= 7 + 1e-9
    factor = geometric.x_context[:, 1] / geometric.x_context[:, 0]
    assert bool((factor <= 10 + 1e-9).all())
    assert bool((geometric.x_context[:, 0] > 0.99e-7).all())


def test_spacings_come_in_the_stated_shares() -> None:
    design = Design(context=(20, 20), spacing=(("linear", 0.7), ("log", 0.3)), repeated=0.0)
    x = draw(design, 4000).x_context
    steps = x.diff(dim=1)
    linear = steps.amax(1) / steps.amin(1) < 1.001
    assert float(linear.double().mean()) == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_repeats_come_at_the_stated_rate_and_leave_two_places(spacing: str) -> None:
    design = dataclasses.replace(only(spacing), repeated=0.4, context=(3, 60))
    drawn = draw(design, 4000)
    real = drawn.mask[:, 1:]
    repeats = ((drawn.x_context.diff(dim=1) == 0) & real).any(1)
    large = drawn.mask.sum(1) > 30  # a small context may be left as it is by chance
    assert float(repeats[large].double().mean()) == pytest.approx(0.4, abs=0.06)
    assert bool((drawn.x_context[:, 0] < 1).all())
    last = torch.where(drawn.mask, drawn.x_context, 0.0).amax(1)
    assert bool((last == 1).all())
    if spacing not in ("geometric",):
        assert bool((drawn.x_context[:, 0] <= 0.1 * (1 + 1e-9)).all())


def test_contexts_of_the_best_so_far_come_at_the_stated_rate() -> None:
    drawn = draw(Design(best_so_far=0.4), 4000)
    reported = drawn.reported
    assert reported is not None
    assert float(reported.best.double().mean()) == pytest.approx(0.4, abs=0.03)
    assert float(reported.new_best[reported.best].double().mean()) == pytest.approx(0.25, abs=0.04)
    assert not bool(reported.new_best[~reported.best].any())
    assert torch.equal(reported.kept[~reported.best], drawn.mask[~reported.best])
    assert int(drawn.mask[reported.best].sum(1).min()) >= 20
    kept, ends = reported.kept[reported.best], torch.where(drawn.mask, drawn.x_context, 0.0)[reported.best]
    assert bool((kept <= drawn.mask[reported.best]).all())
    assert int(kept.sum(1).min()) >= 3
    assert bool((torch.where(kept, ends, 0.0).amax(1) == 1).all())
    assert bool(kept[:, 0].all())
    share = kept.sum(1) / drawn.mask[reported.best].sum(1)
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.9
    assert draw(Design(), 20).reported is None


def test_targets_before_the_context_come_at_the_stated_rate_and_distance() -> None:
    design = Design(before=0.3)
    drawn = draw(design, 4000)
    first = drawn.x_context[:, :1]
    before = drawn.x_target < first
    assert float(before.double().mean()) == pytest.approx(0.3, abs=0.01)
    assert bool((drawn.x_target >= first * design.earliest).all())
    assert float((drawn.x_target / first).min()) < 1.5 * design.earliest
    assert bool((drawn.x_target.diff(dim=1) >= 0).all())
    distance = (first / drawn.x_target.amin(1, keepdim=True))[before.sum(1) > 12].log()  # nearly the farthest of a curve
    assert float(distance.mean()) == pytest.approx(0.5 * np.log(1.2 * 300), rel=0.1)
    assert Design().earliest == 1.0
    assert not bool((draw(Design(), 500).x_target < draw(Design(), 500).x_context[:, :1]).any())


def test_rows_of_a_batch_keep_how_they_are_reported() -> None:
    drawn = draw(Design(best_so_far=0.5, context=(3, 40)), 50)
    rows = drawn.mask.sum(1).argsort()[:20]
    size = int(drawn.mask[rows].sum(1).max())
    part = drawn.rows(rows, size)
    assert drawn.reported is not None
    assert part.reported is not None
    assert torch.equal(part.x_context, drawn.x_context[rows, :size])
    assert torch.equal(part.reported.kept, drawn.reported.kept[rows, :size])
    assert torch.equal(part.reported.best, drawn.reported.best[rows])


@pytest.mark.parametrize("name", COORDINATES)
def test_frames_agree_with_the_coordinates_of_each_curve(name: str) -> None:
    drawn = draw(Design(), 200)
    drawn = drawn._replace(x_context=drawn.x_context * 3.7, horizon=drawn.horizon * 3.7)
    frame = frames(drawn, name)
    for row in range(200):
        single = COORDINATES[name].frame(context(drawn, row).numpy(), float(drawn.horizon[row]), 1.0)
        assert all(field.shape == (200, 1) for field in frame)
        np.testing.assert_allclose([float(field[row, 0]) for field in frame], single, rtol=1e-12, atol=1e-15)


def test_generator_fixes_the_draws() -> None:
    one, same, other = (draw(Design(), 40, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one[:4], same[:4], strict=True))
    assert not torch.equal(one.horizon, other.horizon)
    state = torch.get_rng_state()
    draw(Design(), 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_json_round_trip_and_fingerprint() -> None:
    design = Design(context=(5, 50), spacing=(("log", 0.5), ("irregular", 0.5)), horizon=(1.5, 20.0), best_so_far=0.1)
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert again == design
    assert hash(again) == hash(design)
    assert again.fingerprint == design.fingerprint
    assert len(design.fingerprint) == 16
    assert design.fingerprint != Design().fingerprint
    for broken in ({}, {"format": 2}, {**design.to_dict(), "extra": 1}, {**design.to_dict(), "context": 3}):
        with pytest.raises(FileFormatError):
            Design.from_dict(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"context": (2, 10)},
        {"best_so_far": 1.5},
        {"context": (10, 5)},
        {"targets": 0},
        {"horizon": (1.0, 3.0)},
        {"factor": (1.0, 3.0)},
        {"decades": (0.0, 3.0)},
        {"repeated": 1.5},
        {"interpolated": -0.1},
        {"before": 1.1},
        {"spacing": (("log", 0.5),)},
        {"spacing": (("even", 1.0),)},
        {"spacing": (("log", 0.5), ("log", 0.5))},
    ],
)
def test_unusable_designs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        dataclasses.replace(Design(), **change)
    for wide in ({"decades": (1.0, 400.0)}, {"horizon": (1.2, 1e308)}):
        with pytest.raises(InvalidArgumentError, match="at most 50 decades"):
            dataclasses.replace(Design(), **wide)
    with pytest.raises(InvalidArgumentError, match="batch"):
        draw(Design(), 0)


def test_targets_beyond_the_context_are_even_in_a_power_of_x() -> None:
    """With power ~ U(0, 1) and a horizon of 100 a share log(11/2) / log(10) lies beyond 10, .74; even in log x it were half."""
    design = Design(targets=64, horizon=(100.0, 100.0), interpolated=0.0)
    x = design.sample(4000, torch.Generator().manual_seed(0)).x_target
    assert float((x > 10.0).double().mean()) == pytest.approx(math.log(5.5) / math.log(10.0), abs=0.01)
    assert 1.0 <= float(x.min()) < 1.1
    assert 95.0 < float(x.max()) <= 100.0 * (1 + 1e-9)


def test_lists_and_mappings_make_the_same_design() -> None:
    spacing = dict.fromkeys(SPACINGS, 0.25)
    same = Design(context=[3, 500], factor=[1.1, 10], decades=[1, 7], horizon=[1.2, 300], spacing=spacing)  # type: ignore[arg-type]
    assert same == Design()
    assert hash(same) == hash(Design())
    assert same.fingerprint == Design().fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"context": 5},
        {"horizon": None},
        {"horizon": (1.2, "far")},
        {"decades": (1.0, 2.0, 3.0)},
        {"interpolated": "a"},
        {"spacing": ("log",)},
        {"spacing": 1.0},
    ],
)
def test_what_is_no_design_is_told(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(change))):
        Design(**change)

"""Contexts with next to no noise, whose posterior is a narrow valley that bends: the fit of the law follows it to its end."""

import math

import pytest
import torch
from contexts import frame_of, law_of, modes_of, shipped
from torch import Tensor

from hybrid.amortized import law_frame
from hybrid.amortized.coordinates import MOST_TOKENS
from hybrid.amortized.groups import rows_of, with_rows
from hybrid.amortized.law_frame import LawFrame, Modes

pytestmark = pytest.mark.usefixtures("one_thread")
CURVES, NOISE = 150, 5e-4


def contexts(law: LawFrame) -> tuple[Tensor, Tensor]:
    """130 positions over seven decades, one more than there is room for tokens, and log y of as many curves of the prior."""
    x = torch.logspace(-7.0, 0.0, 130, dtype=torch.float64).expand(CURVES, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theta = shipped("bnsl").draw_torch(CURVES, torch.float64)
        noise = NOISE * torch.randn(x.shape, dtype=torch.float64)
    s = (law.unconstrain(theta) - law.loc) / law.scale
    return x, law.curve(s, x, frame_of(x)) + noise


def misfit(law: LawFrame, modes: Modes, x: Tensor, v: Tensor) -> Tensor:
    """Root mean square of the residuals from the likelier mode, in units of the noise, shape (CURVES,)."""
    residual = v - law.curve(modes.s[:, 0], x, frame_of(x))
    return residual.square().mean(1).sqrt() / NOISE


def test_the_fit_reaches_the_end_of_a_narrow_valley(monkeypatch: pytest.MonkeyPatch) -> None:
    law = law_of("bnsl")
    x, v = contexts(law)
    patient = misfit(law, modes_of(law, x, v), x, v)
    monkeypatch.setattr(law_frame, "UNSETTLED", math.inf)
    hasty = misfit(law, modes_of(law, x, v), x, v)
    lost, missed = (int((part > 1.5).sum()) for part in (hasty, patient))  # the others are in another mode
    assert lost > 10
    assert missed <= lost / 2
    settled = hasty < 1.1
    torch.testing.assert_close(patient[settled], hasty[settled], rtol=0.1, atol=0)


def test_those_that_take_longer_do_not_touch_the_others() -> None:
    assert contexts(law_of("bnsl"))[0].shape[1] > MOST_TOKENS
    law = law_of("bnsl")
    x, v = contexts(law)
    together = modes_of(law, x, v)
    for i in range(0, CURVES, 10):
        alone = modes_of(law, x[i], v[i])
        torch.testing.assert_close(alone.s[0, 0], together.s[i, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.log_sigma[0, 0], together.log_sigma[i, 0], rtol=0, atol=1e-3)


def test_rows_are_taken_and_put_back_at_any_depth() -> None:
    law = law_of("bnsl")
    x, v = contexts(law)
    whole = modes_of(law, x[:6], v[:6])
    rows = torch.tensor([4, 1])
    back = with_rows(whole, rows, rows_of(whole, rows))
    for one, other in ((whole.s, back.s), (whole.data.groups.v, back.data.groups.v), (whole.data.within, back.data.within)):
        assert torch.equal(one, other)
    changed = with_rows(whole, rows, rows_of(whole, torch.tensor([0, 0])))
    assert torch.equal(changed.data.groups.v[4], whole.data.groups.v[0])
    assert torch.equal(changed.data.groups.v[2], whole.data.groups.v[2])

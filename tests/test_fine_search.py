"""The law's last fit to many groups: where points are merged, the mode of all of them is found."""

import math

import pytest
import torch
from contexts import frame_of, modes_of, noisy, shipped
from torch import Tensor

from hybrid.amortized.coordinates import MOST_TOKENS
from hybrid.amortized.law_frame import CONVERGED, LawFrame, Modes

pytestmark = pytest.mark.usefixtures("one_thread")
TO_GO = 2 * math.sqrt(2 * CONVERGED)  # where a descent stops, in sds of the Laplace approximation
SEARCHES = ("thorough", "fine")
WIDE = 14.0  # nats of x: the break of the truth is sharper than a group is wide


def law_of(search: str) -> LawFrame:
    return LawFrame(shipped("bnsl"), True, search)


def apart(modes: Modes, whole: Modes) -> Tensor:
    """Distance of the first modes, in sds."""
    return (whole.root.mT @ (modes.s - whole.s)[..., None])[:, 0, :, 0].norm(dim=-1)


def test_the_mode_is_that_of_all_points() -> None:
    x, v = noisy(law_of("fine"), "bnsl", 120, 0.01, 24, WIDE)
    whole = modes_of(law_of("thorough"), x, v, most=120)
    merged, fine = (apart(modes_of(law_of(search), x, v), whole) for search in SEARCHES)
    assert float(merged.median()) > 5 * TO_GO
    assert float(fine.median()) < TO_GO
    assert float(fine.quantile(0.9)) < 0.5 * float(merged.quantile(0.9))


def test_nothing_changes_where_no_points_are_merged() -> None:
    x, v = noisy(law_of("fine"), "bnsl", MOST_TOKENS, 0.01, 8)
    one, other = (modes_of(law_of(search), x, v) for search in SEARCHES)
    for name in Modes._fields[:-1]:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_what_the_law_was_fitted_to_stays_as_small_as_the_network_s_tokens() -> None:
    """Conditional draws are fitted to it, many times over; around the mode it says what all points say."""
    law = law_of("fine")
    x, v = noisy(law, "bnsl", 300, 0.01, 3, WIDE)
    modes = modes_of(law, x, v)
    groups = modes.data.groups
    assert groups.number.shape == (3, MOST_TOKENS)
    assert bool((groups.number.sum(1) == 300).all())
    at = law.curve(modes.s[:, 0], x.expand(3, -1), frame_of(x.expand(3, -1)))
    near = law.curve(modes.s[:, 0], groups.x, modes.data.frame)
    squares = (groups.number * (groups.v - near).square()).sum(1) + modes.data.within
    torch.testing.assert_close(squares, (v - at).square().sum(1), rtol=1e-6, atol=0)

"""Moves of draws: they keep a known target, reach it from afar, and never step where it is impossible."""

import pytest
import torch
from torch import Tensor

from hybrid.amortized.moves import moved

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4000
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.2, 0.0], [-2.0, 1.0, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def normal(z: Tensor) -> Tensor:
    return -0.5 * torch.linalg.solve_triangular(FACTOR, (z - MEAN).mT, upper=False).square().sum(0)


def draws(seed: int, n: int = N) -> Tensor:
    return MEAN + torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ FACTOR.mT


def run(z: Tensor, cloud: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    return moved(z, normal, cloud, spreads, torch.Generator().manual_seed(9))


def check(found: Tensor, tolerance: float) -> None:
    white = torch.linalg.solve_triangular(FACTOR, (found - MEAN).mT, upper=False)
    torch.testing.assert_close(white.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=tolerance)
    torch.testing.assert_close(white.cov(), torch.eye(3, dtype=torch.float64), rtol=0, atol=2 * tolerance)


def test_draws_of_the_target_stay_draws_of_it_and_all_move() -> None:
    start = draws(1)
    found, at = run(start, 3.0 * draws(2), torch.stack([0.3 * FACTOR, FACTOR]))
    check(found, 0.07)
    torch.testing.assert_close(at, normal(found))
    assert bool((found != start).any(1).all())


def test_copies_of_a_few_draws_spread_over_the_target() -> None:
    start = draws(3, 40).repeat(N // 40, 1)
    found, _ = run(start, draws(4), FACTOR[None])
    assert len(found.unique(dim=0)) > 0.99 * N
    check(found, 0.12)


def test_a_wrong_start_is_left_for_the_most_part() -> None:
    start = draws(5) + FACTOR @ torch.tensor([2.0, 1.0, -2.0], dtype=torch.float64)
    assert float(normal(start).mean()) < -5
    found, at = run(start, draws(6), FACTOR[None])
    check(found, 0.3)  # of 3 sds
    assert float(at.mean()) == pytest.approx(-1.5, abs=0.4)


def test_the_impossible_is_never_reached() -> None:
    def half(z: Tensor) -> Tensor:
        return torch.where(z[:, 0] > MEAN[0], normal(z), -torch.inf)

    start = draws(7)
    start = start[start[:, 0] > MEAN[0]]
    found, at = moved(start, half, draws(8), FACTOR[None], torch.Generator().manual_seed(1))
    assert bool((found[:, 0] > MEAN[0]).all())
    assert bool(at.isfinite().all())
    white = (found[:, 0] - MEAN[0]) / FACTOR[0, 0]
    assert float(white.mean()) == pytest.approx((2 / torch.pi) ** 0.5, abs=0.05)

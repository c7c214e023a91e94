"""The training sampler draws from the shared prior, whatever the shapes of the batch."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from hybrid.amortized.design import Design, DesignBatch
from hybrid.amortized.sampler import CurveBatch, draw_curves, sample_curves
from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.nslpfn import PRIOR as NSLPFN
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import PRIORS, get_prior

SHARED = [p for p in PRIORS if isinstance(p, Prior)]
SMALL = Design(context=(3, 100), targets=8)


pytestmark = pytest.mark.usefixtures("one_thread")


def tensors(curves: CurveBatch) -> list[torch.Tensor]:
    return [*curves[:5], *curves.theta.values(), *curves.frame]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: p.name)
def test_curves_have_the_stated_form_and_are_finite_in_single_precision(prior: AbstractPrior) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        curves = sample_curves(prior, 1000, SMALL, generator)
        shape = curves.mask.shape
        assert curves.x_context.shape == curves.y_context.shape == shape
        assert curves.x_target.shape == curves.y_target.shape == (1000, 8)
        assert all(field.shape == (1000, 1) for field in curves.frame)
        assert all(value.shape == (1000,) for value in curves.theta.values())
        assert set(curves.theta) >= {p.name for p in prior.parameters}
        for tensor in tensors(curves):
            assert bool(torch.isfinite(tensor).all())
        for tensor in (curves.x_context, curves.y_context, curves.x_target, curves.y_target, curves.theta["sigma"]):
            assert tensor.dtype == torch.float32
        assert bool((curves.y_context >= 0).all() & (curves.y_target >= 0).all())
        assert bool((curves.y_context[~curves.mask] == 1).all())
        assert bool((curves.x_context <= curves.frame.last * (1 + 1e-6)).all())
        assert bool((curves.x_target <= curves.frame.horizon * (1 + 1e-5)).all())


@pytest.mark.parametrize("prior", SHARED, ids=lambda p: p.name)
def test_batched_frames_give_each_curve_its_own_mean(prior: Prior) -> None:
    curves = sample_curves(prior, 20, SMALL, 1, dtype=torch.float64)
    together = prior.mean(curves.theta, curves.x_target, curves.frame)
    for row in range(20):
        theta = {name: value[row].numpy() for name, value in curves.theta.items()}
        frame = Frame(*(float(field[row, 0]) for field in curves.frame))
        alone = prior.mean(theta, curves.x_target[row].numpy(), frame)
        np.testing.assert_allclose(together[row].numpy(), alone, rtol=1e-9)


@pytest.mark.parametrize("prior", SHARED, ids=lambda p: p.name)
def test_same_distribution_as_the_prior_at_the_same_positions(prior: Prior) -> None:
    n = 4000
    x = np.array([0.01, 0.1, 1.0, 10.0] if prior.coordinates == "ratio" else [0.01, 0.1, 0.3, 1.0])
    context = torch.tensor([*x[:3], x[2]]).expand(n, 4)  # the last column is padding in every other row
    mask = torch.ones(n, 4, dtype=torch.bool)
    mask[::2, 3] = False
    designs = DesignBatch(context, mask, torch.full((n, 1), x[3]), torch.full((n,), x[3], dtype=torch.float64))
    curves = draw_curves(prior, designs, torch.Generator().manual_seed(3))
    y = torch.cat([curves.y_context[:, :3], curves.y_target], 1).numpy()
    expected = prior.sample(n, x, seed=4, backend="torch")
    for k in range(4):
        assert stats.ks_2samp(y[:, k], expected["y"].values[:, k], method="asymp").pvalue > 1e-4
    step = np.log(y[:, 3] / y[:, 2])
    expected_step = np.log(expected["y"].values[:, 3] / expected["y"].values[:, 2])
    assert stats.ks_2samp(step, expected_step, method="asymp").pvalue > 1e-4
    for name, values in curves.theta.items():
        assert stats.ks_2samp(values.numpy(), expected[name].values, method="asymp").pvalue > 1e-5


def test_nslpfn_is_the_released_sampler_at_the_same_positions() -> None:
    n, n_x, size = 1500, 60, 30
    x = np.linspace(0.01, 1, n_x)
    rows = torch.from_numpy(x).expand(n, n_x)
    mask = torch.ones(n, size, dtype=torch.bool)
    designs = DesignBatch(rows[:, :size], mask, rows[:, size:], torch.ones(n, dtype=torch.float64))
    curves = draw_curves(NSLPFN, designs, torch.Generator().manual_seed(5))
    np.testing.assert_allclose(torch.cat([curves.x_context, curves.x_target], 1)[0].numpy(), x, rtol=1e-5)
    rng = np.random.default_rng(6)
    theta, _, expected = NSLPFN.simulate(np.broadcast_to(x, (n, n_x)), np.full(n, size), rng)
    y = torch.cat([curves.y_context, curves.y_target], 1).numpy()
    for family, k in itertools.product(range(3), (0, 10, 29, 30, 45, 59)):
        one, other = y[curves.theta["family"].numpy() == family, k], expected[theta["family"] == family, k]
        assert stats.ks_2samp(one, other).pvalue > 1e-4


def test_nslpfn_keeps_its_promise_on_targets_inside_the_context() -> None:
    curves = sample_curves(NSLPFN, 300, Design(context=(20, 60), targets=40, interpolated=0.5), 7, dtype=torch.float64)
    rising = curves.theta["family"] == 2
    first = curves.y_context[:, :1]
    assert bool((curves.y_target[rising] <= first[rising]).all())
    x = torch.cat([curves.x_context, curves.x_target], 1)
    y = torch.cat([torch.where(curves.mask, curves.y_context, torch.nan), curves.y_target], 1)
    smooth = (curves.theta["family"] == 0) & (curves.theta["sigma"] < 2e-3)
    rises = []
    for row in smooth.nonzero()[:, 0]:
        seen = y[row].isfinite()
        order = x[row][seen].argsort(stable=True)
        rises.append(float((y[row][seen][order].diff() / curves.theta["sigma"][row]).max()))
    assert len(rises) > 3
    assert max(rises) < 8  # a falling curve rises by noise only, so x and y were put back in step


@pytest.mark.parametrize("name", ["m4", "nsl", "nslpfn"])
def test_seed_fixes_the_draws_and_the_global_state_is_left_alone(name: str) -> None:
    prior = get_prior(name)
    state = torch.get_rng_state()
    one, same, other = (sample_curves(prior, 20, SMALL, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(tensors(one), tensors(same), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.y_target, other.y_target)
    generator = torch.Generator().manual_seed(1)
    first, second = sample_curves(prior, 20, SMALL, generator), sample_curves(prior, 20, SMALL, generator)
    assert torch.equal(first.y_target, one.y_target)
    assert not torch.equal(first.y_target, second.y_target)


def test_what_cannot_be_drawn_is_refused() -> None:
    class Other(AbstractPrior):
        name, coordinates, parameters, has_density = "other", "ratio", (), False  # type: ignore[assignment]
        to_dict = replace = draw = None  # type: ignore[assignment]

    with pytest.raises(EngineUnavailableError, match="Other"):
        sample_curves(Other(), 3, SMALL, 0)
    for prior in ("nslpfn", "lcpfn"):
        with pytest.raises(InvalidArgumentError, match=f"'{prior}' is not defined before the first context x: set before to 0"):
            sample_curves(get_prior(prior), 64, Design(before=0.5), 0)
    with pytest.raises(InvalidArgumentError, match="batch"):
        sample_curves(get_prior("m4"), 0, SMALL, 0)


def test_positions_are_in_the_coordinates_of_each_prior() -> None:
    design = SMALL.sample(30, torch.Generator().manual_seed(8))
    for name in ("m4", "nsl_paper"):
        curves = draw_curves(get_prior(name), design, torch.Generator().manual_seed(9), torch.float64)
        for row in range(30):
            x = design.x_context[row][design.mask[row]].numpy()
            frame = get_coordinates(get_prior(name).coordinates).frame(x, float(design.horizon[row]), 1.0)
            found = curves.x_context[row][design.mask[row]].numpy()
            np.testing.assert_allclose(found, frame.x_to(x), rtol=1e-9)


@pytest.mark.parametrize("rising", [False, True])
def test_a_context_of_the_best_so_far_is_the_running_best_of_its_measurements(rising: bool) -> None:
    prior, n = get_prior("m4"), 300
    design = Design(best_so_far=1.0, context=(30, 60), repeated=0.0)
    positions = design.sample(n, torch.Generator().manual_seed(1))
    if rising:
        prior = get_prior("nsl").replace(family=Distribution("Categorical", probs=(0.0, 0.0, 0.0, 0.0, 1.0)))
    told = draw_curves(prior, positions, torch.Generator().manual_seed(2), torch.float64)
    measured = draw_curves(prior, positions._replace(reported=None), torch.Generator().manual_seed(2), torch.float64)
    assert positions.reported is not None
    ups = 0
    for row in range(n):
        x, y = measured.x_context[row][measured.mask[row]], measured.y_context[row][measured.mask[row]]
        up = bool(y[-1] > y[0])
        ups += up
        best = (y.cummax(0) if up else y.cummin(0)).values
        new = torch.cat([torch.ones(1, dtype=torch.bool), best.diff() != 0])
        kept = positions.reported.kept[row][positions.mask[row]]
        if positions.reported.new_best[row]:
            kept = kept & (new | positions.reported.always[row][positions.mask[row]])
        assert torch.equal(told.x_context[row][told.mask[row]], x[kept])
        assert torch.equal(told.y_context[row][told.mask[row]], best[kept])
        assert bool((told.x_context[row][~told.mask[row]] == told.frame.last[row]).all())
        assert bool((told.y_context[row][~told.mask[row]] == 1).all())
    assert torch.equal(told.y_target, measured.y_target)
    assert (ups > n / 2) == rising


def test_targets_scatter_to_the_worse_side_of_the_best_so_far() -> None:
    prior = get_prior("m4").replace(sigma=Distribution("LogNormal", loc=np.log(0.05), scale=0.01))
    design = Design(best_so_far=1.0, context=(300, 500), interpolated=1.0)
    curves = sample_curves(prior, 400, design, 3, dtype=torch.float64)
    below = []
    for row in range(400):
        x, y = curves.x_context[row][curves.mask[row]], curves.y_context[row][curves.mask[row]]
        behind = torch.searchsorted(x, curves.x_target[row]).clamp(max=len(x) - 1)
        below.append(float((curves.y_target[row] < y[behind]).double().mean()))
    assert np.mean(below) < 0.2


def test_curves_that_leave_the_floats_are_left_out() -> None:
    """One outlier of an outlier must not end a training."""
    shared = get_prior("m1")
    assert isinstance(shared, Prior)
    wild = shared.replace(sigma={"loc": 4.0, "scale": 2.0})
    curves = sample_curves(wild, 400, SMALL, 0, dtype=torch.float64)
    y = torch.cat([curves.y_context, curves.y_target], 1)
    outside = (y.isinf() | (y == 0.0)).any(1)
    assert 0 < int(outside.sum()) < 300
    left = curves.within_floats(logarithmic=True)
    for found, whole in zip(tensors(left), tensors(curves), strict=True):
        torch.testing.assert_close(found, whole[~outside], rtol=0.0, atol=0.0)
    only_infinite = curves.within_floats(logarithmic=False)
    assert len(only_infinite.mask) == int((~y.isinf().any(1)).sum())
    assert left.within_floats(logarithmic=True) is left
    without = curves._replace(y_target=torch.full_like(curves.y_target, torch.nan))  # a law that has no curve
    assert len(without.within_floats(logarithmic=True).mask) > 0


def test_contexts_that_are_not_the_best_so_far_are_measurements_as_they_are() -> None:
    design = Design(best_so_far=0.5, context=(30, 60))
    positions = design.sample(200, torch.Generator().manual_seed(1))
    told = draw_curves(get_prior("m4"), positions, torch.Generator().manual_seed(2), torch.float64)
    measured = draw_curves(get_prior("m4"), positions._replace(reported=None), torch.Generator().manual_seed(2), torch.float64)
    assert positions.reported is not None
    plain = (~positions.reported.best).nonzero()[:, 0].tolist()
    assert 60 < len(plain) < 140
    for row in plain:
        assert torch.equal(told.x_context[row][told.mask[row]], measured.x_context[row][measured.mask[row]])
        assert torch.equal(told.y_context[row][told.mask[row]], measured.y_context[row][measured.mask[row]])

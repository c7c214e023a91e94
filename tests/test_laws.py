"""Laws: one formula on three libraries, and the formula that the documentation states."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from scipy import special

from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.m4 import solve_logit
from hybrid.models.namespace import get_namespace
from hybrid.models.nsl import PRIOR as NSL
from hybrid.models.nsl_paper import PRIOR as PAPER
from hybrid.models.prior import Prior, double_precision, expand
from hybrid.models.registry import PRIORS

Theta = dict[str, np.ndarray]
EXPLICIT = [p for p in PRIORS if isinstance(p, Prior)]
SINGLE = [p for p in EXPLICIT if p.is_continuous and not p.law.linear]  # of one law, without drift
ALPHA, LOG_F = (a.ravel() for a in np.meshgrid(np.geomspace(0.02, 20, 25), np.linspace(-15, 15, 61)))


def draws(prior: Prior, n: int = 100, seed: int = 0) -> Theta:
    data = prior.sample(n, positions(prior)[:2], seed=seed, backend="torch")  # JAX would compile each operation
    return {p.name: data[p.name].values.copy() for p in prior.parameters}


def positions(prior: Prior) -> np.ndarray:
    return np.linspace(0.01, 1, 60) if prior.coordinates == "unit" else np.geomspace(0.003, 30, 60)


def frame_of(prior: Prior) -> Frame:
    x = positions(prior)
    return get_coordinates(prior.coordinates).native_frame(x[x <= 1])


@pytest.mark.parametrize("prior", EXPLICIT, ids=lambda p: p.name)
def test_same_curve_on_three_libraries(prior: Prior) -> None:
    theta, x, frame = draws(prior), positions(prior), frame_of(prior)
    reference = prior.mean(theta, x, frame)
    assert reference.shape == (100, x.size)
    with double_precision():
        on_jax = np.asarray(prior.mean({k: jax.numpy.asarray(v) for k, v in theta.items()}, jax.numpy.asarray(x), frame))
    on_torch = prior.mean({k: torch.as_tensor(v) for k, v in theta.items()}, torch.as_tensor(x), frame).numpy()
    np.testing.assert_allclose(on_jax, reference, rtol=1e-10)
    np.testing.assert_allclose(on_torch, reference, rtol=1e-10)


@pytest.mark.parametrize("prior", EXPLICIT, ids=lambda p: p.name)
def test_positive_and_finite(prior: Prior) -> None:
    mean = prior.mean(draws(prior, 500, seed=1), positions(prior), frame_of(prior))
    assert np.all(np.isfinite(mean))
    assert np.all(mean > 0)


def m1(x: np.ndarray, y: np.ndarray, t: Theta, d: Theta) -> tuple[np.ndarray, np.ndarray]:
    return y, d["beta"] * x ** -d["c"]


def m2(x: np.ndarray, y: np.ndarray, t: Theta, d: Theta) -> tuple[np.ndarray, np.ndarray]:
    return y, d["epsilon_inf"] + d["beta"] * x ** -d["c"]


def m3(x: np.ndarray, y: np.ndarray, t: Theta, d: Theta) -> tuple[np.ndarray, np.ndarray]:
    return y, d["beta"] * (1 / x + d["gamma_x"]) ** d["c"]


def m4(x: np.ndarray, y: np.ndarray, t: Theta, d: Theta) -> tuple[np.ndarray, np.ndarray]:
    return (y - d["epsilon_inf"]) / (d["epsilon_0"] - y) ** t["alpha"], d["beta"] * x ** -d["c"]


def bnsl(x: np.ndarray, y: np.ndarray, t: Theta, d: Theta) -> tuple[np.ndarray, np.ndarray]:
    power = d["b"] * x ** -d["c0"]
    for i in range(1, 4):
        if f"d{i}" in d:
            f = d[f"f{i}"]
            power = power * (1 + (x / d[f"d{i}"]) ** (1 / f)) ** (-t[f"slope_change_{i}"] * f)
    return y, d["a"] + power


TEXTBOOK: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "m1": m1,
    "m2": m2,
    "m3": m3,
    "m4": m4,
    "bnsl": bnsl,
    "bnsl2": bnsl,
    "bnsl3": bnsl,
}


@pytest.mark.parametrize("prior", SINGLE, ids=lambda p: p.name)
def test_derived_parameters_fit_the_textbook_formula(prior: Prior) -> None:
    x = np.geomspace(2e6, 5e8, 12)
    frame = get_coordinates(prior.coordinates).frame(x, 5e8, 3.0)
    theta = draws(prior, 50)
    if "saturation" in theta:  # eps_0 - y cancels at full saturation: keep what the subtraction below can resolve
        theta["saturation"] = np.clip(theta["saturation"], 0.01, 0.99)
    if "sharpness_1" in theta:  # (x / d)^(1 / f) overflows in the textbook form
        theta |= {k: np.maximum(v, 0.2) for k, v in theta.items() if k.startswith("sharpness")}
    y = frame.y_scale * prior.mean(theta, frame.x_to(x), frame)
    left, right = TEXTBOOK[prior.law.name](x, y, expand(theta), expand(prior.derived(theta, frame)))
    np.testing.assert_allclose(left, right, rtol=1e-7)


@pytest.mark.parametrize("prior", SINGLE, ids=lambda p: p.name)
def test_levels_are_what_their_names_say(prior: Prior) -> None:
    theta = draws(prior)
    frame = Frame(0.0, 1.0, 1.0, 0.02, 1.0, 10.0)
    first, last = prior.mean(theta, np.array([0.02, 1.0]), frame).T
    np.testing.assert_allclose(first, theta["y_first"], rtol=1e-8)
    np.testing.assert_allclose(last, theta["y_first"] * theta["y_ratio"], rtol=1e-8)


LOG_F_WIDE = np.concatenate([np.linspace(-60, 60, 601), np.linspace(-0.1, 0.1, 401), [-1e6, -1e3, 1e3, 1e6]])


def test_m4_solve_leaves_no_residual() -> None:
    alpha, log_f = np.meshgrid(np.geomspace(2e-3, 400, 101), LOG_F_WIDE)
    u = solve_logit(get_namespace("numpy"), alpha, log_f)
    residual = alpha * np.logaddexp(0, u) - np.logaddexp(0, -u) - log_f
    assert np.max(np.abs(residual) / (1 + np.abs(log_f))) <= 1e-12


def finite_difference(of: str) -> np.ndarray:
    xp = get_namespace("numpy")
    if of == "alpha":
        h = 1e-6 * ALPHA
        return np.asarray((solve_logit(xp, ALPHA + h, LOG_F) - solve_logit(xp, ALPHA - h, LOG_F)) / (2 * h))
    d = 1e-5
    return np.asarray((solve_logit(xp, ALPHA, LOG_F + d) - solve_logit(xp, ALPHA, LOG_F - d)) / (2 * d))


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_m4_solve_gradients(library: str) -> None:
    xp = get_namespace(library)
    if library == "jax":
        with double_precision():
            gradients: Any = jax.grad(lambda a, f: solve_logit(xp, a, f).sum(), (0, 1))(ALPHA, LOG_F)
    else:
        inputs = [torch.tensor(v, requires_grad=True) for v in (ALPHA, LOG_F)]
        gradients = torch.autograd.grad(solve_logit(xp, inputs[0], inputs[1]).sum(), inputs)
    for gradient, of in zip(gradients, ("alpha", "log_f"), strict=True):
        expected = finite_difference(of)
        assert np.max(np.abs(np.asarray(gradient) - expected) / (1 + np.abs(expected))) <= 1e-6


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_betainc_symmetric(library: str) -> None:
    b, x = np.meshgrid(np.linspace(0.5, 3, 26), np.linspace(0, 1, 101))
    expected = special.betainc(b, b, x)
    xp = get_namespace(library)
    with double_precision():
        found = xp.betainc_symmetric(xp.asarray(b), xp.asarray(x))
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-10)


def test_betainc_symmetric_says_where_its_series_ends() -> None:
    b, x = np.meshgrid([10.0, 20.0, 20.1, 1000.0], np.linspace(0.01, 0.99, 99))
    found = get_namespace("numpy").betainc_symmetric(b, x)
    np.testing.assert_allclose(found[:, :2], special.betainc(b, b, x)[:, :2], atol=1e-10)
    assert np.isnan(found[:, 2:]).all()


def only(prior: Prior, family: int) -> Prior:
    """The prior with one family of curves."""
    count = len(prior.parameters[0].distribution["probs"])
    return prior.replace(family=Distribution("Categorical", probs=tuple(float(k == family) for k in range(count))))


@pytest.mark.parametrize("family", [0, 1])
def test_paper_families_fall(family: int) -> None:
    mean = only(PAPER, family).sample(100, np.linspace(0.01, 1, 100), backend="torch")["mean"].values
    assert np.all(np.diff(mean) <= 1e-12)


def test_paper_family_rises_in_the_middle() -> None:
    theta = draws(only(PAPER, 2), 200)
    xp = get_namespace("numpy")
    count = expand({"n": PAPER.law.break_count(xp, theta)})["n"]  # type: ignore[attr-defined]
    begin, end, _ = PAPER.law._breaks(xp, expand(theta), count)  # type: ignore[attr-defined]
    share = np.linspace(0, 1, 50)
    rise = np.diff(PAPER.mean(theta, begin + (end - begin) * share * (1 - 1e-9), frame_of(PAPER)))
    assert np.all(rise >= -1e-12)
    assert np.all(rise.sum(1) > 0)
    before = PAPER.mean(theta, 0.01 + (begin - 0.01) * share * (1 - 1e-9), frame_of(PAPER))
    after = PAPER.mean(theta, end + (1 - end) * share, frame_of(PAPER))
    assert np.all(np.diff(before) <= 1e-12)
    assert np.all(np.diff(after) <= 1e-12)
    assert np.all(after <= theta["y_start"][:, None] * (1 + 1e-5))


@pytest.mark.parametrize("family", [1, 2])
def test_paper_joins_are_continuous(family: int) -> None:
    theta = draws(only(PAPER, family), 200)
    xp = get_namespace("numpy")
    count = expand({"n": PAPER.law.break_count(xp, theta)})["n"]  # type: ignore[attr-defined]
    for position in PAPER.law._breaks(xp, expand(theta), count):  # type: ignore[attr-defined]
        sides = PAPER.mean(theta, np.concatenate([position * (1 - 1e-12), position], -1), frame_of(PAPER))
        np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-6)


def without_drift(theta: Theta) -> Theta:
    return {**theta, "drift": 0.0 * theta["drift"]}


def signs(prior: Prior, family: int) -> list[list[int]]:
    """Per draw whether log(y - a) falls (1) or rises (-1), segment by segment, as the slopes say."""
    theta = draws(only(prior, family), 300)
    xp, frame = get_namespace("numpy"), frame_of(prior)
    slopes = np.stack(prior.law.slopes(xp, theta, frame), -1)  # type: ignore[attr-defined]
    counts = prior.law.break_count(xp, theta).astype(int)  # type: ignore[attr-defined]
    return [np.sign(row[: count + 1]).astype(int).tolist() for row, count in zip(slopes, counts, strict=True)]


def test_nsl_families_turn_as_their_names_say() -> None:
    expected: dict[int, list[list[int]]] = {
        0: [[1]],
        1: [[1, 1], [1, 1, 1], [1, 1, 1, 1]],
        2: [[1, -1, 1]],
        3: [[1, -1], [1, 1, -1]],
        4: [[-1], [-1, -1]],
    }
    for family, kinds in expected.items():
        found = signs(NSL, family)
        assert all(sign in kinds for sign in found)
        assert all(kind in found for kind in kinds)


@pytest.mark.parametrize(("family", "sign"), [(0, 1.0), (1, 1.0), (4, -1.0)])
def test_nsl_is_monotone_where_no_segment_turns(family: int, sign: float) -> None:
    theta = without_drift(draws(only(NSL, family), 400))
    change = np.diff(NSL.mean(theta, positions(NSL), frame_of(NSL)))
    turns = np.any(-sign * change < -1e-9, 1)
    several = NSL.law.break_count(get_namespace("numpy"), theta) > 1.5  # type: ignore[attr-defined]
    assert not np.any(turns & ~several)
    assert np.mean(turns) < 0.1  # a sharp break inside a wide one can overshoot, as in BNSL
    assert np.all(np.abs(change).sum(1) > 0)


def test_nsl_turns_up_for_good() -> None:
    theta = without_drift(draws(only(NSL, 3), 200))
    change = np.diff(np.log(NSL.mean(theta, np.geomspace(0.003, 1e4, 400), frame_of(NSL))))
    # A wide break hides the fall before it, or is not yet over at the end; 0 where it has reached the height at which it ends.
    assert np.mean(change[:, -1] >= 0) > 0.95
    assert np.mean(change.min(1) < 0) > 0.9


def test_nsl_levels_and_floor() -> None:
    theta, frame = without_drift(draws(NSL, 300)), frame_of(NSL)
    first = NSL.mean(theta, np.array([frame.first]), frame)[:, 0]
    np.testing.assert_allclose(first, theta["y_first"], rtol=1e-10)
    steep = without_drift(draws(only(NSL, 0), 300)) | {"fall": np.full(300, 2.0), "factor_1": np.ones(300)}
    far = NSL.mean(steep, np.array([1.0, 1e300]), frame)
    np.testing.assert_allclose(far[:, 1], steep["floor"] * np.exp(-2.0) * steep["y_first"], rtol=1e-3)
    np.testing.assert_allclose(far[:, 0], np.exp(-2.0) * steep["y_first"], rtol=1e-9)


def test_nsl_holds_m3() -> None:
    """A break to a slope of 0 with f = 1 at 1/gamma is beta (1/x + gamma)^c without a floor."""
    theta = {name: value[:1] for name, value in without_drift(draws(only(NSL, 1), 1)).items()}
    theta |= {"extra_breaks": np.zeros(1), "plateau": np.zeros(1), "floor": np.zeros(1), "sharpness_1": np.full(1, 0.95)}
    theta |= {"factor_2": np.zeros(1)}
    x, frame, xp = positions(NSL), frame_of(NSL), get_namespace("numpy")
    delta = NSL.law.breaks(xp, theta, frame)[0][0]  # type: ignore[attr-defined]
    c = NSL.law.slopes(xp, theta, frame)[0][0]  # type: ignore[attr-defined]
    m3 = (1 / x + np.exp(-delta)) ** c
    ratio = NSL.mean(theta, x, frame)[0] / m3
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)


def test_nsl_drift_is_the_sum_that_the_documentation_states() -> None:
    theta = draws(NSL, 20)
    x, frame = positions(NSL), frame_of(NSL)
    found = np.log(NSL.mean(theta, x, frame) / NSL.mean(without_drift(theta), x, frame))
    xi, expected = np.log(x), np.zeros_like(found)
    for k in range(7):
        omega = (theta["drift_pitch"] * 0.5 * 2.0**k)[:, None]
        a, b = theta[f"drift_a{k + 1}"][:, None], theta[f"drift_b{k + 1}"][:, None]
        expected += omega ** -theta["drift_decay"][:, None] * (a * np.cos(omega * xi) + b * np.sin(omega * xi))
    np.testing.assert_allclose(found, theta["drift"][:, None] * expected, atol=1e-12)


@pytest.mark.parametrize("prior", [NSL, PAPER], ids=lambda p: p.name)
def test_classes_are_family_and_number_of_breaks(prior: Prior) -> None:
    theta, xp = draws(prior, 500), get_namespace("numpy")
    index = prior.law.class_of(xp, theta).astype(int)
    counts = prior.law.break_count(xp, theta)  # type: ignore[attr-defined]
    expected = [{"family": int(f), "breaks": int(n)} for f, n in zip(theta["family"], counts, strict=True)]
    assert [prior.law.classes[i] for i in index] == expected
    assert set(index) == set(range(len(prior.law.classes)))

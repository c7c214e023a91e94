"""`next_points`: where to measure next."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from synthetic import few_joint_curves

import hybrid
from hybrid import choosing
from hybrid.choosing import _greedy

X = np.geomspace(1e6, 1e8, 6)
CURVE = hybrid.Curve(X, 2.0 * (X / 1e6) ** -0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(6)))
CANDIDATES = np.geomspace(1e5, 2e10, 25)


@pytest.mark.parametrize("prior", ["m4", "nsl"])
def test_takes_the_candidate_of_greatest_variance(prior: str) -> None:
    inside = CANDIDATES[(CANDIDATES > 2e6) & (CANDIDATES < 5e9)]
    found = hybrid.next_points(CURVE, inside, prior=prior)
    assert found.shape == (1,)
    y = hybrid.fit(CURVE, prior, "pfn", horizon=inside.max()).predictive.replicate(inside, 20_000, 0)
    low, high = np.quantile(np.log(y), [0.01, 0.99], axis=0)
    sd = np.log(y).clip(low, high).std(0)
    assert sd[found[0] == inside] > 0.99 * sd.max()


@pytest.mark.parametrize("engine", ["pfn", "nuts"])
def test_noise_does_not_choose(engine: str) -> None:
    """Where a curve is known y is large and so is its noise; far away it is unknown, and y small."""
    x = np.geomspace(1.0, 100.0, 60)
    y = (10.0 * x**-0.5 + 0.05) * np.exp(0.05 * np.random.default_rng(0).standard_normal(60))
    with few_joint_curves():
        found = hybrid.next_points(hybrid.Curve(x, y), [1.0, 1.01, 1.02, 3000.0], 2, prior="m4", engine=engine)
    assert found[0] == 3000.0


def test_several_are_distinct_candidates_and_begin_with_the_first() -> None:
    with few_joint_curves():
        found = hybrid.next_points(CURVE, CANDIDATES, 4, prior="m4")
    alone = hybrid.next_points(CURVE, CANDIDATES, prior="m4")
    assert found.shape == (4,)
    assert np.unique(found).size == 4
    assert np.all(np.isin(found, CANDIDATES))
    assert found[0] == alone[0]


def test_the_horizon_is_the_largest_candidate_or_the_last_point(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(choosing, "fit", lambda curve, prior, engine, horizon, *rest: taken.append(horizon) or 1 / 0)
    for candidates in ([3e6, 3e7], [3e7, 1e9]):
        with pytest.raises(ZeroDivisionError):
            hybrid.next_points(CURVE, candidates)
    assert taken == [X[-1], 1e9]


def test_does_not_choose_a_neighbour_that_tells_the_same() -> None:
    """Beside the farthest candidate lie five that are nearly as uncertain, and known once it is known."""
    far = 1e10 * np.linspace(0.95, 1.0, 6)
    found = hybrid.next_points(CURVE, np.append(far, [2e6, 1e5]), 2, prior="m4")
    assert found[0] in far
    assert found[1] == 1e5


def test_exact_engine_chooses_too() -> None:
    found = hybrid.next_points(CURVE, [2e7, 1e9], prior="m4", engine="nuts", draws=100, warmup=200)
    assert found[0] == 1e9


@pytest.mark.parametrize("noise", [1e-12, 0.7])
def test_greedy_is_sequential_conditioning(noise: float) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    covariance = root @ root.T
    chosen = _greedy(covariance + noise * np.eye(8), 8)
    assert sorted(chosen) == list(range(8))
    for n in range(8):
        known, rest = chosen[:n], chosen[n:]
        inner = covariance[np.ix_(known, known)] + noise * np.eye(n)
        left = [covariance[i, i] - covariance[i, known] @ np.linalg.solve(inner, covariance[known, i]) for i in rest]
        assert np.argmax(left) == 0


def test_points_that_tell_nothing_new_are_still_given() -> None:
    sd = np.array([1.0, 3.0, 2.0])
    assert sorted(_greedy(np.outer(sd, sd), 3)) == [0, 1, 2]
    assert sorted(_greedy(np.zeros((3, 3)), 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("candidates", "k", "words"),
    [
        ([], 1, "at least one"),
        ([1e9, -1.0], 1, "positive"),
        ([1e9, np.nan], 1, "finite"),
        ([1e9, 1e9], 1, "repeat"),
        ([1e9, 2e9], 3, "k must be"),
        ([1e9, 2e9], 0, "k must be"),
        ("far", 1, "candidates"),
        ([[1e9, 2e9]], 1, "one-dimensional"),
    ],
)
def test_refuses_what_it_cannot_choose_from(candidates: Any, k: int, words: str) -> None:
    with pytest.raises(hybrid.InvalidArgumentError, match=words):
        hybrid.next_points(CURVE, candidates, k, prior="m4")


def test_takes_a_curve() -> None:
    with pytest.raises(hybrid.InvalidCurveError, match="next_points takes a curve"):
        hybrid.next_points([1.0, 2.0], [3.0])  # type: ignore[arg-type]


def test_a_point_estimate_cannot_choose() -> None:
    with pytest.raises(hybrid.HybridError, match="a point estimate does not say where it is uncertain"):
        hybrid.next_points(CURVE, CANDIDATES, engine="least_squares")


class Known:
    """A fit whose forecasts are normal around 10, with these sds and correlations at the candidates 1, 2, 3."""

    status, prior, curve = "ok", None, CURVE
    sd = np.array([1.0, 0.9, 0.424])

    def positions(self, x: np.ndarray, name: str) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray, levels: list[float]) -> xr.Dataset:
        sd = self.sd if x.size == 3 else np.full(x.size, 0.316)  # where it is observed
        values = 10.0 + stats.norm.ppf(levels)[:, None] * sd
        return xr.Dataset({"quantiles": (("quantile", "x"), values)})

    def sample(self, x: np.ndarray, draws: int, progress: bool) -> xr.DataArray:
        one, other, third = np.random.default_rng(0).standard_normal((3, draws))
        return xr.DataArray(np.stack([one, 0.9 * one + np.sqrt(0.19) * other, third], 1), dims=("draw", "x"))


def test_what_a_neighbour_tells_of_the_next_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the first the second has a variance of .81 - .656, and the third keeps its .18."""
    monkeypatch.setattr(choosing, "fit", lambda *_: Known())
    assert hybrid.next_points(CURVE, [1.0, 2.0, 3.0], 2).tolist() == [1.0, 3.0]


def test_spread_is_of_y_where_noise_is_additive() -> None:
    np.testing.assert_allclose(choosing.spread(Known(), np.ones(3)), Known.sd, rtol=0.03)  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", ["nslpfn", "lcpfn"])
def test_a_prior_that_scales_by_the_horizon_is_asked_as_it_was_trained(prior: str) -> None:
    inside = [1.1 * CURVE.x[0], 0.9 * CURVE.x[-1]]
    assert hybrid.next_points(CURVE, inside, prior=prior)[0] in inside  # and warns of nothing


def test_a_candidate_that_is_unlike_training_is_told_once() -> None:
    early = 1e-4 * float(CURVE.x[0])
    with pytest.warns(UserWarning, match="candidates = .* lies before") as told:
        hybrid.next_points(CURVE, [early, 2.0 * CURVE.x[-1]], 2, prior="m4")
    assert len(told) == 1

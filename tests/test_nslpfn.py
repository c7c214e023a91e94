"""The released sampler of NSL-PFN: what its rejection promises, and what it refuses."""

import numpy as np
import pytest

import hybrid
from hybrid.checking import prior_predictive
from hybrid.models import nslpfn
from hybrid.models.coordinates import Frame
from hybrid.models.distributions import Distribution
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.nslpfn import PRIOR

X = np.linspace(0.01, 1, 60)


def test_curves_keep_what_the_rejection_promises() -> None:
    data = PRIOR.sample(500, X, seed=1)
    y, mean = data["y"].values, data["mean"].values
    assert np.all(np.isfinite(y))
    assert np.all(y >= 0)
    assert np.all((mean[:, 0] > 0.2 - 1e-9) & (mean[:, 0] < 1.2 + 1e-9))
    rising = data["family"].values == 2
    assert np.all(y[rising] <= y[rising, :1])
    assert np.all(np.diff(mean[data["family"].values == 0]) <= 1e-12)


def test_families_come_in_the_stated_shares() -> None:
    family = PRIOR.sample(2000, X, seed=2)["family"].values
    shares = np.bincount(family, minlength=3) / family.size
    assert np.all(np.abs(shares - [0.7, 0.2, 0.1]) < 5 * np.sqrt(0.25 / family.size))


def test_seed_fixes_the_draws() -> None:
    one, same, other = (PRIOR.sample(30, X, seed=s) for s in (1, 1, 2))
    assert one.equals(same)
    assert not np.allclose(one["y"], other["y"])


def test_has_no_density() -> None:
    assert not PRIOR.has_density
    with pytest.raises(EngineUnavailableError, match="'nsl'"):
        PRIOR.log_density({}, X, X)


def test_only_its_noise_can_be_replaced() -> None:
    quiet = PRIOR.replace(sigma={"loc": -7.0})
    assert quiet.fingerprint != PRIOR.fingerprint
    assert np.median(quiet.sample(200, X)["sigma"]) < np.median(PRIOR.sample(200, X)["sigma"])
    for change in ({"alpha": {"loc": 1.0}}, {}, {"sigma": Distribution("HalfNormal", scale=1.0)}):
        with pytest.raises(InvalidArgumentError):
            PRIOR.replace(**change)


def test_says_when_noise_leaves_no_curve_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nslpfn, "MAX_ROUNDS", 50)
    with pytest.raises(InvalidArgumentError, match="choose a smaller sigma"):
        PRIOR.replace(sigma={"loc": 4.0}).sample(20, X)


def test_drawn_curves_are_of_the_same_prior_wherever_they_are_seen() -> None:
    """The ends of the x that are asked for are not the ends of the curve."""
    short, whole = np.linspace(0.01, 0.2, 20), np.append(np.linspace(0.01, 0.2, 20), np.linspace(0.25, 1.0, 80))
    frame = Frame(0.0, 1.0, 1.0, 0.01, 0.2, 1.0)
    falls = []
    for x in (short, whole):
        _, mean, _ = PRIOR.draw(4000, x, frame, 0, "numpy")
        falls.append(np.median(mean[:, 19] / mean[:, 0]))
    assert falls[0] == pytest.approx(falls[1], abs=0.03)
    _, few, _ = PRIOR.draw(4000, short[[0, 8, 19]], frame, 1, "numpy")
    assert np.median(few[:, 2] / few[:, 0]) == pytest.approx(falls[1], abs=0.03)


def test_the_prior_predictive_knows_where_the_horizon_is() -> None:
    x = np.linspace(1.0, 10.0, 8)
    near, far = (hybrid.fit(hybrid.Curve(x, 1.0 + 1.0 / x), "nslpfn", "pfn", horizon=h) for h in (11.0, 1000.0))
    falls = [np.median(y[:, -1] / y[:, 0]) for y in (prior_predictive(fit, 2000) for fit in (near, far))]
    assert falls[1] > falls[0] + 0.2  # of the way to a far horizon little is seen


def test_another_name_is_the_same_sampler() -> None:
    mine = PRIOR.replace(name="mine")
    assert (mine.name, PRIOR.name, mine.fingerprint) == ("mine", "nslpfn", PRIOR.fingerprint)
    assert hybrid.prior_from_json(mine.to_json()) == mine != PRIOR
    both = PRIOR.replace("noisy", sigma={"loc": -3.0})
    assert both.name == "noisy"
    assert both.replace(sigma={"loc": -4.0}).fingerprint == PRIOR.fingerprint
    with pytest.raises(InvalidArgumentError, match="must be text"):
        PRIOR.replace(name=3)  # type: ignore[arg-type]

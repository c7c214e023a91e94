"""What is asked of a prior, a law or a fit before the work: one clear error, or a reason against the fit, never silence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hybrid
from hybrid import checking
from hybrid.models.distributions import Distribution
from hybrid.models.engine import Problem
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError, InvalidCurveError
from hybrid.models.least_squares import run_least_squares
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

CURVE = hybrid.Curve([1.0, 3.0, 10.0, 30.0, 100.0], [1.0, 0.8, 0.67, 0.6, 0.57])
LEVEL = hybrid.Parameter("level", Distribution("LogNormal", loc=0.0, scale=0.3))
SIGMA = hybrid.Parameter("sigma", Distribution("LogNormal", loc=-4.0, scale=1.0))


class Falling(hybrid.Law):
    """A level times a power of x; subclasses do something wrong."""

    name = "falling"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["level"] * xp.exp(-0.2 * xp.log(x))


class ByNumpy(Falling):
    name = "by_numpy"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["level"] * np.exp(-0.2 * np.log(x))


class Branching(Falling):
    name = "branching"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return super().mean(xp, x, theta, frame) if theta["level"].max() > 0 else x


def prior_of(law: hybrid.Law) -> Prior:
    return Prior(law.name, law, [LEVEL, SIGMA])


@pytest.mark.parametrize("law", [ByNumpy(), Branching()])
def test_a_law_that_jax_cannot_follow_is_told_to_use_xp(law: hybrid.Law) -> None:
    with pytest.raises(InvalidArgumentError, match="functions of xp"):
        hybrid.fit(CURVE, prior_of(law), "least_squares", progress=False)


@pytest.mark.parametrize("named", ["level", ("levle",), ("level", "sigma", "x"), None, 3])
def test_nearly_linear_parameters_are_the_prior_s_own(named: Any) -> None:
    law = Falling()
    law.nearly_linear = named
    with pytest.raises(InvalidArgumentError, match="nearly_linear must be a tuple of parameters of prior 'falling'"):
        prior_of(law)
    law.nearly_linear = ("level",)
    assert prior_of(law).law is law


@pytest.mark.parametrize(
    ("change", "share"),
    [({"y_ratio": {"low": -1.0}}, 0.51), ({"y_ratio": {"high": 2.0}}, 0.31), ({"floor": {"high": 1.5}}, 0.34)],
)
def test_a_prior_without_a_curve_for_many_draws_needs_review(change: dict[str, Any], share: float) -> None:
    prior = get_prior("m4").replace(**change)
    fit = hybrid.fit(CURVE, prior, "least_squares", progress=False)
    assert fit.status == "needs_review"
    (reason,) = (r for r in fit.reasons if "have no curve at the observed x" in r)
    assert abs(float(reason.split("%")[0]) / 100 - share) < 0.05
    for whole in (get_prior("m4"), get_prior("m4").replace(sigma={"loc": -5.0})):
        reasons = hybrid.fit(CURVE, whole, "least_squares", progress=False).reasons
        assert not any("have no curve" in r for r in reasons)


class ByLog(hybrid.Law):
    """A level less a multiple of log x, which is below 0 in the end."""

    name = "by_log"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["level"] - theta["slope"] * xp.log(x)


BY_LOG = Prior("by_log", ByLog(), [LEVEL, hybrid.Parameter("slope", Distribution("LogNormal", loc=-2.0, scale=0.5)), SIGMA])


def test_a_forecast_that_is_none_at_the_horizon_needs_review() -> None:
    x = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
    curve = hybrid.Curve(x, (1.0 - 0.15 * np.log(x)) * np.array([1.003, 0.998, 1.001, 0.996, 1.004]))
    near = hybrid.fit(curve, BY_LOG, "least_squares", horizon=200.0, progress=False)
    assert near.status == "ok"
    fit = hybrid.fit(curve, BY_LOG, "least_squares", horizon=1e5, progress=False)
    assert fit.status == "needs_review"
    assert any("where forecasts are NaN: state a nearer horizon" in reason for reason in fit.reasons)
    jobs: list[Callable[[], Any]] = [
        lambda: fit.predict([200.0, 2e4, 1e5])["median"].to_numpy(),
        lambda: fit.log_density([200.0, 2e4, 1e5], 0.1).to_numpy(),
        lambda: fit.prob_below([200.0, 2e4, 1e5], 0.1).to_numpy(),
    ]
    for job in jobs:
        with pytest.warns(UserWarning, match=r"NaN at x = 2e\+04"):
            found = job()
        np.testing.assert_array_equal(np.isnan(found), [False, True, True])
    with pytest.raises(InvalidArgumentError, match="have no curve at these x"):
        BY_LOG.sample(200, [0.1, 1.0, 1e6])


def test_a_forecast_that_is_none_before_the_context_is_told_where() -> None:
    x = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
    curve = hybrid.Curve(x, (1.0 + 0.15 * np.log(x)) * np.array([1.003, 0.998, 1.001, 0.996, 1.004]))
    either_way = hybrid.Parameter("slope", Distribution("Normal", loc=0.0, scale=0.3))
    fit = hybrid.fit(curve, Prior("by_log", ByLog(), [LEVEL, either_way, SIGMA]), "least_squares", progress=False)
    with pytest.warns(UserWarning, match=r"NaN at x = 0\.0001 to 0\.001, where"):
        found = fit.predict([1e-4, 1e-3, 1.0, 500.0])["median"].to_numpy()
    np.testing.assert_array_equal(np.isnan(found), [True, True, False, False])


class Level(Falling):
    """The same at all x."""

    name = "level"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["level"]


def test_a_law_that_is_the_same_at_all_x_has_a_curve_there() -> None:
    prior = prior_of(Level())
    assert prior.sample(3, [0.1, 1.0])["mean"].shape == (3, 2)
    fit = hybrid.fit(hybrid.Curve([1.0, 2.0, 4.0, 8.0], [1.01, 0.98, 1.0, 1.02]), prior, "least_squares", progress=False)
    assert fit.predict([9.0, 10.0])["median"].to_numpy() == pytest.approx(np.full(2, 1.0), abs=0.02)


class Nothing(Falling):
    name = "nothing"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return xp.exp(-0.2 * xp.log(x)) + 0.0 * theta["sigma"]


def test_least_squares_refuses_a_law_without_parameters() -> None:
    with pytest.raises(EngineUnavailableError, match="no parameters to find: use engine='nuts'"):
        hybrid.fit(CURVE, Prior("nothing", Nothing(), [SIGMA]), "least_squares", progress=False)


class Wide(Falling):
    name = "wide"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return super().mean(xp, x, theta, frame)[..., None, :]


class Linear(Falling):
    """The log of the curve is linear in one parameter; subclasses leave out a part of what that needs."""

    name = "linear"
    linear = ("tilt",)

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return self.centre(xp, x, theta, frame) * xp.exp(0.1 * theta["tilt"] * xp.log(x))

    def centre(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return super().mean(xp, x, theta, frame)

    def basis(self, xp: Any, x: Any) -> Any:
        return xp.log(x)[:, None]

    def basis_scales(self, xp: Any, theta: Any) -> Any:
        return 0.1 * xp.ones_like(theta["level"])[..., None]


class NoCentre(Linear):
    name = "no_centre"

    def centre(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return hybrid.Law.centre(self, xp, x, theta, frame)

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return Falling.mean(self, xp, x, theta, frame) * xp.exp(0.1 * theta["tilt"] * xp.log(x))


class NoBasis(Linear):
    name = "no_basis"

    def basis(self, xp: Any, x: Any) -> Any:
        return hybrid.Law.basis(self, xp, x)


class NoBasisScales(Linear):
    name = "no_basis_scales"

    def basis_scales(self, xp: Any, theta: Any) -> Any:
        return hybrid.Law.basis_scales(self, xp, theta)


class Misnamed(Falling):
    name = "misnamed"

    def sampling_scales(self, xp: Any, theta: Any, frame: Any) -> Any:
        return {"zzz": theta["level"]}


TILT = hybrid.Parameter("tilt", Distribution("Normal", loc=0.0, scale=1.0))


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (Wide(), "`mean` returns an array of shape"),
        (NoCentre(), "calls 'tilt' linear, and its `centre` reads it"),
        (NoBasis(), r"`basis` has shape \(3, 0\) where \(3, 1\)"),
        (NoBasisScales(), r"`basis_scales` has shape \(2, 0\) where \(2, 1\)"),
        (Misnamed(), "sampling_scales names 'zzz'"),
    ],
)
def test_what_a_law_declares_is_tried_out(law: hybrid.Law, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Prior(law.name, law, [LEVEL, TILT, SIGMA])


def test_linear_parameters_are_the_prior_s_own() -> None:
    assert Prior("linear", Linear(), [LEVEL, TILT, SIGMA]).integrable == ("tilt",)
    with pytest.raises(InvalidArgumentError, match="law 'linear' has a parameter 'tilt'"):
        prior_of(Linear())
    law = Falling()
    law.linear = ("tilt",)
    with pytest.raises(InvalidArgumentError, match=r": linear must be a tuple of parameters of prior 'falling', got \('tilt',"):
        prior_of(law)


@pytest.mark.parametrize("share", [Distribution("Uniform", low=0.0, high=2.0), Distribution("LogNormal", loc=-3.0, scale=1.0)])
def test_the_outliers_are_a_share(share: Distribution) -> None:
    with pytest.raises(InvalidArgumentError, match="outliers is a share"):
        get_prior("nsl").replace(outliers=share)
    assert get_prior("nsl").replace(outliers=Distribution("Uniform", low=0.0, high=0.2)).has_density


def test_least_squares_refuses_noise_that_it_cannot_find() -> None:
    prior = Prior("outliers", Falling(), [LEVEL, SIGMA, *outliers()], noise="contaminated_lognormal")
    frame = hybrid.fit(CURVE, prior_of(Falling()), "least_squares", progress=False).frame
    problem = Problem(frame.x_to(CURVE.x), CURVE.y / frame.y_scale, frame)
    with pytest.raises(EngineUnavailableError, match=r"contaminated_lognormal.*use engine='nuts'"):
        run_least_squares(prior, [problem])


def outliers() -> tuple[hybrid.Parameter, hybrid.Parameter]:
    slope = hybrid.Parameter("noise_slope", Distribution("Normal", loc=0.0, scale=0.3))
    return slope, hybrid.Parameter("outliers", Distribution("Beta", concentration1=1.0, concentration0=9.0))


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (lambda: get_prior("m4").replace(sigma={"family": "Normal"}), "to change the family"),
        (lambda: get_prior("m4").replace(sigma={"loc": 10**400}), "must be a number"),
        (lambda: Prior("p", Falling(), {"level": LEVEL}), "list of hybrid.Parameter"),  # type: ignore[arg-type]
        (lambda: hybrid.Parameter(3, LEVEL.distribution), "must be text"),  # type: ignore[arg-type]
        (lambda: hybrid.Parameter("", LEVEL.distribution), "must be text"),
        (lambda: hybrid.Parameter("a/b", LEVEL.distribution), "without a slash"),
        (lambda: hybrid.Parameter("level", LEVEL.distribution, object()), "meaning of parameter 'level' must be text"),  # type: ignore[arg-type]
        (lambda: Prior("p", Falling(), None), "list of hybrid.Parameter"),  # type: ignore[arg-type]
        (lambda: Prior("p", Falling(), [LEVEL, SIGMA], noise=["normal"]), "unknown noise"),  # type: ignore[arg-type]
        (lambda: Prior("p", Falling(), [LEVEL, SIGMA], coordinates=["ratio"]), "unknown coord"),  # type: ignore[arg-type]
        (lambda: prior_of(Falling()).log_density({"sigma": np.ones(1)}, np.ones(3), np.ones(3)), "lacks the parameter 'level'"),
        (lambda: hybrid.Parameter("a", 3), "needs a hybrid.Distribution"),  # type: ignore[arg-type]
        *((lambda check=check: check("fit"), "checks a fit by hybrid.fit") for check in (hybrid.health, hybrid.loo)),
        *((lambda check=check: check(None), "got NoneType") for check in (hybrid.sensitivity, hybrid.plot_checks)),
    ],
)
def test_wrong_kinds_are_refused(job: Callable[[], object], words: str) -> None:
    with pytest.raises(hybrid.HybridError, match=words):
        job()


def test_too_many_points_held_out() -> None:
    with pytest.raises(InvalidCurveError, match=r"holding out 3 of 5 points leaves 2 distinct x.*hold out fewer"):
        CURVE.hold_out(3)
    assert CURVE.hold_out(2).x.size == 3


def test_weights_of_leave_one_out_that_cannot_be_trusted_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = hybrid.fit(CURVE, "m4", "pfn", forecast="draws", progress=False)
    found = {"elpd": np.zeros(5), "pit": np.full(5, 0.5), "k_hat": np.array([0.2, 0.71, np.nan, np.inf, 0.69])}
    monkeypatch.setattr(checking, "_smoothed_loo", lambda _: found)
    with pytest.warns(UserWarning, match=r"k-hat is \.697 or more at x = 3, 30: .*forecast=.network. points are left out"):
        assert hybrid.loo(fit)["k_hat"].iloc[1] == 0.71


def test_agreement_is_judged_once_at_each_x() -> None:
    fit = hybrid.fit(CURVE, "m4", "pfn", progress=False)
    found = hybrid.agreement(fit, fit, x=[300.0, 150.0, 300.0])
    assert list(found.table.index) == [150.0, 300.0]
    assert "agree" in found.verdict


def test_numbers_of_classes_have_their_meaning() -> None:
    posterior = hybrid.fit(CURVE, "nslpfn", "pfn", progress=False).data["posterior"]
    assert "2 Down-Up-Down" in posterior["family"].attrs["meaning"]
    posterior = hybrid.fit(CURVE, "nsl", "pfn", progress=False).data["posterior"]
    assert "4 Up" in posterior["family"].attrs["meaning"]
    assert posterior["breaks"].attrs["meaning"] == "number of breaks"


def test_a_prior_that_can_only_be_simulated_says_what_it_is() -> None:
    prior = get_prior("nslpfn")
    assert repr(prior) == f"NslPfn(sigma={prior.parameters[0].distribution!r}, fingerprint={prior.fingerprint!r})"


class Logarithmic(hybrid.Law):
    """A line in log x, which is below 0 far enough to the left for some of its parameters."""

    name = "logarithmic"

    def mean(self, xp: Any, x: Any, theta: Any, frame: Any) -> Any:
        return theta["level"] + theta["slope"] * xp.log(x)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_whether_the_law_has_values_is_asked_of_every_curve(order: list[int]) -> None:
    slope = hybrid.Parameter("slope", Distribution("Normal", loc=0.0, scale=0.2))
    prior = Prior("logarithmic", Logarithmic(), [LEVEL, slope, SIGMA])
    narrow = hybrid.Curve([1.0, 1.2, 1.4, 1.6, 1.8], [1.0, 0.99, 1.01, 1.0, 0.995])
    wide = hybrid.Curve(np.geomspace(1.0, 1e6, 40), np.linspace(0.6, 1.0, 40) + 0.01 * np.sin(np.arange(40.0) ** 2))
    curves, horizons = [(narrow, wide)[i] for i in order], [(2.0, 1e6)[i] for i in order]
    fits = hybrid.fit_many(curves, prior, "least_squares", horizon=horizons, progress=False)
    alone = [hybrid.fit(c, prior, "least_squares", horizon=h) for c, h in zip(curves, horizons, strict=True)]
    assert [fit.reasons for fit in fits] == [fit.reasons for fit in alone]
    without = [any("have no curve at the observed x" in reason for reason in fit.reasons) for fit in fits]
    assert without == [i == 1 for i in order]

"""The parameter heads: draws and densities describe one distribution, over the parameters that the prior declares."""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.amortized.coordinates import CURVE_FEATURES
from hybrid.amortized.design import Design
from hybrid.amortized.posterior import ClassHead, FlowHead, parameter_head
from hybrid.amortized.sampler import sample_curves
from hybrid.models.coordinates import Frame, get_coordinates
from hybrid.models.distributions import Distribution
from hybrid.models.law import Law
from hybrid.models.namespace import get_namespace
from hybrid.models.prior import AbstractPrior, Parameter, Prior
from hybrid.models.registry import PRIORS, get_prior

CONTINUOUS = [p for p in PRIORS if isinstance(p, Prior) and p.is_continuous]
MIXTURES = [get_prior("nsl"), get_prior("nslpfn")]
FEATURES = 12


class Flat(Law):
    """A law without classes."""

    name = "flat"

    def mean(self, xp: Any, x: Any, theta: Mapping[str, Any], frame: Frame) -> Any:
        return theta["level"] + 0.0 * x


LEVEL = Parameter("level", Distribution("LogNormal", loc=0.0, scale=1.0))
SIGMA = Parameter("sigma", Distribution("LogNormal", loc=-4.0, scale=1.0))
COIN = Parameter("coin", Distribution("Categorical", probs=(0.5, 0.5)))
# Every family that has a density on the line.
VARIED = Prior(
    "varied",
    Flat(),
    [
        LEVEL,
        SIGMA,
        Parameter("normal", Distribution("Normal", loc=-2.0, scale=0.1)),
        Parameter("student", Distribution("StudentT", df=5.0, loc=1.0, scale=2.0)),
        Parameter("half", Distribution("HalfNormal", scale=3.0)),
        Parameter("exponential", Distribution("Exponential", rate=0.2)),
        Parameter("gamma", Distribution("Gamma", concentration=2.0, rate=5.0)),
        Parameter("beta", Distribution("Beta", concentration1=2.0, concentration0=3.0)),
        Parameter("uniform", Distribution("Uniform", low=-1.0, high=4.0)),
    ],
)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def make_flow(prior: Prior, transforms: int = 2, trained: bool = True) -> FlowHead:
    """A small flow; `trained` moves its weights away from where they start."""
    head = FlowHead(prior, FEATURES, transforms, 24)
    if trained:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def contexts(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, FEATURES), torch.randn(count, CURVE_FEATURES)


def log_jacobian(distribution: Distribution, theta: np.ndarray) -> np.ndarray:
    """log |d theta / d u| for u = log theta, logit of the share of the range, or theta itself."""
    if distribution.family in ("LogNormal", "HalfNormal", "Exponential", "Gamma"):
        return np.log(theta)
    if distribution.family in ("Beta", "Uniform"):
        low, high = (distribution["low"], distribution["high"]) if distribution.family == "Uniform" else (0.0, 1.0)
        return np.log(theta - low) + np.log(high - theta) - np.log(high - low)
    return np.zeros_like(theta)


def log_prior(prior: Prior, theta: Mapping[str, np.ndarray]) -> np.ndarray:
    """log p(theta) over the unconstrained parameters."""
    total = np.zeros(())
    for p in prior.parameters:
        density = p.distribution.torch(torch.float64).log_prob(torch.from_numpy(theta[p.name])).numpy()
        total = total + density + log_jacobian(p.distribution, theta[p.name])
    return total


@pytest.mark.parametrize("prior", [*CONTINUOUS, VARIED], ids=lambda p: p.name)
def test_draws_have_the_stated_density_and_lie_in_the_support(prior: Prior) -> None:
    head, (summary, curve) = make_flow(prior), contexts(3)
    theta, log_q = head.sample(summary, curve, 400)
    assert tuple(theta) == head.names == tuple(p.name for p in prior.parameters)
    assert log_q.shape == (400, 3)
    assert log_q.dtype == torch.float64
    for p in prior.parameters:
        assert theta[p.name].shape == (400, 3)
        assert theta[p.name].dtype == torch.float64
        assert bool(p.distribution.torch(torch.float64).support.check(theta[p.name]).all())
        assert bool(torch.isfinite(theta[p.name]).all())
    size = len(head.names)
    with torch.no_grad():
        again = -size * head.loss(theta, summary, curve).double() - head.scale.double().log().sum()
    torch.testing.assert_close(again, log_q, rtol=1e-4, atol=2e-3)


def test_each_context_has_its_own_distribution() -> None:
    head, (summary, curve) = make_flow(get_prior("m2")), contexts(3)  # type: ignore[arg-type]
    theta, _ = head.sample(summary, curve, 50)
    with torch.no_grad():
        together = head.loss(theta, summary, curve)
        for row in range(3):
            one = {name: value[:, row] for name, value in theta.items()}
            alone = head.loss(one, summary[row].expand(50, -1), curve[row].expand(50, -1))
            torch.testing.assert_close(alone, together[:, row], rtol=1e-4, atol=1e-4)
            elsewhere = head.loss(one, summary[row - 1].expand(50, -1), curve[row - 1].expand(50, -1))
            assert float((elsewhere - alone).abs().min()) > 1e-6


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_density_is_normalised_over_the_unconstrained_parameters(name: str) -> None:
    prior = get_prior(name)
    assert isinstance(prior, Prior)
    head, (summary, curve) = make_flow(prior, trained=False), contexts(1)
    n = 20_000
    theta, log_q = head.sample(summary, curve, n)
    # E_q[p / q] = 1 where q covers p; p is the prior, around which a fresh flow is spread.
    weight = np.exp(log_prior(prior, {k: v[:, 0].numpy() for k, v in theta.items()}) - log_q[:, 0].numpy())
    assert weight.mean() == pytest.approx(1.0, abs=max(5 * weight.std() / math.sqrt(n), 0.02))
    assert weight.std() / math.sqrt(n) < 0.05


@pytest.mark.parametrize("prior", [*CONTINUOUS, VARIED], ids=lambda p: p.name)
def test_parameters_are_standardised_by_their_prior(prior: Prior) -> None:
    head = FlowHead(prior, FEATURES, 1, 8)
    draws = prior.draw_torch(20_000, torch.float64)
    z = head._standardise(draws, torch.zeros(20_000, CURVE_FEATURES)).detach()
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), rtol=0, atol=0.05)
    torch.testing.assert_close(z.std(0), torch.ones(z.shape[1]), rtol=0, atol=0.05)
    torch.manual_seed(5)
    other = FlowHead(prior, FEATURES, 1, 8)
    assert torch.equal(other.loc, head.loc)
    assert torch.equal(other.scale, head.scale)
    assert not torch.equal(other.summary.weight, head.summary.weight)


@pytest.mark.parametrize("prior", [*CONTINUOUS, VARIED], ids=lambda p: p.name)
def test_log_joint_is_the_density_of_the_prior_with_the_jacobian(prior: Prior) -> None:
    head = FlowHead(prior, FEATURES, 1, 8)
    x = np.array([0.01, 0.03, 0.1, 0.4, 0.4, 1.0])
    frame = get_coordinates(prior.coordinates).frame(x, 30.0, 1.0)
    theta = prior.draw_torch(12, torch.float64)
    mean = prior.mean({k: v[0].numpy() for k, v in theta.items()}, x, frame)
    y = np.asarray(mean) * np.exp(0.1 * np.random.default_rng(0).standard_normal(6))
    plain = {k: v.numpy() for k, v in theta.items()}
    expected = np.asarray(prior.log_density(plain, x, y, frame))  # by JAX
    expected = expected + sum(log_jacobian(p.distribution, plain[p.name]) for p in prior.parameters)
    found = head.log_joint(theta, torch.from_numpy(x), torch.from_numpy(y), frame)
    assert found.shape == (12,)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-8)
    folded = head.log_joint({k: v.reshape(3, 4) for k, v in theta.items()}, torch.from_numpy(x), torch.from_numpy(y), frame)
    torch.testing.assert_close(folded, found.reshape(3, 4))


def test_training_finds_a_posterior_that_is_known() -> None:
    prior = get_prior("m1")
    assert isinstance(prior, Prior)
    head = make_flow(prior, transforms=1, trained=False)
    noise = 0.1

    def batch(size: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """log y_first is seen with noise among the features of the curve, log sigma in the summary, y_ratio not at all."""
        theta = prior.draw_torch(size, torch.float64)
        summary, curve = contexts(size)
        curve[:, 0] = (theta["y_first"].log() / 0.5 + noise * torch.randn(size)).float()
        summary[:, 0] = ((theta["sigma"].log() + 4.5) / 1.5 + noise * torch.randn(size)).float()
        return theta, summary, curve

    test = batch(4000)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    steps = 400
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    before = float(head.loss(*test).mean().detach())
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(*batch(256)).mean().backward()
        optimizer.step()
        schedule.step()
    after = float(head.loss(*test).mean().detach())
    # Two standard normals seen with noise, and a standardised logistic seen not at all.
    precise = 0.5 * math.log(2 * math.pi * math.e * noise**2 / (1 + noise**2))
    best = (2 * precise + 2.0 - math.log(math.pi / math.sqrt(3))) / 3
    assert before > best + 0.5
    assert best - 0.02 < after < best + 0.1
    summary, curve = torch.zeros(1, FEATURES), torch.zeros(1, CURVE_FEATURES)
    summary[0, 0], curve[0, 0] = -1.0, 1.0
    theta, _ = head.sample(summary, curve, 4000)
    shrunk = 1 / (1 + noise**2)
    for name, centre, scale in (("y_first", 0.5 * shrunk, 0.5), ("sigma", -4.5 - 1.5 * shrunk, 1.5)):
        assert float(theta[name].log().mean()) == pytest.approx(centre, abs=0.1 * scale)
        assert float(theta[name].log().std()) == pytest.approx(scale * noise, rel=0.5)
    assert float(theta["y_ratio"].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(theta["y_ratio"].std()) == pytest.approx(math.sqrt(1 / 12), abs=0.05)


@pytest.mark.parametrize("prior", MIXTURES, ids=lambda p: p.name)
def test_class_head_scores_the_class_of_each_curve(prior: AbstractPrior) -> None:
    head = ClassHead(prior, FEATURES, 16)
    curves = sample_curves(prior, 300, Design(context=(10, 30)), 1)
    summary, curve = contexts(300)
    with torch.no_grad():
        p = head.probabilities(summary)
        loss = head.loss(curves.theta, summary, curve)
    assert p.shape == (300, len(head.classes))
    assert p.dtype == torch.float64
    assert bool((p > 0).all())
    torch.testing.assert_close(p.sum(1), torch.ones(300, dtype=torch.float64), rtol=0, atol=1e-12)
    seen = []
    for row in range(300):
        family = int(curves.theta["family"][row])
        wanted = {"family": family}
        if prior.name == "nsl":
            wanted["breaks"] = {0: 0, 1: 1 + int(curves.theta["extra_breaks"][row]), 2: 2}[family]
        seen.append(head.classes.index(wanted))
    assert set(seen) == set(range(len(head.classes)))
    expected = -p[torch.arange(300), torch.tensor(seen)].log()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_classes_are_those_of_the_laws() -> None:
    nsl, released = (ClassHead(prior, FEATURES, 4) for prior in MIXTURES)
    assert [tuple(c.values()) for c in nsl.classes] == [(0, 0), (1, 1), (1, 2), (1, 3), (2, 2)]
    assert [dict(c) for c in released.classes] == [{"family": 0}, {"family": 1}, {"family": 2}]
    prior = MIXTURES[0]
    assert isinstance(prior, Prior)
    theta = prior.draw_torch(2000, torch.float64)
    index = prior.law.class_of(get_namespace("torch"), theta).long()
    share = torch.bincount(index, minlength=5).double() / 2000
    expected = torch.tensor([0.7, 0.2 * 0.4, 0.2 * 0.4, 0.2 * 0.2, 0.1], dtype=torch.float64)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.04)


def test_training_finds_the_probabilities_of_classes() -> None:
    head = ClassHead(get_prior("nslpfn"), FEATURES, 16)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(300):
        summary, curve = contexts(256)
        sure = torch.where(summary[:, 0] > 0, 2, torch.randint(0, 2, (256,)))  # 2, or else 0 and 1 alike
        optimizer.zero_grad()
        head.loss({"family": sure}, summary, curve).mean().backward()
        optimizer.step()
    summary = torch.zeros(2, FEATURES)
    summary[:, 0] = torch.tensor([1.5, -1.5])
    p = head.probabilities(summary).detach()
    torch.testing.assert_close(p, torch.tensor([[0, 0, 1], [0.5, 0.5, 0]], dtype=torch.float64), rtol=0, atol=0.12)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: p.name)
def test_each_shipped_prior_has_a_head(prior: AbstractPrior) -> None:
    head = parameter_head(prior, FEATURES, 1, 8)
    assert isinstance(head, ClassHead if prior in MIXTURES else FlowHead)
    assert head.prior is prior


def test_discrete_parameters_without_classes_have_no_head() -> None:
    assert parameter_head(Prior("mixed", Flat(), [LEVEL, SIGMA, COIN]), FEATURES, 1, 8) is None
    assert isinstance(parameter_head(Prior("plain", Flat(), [LEVEL, SIGMA]), FEATURES, 1, 8), FlowHead)


def test_importing_the_heads_leaves_the_checks_of_torch_on() -> None:
    code = "import torch, hybrid.amortized.posterior; assert torch.distributions.Distribution._validate_args"
    subprocess.run([sys.executable, "-c", code], check=True)

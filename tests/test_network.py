"""The network: queries, curves and padding do not mix, and before training it repeats the two frames of reference."""

import math

import numpy as np
import pytest
import torch
from contexts import law_of
from scipy import stats
from torch import Tensor

from hybrid.amortized.bar_distribution import BarDistribution
from hybrid.amortized.coordinates import MOST_TOKENS, Described, Tokens, ask, curve_features, describe
from hybrid.amortized.design import Design
from hybrid.amortized.law_frame import LawFrame
from hybrid.amortized.model import OTHER_LAW, OWN_LAW, AmortizedModel, is_logarithmic
from hybrid.amortized.network import REFERENCE_DOF, Network, Prediction, placed
from hybrid.amortized.posterior import ClassHead, FlowHead
from hybrid.amortized.sampler import sample_curves
from hybrid.amortized.settings import Settings
from hybrid.amortized.typical import NAMED, SHARE, Typical
from hybrid.models.coordinates import Frame
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import PRIORS, get_prior

TINY = Settings(layers=3, width=32, heads=2, inner=48, bins=20, summaries=2, transforms=1, hidden=16)
SHARED = curve_features(law_of().size)
# Differences between two orders of summation in single precision, through three layers.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_network(seed: int = 0, trained: bool = True) -> Network:
    """A tiny network; `trained` gives random values to the weights that start at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(TINY.layers, TINY.width, TINY.heads, TINY.inner, TINY.bins, TINY.summaries, SHARED, OWN_LAW)
        if trained:
            torch.nn.init.normal_(network.head.weight, std=0.3)
            torch.nn.init.normal_(network.head.bias)
            torch.nn.init.normal_(network.tails.weight, std=0.3)
            torch.nn.init.normal_(network.observed)
    return network.eval()


def make_curves(sizes: tuple[int, ...], queries: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy falling curves of the given sizes: x and y (B, N), padded with ones, mask, and queries (B, M)."""
    rng = np.random.default_rng(seed)
    shape = (len(sizes), max(sizes))
    mask = torch.arange(shape[1]) < torch.tensor(sizes)[:, None]
    x, y = np.ones(shape), np.ones(shape)
    for row, size in enumerate(sizes):
        xi = np.sort(rng.uniform(-8.0, 0.0, size))
        xi[-1] = 0.0
        x[row, :size] = np.exp(xi)
        y[row, :size] = (0.3 + np.exp(-0.3 * xi)) * np.exp(0.05 * rng.standard_normal(size))
    query = np.exp(rng.uniform(-8.0, 5.0, (len(sizes), queries)))
    return torch.from_numpy(x), torch.from_numpy(y), mask, torch.from_numpy(query)


def as_described(x: Tensor, y: Tensor, mask: Tensor, law: LawFrame) -> Described:
    one = torch.ones_like(x[:, :1])
    return describe(x, y, mask, Frame(0 * one, one, one, x[:, :1], one, 10 * one), law)


def as_tokens(x: Tensor, y: Tensor, mask: Tensor, query: Tensor) -> Tokens:
    return ask(as_described(x, y, mask, law_of()), query, law_of())


@torch.inference_mode()
def run(network: Network, tokens: Tokens, observed: int = 0) -> tuple[Prediction, Tensor]:
    prediction, summary = network(tokens, observed)
    return prediction, summary


def assert_same(one: Prediction, other: Prediction) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_shapes() -> None:
    prediction, summary = run(make_network(), as_tokens(*make_curves((5, 30, 100))))
    assert prediction.gate.shape == prediction.centre.shape == prediction.log_width.shape == (3, 7)
    assert prediction.logits.shape == (3, 7, TINY.bins + 2)
    assert summary.shape == (3, TINY.summaries, TINY.width)


def test_queries_do_not_see_each_other() -> None:
    network, (x, y, mask, query) = make_network(), make_curves((5, 30, 100))
    together, summary = run(network, as_tokens(x, y, mask, query))
    for k in range(query.shape[1]):
        alone, same = run(network, as_tokens(x, y, mask, query[:, k : k + 1]))
        assert_same(alone, Prediction(*(part[:, k : k + 1] for part in together)))
        torch.testing.assert_close(same, summary, **CLOSE)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    shuffled, _ = run(network, as_tokens(x, y, mask, query[:, order]))
    assert_same(shuffled, Prediction(*(part[:, order] for part in together)))
    _, without = run(network, as_tokens(x, y, mask, query[:, :0]))
    torch.testing.assert_close(without, summary, **CLOSE)


def test_curves_and_padding_do_not_mix() -> None:
    network, sizes = make_network(), (3, 20, MOST_TOKENS, MOST_TOKENS + 1, 150)
    x, y, mask, query = make_curves(sizes)
    together, summaries = run(network, as_tokens(x, y, mask, query))
    for row, size in enumerate(sizes):
        at = slice(row, row + 1)
        alone, summary = run(network, as_tokens(x[at, :size], y[at, :size], mask[at, :size], query[at]))
        # The smoother of three points depends on the order of rounding, see test_smoother.
        close = {"rtol": 1e-2, "atol": 1e-2} if size == 3 else CLOSE
        for a, b in zip((*alone, summary), (*together, summaries), strict=True):
            torch.testing.assert_close(a[0], b[row], **close)


def test_what_masked_tokens_hold_is_ignored() -> None:
    network, tokens = make_network(), as_tokens(*make_curves((10, 40)))
    base, summary = run(network, tokens)
    junk = torch.where(tokens.mask[..., None], tokens.context, 1e3 * torch.randn(tokens.context.shape))
    other, same = run(network, tokens._replace(context=junk))
    assert_same(other, base)
    torch.testing.assert_close(same, summary, **CLOSE)
    junk = torch.where(tokens.mask[..., None], tokens.context + 0.1, tokens.context)
    moved, _ = run(network, tokens._replace(context=junk))
    assert float((moved.centre - base.centre).abs().amin()) > 1e-4


def test_context_is_a_set() -> None:
    network, tokens = make_network(), as_tokens(*make_curves((MOST_TOKENS,)))
    order = torch.randperm(MOST_TOKENS, generator=torch.Generator().manual_seed(0))
    base, summary = run(network, tokens)
    shuffled, same = run(network, tokens._replace(context=tokens.context[:, order]))
    assert_same(shuffled, base)
    torch.testing.assert_close(same, summary, **CLOSE)


@pytest.mark.parametrize("size", [10, MOST_TOKENS])
def test_order_of_repeated_measurements_does_not_matter(size: int) -> None:
    network = make_network()
    x, y, mask, query = make_curves((size // 2,))
    x, mask = x.repeat_interleave(2, 1), mask.repeat_interleave(2, 1)
    pairs = torch.stack([y, 1.1 * y], -1)
    base, summary = run(network, as_tokens(x, pairs.flatten(1), mask, query))
    swapped, same = run(network, as_tokens(x, pairs.flip(-1).flatten(1), mask, query))
    for a, b in zip((*swapped, same), (*base, summary), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bins", [1, 20, 1000])
def test_edges_are_quantiles_of_a_student_t(bins: int) -> None:
    edges = Network(1, 8, 1, 8, bins, 1, SHARED, 0.0).edges
    assert edges.shape == (bins + 1,)
    assert edges.dtype == torch.float32
    assert bool((edges.diff() > 0).all())
    masses = np.diff(stats.t.cdf(edges.numpy(), REFERENCE_DOF), prepend=0.0, append=1.0)
    np.testing.assert_allclose(masses, 1.0 / (bins + 2), rtol=2e-3)
    np.testing.assert_allclose(edges.numpy(), -edges.numpy()[::-1], rtol=1e-5, atol=1e-6)


def test_an_untrained_network_predicts_a_student_t_around_the_precision_weighted_law_and_smoother() -> None:
    network, tokens = make_network(trained=False), as_tokens(*make_curves((5, 30, 100)))
    prediction, _ = run(network, tokens)
    assert bool((prediction.gate == OWN_LAW).all())
    for part in prediction[1:]:
        assert float(part.abs().max()) == 0.0
    trust = 1 / (1 + math.exp(-OWN_LAW))
    precision = torch.tensor([trust, 1 - trust], dtype=torch.float64) / tokens.scale.square()
    middle, scale = (precision * tokens.loc).sum(-1) / precision.sum(-1), precision.sum(-1).rsqrt()
    loc = middle + scale * prediction.centre
    bars = BarDistribution(
        prediction.logits.double(), network.edges, loc, scale * prediction.log_width.double().exp(), prediction.tails.double()
    )
    z = network.edges.double()
    for one, other in zip(placed(prediction, tokens), (middle, scale), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    found = bars.cdf(loc + scale * z[:, None, None]).movedim(0, -1)
    expected = torch.from_numpy(stats.t.cdf(z.numpy(), REFERENCE_DOF)).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bars.icdf(torch.full((1, 1), 0.5, dtype=torch.float64)), middle, rtol=1e-6, atol=1e-6)


def gated(gate: float, loc: tuple[float, float], scale: tuple[float, float]) -> tuple[float, float]:
    """Where one query is placed by a gate and the forecasts of law and smoother."""
    nothing = torch.empty(0)
    both = [torch.tensor([[part]], dtype=torch.float64) for part in (loc, scale)]
    found = placed(Prediction(torch.tensor([[gate]]), *[nothing] * 4), Tokens(*[nothing] * 5, *both))
    return float(found[0]), float(found[1])


def test_the_gate_leans_to_law_or_smoother() -> None:
    assert gated(0.0, (1.0, 2.0), (0.1, 0.1)) == pytest.approx((1.5, 0.1))  # half of each precision, twice
    assert gated(0.0, (1.0, 2.0), (0.1, 0.3)) == pytest.approx((1.1, math.sqrt(2 / (100 + 100 / 9))))
    for gate in (-80.0, -30.0, 30.0, 80.0):  # logits beyond what a sigmoid in single precision can tell from 0 or 1
        at = 0 if gate > 0 else 1
        loc, scale = (1.0, 2.0), (0.1, 0.3)
        assert gated(gate, loc, scale) == pytest.approx((loc[at], scale[at]), rel=1e-6)
    # A frame that is a million times more precise has its way unless the gate says so.
    assert gated(0.0, (1.0, 2.0), (1e-6, 1.0))[0] == pytest.approx(1.0, abs=1e-9)
    assert gated(-60.0, (1.0, 2.0), (1e-6, 1.0))[0] == pytest.approx(2.0, abs=1e-9)
    trusts = [gated(gate, (0.0, 1.0), (0.2, 0.2)) for gate in (-3.0, -1.0, 0.5, 2.0)]
    for gate, (loc, scale) in zip((-3.0, -1.0, 0.5, 2.0), trusts, strict=True):
        assert loc == pytest.approx(1 / (1 + math.exp(gate)))
        assert scale == pytest.approx(0.2)


@pytest.mark.parametrize("observed", [1, 3, 7])
def test_observed_queries_alone_are_told_so(observed: int) -> None:
    network, tokens = make_network(), as_tokens(*make_curves((5, 30)))
    base, summary = run(network, tokens)
    told, same = run(network, tokens, observed)
    asked = 7 - observed
    assert_same(Prediction(*(part[:, :asked] for part in told)), Prediction(*(part[:, :asked] for part in base)))
    torch.testing.assert_close(same, summary, **CLOSE)
    assert float((told.logits - base.logits)[:, asked:].abs().amax(-1).min()) > 1e-3


def test_gradients_reach_every_parameter() -> None:
    network, tokens = make_network(), as_tokens(*make_curves((5, 30, 100)))
    prediction, summary = network(tokens, 2)
    each = torch.arange(1.0, 8.0)
    loss = (each * (prediction.gate.sin() + prediction.centre.sin() + prediction.log_width.sin())).sum()
    loss = (
        loss
        + (each[:, None] * prediction.logits.sin()).sum()
        + (each[:, None] * prediction.tails.sin()).sum()
        + summary.sin().sum()
    )
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 1e-4, name


def make_model(prior: AbstractPrior, seed: int = 0) -> AmortizedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AmortizedModel(prior, TINY)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: p.name)
def test_a_model_has_what_its_prior_needs(prior: AbstractPrior) -> None:
    model = make_model(prior)
    mixture, additive = prior.name in ("nsl", "nsl_paper", "nslpfn"), prior.name in ("nsl_paper", "nslpfn", "lcpfn")
    assert model.logarithmic == is_logarithmic(prior) == (not additive)
    assert isinstance(model.head, ClassHead if mixture else type(None) if prior.name == "lcpfn" else FlowHead)
    assert model.typical.centre.shape == (TINY.summaries * TINY.width,)
    assert model.network.edges.shape == (TINY.bins + 1,)
    own = isinstance(prior, Prior) and prior.is_continuous
    assert (model.law.prior is prior) == own
    assert model.law.logarithmic == model.logarithmic
    assert float(model.network.head.bias[0].detach()) == (OWN_LAW if own else OTHER_LAW)
    assert model.typical.low.shape == (curve_features(model.law.size) + 1,)
    x, y, mask, query = make_curves((5, 30))
    described = as_described(x, y, mask, model.law)
    _, summary = model.network(ask(described, query, model.law))
    theta = {name: value[:2] for name, value in sample_curves(prior, 5, Design(), 0).theta.items()}
    if model.head is not None:
        assert model.head.loss(theta, summary.flatten(1), described).shape == (2,)


def test_noise_of_the_prior_sets_the_scale() -> None:
    shared = get_prior("m1")
    assert isinstance(shared, Prior)
    for noise, logarithmic in (("lognormal", True), ("normal", False), ("truncated_normal", False)):
        assert is_logarithmic(Prior("mine", shared.law, shared.parameters, noise)) == logarithmic


def test_seed_and_stored_weights_fix_a_model() -> None:
    one, same, other = (make_model(get_prior("m1"), seed) for seed in (0, 0, 1))
    weights = one.state_dict()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in weights.items())
    assert not torch.equal(one.network.summary, other.network.summary)
    for name, value in weights.items():
        if name != "network.edges" and not name.startswith("law."):  # what the settings and the prior fix
            weights[name] = value + 0.1
    other.load_state_dict(weights)
    one.load_state_dict(weights)
    x, y, mask, query = make_curves((5, 30))
    tokens = ask(as_described(x, y, mask, one.law), query, one.law)
    for a, b in zip(run(one.network, tokens)[0], run(other.network, tokens)[0], strict=True):
        assert torch.equal(a, b)
    fixed = ("network.edges", "law.loc", "law.scale", "law.noise", "law.bank")
    for name in (*fixed, "typical.centre", "typical.axes", "typical.low", "typical.limit"):
        assert name in weights


def typical_contexts(count: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Correlated summaries around 3 and independent curve features, both normal."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator) * torch.logspace(0, -2, features)
    generator.manual_seed(seed)
    summary = 3.0 + torch.randn(count, features, generator=generator) @ mixing.T
    return summary, torch.randn(count, SHARED, generator=generator)


BY_PLACE = {index % SHARED: name for index, name in NAMED.items()}


def measured(features: int) -> Typical:
    typical = Typical(features, SHARED)
    typical.measure(*typical_contexts(20_000, features, 1))
    return typical


@pytest.mark.parametrize("features", [8, 64])
def test_contexts_like_those_of_training_are_typical(features: int) -> None:
    remarks = measured(features).remarks(*typical_contexts(20_000, features, 3))
    said = [text for row in remarks for text in row]
    for name in (*NAMED.values(), "the shape of the context"):
        share = sum(text.startswith(name) for text in said) / 20_000
        assert share == pytest.approx(1 - SHARE, abs=0.002)
    # Each of the criteria has its own share, so somewhat more are remarked on by one of them.
    assert 1 - sum(bool(row) for row in remarks) / 20_000 == pytest.approx(SHARE ** (1 + len(NAMED)), abs=0.004)


def test_what_is_far_off_is_remarked_on_by_name() -> None:
    typical = measured(8)
    summary, curve = typical.centre.expand(3, 8).clone(), torch.zeros(3, SHARED)
    assert typical.remarks(summary, curve) == [[], [], []]
    for index in range(SHARED):
        for value in (-9.0, 9.0):
            moved = curve.clone()
            moved[1, index] = value
            assert typical.remarks(summary, moved) == [[], [BY_PLACE[index]] if index in BY_PLACE else [], []]
    moved = curve.clone()
    moved[2] = 9.0
    summary[2] += 100.0
    found = typical.remarks(summary, moved)
    assert found[:2] == [[], []]
    assert found[2][:-1] == list(NAMED.values())
    assert found[2][-1].startswith("the shape of the context (")
    assert "99.5%" in found[2][-1]


def test_remarks_name_what_was_changed_in_a_curve() -> None:
    x, y, mask, query = make_curves((40,) * 300)
    typical = Typical(8, SHARED)
    typical.measure(typical_contexts(300, 8, 1)[0], as_tokens(x, y, mask, query).curve)
    x, y, mask, query = make_curves((40,) * 20, seed=1)
    rough = y * torch.exp(torch.randn(y.shape, generator=torch.Generator().manual_seed(0)))

    def remarked(x: Tensor, y: Tensor, start: str = "") -> int:
        """On how many of 20 curves there is a remark that begins so."""
        found = typical.remarks(typical.centre.expand(20, 8), as_tokens(x, y, mask, query).curve)
        return sum(any(text.startswith(start) for text in row) for row in found)

    width, noise, level = "the width of the context", "the noise", "the level of y"
    assert remarked(x, y) < 3
    assert remarked(x**4, y, width) > 17
    assert remarked(x, rough, noise) > 17
    assert remarked(x, 1e3 * y, level) > 17
    assert remarked(x, y**3, noise) < 3  # it is relative to the range
    assert (
        max(remarked(x**4, y, noise), remarked(x, 1e3 * y, width), remarked(x, 1e3 * y, noise), remarked(x, rough, width)) < 3
    )


def test_distance_is_mahalanobis() -> None:
    typical, (training, _) = measured(8), typical_contexts(20_000, 8, 1)
    summary, curve = typical_contexts(500, 8, 3)
    summary = 3.0 + 1.7 * (summary - 3.0)  # many are beyond the limit, many are not
    inverse = np.linalg.inv(np.cov(training.double().numpy().T))

    def distance(points: Tensor) -> np.ndarray:
        off = points.double().numpy() - training.double().numpy().mean(0)
        return np.sqrt(np.einsum("si,ij,sj->s", off, inverse, off))

    relative = distance(summary) / np.quantile(distance(training), SHARE)
    found = typical.remarks(summary, 0 * curve)
    remarked = np.array([bool(row) for row in found])
    clear = np.abs(relative - 1) > 0.01
    assert 100 < remarked.sum() < 400
    np.testing.assert_array_equal(remarked[clear], relative[clear] > 1)
    far = int(np.argmax(relative))
    assert float(found[far][0].split("(")[1].split(" times")[0]) == pytest.approx(relative[far], rel=0.06)  # two digits

"""Training: the same numbers however it is interrupted or shared out, and the losses and rates that are declared."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hybrid.amortized import training
from hybrid.amortized.design import Design, DesignBatch
from hybrid.amortized.model import AmortizedModel
from hybrid.amortized.release import train_prior
from hybrid.amortized.sampler import CurveBatch, draw_curves, sample_curves
from hybrid.amortized.settings import Settings
from hybrid.amortized.training import Trained, curve_loss, generator_of, precision_for, rate, train
from hybrid.models.errors import InvalidArgumentError, TrainingError
from hybrid.models.prior import AbstractPrior
from hybrid.models.registry import get_prior

PRIOR = get_prior("m1")
DESIGN = Design(context=(3, 20), targets=4)
CPU = torch.device("cpu")
STEPS = 6
TINY: dict[str, Any] = {
    **{"layers": 2, "width": 32, "heads": 2, "inner": 64, "summaries": 2, "transforms": 2, "hidden": 16},
    **{"steps": STEPS, "batch": 32, "shards": 2, "precision": "32-true"},
}
BOTH_EXTRAS = {"average": 0.9, "context_weight": 0.1}

# A run in a process of its own: `run` and `path` are there for what follows.
SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from hybrid.amortized import training
from hybrid.amortized.design import Design
from hybrid.amortized.settings import Settings
from hybrid.models.registry import get_prior

torch.set_num_threads(1)
path, settings, design = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])

def run(on_step):
    prior, design_ = get_prior("m1"), Design.from_dict(design)
    return training.train(prior, Settings.from_dict(settings), design_, path, "cpu", progress=False, on_step=on_step)
"""
KILLED = """
training.SAVE_EVERY = -1.0

def kill(step, loss):
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run(kill)
"""
SHARED_OUT = """
losses = {}

def keep(step, loss):
    losses[step] = loss

def stop(step, loss):
    keep(step, loss)
    if step == 3:
        raise KeyboardInterrupt

try:
    run(stop)
except KeyboardInterrupt:
    pass
if os.environ["RANK"] == "0":
    shutil.copy(path, path.with_suffix(".half"))
leads = run(keep).leads
path.with_suffix("." + os.environ["RANK"]).write_text(json.dumps([leads, list(losses.values())]))
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def small(**changes: Any) -> Settings:
    return Settings(**{**TINY, **changes})


def run(path: Path, on_step: Callable[[int, float], None] | None = None, prior: str = "m1", **changes: Any) -> Trained:
    return train(get_prior(prior), small(**changes), DESIGN, path, "cpu", progress=False, on_step=on_step)


def interrupt_after(last: int) -> Callable[[int, float], None]:
    def on_step(step: int, loss: float) -> None:
        del loss
        if step == last:
            raise KeyboardInterrupt

    return on_step


def check_equal(one: Trained, other: Trained) -> None:
    weights = other.model.state_dict()
    assert set(one.model.state_dict()) == set(weights)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert one.state.loss == other.state.loss
    assert one.state.step == other.state.step == STEPS


def in_a_process(
    end: str, tmp_path: Path, settings: Settings, launcher: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + end, encoding="utf-8")
    arguments = [json.dumps(settings.to_dict()), json.dumps(DESIGN.to_dict())]
    command = [sys.executable, *launcher, str(script), str(tmp_path / "run.training"), *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("prior", "changes"),
    [
        ("m1", {}),
        ("m1", BOTH_EXTRAS),
        ("m1", {**BOTH_EXTRAS, "precision": "bf16-mixed"}),
        ("m1", {**BOTH_EXTRAS, "futures": 3}),
        ("nsl", {"average": 0.5}),
        ("nslpfn", {"context_weight": 0.1, "shards": 1}),
    ],
)
def test_an_interrupted_run_resumes_to_the_bit(tmp_path: Path, prior: str, changes: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", prior=prior, **changes)
    steps: list[int] = []
    for last in (0, 2, STEPS - 1):  # also right after the first step, and after the last one
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", interrupt_after(last), prior, **changes)
    resumed = run(tmp_path / "parts", lambda step, _: steps.append(step), prior, **changes)
    assert steps == []  # all steps were done before
    check_equal(resumed, whole)
    assert not resumed.model.training
    (tmp_path / "parts").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", interrupt_after(3), prior, **changes)
    check_equal(run(tmp_path / "parts", lambda step, _: steps.append(step), prior, **changes), whole)
    assert steps == [4, 5]


def test_an_interruption_waits_for_the_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-changed weights could not be saved: a run that is stopped there goes on from that step, not from the last file."""
    whole = run(tmp_path / "whole")
    step, count = torch.optim.AdamW.step, iter(range(100))

    def interrupted(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts")
    left: list[int] = []
    check_equal(run(tmp_path / "parts", lambda done, _: left.append(done)), whole)
    assert left[0] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_diverges_is_stopped_with_advice(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a lower learning_rate"):
        run(tmp_path / "run", learning_rate=1e30)


def test_other_settings_give_other_weights(tmp_path: Path) -> None:
    """What the tests of equality compare does depend on the run."""
    runs = [run(tmp_path / str(i), **c) for i, c in enumerate([{}, {"seed": 1}, {"average": 0.9}, {"context_weight": 0.1}])]
    for one, other in itertools.combinations(runs, 2):
        assert not torch.equal(one.model.network.of_query.weight, other.model.network.of_query.weight)
    assert runs[0].state.loss == runs[2].state.loss  # the running mean of the weights leaves training alone


def test_the_global_random_state_does_not_matter(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = run(tmp_path / "one", **BOTH_EXTRAS)
    torch.manual_seed(2)
    check_equal(run(tmp_path / "two", **BOTH_EXTRAS), one)


def test_a_killed_process_resumes_to_the_bit_in_another(tmp_path: Path) -> None:
    killed = in_a_process(KILLED, tmp_path, small(**BOTH_EXTRAS))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps: list[int] = []
    resumed = run(tmp_path / "run.training", lambda step, _: steps.append(step), **BOTH_EXTRAS)
    assert steps == [3, 4, 5]  # it was killed in step 3, before that was saved
    check_equal(resumed, run(tmp_path / "whole", **BOTH_EXTRAS))


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """Interrupted and resumed by two processes, and by one from where the two had stopped.

    They add the gradients of the shards in another order, which changes the losses of these six steps by 1e-6. Were the
    gradients not exchanged, they would change by 1e-3.
    """
    changes = {"shards": 4, "context_weight": 0.1}
    expected: list[float] = []
    whole = run(tmp_path / "whole", lambda _, loss: expected.append(loss), **changes)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    shared_out = in_a_process(SHARED_OUT, tmp_path, small(**changes), launcher)
    assert shared_out.returncode == 0, shared_out.stderr
    first, second = (json.loads((tmp_path / f"run.{rank}").read_text()) for rank in range(2))
    assert (first[0], second[0]) == (True, False)  # one of them leads
    assert first[1] == second[1]
    np.testing.assert_allclose(first[1], expected, rtol=2e-5)
    rest: list[float] = []
    alone = run(tmp_path / "run.half", lambda _, loss: rest.append(loss), **changes)
    np.testing.assert_allclose(rest, expected[4:], rtol=2e-5)
    assert alone.state.loss == pytest.approx(whole.state.loss, rel=2e-5)


def test_the_best_so_far_is_refused_where_a_likelihood_weighs_draws(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="best_so_far"):
        train_prior("m4", out=tmp_path, steps=1, design=Design(best_so_far=0.1), progress=False)
    assert not list(tmp_path.iterdir())


def test_shards_that_cannot_be_shared_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fabric, "world_size", 3)
    with pytest.raises(InvalidArgumentError, match=r"2 shards .* 3 processes"):
        run(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_training_lowers_the_losses(tmp_path: Path) -> None:
    settings = small(steps=60)
    curves = sample_curves(PRIOR, 1024, DESIGN, 99, dtype=torch.float64)
    torch.manual_seed(0)
    untrained = AmortizedModel(PRIOR, settings).eval()
    trained = train(PRIOR, settings, DESIGN, tmp_path / "state", "cpu", progress=False).model
    with torch.no_grad():
        before, after = (curve_loss(m, curves, settings, torch.Generator()) for m in (untrained, trained))
    assert after[1] < before[1] - 0.01  # of the targets: a law fitted to the context leaves little to learn
    assert after[0] - after[1] < before[0] - before[1] - 0.05  # of the parameters


@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 0.4), (0.02, 0.4), (0.1, 0.9), (0.25, 0.0)])
def test_the_rate_rises_linearly_stays_and_falls_along_a_cosine(warmup: float, decay: float) -> None:
    settings = small(steps=1000, warmup=warmup, decay=decay, learning_rate=0.02)
    found = np.array([rate(settings, step) for step in range(1000)])
    warm, begin = max(1, round(1000 * warmup)), round(1000 * (1 - decay))
    np.testing.assert_allclose(found[:warm], 0.02 * np.arange(1, warm + 1) / warm, rtol=1e-12)
    np.testing.assert_allclose(found[warm:begin], 0.02, rtol=1e-12)
    share = np.arange(1000 - begin) / max(1, 1000 - begin)
    np.testing.assert_allclose(found[begin:], 0.02 * np.cos(0.5 * np.pi * share) ** 2, rtol=1e-7)
    if decay:
        assert np.all(np.diff(found[begin:]) < 0)
        assert 0 < found[-1] < 2e-5 * 0.02
        assert rate(settings, 1000) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("first", "then"), [(12, STEPS), (STEPS - 1, STEPS)])
def test_an_unfinished_run_can_be_made_longer_or_shorter(tmp_path: Path, first: int, then: int) -> None:
    """While the rate is still constant, what has been trained does not depend on the length."""
    whole = run(tmp_path / "whole", steps=then, decay=0.5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", interrupt_after(2), steps=first, decay=0.5)
    check_equal(run(tmp_path / "parts", steps=then, decay=0.5), whole)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_rate_of_the_shortest_runs_is_above_zero(steps: int) -> None:
    assert all(0 < rate(small(steps=steps), step) <= small().learning_rate for step in range(steps))


def test_the_optimizers_share_all_weights_and_follow_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Optimizer] = []

    def make(model: AmortizedModel, settings: Settings) -> list[torch.optim.Optimizer]:
        made.extend(make_optimizers(model, settings))
        parameters = [id(value) for optimizer in made for group in optimizer.param_groups for value in group["params"]]
        assert sorted(parameters) == sorted(id(value) for value in model.parameters())
        return made

    def check(step: int, loss: float) -> None:
        del loss
        muon, adamw = (group["lr"] for optimizer in made for group in optimizer.param_groups)
        assert muon == pytest.approx(rate(small(), step))
        assert adamw == pytest.approx(rate(small(), step) / 3)

    make_optimizers = training.make_optimizers
    monkeypatch.setattr(training, "make_optimizers", make)
    assert run(tmp_path / "state", check).state.step == STEPS
    assert [type(optimizer) for optimizer in made] == [torch.optim.Muon, torch.optim.AdamW]


def rows(batch: DesignBatch) -> list[tuple[Any, ...]]:
    """The curves of a batch without their padding."""
    parts = zip(batch.x_context, batch.mask, batch.x_target, batch.horizon, strict=True)
    return [(x[mask].tolist(), target.tolist(), float(horizon)) for x, mask, target, horizon in parts]


@pytest.mark.parametrize("count", [1, 2, 4, 16])
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0, 7), (3, 7)])
def test_shards_are_the_batch_sorted_by_size(count: int, seed: int, step: int) -> None:
    settings = small(shards=count, batch=64, seed=seed)
    found = training.shards(DESIGN, settings, step, CPU)
    assert [len(part.mask) for part in found] == [64 // count] * count
    sizes = torch.cat([part.mask.sum(1) for part in found])
    assert bool((sizes.diff() >= 0).all())
    assert len(sizes.unique()) > 5
    for part in found:
        assert part.mask.shape[1] == int(part.mask.sum(1).max())  # no column is mere padding
        assert bool((part.mask.long().diff(dim=1) <= 0).all())
    together = [row for part in found for row in rows(part)]
    assert sorted(together) == sorted(rows(DESIGN.sample(64, generator_of(CPU, seed, step, training.POSITIONS))))


def test_positions_depend_on_seed_and_step_only() -> None:
    def positions(step: int = 4, **changes: Any) -> list[tuple[Any, ...]]:
        return [row for part in training.shards(DESIGN, small(**changes), step, CPU) for row in rows(part)]

    expected = positions()
    torch.manual_seed(12)
    assert positions() == expected
    assert positions(shards=8, learning_rate=1.0, steps=100, layers=1, **BOTH_EXTRAS) == expected
    assert positions(seed=1) != expected
    assert positions(step=5) != expected


def test_every_shard_of_every_step_has_random_numbers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def watch(prior: AbstractPrior, designs: DesignBatch, generator: torch.Generator, dtype: torch.dtype) -> CurveBatch:
        seeds.append(generator.initial_seed())
        return draw_curves(prior, designs, generator, dtype)

    monkeypatch.setattr(training, "draw_curves", watch)
    for seed in range(2):
        run(tmp_path / str(seed), shards=4, seed=seed)
    assert len(seeds) == len(set(seeds)) == 2 * STEPS * 4


def test_generators_depend_on_the_whole_key() -> None:
    def draws(*key: int) -> list[float]:
        return torch.rand(5, generator=generator_of(CPU, *key)).tolist()

    keys = [(0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 1, 1), (1, 2), (2, 1)]
    found = [draws(*key) for key in keys]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert [draws(*key) for key in keys] == found


def spoil(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the loss be NaN after some calls."""

    def spoilt(*arguments: Any) -> tuple[Tensor, Tensor]:
        loss, forecast = curve_loss(*arguments)
        return (loss, forecast) if next(count) < calls else (loss * math.nan, forecast * math.nan)

    count = itertools.count()
    monkeypatch.setattr(training, "curve_loss", spoilt)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_loss_that_is_not_finite_is_an_error_and_nothing_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    whole = run(tmp_path / "whole")
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(path, interrupt_after(2))
    saved = path.read_bytes()
    with monkeypatch.context() as patch:
        spoil(patch, calls)
        with pytest.raises(TrainingError, match=r"step 3 is not finite.*learning_rate"):
            run(path)
    assert path.read_bytes() == saved
    check_equal(run(path), whole)


def test_an_interrupt_inside_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, count, after = run(tmp_path / "whole"), itertools.count(), training.TrainingState.after

    def interrupted(*arguments: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return after(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingState, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts")
    check_equal(run(tmp_path / "parts"), whole)


def test_a_loss_that_turns_nan_keeps_the_last_good_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(path, interrupt_after(2))
    with monkeypatch.context() as patch:
        spoil(patch, 2)  # step 3 is good, step 4 is not
        with pytest.raises(TrainingError):
            run(path)
    check_equal(run(path), whole)


def test_nan_in_the_parameter_loss_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*arguments: Any) -> tuple[Tensor, Tensor]:
        loss, forecast = curve_loss(*arguments)
        return (loss, forecast) if next(count) < 2 * (STEPS - 1) else (loss * math.nan, forecast)

    count = itertools.count()
    monkeypatch.setattr(training, "curve_loss", spoilt)
    with pytest.raises(TrainingError, match="not finite"):
        run(tmp_path / "state")


@pytest.mark.parametrize("changes", [{"context_weight": 0.0}, {"context_weight": 0.1, "parameter_weight": 0.0}])
def test_two_processes_where_some_weights_get_no_gradient(tmp_path: Path, changes: dict[str, Any]) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    found = in_a_process(SHARED_OUT, tmp_path, small(shards=4, **changes), launcher)
    assert found.returncode == 0, found.stderr[-2000:]
    leads = [json.loads((tmp_path / f"run.{rank}").read_text())[0] for rank in range(2)]
    assert leads == [True, False]


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run(tmp_path / "state")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", interrupt_after(4))
    with pytest.raises(InvalidArgumentError, match="more than the 2 asked for"):
        run(tmp_path / "state", steps=2)


@pytest.mark.parametrize(("capability", "expected"), [("AVX2", "32-true"), ("AVX512", "bf16-mixed"), ("DEFAULT", "32-true")])
def test_half_precision_is_used_where_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch, capability: str, expected: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision_for("cpu") == expected
    for native, on_gpu in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert precision_for("cuda") == on_gpu
        assert precision_for("cpu") == expected

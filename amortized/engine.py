"""The amortized engine: from curves to predictive distributions by a trained network."""

import contextlib
import dataclasses
import functools
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hybrid.amortized.cards import BEFORE, Card, cards, read_card
from hybrid.amortized.checkpoint import load_checkpoint
from hybrid.amortized.design import Design
from hybrid.amortized.importance import pareto_k, resampled, surplus, truncated_weights, trusted_k
from hybrid.amortized.model import AmortizedModel
from hybrid.amortized.posterior import ClassHead, FlowHead
from hybrid.amortized.predictive import AmortizedPredictive, Contexts
from hybrid.amortized.rounding import step, with_error
from hybrid.amortized.sanity import look, unseen
from hybrid.amortized.threads import undisturbed
from hybrid.amortized.typical import NAMED, WANDER, WIDTH
from hybrid.models.checks import as_integer
from hybrid.models.coordinates import Frame
from hybrid.models.engine import EngineResult, Problem, Status
from hybrid.models.errors import EngineUnavailableError, FileFormatError, InvalidArgumentError
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.residuals import OUTSIDE, remarks, trend_probability
from hybrid.models.thresholds import MIN_TRAINED
from hybrid.models.torch_random import seeded

DRAWS = 2000
NETWORK, FROM_DRAWS = "network", "draws"  # what makes the forecasts
STATS = ("lp", "log_q", "log_ratio")
PROPOSALS = (3, 3, 6)  # draws of the flow for each that is kept, round by round while the surplus of all weights is too large
MISSED = 20.0  # nats by which the best draw may be less likely than a mode of the law
UNEVEN = 0.05  # surplus (see importance.py) that is too large
MANY = 50  # curves, for which a progress bar is shown even where each takes milliseconds
AT_ONCE = 256  # curves that are looked at in one pass
POINTS = 100_000  # of one pass, padding included


class LazyDraws(Mapping[str, np.ndarray]):
    """Arrays by name that are made when one is first asked for."""

    def __init__(self, names: Sequence[str], make: Callable[[], Mapping[str, np.ndarray]]) -> None:
        self._names, self._make = tuple(names), make
        self._made: Mapping[str, np.ndarray] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if self._made is None:
            self._made = self._make()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def whole(self) -> "LazyDraws":
        """Itself, as what makes another one."""
        return self

    def __len__(self) -> int:
        return len(self._names)


def choose_device(device: Any) -> torch.device:
    """The device called "auto" (an accelerator where there is one), or by any name that torch knows.

    Raises
    ------
    InvalidArgumentError
        If torch does not know it, or it is not there.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        # Apple's GPUs have no 64-bit floats, which the relative coordinates need.
        return accelerator if accelerator is not None and accelerator.type != "mps" else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=found).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise InvalidArgumentError(
            f"device must be 'auto', 'cpu' or one that torch can use here, got {device!r}: {error}"
        ) from None
    return found


def _in_order(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices that sort points by x, whatever their order was.

    Repeats at one x, sorted by y, would rise each time, as they do in no measurement: they get an order that is always the
    same, and arbitrary.
    """
    order = np.lexsort((y, x))
    starts = np.flatnonzero(np.diff(x[order], prepend=-np.inf))
    rng = np.random.default_rng(x.size)
    if starts.size < x.size:
        order = np.concatenate([rng.permutation(part) for part in np.split(order, starts[1:])])
    return order


def _rounded_to(problem: Problem, model: AmortizedModel) -> float:
    """The power of ten that y was rounded to, in the user's units; 0 where nothing tells so, or the network takes repeats as
    they are."""
    return step(float(problem.frame.y_scale) * problem.y[_in_order(problem.x, problem.y)]) if model.reads_best else 0.0


def stack(problems: Sequence[Problem], model: AmortizedModel, device: torch.device) -> Contexts:
    """Contexts of different lengths as one padded batch; to a network that reads repeats as best results so far, rounded values
    are given with an error of the rounding's size."""
    sizes = [len(p.x) for p in problems]
    x = torch.ones(len(problems), max(sizes), dtype=torch.float64, device="cpu")
    y, mask = x.clone(), torch.zeros_like(x, dtype=torch.bool)
    for row, problem in enumerate(problems):
        n = sizes[row]
        order = _in_order(problem.x, problem.y)
        values, size = problem.y[order], _rounded_to(problem, model)
        if size:
            values = with_error(values, size / float(problem.frame.y_scale))
        x[row, :n], y[row, :n] = torch.as_tensor(problem.x[order]), torch.as_tensor(values)
        mask[row, :n] = True
    fields = np.array([[float(v) for v in p.frame] for p in problems])
    frame = Frame(*(torch.as_tensor(column.copy(), device=device)[:, None] for column in fields.T))
    return Contexts(model, x.to(device), y.to(device), mask.to(device), frame)


def _remarks(problem: Problem, design: Design, said: Sequence[str], coordinates: str) -> list[str]:
    """What of a problem lies outside the training design, in words."""
    found = []
    if coordinates == "unit":  # where the horizon, too, moves the context's width
        said = [text for text in said if text != NAMED[WIDTH]]
    size, (least, most) = len(problem.x), design.context
    if not least <= size <= most:
        found.append(f"the number of points ({size}; {least} to {most} in training)")
    last, horizon = (float(problem.frame.x_from(edge)) for edge in (problem.frame.last, problem.frame.horizon))
    reach, (nearest, farthest) = horizon / last, design.horizon
    if coordinates == "unit" and reach < nearest * (1 - 1e-9):
        found.append(
            f"the horizon ({reach:.4g} times the last context x; at least {nearest:g} in training: state a farther one)"
        )
    if reach > farthest * (1 + 1e-9):
        found.append(f"the horizon ({reach:.4g} times the last context x; at most {farthest:g} in training)")
    decades, (narrowest, widest) = math.log10(last / float(problem.frame.x_from(problem.frame.first))), design.decades
    if decades > widest * (1 + 1e-9) and NAMED[WIDTH] not in said:  # linear coordinates hide it from the network
        found.append(f"{NAMED[WIDTH]} ({decades:.2g} decades; at most {widest:g} in training)")
    if coordinates == "unit" and decades < narrowest * (1 - 1e-9):
        found.append(f"{NAMED[WIDTH]} ({decades:.2g} decades; at least {narrowest:g} in training)")
    return [*found, *said]


def _draw_posterior(head: FlowHead, model: AmortizedModel, problem: Problem, draws: int, seed: int) -> dict[str, np.ndarray]:
    with undisturbed(model.law.loc.device, small=True):
        return _drawn(head, model, problem, draws, seed)


def _drawn(head: FlowHead, model: AmortizedModel, problem: Problem, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of q, resampled by their importance weights, and the weights of as many that were not.

    Where weights are too uneven for draws that all differ, copies are moved apart by Markov chains that keep the posterior.
    Where the best draw is far less likely than a mode of the law, draws are elsewhere than the posterior, and no weight counts.
    """
    alone = stack([problem], model, model.law.loc.device)  # not a row of a batch: rounding depends on what else is in one
    summary, described = alone.summary()[0], alone.described
    at = (torch.as_tensor(problem.x, device="cpu"), torch.as_tensor(problem.y, device="cpu"), problem.frame)
    rounds: list[dict[str, Tensor]] = []
    with seeded(seed, summary.device):
        for proposals in PROPOSALS:
            theta, log_q = head.sample(summary[None], described, proposals * draws)
            found = {name: value[:, 0].cpu() for name, value in {**theta, "log_q": log_q}.items()}
            found["lp"] = head.log_joint({name: found[name] for name in head.names}, *at)
            rounds.append(found)
            ratio = torch.cat([part["lp"] - part["log_q"] for part in rounds]).numpy()
            weights = truncated_weights(ratio)
            even = surplus(weights, draws) <= UNEVEN
            if even:
                break
    proposal = {name: torch.cat([part[name] for part in rounds]) for name in rounds[0]}
    if proposal["lp"].max() < head.log_joint(head.modes(described), *at).max() - MISSED:
        ratio = np.full_like(ratio, -np.inf)
    rng = np.random.default_rng(seed)
    index = resampled(weights, draws, rng)
    if even:
        kept = {name: value[index] for name, value in proposal.items()}
    else:
        cloud = {name: proposal[name] for name in head.names}
        theta, lp = head.move({name: value[index] for name, value in cloud.items()}, cloud, described, at, seed)
        log_q = head.log_prob({name: value[:, None] for name, value in theta.items()}, summary[None], described)[:, 0]
        kept = {name: value.cpu() for name, value in {**theta, "log_q": log_q, "lp": lp}.items()}
    return {**{name: value.numpy()[None] for name, value in kept.items()}, "log_ratio": ratio[None, :draws]}


def _draw_classes(head: ClassHead, summary: Tensor, draws: int, seed: int) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        p = head.probabilities(summary[None])[0].cpu().numpy()
    index = np.random.default_rng(seed).choice(len(p), draws, p=p)
    return {name: np.array([c[name] for c in head.classes])[index][None] for name in head.classes[0]}


def _posterior(
    model: AmortizedModel, summary: Tensor, problem: Problem, draws: int, seed: int
) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    """Draws of the parameters (or classes) and their log densities, both made on demand."""
    head = model.head
    if isinstance(head, FlowHead):
        make = functools.partial(_draw_posterior, head, model, problem, draws, seed)
        both = LazyDraws((*head.names, *STATS), make)
        return LazyDraws(head.names, both.whole), LazyDraws(STATS, both.whole)
    if isinstance(head, ClassHead):
        return LazyDraws(tuple(head.classes[0]), functools.partial(_draw_classes, head, summary, draws, seed)), {}
    return {}, {}


def _trend(head: Any, own: Contexts, problem: Problem) -> float:
    """The probability of the residuals' trend at the likeliest mode of the law, where its parameters are all there are."""
    if not isinstance(head, FlowHead):
        return 1.0
    mode = {name: value[:1].numpy() for name, value in head.modes(own.described).items()}
    return trend_probability(head.prior, mode, problem)


def _verdict(
    problem: Problem, design: Design, said: Sequence[str], prior: AbstractPrior, card: Card, trend: float
) -> list[str]:
    """Reasons of a fit: one that the network saw few curves in training, one lists all that lies outside the training
    design, one says that the prior is not right, two where y rises."""
    outside = _remarks(problem, design, [text for text in said if text != NAMED[WANDER]], prior.coordinates)
    reasons = []
    if card.curves < MIN_TRAINED:
        own = isinstance(prior, Prior) and prior.law.is_own
        path = str(card.path)
        on = f"hybrid.train(prior, origin={path!r})" if own else f"hybrid train --prior {prior.name} --from {shlex.quote(path)}"
        reasons.append(
            f"The network saw {card.curves:,} curves in training, and {MIN_TRAINED:,} are the least that are worth an answer: "
            f"train it on with `{on}`."
        )
    if outside:
        check = "Check with engine='nuts', or train" if isinstance(prior, Prior) and prior.is_continuous else "Train"
        reasons.append(f"{OUTSIDE}: {'; '.join(outside)}. {check} on a design that covers it with `hybrid train --design`.")
    reasons += remarks(NAMED[WANDER] in said, trend, problem)
    return reasons


def _doubt(stats: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What k-hat says against forecasts that follow from the draws."""
    k, limit = pareto_k(stats["log_ratio"], 0.0), trusted_k(stats["log_ratio"].size)
    if k < limit:
        return ()
    return (
        f"The draws that the forecasts follow from have k-hat {k:.2f}, and {limit:.2g} or more cannot be trusted: fit with "
        "engine='nuts'.",
    )


def run_pfn(
    prior: AbstractPrior,
    problems: Sequence[Problem],
    seed: int = 0,
    progress: bool = False,
    checkpoint: Any = None,
    device: Any = "auto",
    draws: int = DRAWS,
    forecast: str = NETWORK,
) -> list[EngineResult]:
    """Approximate the posterior and the posterior predictive of each problem by a trained network.

    Parameters
    ----------
    prior
        Any prior that weights were trained on.
    problems
        Curves in the prior's coordinates, of any lengths.
    seed
        Seed of the parameter draws.
    progress
        Whether to show a progress bar: while parameters are drawn for forecasts, and for many curves.
    checkpoint
        Path of weights or of their card; None finds those for the prior's fingerprint.
    device
        "auto", "cpu", "cuda" or another that torch can use.
    draws
        Number of parameter draws, made when first asked for.
    forecast
        "network": one pass, in milliseconds. "draws": averages over the parameter draws, as for NUTS, which takes
        seconds a curve and is nearer to exact; where k-hat is not below `trusted_k` of so many draws the fit needs review.

    Returns
    -------
    One EngineResult per problem: draws of shape (1, draws) where the network has a parameter head, resampled by their
    truncated importance weights from three times as many, or where these are uneven six or twelve times; "log_q" and "lp",
    the log densities of the network and of the joint model at the draws, over the unconstrained parameters, in nats;
    "log_ratio", lp - log_q of as many draws before the resampling, which k-hat is computed from; and the predictive
    distribution, which is None where it follows from the draws.
    The status is "needs_review" where the context or the horizon lies outside what the network was trained on, or the
    residuals follow one another as those of the prior's own curves hardly ever do, or a line, where the forecast rises and no
    curve of the prior does, or misses the last points of the context, or where the network was hardly trained.
    A network that was trained on contexts of the best result so far takes values that repeat for such. Where they were rounded
    to a power of ten instead, as `info` then says ("rounded_to", in the user's units), it is given them with an error of that
    size (see `hybrid.amortized.rounding`).

    Raises
    ------
    EngineUnavailableError
        If there are no weights that were trained on this prior.
    FileFormatError
        If the checkpoint is damaged or foreign.
    InvalidArgumentError
        If an option is outside what it may be.
    """
    draws = as_integer(draws, "draws", 1, 10**6)
    if forecast not in (NETWORK, FROM_DRAWS):
        raise InvalidArgumentError(f"forecast must be {NETWORK!r} or {FROM_DRAWS!r}, got {forecast!r}")
    chosen = choose_device(device)
    model, card = load_checkpoint(prior, checkpoint, str(chosen))
    by_draws = forecast == FROM_DRAWS
    if by_draws and not isinstance(model.head, FlowHead):
        raise InvalidArgumentError(
            f"the network for {prior.name!r} draws no parameters that forecasts could follow from: use forecast={NETWORK!r}"
        )
    design = Design.from_dict(card.content["design"])
    facts: dict[str, Any] = {"earliest": design.earliest, "farthest": design.horizon[1], "curves": card.curves}
    facts["weights_sha256"] = card.content["weights_sha256"]
    if checkpoint is not None:
        facts["checkpoint"] = str(card.path.absolute())
    info = {"method": "pfn", "device": str(chosen), "forecast": forecast, **facts}
    results: dict[int, EngineResult] = {}
    shown = progress and (by_draws or len(problems) >= MANY)
    bar = tqdm(total=len(problems), desc=f"PFN {prior.name}", unit="curve", disable=not shown)
    for part in _parts([len(problem.x) for problem in problems]):
        contexts = stack([problems[i] for i in part], model, chosen)
        seen = unseen(contexts) if by_draws else look(contexts, design.horizon[1])
        said = model.typical.remarks(seen.summary, contexts.features)
        for k, i in enumerate(part):
            problem, own = problems[i], contexts.row(k)
            own_seed = int(np.random.SeedSequence((seed, problem.stream)).generate_state(1)[0])
            posterior, stats = _posterior(model, seen.summary[k].clone(), problem, draws, own_seed)
            trend = _trend(model.head, own, problem)
            reasons = [
                *_verdict(problem, design, said[k], prior, card, trend),
                *seen.remarks(k, len(problem.x), prior.name),
                *(_doubt(stats) if by_draws else ()),
            ]
            rounded = {"rounded_to": size} if (size := _rounded_to(problem, model)) else {}
            predictive = None if by_draws else AmortizedPredictive(own, problem.frame)
            status: Status = "needs_review" if reasons else "ok"
            results[i] = EngineResult(posterior, stats, status, tuple(reasons), {**info, **rounded}, predictive)
            bar.update()
    bar.close()
    return [results[i] for i in range(len(problems))]


def _parts(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of curves that are looked at in one pass: of like sizes, as the longest pads all others."""
    part: list[int] = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        if part and (len(part) == AT_ONCE or (len(part) + 1) * sizes[i] > POINTS):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def by_the_same(predictive: AmortizedPredictive, problems: Sequence[Problem]) -> list[AmortizedPredictive]:
    """The predictives of other curves, from the network that made this one."""
    contexts = stack(problems, predictive.model, predictive.device)
    return [AmortizedPredictive(contexts.row(i), problem.frame) for i, problem in enumerate(problems)]


def by_draws(result: EngineResult) -> EngineResult:
    """The same result of a network that draws all parameters, with forecasts by its draws."""
    return dataclasses.replace(result, predictive=None, info={**result.info, "forecast": FROM_DRAWS})


def restore(prior: AbstractPrior, problem: Problem, info: Mapping[str, Any]) -> AmortizedPredictive:
    """The predictive of a fit that was saved, from the weights that made it.

    Raises
    ------
    EngineUnavailableError
        If those weights are not here.
    """
    digest = info.get("weights_sha256")
    named = Path(str(info.get("checkpoint", "")))
    found = (*([named] if named.is_file() else []), *(card.path for card in cards()))
    for path in (*found, *(path.with_name(f"{path.name}{BEFORE}") for path in found)):  # the second as training kept them
        with contextlib.suppress(FileFormatError):  # the same weights may lie elsewhere too
            card = read_card(path)
            if card.content["weights_sha256"] == digest and card.fingerprint == prior.fingerprint:
                model, _ = load_checkpoint(prior, card.path)
                return AmortizedPredictive(stack([problem], model, torch.device("cpu")), problem.frame)
    raise EngineUnavailableError(
        f"this fit was made by weights for {prior.name!r} that are not here (sha256 {str(digest)[:12]}...); its DataTree is "
        "complete, but for new forecasts fit again, or put the weights into $HYBRID_CHECKPOINTS"
    )

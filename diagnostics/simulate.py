"""Curves drawn from a prior, as problems for the engines, and exact draws for them that are kept in a file."""

import hashlib
import importlib.metadata
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from hybrid.amortized.design import Design
from hybrid.models.coordinates import Frame
from hybrid.models.engine import EngineResult, Problem
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.files import DAMAGED, check_writable, make_folder, replacing
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.requirements import compiled_by_jax

Array = Any
CHUNK = 32  # curves that share a seed
PER_WORKER = 4  # curves at once for each of several processes, which wait for the slowest
PAUSE = 10.0  # seconds at least between one writing of the file and the next


class Simulated(NamedTuple):
    """Curves with a y scale of 1, whose truth is known."""

    problems: list[Problem]
    theta: dict[str, Array]  #: true parameters by name, each (n,)
    x_target: Array  #: (n, m) positions of held-out points, in coordinates
    y_target: Array  #: (n, m)


def simulate(prior: AbstractPrior, curves: int, design: Design, seed: int) -> Simulated:
    """Draw curves from a prior at the positions of a design, 64 bit.

    Raises
    ------
    InvalidArgumentError
        If curves < 1, or the law has no curve for some of the parameters that the prior draws.
    """
    import torch

    from hybrid.amortized.sampler import sample_curves

    if curves < 1:
        raise InvalidArgumentError(f"the number of curves must be at least 1, got {curves}")
    batch = sample_curves(prior, curves, design, seed, dtype=torch.float64)
    undefined = int((batch.y_context.isnan() & batch.mask).any(1).logical_or(batch.y_target.isnan().any(1)).sum())
    if undefined:
        raise InvalidArgumentError(
            f"{undefined} of {curves} curves of prior {prior.name!r} are not numbers at some position of the design: narrow "
            "the prior or the horizons, or let the law's `admits` leave such parameters out"
        )
    problems = []
    for i in range(curves):
        mask = batch.mask[i].numpy()
        frame = Frame(*(float(field[i, 0]) for field in batch.frame))
        problems.append(Problem(batch.x_context[i].numpy()[mask], batch.y_context[i].numpy()[mask], frame))
    theta = {name: value.numpy() for name, value in batch.theta.items()}
    return Simulated(problems, theta, batch.x_target.numpy(), batch.y_target.numpy())


class ExactDraws(NamedTuple):
    """Posterior draws by NUTS of many curves."""

    draws: dict[str, Array]  #: by parameter, (n, draws)
    status: Array  #: (n,) "ok" or "needs_review"
    ess: Array  #: (n,) lowest bulk or tail effective sample size of each curve


def _evenly(draws: Array, count: int) -> Array:
    """So many of the draws of all chains, evenly spaced: where chains mixed slowly there are more to choose from."""
    flat = draws.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, count).round().astype(int)]


def exact_draws(
    prior: Prior,
    problems: Sequence[Problem],
    draws: int,
    cache: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> ExactDraws:
    """Sample every problem by NUTS; draws go to the cache as they come, and an interrupted call goes on there.

    Parameters
    ----------
    prior, problems
        As for `hybrid.models.nuts.run_nuts`.
    draws
        Draws to keep of each curve, evenly spaced.
    cache
        An .npz file; None keeps nothing.
    workers, progress
        As for `run_nuts`.

    Raises
    ------
    FileFormatError
        If the cache is damaged or holds the draws of other curves.
    InvalidArgumentError
        If it cannot be written.
    """
    from hybrid.models.identity import identity
    from hybrid.models.nuts import run_nuts

    parts = [np.concatenate([p.x, p.y, np.array(p.frame, dtype=float)]).tobytes() for p in problems]
    version = importlib.metadata.version("hybrid-scaling-laws")
    key = hashlib.sha256(f"{version} {identity(prior)} {draws}".encode() + b"".join(parts)).hexdigest()
    if cache is not None:
        make_folder(cache.parent, cache)
        check_writable(cache)
    found = {} if cache is None or not cache.exists() else _read(cache, key, [p.name for p in prior.parameters])
    done = len(found["status"]) if found else 0
    step, kept, written = 1 if workers == 1 else PER_WORKER * workers, done, time.monotonic()
    with tqdm(total=len(problems), initial=done, desc=f"NUTS {prior.name}", unit="curve", disable=not progress) as bar:
        try:
            while done < len(problems):
                seed = CHUNK * (done // CHUNK)
                part = problems[done : min(done + step, seed + CHUNK)]
                with compiled_by_jax(prior):
                    results = run_nuts(prior, part, seed=seed, workers=workers)
                new = _thinned(prior, results, draws)
                found = {name: np.concatenate([found[name], new[name]]) if found else new[name] for name in new}
                done += len(part)
                bar.update(len(part))
                if cache is not None and time.monotonic() - written > PAUSE:
                    _write(cache, key, found)
                    kept, written = done, time.monotonic()
        finally:  # an interruption, too, loses no more than the curves that are in work
            if cache is not None and kept < done:
                _write(cache, key, found)
    return ExactDraws({p.name: found[p.name] for p in prior.parameters}, found["status"], found["ess"])


def _thinned(prior: Prior, results: Sequence[EngineResult], draws: int) -> dict[str, Array]:
    """What is kept of some curves: draws by name, and the status and lowest effective sample size of each."""
    found: dict[str, Array] = {p.name: np.stack([_evenly(r.draws[p.name], draws) for r in results]) for p in prior.parameters}
    found["status"] = np.array([r.status for r in results])
    found["ess"] = np.array([min(r.info["min_ess_bulk"], r.info["min_ess_tail"]) for r in results])
    return found


def _read(cache: Path, key: str, names: Sequence[str]) -> dict[str, Array]:
    remedy = "delete it, or name another file"
    try:
        with np.load(io.BytesIO(cache.read_bytes()), allow_pickle=False) as stored:  # what is damaged leaves no open file
            found = {name: stored[name] for name in stored.files}
    except DAMAGED as error:
        raise FileFormatError(f"{cache} is damaged ({error}): {remedy}") from None
    if str(found.pop("key", "")) != key:
        raise FileFormatError(f"{cache} holds the draws of other curves: {remedy}")
    if set(found) != {*names, "status", "ess"} or len({len(part) for part in found.values()}) != 1:
        raise FileFormatError(f"{cache} is damaged (it lacks a part): {remedy}")
    return found


def _write(cache: Path, key: str, found: dict[str, Array]) -> None:
    with replacing(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, key=np.array(key), **found)

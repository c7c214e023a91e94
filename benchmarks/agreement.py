"""The amortized engine against exact inference, on fresh curves of a prior over the designs that the network was trained on.

    python benchmarks/agreement.py --prior m4 --curves 128 --workers 2

Prints, over curves whose chains converged: mean log density per target of NUTS minus PFN, ratio of CRPS, distance of the
predictive cdfs, classifier two-sample test of the parameters, and k-hat of the amortized draws. The NUTS draws are kept in
--cache and used again; an interrupted run goes on. With --card the figures are written into the model card.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special

from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import write_scores
from hybrid.amortized.design import Design
from hybrid.amortized.engine import run_pfn
from hybrid.amortized.sampler import CurveBatch, sample_curves
from hybrid.diagnostics.agreement import LEVELS, c2st, cdf_distance, quantile_crps
from hybrid.diagnostics.importance import pareto_k
from hybrid.models.coordinates import Frame
from hybrid.models.engine import Problem
from hybrid.models.nuts import run_nuts
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

CHUNK = 32
DRAWS = 1000
HARMLESS = 1e-12
QUIET = 0.003  # noise below which the gap is printed apart


def fresh(prior: Prior, curves: int, design: Design, seed: int) -> tuple[list[Problem], CurveBatch]:
    """Curves with a y scale of 1, as problems."""
    batch = sample_curves(prior, curves, design, seed, dtype=torch.float64)
    problems = []
    for i in range(curves):
        mask = batch.mask[i].numpy()
        frame = Frame(*(float(field[i, 0]) for field in batch.frame))
        problems.append(Problem(batch.x_context[i].numpy()[mask], batch.y_context[i].numpy()[mask], frame))
    return problems, batch


def evenly(draws: np.ndarray) -> np.ndarray:
    """DRAWS of the draws, evenly spaced: where chains mixed slowly there are more."""
    flat = draws.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, DRAWS).round().astype(int)]


def exact(prior: Prior, problems: list[Problem], cache: Path, workers: int) -> dict[str, np.ndarray]:
    """NUTS draws (curve, draw) by name with their status, made in chunks that are kept as they come."""
    found: dict[str, np.ndarray] = {}
    key = hashlib.sha256(b"".join(p.y.tobytes() for p in problems)).hexdigest()
    if cache.exists():
        with np.load(cache) as stored:
            found = {name: stored[name] for name in stored.files if name != "key"}
            if str(stored["key"]) != key:  # another number of curves, seed, prior or design gives other curves
                raise SystemExit(f"{cache} holds the draws of other curves: delete it, or give another --cache")
    done = len(found["status"]) if found else 0
    for start in range(done, len(problems), CHUNK):
        results = run_nuts(prior, problems[start : start + CHUNK], seed=start, progress=True, workers=workers)
        part = {p.name: np.stack([evenly(r.draws[p.name]) for r in results]) for p in prior.parameters}
        part["status"] = np.array([r.status for r in results])
        found = {name: np.concatenate([found[name], part[name]]) if found else part[name] for name in part}
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(".tmp.npz")
        np.savez(temporary, key=key, **found)  # type: ignore[arg-type]
        temporary.replace(cache)
    return found


def unconstrained(prior: Prior, draws: Any) -> dict[str, np.ndarray]:
    """Draws on the real line: logit or log, whichever the support asks for."""
    found = {}
    for p in prior.parameters:
        value = np.asarray(draws[p.name], dtype=float)
        family = p.distribution.family
        if family in ("Uniform", "Beta"):
            low, high = (p.distribution["low"], p.distribution["high"]) if family == "Uniform" else (0.0, 1.0)
            value = special.logit(np.clip((value - low) / (high - low), HARMLESS, 1 - HARMLESS))
        elif family != "Normal" and family != "StudentT":
            value = np.log(np.maximum(value, HARMLESS))
        found[p.name] = value
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="m4")
    parser.add_argument("--curves", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--cache", type=Path, help="NUTS draws; default out/agreement_PRIOR_CURVES_SEED.npz")
    parser.add_argument("--card", action="store_true", help="write the figures into the model card")
    arguments = parser.parse_args()

    prior = get_prior(arguments.prior)
    assert isinstance(prior, Prior)
    card = find_card(prior, arguments.checkpoint)
    problems, batch = fresh(prior, arguments.curves, Design.from_dict(card.content["design"]), arguments.seed)
    cache = arguments.cache or Path(f"out/agreement_{prior.name}_{arguments.curves}_{arguments.seed}.npz")
    draws = exact(prior, problems, cache, arguments.workers)
    amortized = run_pfn(prior, problems, checkpoint=arguments.checkpoint)
    rows = []
    for i, (problem, result) in enumerate(zip(problems, amortized, strict=True)):
        theta = {p.name: draws[p.name][i] for p in prior.parameters}
        nuts, pfn = MixturePredictive(prior, theta, problem.frame), result.predictive
        x, y = batch.x_target[i].numpy(), batch.y_target[i].numpy()
        quantiles = nuts.quantile(x, LEVELS)
        scores = [quantile_crps(np.log(q), LEVELS, np.log(y)).mean() for q in (quantiles, pfn.quantile(x, LEVELS))]
        rows.append(
            {
                "log_density": (nuts.log_density(x, y) - pfn.log_density(x, y)).mean(),
                "crps_nuts": scores[0],
                "crps_pfn": scores[1],
                "cdf_distance": cdf_distance(quantiles, LEVELS, lambda v, x=x, pfn=pfn: pfn.cdf(x, v)).mean(),
                "c2st": c2st(unconstrained(prior, theta), unconstrained(prior, result.draws)),
                "k_hat": pareto_k(result.sample_stats["lp"], result.sample_stats["log_q"]),
                "remark": float(result.status != "ok"),
            }
        )
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    good = draws["status"] == "ok"
    kept = {name: value[good] for name, value in table.items()}
    figures = {
        "curves": int(good.sum()),
        "not_converged": float(1 - good.mean()),
        "log_density_nuts_minus_pfn": float(kept["log_density"].mean()),
        "log_density_standard_error": float(kept["log_density"].std() / good.sum() ** 0.5),
        "crps_ratio": float(kept["crps_pfn"].mean() / kept["crps_nuts"].mean()),
        "crps_ratio_geometric": float(np.exp(np.log(kept["crps_pfn"] / kept["crps_nuts"]).mean())),
        "cdf_distance": float(kept["cdf_distance"].mean()),
        "c2st": float(kept["c2st"].mean()),
        "k_hat_below_0.7": float((kept["k_hat"] < 0.7).mean()),
        "needs_review": float(kept["remark"].mean()),
    }
    for name, value in figures.items():
        print(f"{name:30s} {value:.4f}")
    quiet = (batch.theta["sigma"].numpy() < QUIET)[good]
    for name, rows_of in ((f"sigma below {QUIET}", quiet), ("the others", ~quiet)):
        print(f"log density, {name:17s} {kept['log_density'][rows_of].mean():.4f} on {rows_of.sum()} curves")
    if arguments.card:
        command = f"python benchmarks/agreement.py --prior {prior.name} --curves {arguments.curves} --seed {arguments.seed}"
        write_scores(card, "agreement", figures, command)


if __name__ == "__main__":
    main()

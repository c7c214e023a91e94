"""The amortized engine against exact inference, on fresh curves of a prior over the designs that the network was trained on.

    python benchmarks/agreement.py --prior m4 --curves 128 --workers 2

Prints, over curves whose chains converged: mean log density per target of NUTS minus PFN, ratio of CRPS, distance of the
predictive cdfs, classifier two-sample test of the parameters, and k-hat of the amortized draws. The NUTS draws are kept in
--cache and used again; an interrupted run goes on. With --card the figures are written into the model card.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import write_scores
from hybrid.amortized.design import Design
from hybrid.amortized.engine import run_pfn
from hybrid.amortized.importance import pareto_k
from hybrid.diagnostics.agreement import LEVELS, c2st, cdf_distance, quantile_crps
from hybrid.diagnostics.datatree import flat_draws
from hybrid.diagnostics.simulate import exact_draws, simulate
from hybrid.models.distributions import unconstrained
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

DRAWS = 1000
REACH = 4.0
QUIET = 0.003  # noise below which the gap is printed apart
SIZES = ((3, 7), (8, 20), (21, 60), (61, 500))  # points of a context, by which the distance of the cdfs is printed


def real(prior: Prior, draws: Any) -> dict[str, np.ndarray]:
    """Draws by name on the real line."""
    return {p.name: unconstrained(p.distribution, draws[p.name]) for p in prior.parameters}


def smoothed(nuts: MixturePredictive, theta: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log p(y | x) from draws whose curves are spread by a kernel, nats, for multiplicative noise and a y scale of 1.

    Where the noise is a thousandth of the posterior's width, 1000 draws leave gaps, and their mean density at y says
    nothing. Silverman's bandwidth, with the draws shrunk so that mean and variance stay (West 1993).
    """
    curves = np.log(nuts.curves(x))
    mean, sd = curves.mean(0), curves.std(0)
    spread = np.minimum(sd, np.subtract(*np.quantile(curves, [0.75, 0.25], axis=0)) / 1.34)
    width = 0.9 * spread * len(curves) ** -0.2
    shrunk = mean + np.sqrt(np.maximum(1.0 - (width / np.maximum(sd, 1e-300)) ** 2, 0.0)) * (curves - mean)
    scale = np.hypot(theta["sigma"][:, None], width)
    each = stats.norm.logpdf(np.log(y), shrunk, scale)
    return np.logaddexp.reduce(each, 0) - np.log(len(curves)) - np.log(y)


def is_reached(nuts: MixturePredictive, theta: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> bool:
    """Whether at every target some draw passes within REACH noise sds of y.

    Where none does, as far above a context before which few draws turn up, the mean density of the draws is no estimate: it is
    that of the tail of the nearest one's noise, which may be a thousand nats too low.
    """
    away = np.abs(np.log(y) - np.log(nuts.curves(x))) / theta["sigma"][:, None]
    return bool(np.all(away.min(0) <= REACH))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="m4")
    parser.add_argument("--curves", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--forecast", default="network", choices=("network", "draws"), help="what makes the amortized forecasts"
    )
    parser.add_argument("--cache", type=Path, help="NUTS draws; default out/agreement_PRIOR_CURVES_SEED.npz")
    parser.add_argument("--card", action="store_true", help="write the figures into the model card")
    arguments = parser.parse_args()

    prior = get_prior(arguments.prior)
    assert isinstance(prior, Prior)
    card = find_card(prior, arguments.checkpoint)
    simulated = simulate(prior, arguments.curves, Design.from_dict(card.content["design"]), arguments.seed)
    problems = simulated.problems
    cache = arguments.cache or Path(f"out/agreement_{prior.name}_{arguments.curves}_{arguments.seed}.npz")
    draws, status, _ = exact_draws(prior, problems, DRAWS, cache, arguments.workers)
    amortized = run_pfn(prior, problems, progress=True, checkpoint=arguments.checkpoint, forecast=arguments.forecast)
    rows = []
    for i, (problem, result) in enumerate(zip(problems, amortized, strict=True)):
        theta = {p.name: draws[p.name][i] for p in prior.parameters}
        nuts = MixturePredictive(prior, theta, problem.frame)
        pfn = result.predictive or MixturePredictive(prior, flat_draws(result.draws), problem.frame)
        x, y = simulated.x_target[i], simulated.y_target[i]
        quantiles = nuts.quantile(x, LEVELS)
        scores = [quantile_crps(np.log(q), LEVELS, np.log(y)).mean() for q in (quantiles, pfn.quantile(x, LEVELS))]
        rows.append(
            {
                "log_density": (nuts.log_density(x, y) - pfn.log_density(x, y)).mean(),
                "smoothed": (smoothed(nuts, theta, x, y) - pfn.log_density(x, y)).mean(),
                "reached": float(is_reached(nuts, theta, x, y)),
                "crps_nuts": scores[0],
                "crps_pfn": scores[1],
                "cdf_distance": cdf_distance(quantiles, LEVELS, lambda v, x=x, pfn=pfn: pfn.cdf(x, v)).mean(),
                "c2st": c2st(real(prior, theta), real(prior, result.draws)),
                "k_hat": pareto_k(result.sample_stats["log_ratio"], 0.0),
                "remark": float(result.status != "ok"),
            }
        )
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    good = status == "ok"
    kept = {name: value[good] for name, value in table.items()}
    reached = kept["log_density"][kept["reached"] == 1.0]
    figures = {
        "curves": int(good.sum()),
        "not_converged": float(1 - good.mean()),
        "log_density_nuts_minus_pfn": float(kept["log_density"].mean()),
        "log_density_standard_error": float(kept["log_density"].std() / good.sum() ** 0.5),
        "log_density_where_draws_reach_nuts_minus_pfn": float(reached.mean()),
        "log_density_where_draws_reach_standard_error": float(reached.std() / reached.size**0.5),
        "draws_reach": float(kept["reached"].mean()),
        "log_density_smoothed_nuts_minus_pfn": float(kept["smoothed"].mean()),
        "log_density_smoothed_standard_error": float(kept["smoothed"].std() / good.sum() ** 0.5),
        "crps_ratio": float(kept["crps_pfn"].mean() / kept["crps_nuts"].mean()),
        "crps_ratio_geometric": float(np.exp(np.log(kept["crps_pfn"] / kept["crps_nuts"]).mean())),
        "cdf_distance": float(kept["cdf_distance"].mean()),
        "c2st": float(kept["c2st"].mean()),
        "k_hat_below_0.7": float((kept["k_hat"] < 0.7).mean()),
        "needs_review": float(kept["remark"].mean()),
    }
    for name, value in figures.items():
        print(f"{name:46s} {value:.4f}")
    quiet = (simulated.theta["sigma"] < QUIET)[good]
    for name, rows_of in ((f"sigma below {QUIET}", quiet), ("the others", ~quiet)):
        print(f"log density, {name:17s} {kept['log_density'][rows_of].mean():.4f} on {rows_of.sum()} curves")
    size = np.array([len(problem.x) for problem in problems])[good]
    for low, high in SIZES:
        own = kept["cdf_distance"][(size >= low) & (size <= high)]
        if own.size:
            print(f"cdf distance, {low} to {high} points: {own.mean():.4f} on {own.size} curves")
    if arguments.card:
        command = f"python benchmarks/agreement.py --prior {prior.name} --curves {arguments.curves} --seed {arguments.seed}"
        command += "" if arguments.forecast == "network" else f" --forecast {arguments.forecast}"
        command += "" if arguments.checkpoint is None else f" --checkpoint {arguments.checkpoint}"
        write_scores(card, "agreement", figures, command)


if __name__ == "__main__":
    main()

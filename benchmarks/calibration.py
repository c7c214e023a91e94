"""Calibration of the amortized engine on fresh curves of the prior and the design that it was trained on.

    python benchmarks/calibration.py --prior m4 --curves 10000

Prints whether the PIT of the targets (one per curve, thinned to 2000) lies inside the 99 % simultaneous band of the ECDF of a
uniform sample (Säilynoja et al. 2022), the coverage of central intervals over all targets, and the same band for the ranks
of every parameter. With --card the figures are written into the model card.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hybrid.amortized.cards import find_card
from hybrid.amortized.checkpoint import load_checkpoint, write_scores
from hybrid.amortized.coordinates import to_value
from hybrid.amortized.design import Design
from hybrid.amortized.posterior import FlowHead
from hybrid.amortized.predictive import Contexts
from hybrid.amortized.sampler import sample_curves
from hybrid.diagnostics.uniformity import ecdf_band
from hybrid.models.registry import get_prior
from hybrid.models.torch_random import seeded

TOGETHER = 250
BAND = 0.99
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.998)  # the last says whether the tails are as long as they should be
DRAWS = 200  # of the parameters, for a rank


def band_excess(pit: np.ndarray) -> float:
    """How far the ECDF of at most 2000 values is outside the band: the largest excess, 0 where it is inside throughout."""
    _, difference, low, high = ecdf_band(pit, BAND)
    return float(np.maximum(np.maximum(low - difference, difference - high), 0.0).max())


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="m4")
    parser.add_argument("--curves", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--card", action="store_true", help="write the figures into the model card")
    arguments = parser.parse_args()

    prior = get_prior(arguments.prior)
    card = find_card(prior, arguments.checkpoint)
    model, _ = load_checkpoint(prior, arguments.checkpoint)
    design = Design.from_dict(card.content["design"])
    generator = torch.Generator().manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    pits, reaches, before, ranks = [], [], [], []
    for start in tqdm(range(0, arguments.curves, TOGETHER)):
        curves = sample_curves(prior, min(TOGETHER, arguments.curves - start), design, generator, dtype=torch.float64)
        contexts = Contexts(model, curves.x_context, curves.y_context, curves.mask, curves.frame)
        bars = contexts.bars(curves.x_target)
        lost = bars.cdf(torch.zeros_like(bars.loc)) if model.positive and not model.logarithmic else 0.0
        with torch.inference_mode():
            pits.append(((bars.cdf(to_value(curves.y_target, model.logarithmic)) - lost) / (1.0 - lost)).numpy())
        reaches.append((curves.frame.x_from(curves.x_target) / curves.frame.x_from(curves.frame.last)).numpy())
        before.append((curves.x_target < curves.frame.first).numpy())
        if isinstance(model.head, FlowHead):
            with seeded(arguments.seed + start):
                theta, _ = model.head.sample(contexts.summary(), contexts.described, DRAWS)
            below = {k: (theta[k] < curves.theta[k]).sum(0).numpy() for k in model.head.names}
            ranks.append({k: (value + rng.uniform(size=len(value))) / (DRAWS + 1) for k, value in below.items()})
    pit, reach = np.concatenate(pits), np.concatenate(reaches)
    parts = {"beyond_context": reach > 1.0, "beyond_100_times": reach > 100.0, "before_context": np.concatenate(before)}
    one = np.take_along_axis(pit, rng.integers(pit.shape[1], size=(len(pit), 1)), 1)[:, 0]
    figures: dict[str, float | int] = {"curves": len(pit), "pit_outside_band": band_excess(one)}
    for level in LEVELS:
        inside = np.abs(pit - 0.5) <= 0.5 * level
        figures[f"coverage_{100 * level:g}"] = float(inside.mean())
        for name, where in parts.items():
            if where.any():
                figures[f"coverage_{100 * level:g}_{name}"] = float(inside[where].mean())
    for name in ranks[0] if ranks else ():
        figures[f"rank_outside_band_{name}"] = band_excess(np.concatenate([part[name] for part in ranks]))
    for name, value in figures.items():
        print(f"{name:34s} {value:.4f}")
    if arguments.card:
        command = f"python benchmarks/calibration.py --prior {prior.name} --curves {arguments.curves} --seed {arguments.seed}"
        command += "" if arguments.checkpoint is None else f" --checkpoint {arguments.checkpoint}"
        write_scores(card, "calibration", figures, command)


if __name__ == "__main__":
    main()

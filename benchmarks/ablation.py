"""The prior ablation of Lee et al. (2025): what each part of their prior is worth, at equal small budgets.

    python benchmarks/ablation.py --data curves.csv

Trains five networks that differ in the prior alone, parts of `nsl_paper`, with the same number of curves: M3; M4; M3 and
M4; with breaks; with the rise of double descent. Scores each on the held-out points of real curves and prints RMSLE and
log-likelihood beside the paper's RMSLE. Weights are kept in --out, so that an interrupted run goes on.
"""

import argparse
import os
from pathlib import Path

import pandas as pd

from hybrid.amortized.cards import FOLDER_VARIABLE, read_card
from hybrid.amortized.design import Design
from hybrid.amortized.release import train_prior
from hybrid.amortized.settings import design_for
from hybrid.benchmarking import benchmark
from hybrid.models.distributions import Distribution
from hybrid.models.nsl_paper import PRIOR, SEGMENTS
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

PUBLISHED = {  # RMSLE on IC and DD, whole benchmark: Lee et al. 2025, prior ablation
    "M3": (0.064, 0.131),
    "M4": (0.050, 0.058),
    "M3 + M4": (0.038, 0.071),
    "+ breaks": (0.032, 0.051),
    "+ up": (0.028, 0.033),
}
DOMAINS = ("IC", "DD")


def variant(name: str, kinds: tuple[float, float], families: tuple[float, float, float]) -> Prior:
    """A part of the paper's prior: shares of M3 and M4, and of Down, Down-Down and Down-Up-Down."""
    changes = {f"kind_{k}": Distribution("Categorical", probs=kinds) for k in range(1, SEGMENTS + 1)}
    return PRIOR.replace(name=name, family=Distribution("Categorical", probs=families), **changes)


BOTH = (0.5, 0.5)
VARIANTS = {
    "M3": variant("ablation_m3", (1.0, 0.0), (1.0, 0.0, 0.0)),
    "M4": variant("ablation_m4", (0.0, 1.0), (1.0, 0.0, 0.0)),
    "M3 + M4": variant("ablation_both", BOTH, (1.0, 0.0, 0.0)),
    "+ breaks": variant("ablation_breaks", BOTH, (7 / 9, 2 / 9, 0.0)),
    "+ up": variant("ablation_up", BOTH, (0.7, 0.2, 0.1)),
}


def is_trained(path: Path, prior: Prior, steps: int, design: Design) -> bool:
    """Whether a card is of this very prior, budget and design."""
    if not path.exists():
        return False
    card = read_card(path)
    return card.is_about(prior) and card.content["steps"] == steps and card.content["design"] == design.to_dict()


def main() -> None:
    """Run the ablation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tidy CSV with the domains IC and DD")
    parser.add_argument("--steps", type=int, default=500, help="of 128 curves each")
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    arguments = parser.parse_args()
    os.environ[FOLDER_VARIABLE] = str(arguments.out)
    for name, prior in VARIANTS.items():
        card, design = arguments.out / f"{prior.name}.json", design_for(get_prior("nslpfn"))
        if not is_trained(card, prior, arguments.steps, design):
            print(f"{name}: training on {128 * arguments.steps:,} curves")
            train_prior(prior, out=arguments.out, steps=arguments.steps, design=design)
    found = benchmark(arguments.data, [("pfn", prior) for prior in VARIANTS.values()], domains=DOMAINS).table
    rows = []
    for name, prior in VARIANTS.items():
        row: dict[str, object] = {"prior": name}
        for k, domain in enumerate(DOMAINS):
            scores = found[(found["domain"] == domain) & (found["method"] == f"pfn:{prior.name}")].iloc[0]
            row |= {
                f"{domain} RMSLE": scores["rmsle"],
                f"{domain} LL": scores["ll"],
                f"{domain} RMSLE, paper": PUBLISHED[name][k],
            }
        rows.append(row)
    print(pd.DataFrame(rows).set_index("prior").to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()

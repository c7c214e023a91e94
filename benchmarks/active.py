"""Bayesian active learning: how fast a forecast improves when the most uncertain point is measured next.

    python benchmarks/active.py --data curves.csv --methods pfn:nsl nuts:m4 --out out/active

Every curve begins with 4 of its points, drawn at random. At each step a method fits what is known, forecasts all the points
of the curve, and measures the one of greatest predictive variance, of log y where noise is multiplicative
(`hybrid.next_points`, Lee et al. 2025, section 4.4), up to 9; beside it the same method measures at random. Prints the RMSLE of
the median forecast over all points, the mean over curves, with a figure.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from curves import Points, example_points, read_points
from tqdm import tqdm

import hybrid
from hybrid.choosing import spread
from hybrid.diagnostics.scores import rmsle

FIRST, LAST, FEWEST = 4, 9, 15
UNCERTAIN, RANDOM = "most uncertain", "at random"


def whole(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """All points of a curve, context and targets, one per x."""
    x, y = np.concatenate([points.x, points.x_target]), np.concatenate([points.y, points.y_target])
    x, index = np.unique(x, return_index=True)
    return x, y[index]


def run(curves: Sequence[tuple[np.ndarray, np.ndarray]], engine: str, prior: str, choice: str, seed: int) -> np.ndarray:
    """RMSLE for each curve and number of points, shape (curves, LAST - FIRST + 1)."""
    rng = np.random.default_rng(seed)
    known = [list(rng.choice(x.size, FIRST, replace=False)) for x, _ in curves]
    errors = np.zeros((len(curves), LAST - FIRST + 1))
    for step in tqdm(range(LAST - FIRST + 1), desc=f"{engine}:{prior}, {choice}"):
        asked = [hybrid.Curve(x[np.sort(k)], y[np.sort(k)]) for (x, y), k in zip(curves, known, strict=True)]
        horizons = [max(float(x[-1]), 1.001 * float(curve.x[-1])) for (x, _), curve in zip(curves, asked, strict=True)]
        fits = hybrid.fit_many(asked, prior, engine, horizons, progress=False)
        for i, ((x, y), fit) in enumerate(zip(curves, fits, strict=True)):
            forecast = fit.predict(x)
            errors[i, step] = rmsle(forecast["median"].to_numpy(), y)
            rest = np.setdiff1d(np.arange(x.size), known[i])
            pick = rng.choice(rest) if choice == RANDOM else rest[int(np.argmax(spread(fit, x[rest])))]
            known[i].append(int(pick))
    return errors


def draw(table: pd.DataFrame, path: Path) -> None:
    """RMSLE against the number of measured points, one line per method and choice."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
    colours = dict(zip(dict.fromkeys(table["method"]), ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False))
    groups = table.groupby(["method", "choice"], sort=False)
    for k, ((method, choice), part) in enumerate(groups):
        style = "-" if choice == UNCERTAIN else ":"
        ax.errorbar(
            part["points"] + 0.05 * (k - (len(groups) - 1) / 2),  # so that bars do not hide one another
            part["rmsle"],
            part["se"],
            label=f"{method}, {choice}",
            color=colours[method],
            linestyle=style,
            capsize=2,
            linewidth=1.8,
            elinewidth=0.8,
        )
    ax.set(xlabel="points measured", ylabel="RMSLE over the whole curve", yscale="log")
    for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis("{x:.2g}")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="tidy CSVs; by default the shipped examples")
    parser.add_argument("--methods", nargs="*", default=["pfn:nsl"])
    parser.add_argument("--domains", nargs="*", default=[])
    parser.add_argument("--curves", type=int, default=40, help="at most, evenly from all of --data with 15 points or more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/active"))
    arguments = parser.parse_args()
    source = read_points(arguments.data) if arguments.data else example_points()
    found = [whole(p) for p in source if not arguments.domains or p.domain in arguments.domains]
    found = [(x, y) for x, y in found if x.size >= FEWEST] if arguments.data else [(x, y) for x, y in found if x.size > LAST]
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(arguments.curves, len(found))).astype(int))]
    rows = []
    for method in arguments.methods:
        engine, _, prior = method.partition(":")
        for choice in (UNCERTAIN, RANDOM):
            errors = run(chosen, engine, prior, choice, arguments.seed)
            for k, part in enumerate(errors.T):
                se = part.std(ddof=1) / np.sqrt(part.size)
                rows.append({"method": method, "choice": choice, "points": FIRST + k, "rmsle": part.mean(), "se": se})
    table = pd.DataFrame(rows)
    print(f"{len(chosen)} curves")
    print(table.pivot(index=["method", "choice"], columns="points", values="rmsle").round(4).to_string())
    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out / "active.csv", index=False)
    draw(table, arguments.out / "active.png")
    print(f"wrote {arguments.out / 'active.csv'} and {arguments.out / 'active.png'}")


if __name__ == "__main__":
    main()

"""Do real curves lie where the priors of m4 and bnsl expect them? A table of parameters, and a prior-predictive figure.

    python benchmarks/prior_check.py --data curves.csv --data more.csv --plot prior_check.png

Every curve is fitted by least squares on all its points, in the prior's coordinates with the largest y as the y scale. A
parameter counts as identified on a curve where the data cut its standard deviation to less than half the prior's: with J
the Jacobian of log y in the unconstrained parameter u, sd of the prior s and noise sigma, the Laplace approximation
(J'J / sigma^2 + diag(1 / s^2))^-1 has sqrt of its diagonal below s / 2. What is not identified is not constrained by data, and
least squares may put it anywhere, most often on a bound. Without --data the curves are the shipped examples.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from curves import Points, example_points, read_points, to_problem
from scipy import special

from hybrid.models.engine import EngineResult, Problem
from hybrid.models.least_squares import run_least_squares
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior

CENTRAL = (0.005, 0.995)
DRAWS = 100_000
STEP = 1e-4


def to_real(prior: Prior, name: str, value: np.ndarray) -> np.ndarray:
    """The unconstrained scale: logit of parameters in [0, 1], log of positive ones."""
    family = next(p.distribution.family for p in prior.parameters if p.name == name)
    if family in ("Uniform", "Beta"):
        return np.asarray(special.logit(np.clip(value, 1e-12, 1 - 1e-12)))
    return value if family in ("Normal", "StudentT") else np.log(value)


def from_real(prior: Prior, name: str, u: np.ndarray) -> np.ndarray:
    """The inverse of `to_real`."""
    family = next(p.distribution.family for p in prior.parameters if p.name == name)
    if family in ("Uniform", "Beta"):
        return np.asarray(special.expit(u))
    return u if family in ("Normal", "StudentT") else np.exp(u)


def identified(prior: Prior, problem: Problem, result: EngineResult, spread: dict[str, float]) -> dict[str, bool]:
    """Which parameters the curve identifies, by the criterion above; the noise scale always is."""
    names = [n for n in result.draws if n != "sigma"]
    value = {n: v[0, 0] for n, v in result.draws.items()}
    columns = []
    for name in names:
        u = to_real(prior, name, value[name])
        sides = [{**value, name: from_real(prior, name, u + sign * STEP)} for sign in (1, -1)]
        up, down = (np.log(prior.mean(side, problem.x, problem.frame)) for side in sides)
        columns.append((up - down) / (2 * STEP))
    jacobian = np.stack(columns, 1) / value["sigma"]
    s = np.array([spread[n] for n in names])
    scaled = jacobian * s
    deviation = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled + np.eye(len(names)))))
    return {**dict(zip(names, (deviation < 0.5).tolist(), strict=True)), "sigma": True}


def table(prior: Prior, problems: Sequence[Problem]) -> pd.DataFrame:
    """One row per parameter: the prior's central 99 % and how many curves' estimates lie inside."""
    fitted = [(p, r) for p, r in zip(problems, run_least_squares(prior, problems), strict=True) if r.status == "ok"]
    draws = prior.sample(DRAWS, np.array([1.0]), seed=1)
    spread = {p.name: float(np.std(to_real(prior, p.name, draws[p.name].values))) for p in prior.parameters}
    known = [identified(prior, *both, spread) for both in fitted]
    rows = []
    for p in prior.parameters:
        low, high = np.quantile(draws[p.name].values, CENTRAL)
        estimates = np.array([r.draws[p.name][0, 0] for _, r in fitted])
        inside = (estimates >= low) & (estimates <= high)
        clear = np.array([k[p.name] for k in known])
        quantiles = np.quantile(estimates[clear], [0.01, 0.1, 0.5, 0.9, 0.99]) if clear.any() else np.full(5, np.nan)
        rows.append(
            {
                "parameter": p.name,
                "prior 99 %": f"{low:.3g} to {high:.3g}",
                "curves": len(fitted),
                "inside": f"{np.mean(inside):.3f}",
                "identified": int(clear.sum()),
                "of these inside": f"{np.mean(inside[clear]):.3f}" if clear.any() else "",
                "below, above": f"{np.sum(estimates[clear] < low)}, {np.sum(estimates[clear] > high)}",
                "estimates at 1, 10, 50, 90, 99 %": "  ".join(f"{q:.3g}" for q in quantiles),
            }
        )
    return pd.DataFrame(rows)


def plot(path: Path, priors: Sequence[Prior], curves: Sequence[Points], problems: Sequence[Problem], draws: int = 25) -> None:
    """The prior's bands and some draws in grey, real curves in the same coordinates in colour, at most 15 of a kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds: dict[str, list[Problem]] = {}
    for curve, problem in zip(curves, problems, strict=True):
        kinds.setdefault(curve.domain.partition("-")[0], []).append(problem)
    colours = dict(zip(kinds, plt.colormaps["Dark2"](np.arange(len(kinds)) % 8), strict=True))
    figure, axes = plt.subplots(
        1, len(priors), figsize=(6.4 * len(priors), 5), sharey=True, squeeze=False, layout="constrained"
    )
    x = np.geomspace(1e-3, 10, 200)
    for axis, prior in zip(axes[0], priors, strict=True):
        mean = prior.sample(20_000, x, seed=2)["mean"].values
        for low, grey in ((0.005, "0.93"), (0.25, "0.83")):
            axis.fill_between(x, *np.quantile(mean, (low, 1 - low), axis=0), color=grey, linewidth=0)
        axis.plot(x, mean[:draws].T, color="0.6", linewidth=0.6)
        axis.plot(x, np.median(mean, axis=0), color="black", linewidth=1.6)
        for kind, members in kinds.items():
            for problem in members[:: -(-len(members) // 15)]:
                axis.plot(problem.x, problem.y, color=colours[kind], linewidth=0.9, alpha=0.8)
        axis.axvline(1.0, color="black", linewidth=0.6, linestyle="--")
        axis.set(
            title=f"prior {prior.name}",
            xlabel="x / last context x",
            xscale="log",
            yscale="log",
            xlim=(1e-3, 10),
            ylim=(0.02, 6),
        )
    axes[0, 0].set_ylabel("y / largest context y")
    handles: list[Artist] = [Patch(color=grey) for grey in ("0.83", "0.93")]
    handles += [Line2D([], [], color=c) for c in ("black", "0.6", *colours.values())]
    labels = ["prior, central 50 %", "prior, central 99 %", "prior median", "prior draws"]
    figure.legend(handles, [*labels, *kinds], loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Parse the arguments, print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="tidy CSV of curves; may be repeated")
    parser.add_argument("--priors", nargs="*", default=["m4", "bnsl"])
    parser.add_argument("--plot", type=Path, help="where to write the figure")
    arguments = parser.parse_args()
    split = read_points(arguments.data) if arguments.data else example_points(holdout=0)
    empty = np.array([])
    curves = [Points(c.domain, c.name, np.append(c.x, c.x_target), np.append(c.y, c.y_target), empty, empty) for c in split]
    problems = [to_problem(c) for c in curves]
    priors = [p for p in map(get_prior, arguments.priors) if isinstance(p, Prior)]
    for prior in priors:
        print(f"{prior.name}, {len(curves)} curves; those that need review (mostly too few points) are left out")
        print(f"{table(prior, problems).to_string(index=False)}\n")
    if arguments.plot:
        plot(arguments.plot, priors, curves, problems)


if __name__ == "__main__":
    main()

"""Accuracy and speed of least squares: RMSLE of the held-out points, and milliseconds per curve after compilation.

    python benchmarks/least_squares.py --data curves.csv --domains IC NLP

RMSLE of a curve is the root of its mean squared log(forecast / truth) over the held-out points; a domain's is the mean over
its curves. Without --data the curves are the shipped examples and draws from each law's own prior.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from curves import Points, drawn_points, example_points, read_points, to_problem

from hybrid.models.engine import EngineResult, Problem
from hybrid.models.least_squares import run_least_squares
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior


def rmsle(prior: Prior, result: EngineResult, problem: Problem, points: Points) -> float:
    """Root mean squared log error over the targets of one curve."""
    theta = {name: values[0, 0] for name, values in result.draws.items()}
    mean = problem.frame.y_scale * prior.mean(theta, problem.frame.x_to(points.x_target), problem.frame)
    return float(np.sqrt(np.mean(np.square(np.log(mean) - np.log(points.y_target)))))


def score(prior: Prior, domain: str, curves: Sequence[Points], seed: int) -> dict[str, object]:
    """One row of the table."""
    problems = [to_problem(c) for c in curves]
    run_least_squares(prior, problems, seed)
    begin = time.perf_counter()
    results = run_least_squares(prior, problems, seed)
    spent = time.perf_counter() - begin
    errors = [rmsle(prior, *both) for both in zip(results, problems, curves, strict=True)]
    return {
        "domain": domain,
        "law": prior.law.name,
        "curves": len(curves),
        "RMSLE": round(float(np.mean(errors)), 5),
        "median RMSLE": round(float(np.median(errors)), 5),
        "ms per curve": round(1e3 * spent / len(curves), 1),
        "needs review": sum(r.status != "ok" for r in results),
    }


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="tidy CSV of curves; may be repeated")
    parser.add_argument("--domains", nargs="*", help="only these domains")
    parser.add_argument("--laws", nargs="*", default=["m1", "m2", "m3", "m4", "bnsl"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    curves = read_points(arguments.data) if arguments.data else example_points()
    curves = [c for c in curves if c.x_target.size and (not arguments.domains or c.domain in arguments.domains)]
    rows = []
    for name in arguments.laws:
        prior = get_prior(name)
        if not isinstance(prior, Prior):
            parser.error(f"prior {name!r} has no law to fit")
        found = curves if arguments.data else [*curves, *drawn_points(prior, 64)]
        domains = {d: [c for c in found if c.domain == d] for d in dict.fromkeys(c.domain for c in found)}
        rows += [score(prior, domain, members, arguments.seed) for domain, members in domains.items()]
    print(pd.DataFrame(rows).sort_values(["domain"], kind="stable").to_string(index=False))


if __name__ == "__main__":
    main()

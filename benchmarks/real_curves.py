"""Forecasts of real curves: RMSLE of the median and mean log-likelihood (LL), by domain and prior, by the amortized engine.

    python benchmarks/real_curves.py --data curves.csv --priors nslpfn nsl m4 bnsl

As in the NSL-PFN paper the forecast is about the last target, y is divided by the largest context y outside IC and NLP, and log
densities are on that scale. Without --data the curves are the shipped examples with their last points held out. Figures are
means over the curves of a domain.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from curves import Points, example_points, read_points

import hybrid

AS_GIVEN = ("IC", "NLP")  # domains whose log densities the paper states in the units of y
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def score(fit: hybrid.Fit, points: Points) -> dict[str, float]:
    """RMSLE, LL, and the share of targets inside the central 50 and 90 % intervals, of one curve."""
    low, lower, median, upper, high = fit.predict(points.x_target, levels=LEVELS)["quantiles"].transpose("quantile", "x").values
    unit = 1.0 if points.domain in AS_GIVEN else points.y.max()
    y = points.y_target
    return {
        "RMSLE": float(np.sqrt(np.mean(np.log(median / y) ** 2))),
        "LL": float(np.mean(fit.log_density(points.x_target, y).values)) + float(np.log(unit)),
        "in 50 %": float(np.mean((lower <= y) & (y <= upper))),
        "in 90 %": float(np.mean((low <= y) & (y <= high))),
        "needs review": float(fit.status != "ok"),
    }


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="tidy CSV of curves; may be repeated")
    parser.add_argument("--priors", nargs="*", default=["nslpfn", "nsl", "m4", "bnsl"])
    parser.add_argument("--engine", default="pfn")
    arguments = parser.parse_args()
    curves = [c for c in (read_points(arguments.data) if arguments.data else example_points()) if c.x_target.size]
    rows = []
    for name in arguments.priors:
        begin = time.perf_counter()
        horizons = [max(c.x.max(), c.x_target.max()) for c in curves]
        scales = [1.0 if c.domain in AS_GIVEN else c.y.max() for c in curves]
        fits = hybrid.fit_many([hybrid.Curve(c.x, c.y) for c in curves], name, arguments.engine, horizons, scales)
        scores = [{"domain": c.domain, **score(fit, c)} for fit, c in zip(fits, curves, strict=True)]
        seconds = (time.perf_counter() - begin) / len(curves)
        table = pd.DataFrame(scores).groupby("domain", sort=False)
        rows.append(table.mean().assign(prior=name, curves=table.size(), **{"ms per curve": 1e3 * seconds}))
    print(
        pd.concat(rows)
        .reset_index()
        .set_index(["domain", "prior"])
        .sort_index(level=0, sort_remaining=False)
        .round(4)
        .to_string()
    )


if __name__ == "__main__":
    main()

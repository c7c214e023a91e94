"""Convergence and speed of NUTS on curves drawn from a prior.

    python benchmarks/nuts.py --prior m4 --curves 64 --workers 2

Prints the share of fits with R-hat < 1.01 and bulk and tail ESS >= 400, the share that needs review, and seconds per curve
after the programs are compiled; with --first also the time of a first fit in a fresh process, with a cold and a warm cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from hybrid.models.coordinates import get_coordinates
from hybrid.models.engine import Problem
from hybrid.models.nuts import run_nuts
from hybrid.models.prior import AbstractPrior
from hybrid.models.registry import get_prior

POINTS = 40
HORIZON = 10.0


def problems(prior: AbstractPrior, n: int, seed: int) -> list[Problem]:
    """Prior-drawn curves of 40 points, x from .001 to 1 in ratio coordinates."""
    x = np.geomspace(1e-3, 1.0, POINTS)
    frame = get_coordinates(prior.coordinates).frame(x, HORIZON, 1.0)
    return [Problem(x, y, frame) for y in prior.sample(n, x, seed=seed)["y"].values]


def first_fit(prior: str) -> None:
    """Time `hybrid fit` on a shipped example in fresh processes: compilation cache empty, then warm."""
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "warm"):
            start = time.perf_counter()
            command = [sys.executable, "-m", "hybrid", "fit", "example:cerebras_gpt_pile", "--prior", prior]
            environment = {**os.environ, "HYBRID_CACHE_DIR": folder}
            subprocess.run([*command, "--engine", "nuts"], check=True, stdout=subprocess.DEVNULL, env=environment)
            print(f"first fit in a fresh process, {state} cache: {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="m4")
    parser.add_argument("--curves", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", action="store_true", help="also time a first fit in a fresh process")
    arguments = parser.parse_args()

    prior = get_prior(arguments.prior)
    run_nuts(prior, problems(prior, 8 * arguments.workers, arguments.seed + 1000), workers=arguments.workers)
    start = time.perf_counter()
    results = run_nuts(prior, problems(prior, arguments.curves, arguments.seed), workers=arguments.workers, progress=True)
    seconds = (time.perf_counter() - start) / arguments.curves

    info = [r.info for r in results]
    rhat = np.array([i["max_rhat"] for i in info])
    ess = np.array([min(i["min_ess_bulk"], i["min_ess_tail"]) for i in info])
    review = np.array([r.status != "ok" for r in results])
    print(f"prior {prior.name}, {arguments.curves} curves of {POINTS} points, {arguments.workers} workers")
    print(f"R-hat < 1.01 and ESS >= 400: {100 * np.mean((rhat < 1.01) & (ess >= 400)):.1f} %")
    print(f"needs review: {100 * review.mean():.1f} %; second attempts: {sum(i['attempts'] > 1 for i in info)}")
    print(f"worst R-hat {rhat.max():.3f}, lowest ESS {ess.min():.0f}, median ESS {np.median(ess):.0f}")
    print(f"seconds per curve: {seconds:.2f}")
    for index in np.flatnonzero(review):
        print(f"curve {index}: {'; '.join(results[index].reasons)}")
    if arguments.first:
        first_fit(prior.name)


if __name__ == "__main__":
    main()

"""Speed of the amortized engine.

    python benchmarks/pfn.py --prior m4

Prints the time for 100 curves of 100 points with 50 forecasts each, for one curve after import, for 1000 joint curves at 20
positions, and for a whole process `hybrid fit --engine pfn`; best and median of several runs, of the joint curves one.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

import hybrid

CURVES, POINTS, QUERIES, JOINT = 100, 100, 50, 20


def timed(name: str, job: Callable[[], object], repeats: int) -> None:
    """Run a job several times and print the best and the median time."""
    job()
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        job()
        spent.append(time.perf_counter() - begin)
    print(f"{name:60s} best {1e3 * min(spent):8.1f} ms, median {1e3 * float(np.median(spent)):8.1f} ms")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="m4")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x = np.geomspace(1.0, 1000.0, POINTS)
    mean = 0.3 + 0.6 * x**-0.4
    curves = [hybrid.Curve(x, mean * np.exp(0.01 * rng.standard_normal(POINTS))) for _ in range(CURVES)]
    ahead = np.geomspace(1.1 * x[-1], 10 * x[-1], QUERIES)

    def many() -> None:
        for fit in hybrid.fit_many(curves, arguments.prior, "pfn"):
            fit.predict(ahead)

    def one() -> None:
        hybrid.fit(curves[0], arguments.prior, "pfn").predict(ahead)

    def process() -> None:
        command = [sys.executable, "-m", "hybrid", "fit", "example:cerebras_gpt_pile", "--prior", arguments.prior]
        subprocess.run([*command, "--engine", "pfn"], check=True, stdout=subprocess.DEVNULL)

    def draws() -> None:
        fit = hybrid.fit(curves[0], arguments.prior, "pfn")
        fit.result.draws[next(iter(fit.result.draws))].sum()

    def joint() -> None:
        hybrid.fit(curves[0], arguments.prior, "pfn").sample(np.geomspace(1.1 * x[-1], 10 * x[-1], JOINT), progress=False)

    timed(f"{CURVES} curves of {POINTS} points, {QUERIES} forecasts each", many, arguments.repeats)
    timed(f"one curve of {POINTS} points, {QUERIES} forecasts", one, arguments.repeats)
    timed("the same and 2000 draws of the parameters", draws, arguments.repeats)
    timed(f"one curve of {POINTS} points, 1000 joint curves at {JOINT} positions", joint, 1)
    timed("process: hybrid fit --engine pfn", process, arguments.repeats)


if __name__ == "__main__":
    main()

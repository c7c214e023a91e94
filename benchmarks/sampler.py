"""Throughput of the training sampler: curves per second for each prior, positions included.

    python benchmarks/sampler.py --priors m4 nsl --device cuda

A batch is padded to its largest context, so the time per curve depends on the design as much as on the law.
"""

import argparse
import time

import pandas as pd
import torch

from hybrid.amortized.design import Design
from hybrid.amortized.sampler import sample_curves
from hybrid.models.registry import get_prior, prior_names


def measure(name: str, design: Design, batch: int, seconds: float, device: str) -> dict[str, object]:
    """One row of the table: batches are drawn for about the given time, after one that does not count."""
    prior, generator = get_prior(name), torch.Generator(device).manual_seed(0)
    sample_curves(prior, batch, design, generator, device)
    drawn, points = 0, 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        curves = sample_curves(prior, batch, design, generator, device)
        drawn += batch
        points += int(curves.mask.sum()) + curves.x_target.numel()  # waits for the device
    spent = time.perf_counter() - begin
    return {"prior": name, "curves": drawn, "curves per s": round(drawn / spent), "points per s": round(points / spent)}


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", nargs="*", default=list(prior_names()), help="names; by default all")
    parser.add_argument("--batch", type=int, default=256, help="curves per batch")
    parser.add_argument("--context", type=int, nargs=2, default=(3, 500), metavar=("LOW", "HIGH"))
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each prior")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    design = Design(context=tuple(arguments.context), targets=arguments.targets)
    rows = [measure(name, design, arguments.batch, arguments.seconds, arguments.device) for name in arguments.priors]
    print(f"{arguments.device}, {torch.get_num_threads()} CPU threads, batches of {arguments.batch}")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()

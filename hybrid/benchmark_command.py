"""`hybrid benchmark`."""

from collections.abc import Sequence
from pathlib import Path

import click

DEFAULT_PRIOR, DEFAULT_ENGINE = "nsl", "pfn"


@click.command("benchmark")
@click.option("--data", type=click.Path(path_type=Path), multiple=True, help="Tidy CSV of curves; repeatable.")
@click.option("--nslpfn-data", type=click.Path(path_type=Path), help="The data folder of NSL-PFN's repository.")
@click.option("--method", "methods", multiple=True, metavar="ENGINE:PRIOR", help="What to score; repeatable.")
@click.option("--prior", help=f"In place of --method: the prior of one, a name or JSON file.  [default: {DEFAULT_PRIOR}]")
@click.option("--engine", help=f"In place of --method: the engine of one.  [default: {DEFAULT_ENGINE}]")
@click.option("--domain", "domains", multiple=True, help="Only this domain; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for tables, figures and the cache of forecasts.")
@click.option("--figures/--no-figures", default=True, show_default=True, help="Whether to draw figures into --out.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--dask", metavar="ADDRESS", help="Use the workers of a Dask cluster: tcp://host:port.")
@click.option("--fresh", is_flag=True, help="Make all forecasts anew, whatever --out holds.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed.")
def benchmark_command(
    data: Sequence[Path],
    nslpfn_data: Path | None,
    methods: Sequence[str],
    prior: str | None,
    engine: str | None,
    domains: Sequence[str],
    out: Path | None,
    figures: bool,
    workers: int,
    dask: str | None,
    fresh: bool,
    seed: int,
) -> None:
    """Score engines and priors on the held-out points of real curves.

    Curves come from tidy CSV files with the columns domain, curve, x, y and split (context or target), or are the shipped
    examples with their last two points held out. Methods are pairs such as pfn:nsl, nuts:m4 or least_squares:bnsl;
    least_squares:bnsl_auto chooses the number of breaks curve by curve. Printed for each domain: RMSLE of the median
    forecast, log-likelihood (LL), CRPS, calibration of intervals and time, with standard errors over groups of related
    curves. With --out an interrupted run goes on where it stopped when the same command is given again.
    """
    if methods and (prior is not None or engine is not None):
        raise click.UsageError("give --method, or --prior and --engine, not both")
    from hybrid.benchmarking import CURVES, TABLE, benchmark

    chosen = list(methods) or [f"{engine or DEFAULT_ENGINE}:{prior or DEFAULT_PRIOR}"]
    found = benchmark(
        list(data) or None,
        chosen,
        out,
        nslpfn_data=nslpfn_data,
        domains=domains,
        seed=seed,
        workers=workers,
        dask=dask,
        fresh=fresh,
        figures=figures,
    )
    click.echo(str(found), nl=False)
    if out is not None:
        click.echo(f"\nwrote {out / TABLE}, {out / CURVES}" + (f" and figures in {out}" if figures else ""))

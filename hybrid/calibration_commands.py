"""The commands `hybrid calibrate` and `hybrid report`."""

import shlex
from pathlib import Path

import click

from hybrid.models.errors import FileFormatError, HybridError, InvalidArgumentError
from hybrid.output import check_output


@click.command("calibrate")
@click.option("--prior", default="m4", show_default=True, help="A name from `hybrid priors`, or a JSON file.")
@click.option("--engine", default="pfn", show_default=True, help="nuts or pfn.")
@click.option("--simulations", type=click.IntRange(min=16), help="Curves; default 256 for nuts, 2000 for pfn.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 2), default=0, show_default=True, help="Random seed.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes for nuts.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights for pfn, if not those that are found.")
@click.option("--out", type=click.Path(path_type=Path), help="The report; default calibration_PRIOR_ENGINE.html.")
@click.option("--save", "saved", type=click.Path(path_type=Path), help="Also write the evidence as NetCDF: .nc.")
def calibrate_command(
    prior: str,
    engine: str,
    simulations: int | None,
    seed: int,
    workers: int,
    checkpoint: Path | None,
    out: Path | None,
    saved: Path | None,
) -> None:
    """Simulation-based calibration of an engine on curves of its own prior; prints the verdict and writes a report.

    The draws of nuts are kept beside the report while it runs: the same command goes on where it was interrupted. Exit code 1
    if a quantity fails.
    """
    from hybrid.calibrating import calibrate
    from hybrid.reading import read_prior
    from hybrid.reporting import write_report

    chosen = read_prior(prior)
    page = Path(f"calibration_{chosen.name}_{engine}.html") if out is None else out
    check_output(page, (".html",))
    check_output(saved, (".nc",))
    cache = page.with_suffix(".draws.npz") if engine == "nuts" else None
    try:
        found = calibrate(chosen, engine, simulations, None, seed, cache, workers, True, checkpoint)
    except KeyboardInterrupt:
        if cache is not None and cache.exists():
            click.echo(f"\ninterrupted; the draws so far are in {cache}, and the same command goes on from there", err=True)
        raise
    click.echo(found.verdict)
    click.echo(found.table().round(3).to_string())
    click.echo(found.coverage().round(3).to_string())
    if saved is not None:
        found.save(saved)
        click.echo(f"wrote {saved}")
    count = "" if simulations is None else f" --simulations {simulations}"
    weights = "" if checkpoint is None else f" --checkpoint {shlex.quote(str(checkpoint))}"
    written = "".join(
        f" {option} {shlex.quote(str(path))}" for option, path in (("--out", out), ("--save", saved)) if path is not None
    )
    command = f"hybrid calibrate --prior {shlex.quote(prior)} --engine {engine}{count}{weights} --seed {seed}{written}"
    try:
        write_report(found, page, command)
    except HybridError as error:
        kept = page.with_suffix(".evidence.nc") if saved is None else saved
        if saved is None:
            found.save(kept)  # minutes of work must not be lost with the page
        raise type(error)(f"{error}; the evidence is in {kept}: `hybrid report {shlex.quote(str(kept))}`") from None
    click.echo(f"wrote {page}")
    if cache is not None:
        cache.unlink(missing_ok=True)
    if not found.ok:
        raise click.exceptions.Exit(1)


@click.command("report")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page; default the file's name with .html.")
def report_command(source: Path, out: Path | None) -> None:
    """Write a report about a fit, or a calibration, that was saved as NetCDF: one HTML page that needs no network."""
    from hybrid.calibrating import Calibration, load_calibration
    from hybrid.loading import load_fit
    from hybrid.reporting import write_report
    from hybrid.result import Fit

    if source.is_dir():
        raise InvalidArgumentError(f"{source} is a directory: give the file of a fit or a calibration")
    page = source.with_suffix(".html") if out is None else out
    check_output(page, (".html",))
    subject: Fit | Calibration
    try:
        subject = load_fit(source)
    except FileFormatError as error:
        try:
            subject = load_calibration(source)
        except FileFormatError:
            raise error from None
    place = "" if out is None else f" --out {shlex.quote(str(out))}"
    write_report(subject, page, f"hybrid report {shlex.quote(str(source))}{place}")
    click.echo(subject.verdict)
    click.echo(f"wrote {page}")

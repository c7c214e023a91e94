"""The `hybrid` command: fit, compare, train, calibrate, report, benchmark, priors, examples, demo."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hybrid.amortized.interrupts import ending_gently
from hybrid.benchmark_command import benchmark_command
from hybrid.calibration_commands import calibrate_command, report_command
from hybrid.models.errors import EngineUnavailableError, FileFormatError, HybridError, InvalidArgumentError
from hybrid.models.files import replacing
from hybrid.output import check_output, format_table, warnings_in_a_line

if TYPE_CHECKING:
    from hybrid.amortized.design import Design
    from hybrid.curve import Curve
    from hybrid.models.prior import AbstractPrior
    from hybrid.result import Fit

EXAMPLE = "example:"
DEMO_EXAMPLE = "cerebras_gpt_pile"
DEMO_HOLDOUT = 2
COMPARED = ("nuts", "pfn", "least_squares")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
PLOT_FORMATS = (".png", ".pdf", ".svg")
Command = TypeVar("Command", bound=Callable[..., Any])


class _Failure(click.ClickException):
    """One line on standard error, exit code 2."""

    exit_code = 2


def _brief(error: click.UsageError) -> click.ClickException:
    """One line for a wrong option; a command without any shows its help, as before."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    return _Failure(" ".join(error.format_message().split()))


class _Group(click.Group):
    """Turns the errors that Hybrid and the file system raise on purpose into one line instead of a traceback."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            raise _brief(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with ending_gently():
                return super().invoke(ctx)
        except HybridError as error:
            raise _Failure(" ".join(str(error).split())) from None
        except click.UsageError as error:
            raise _brief(error) from None
        except BrokenPipeError:  # as of `hybrid priors | head`: click ends quietly
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _Failure(f"{where}{error.strerror or error}") from None


def _save_fit(fit: Fit, path: Path) -> None:
    fit.save(path)
    click.echo(f"wrote {path}")


def _save_plot(draw: Callable[[Any], Any], path: Path) -> None:
    """Draw on a figure of its own, without pyplot, and write it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from hybrid.plotting import figure_settings

    figure = Figure(**figure_settings())
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    click.echo(f"wrote {path}")


def _positive(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Accept finite numbers above 0, alone or repeated."""
    del ctx
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise click.BadParameter("must be a finite number above 0", param=parameter)
    return value


@dataclasses.dataclass(frozen=True)
class _Request:
    """What `fit` and `compare` share: where the curve comes from, how it is fitted and where forecasts are wanted."""

    source: str
    x_column: str
    y_column: str
    curve_name: str | None
    holdout: int
    prior: str
    at: tuple[float, ...]
    horizon: float | None
    y_scale: float | None
    threshold: float | None
    seed: int
    plot: Path | None

    def read(self) -> Curve:
        """The curve: that of a CSV file, or of `example:NAME`."""
        if self.source.startswith(EXAMPLE):
            if (self.x_column, self.y_column, self.curve_name) != ("x", "y", None):
                raise InvalidArgumentError("--x, --y and --curve are for files: an example has one curve")
            from hybrid.published import load_example

            return load_example(self.source.removeprefix(EXAMPLE), holdout=self.holdout)
        from hybrid.reading import read_csv

        with warnings_in_a_line():
            curve = read_csv(self.source, x=self.x_column, y=self.y_column, curve=self.curve_name)
        return curve.hold_out(self.holdout) if self.holdout else curve


def _request_options(command: Command) -> Command:
    """Declare the fields of `_Request` as arguments and options of a command."""
    options: list[Callable[[Command], Command]] = [
        click.argument("source"),
        click.option("--x", "x_column", default="x", show_default=True, help="Column of the scale."),
        click.option("--y", "y_column", default="y", show_default=True, help="Column of the loss or error."),
        click.option("--curve", "curve_name", help="Which curve, where the file holds several."),
        click.option("--holdout", type=click.IntRange(min=0), default=0, help="Hold out the last N points."),
        click.option("--prior", default="m4", show_default=True, help="A name from `hybrid priors`, or a JSON file."),
        click.option("--at", type=float, multiple=True, callback=_positive, help="Forecast at this x; repeatable."),
        click.option("--horizon", type=float, callback=_positive, help="Largest x that the forecast is about."),
        click.option("--y-scale", type=float, callback=_positive, help="Unit of y in the prior's coordinates."),
        click.option("--threshold", type=float, callback=_positive, help="Also print P(y < threshold)."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed."),
        click.option("--plot", type=click.Path(path_type=Path), help="Write a plot: .png, .pdf or .svg."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _horizon(curve: Curve, at: Sequence[float], horizon: float | None) -> float:
    """The stated horizon, or ten times the last context x, or as far as a forecast or a held-out point asks."""
    from hybrid.fitting import HORIZON_FACTOR
    from hybrid.models.checks import LIMIT

    for x in at:
        if x > LIMIT:
            raise InvalidArgumentError(f"--at {x:g} is beyond {LIMIT:g}, the largest x there is: give it in larger units")
        if x < 1 / LIMIT:
            raise InvalidArgumentError(f"--at {x:g} is below {1 / LIMIT:g}, the smallest x there is: give it in smaller units")
    if horizon is not None:
        for x in at:
            if x > horizon:
                raise InvalidArgumentError(f"--at {x:g} lies beyond --horizon {horizon:g}: give a horizon of {x!r} or more")
        return horizon
    return max([min(HORIZON_FACTOR * float(curve.x[-1]), LIMIT), *at, *_targets(curve)[0]])


def _said_horizon(curve: Curve, horizon: float, request: _Request) -> str:
    """The horizon, and whether --at moved it: forecasts by a prior in unit coordinates depend on it."""
    moved = " (moved there by --at)" if horizon > _horizon(curve, (), request.horizon) else ""
    return f"horizon {_number(horizon)}{moved}"


def _targets(curve: Curve) -> tuple[list[float], list[float]]:
    if curve.x_target is None or curve.y_target is None:
        return [], []
    return [float(x) for x in curve.x_target], [float(y) for y in curve.y_target]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _positions(fit: Fit, at: Sequence[float]) -> tuple[list[float], list[float | None]]:
    """Where to forecast: as asked, or else at the held-out points, or else at the horizon. With what was observed there.

    Held-out points where the prior is not defined are left out, and counted in a line.
    """
    if at:
        return list(at), [None] * len(at)
    held_out = list(zip(*_targets(fit.curve), strict=True))
    known = [(x, y) for x, y in held_out if fit.defined_for[0] <= x <= fit.defined_for[1]]
    left = len(held_out) - len(known)
    if left:
        points, are = ("point", "is") if left == 1 else ("points", "are")
        click.echo(
            f"{left} held-out {points} before the first context x or beyond the horizon {are} left out, where prior "
            f"{fit.prior.name!r} is not defined"
        )
    return ([x for x, _ in known], [y for _, y in known]) if known else ([fit.horizon], [None])


@warnings_in_a_line()
def _forecast(fit: Fit, xs: Sequence[float], observed: Sequence[float | None], threshold: float | None) -> str:
    """A table with one row per x: median, central 50 and 90 % intervals, and what applies of truth and probability."""
    quantiles = fit.predict(xs, levels=LEVELS)["quantiles"].transpose("x", "quantile").values
    below = None if threshold is None else [float(p) for p in fit.prob_below(xs, threshold)]
    noise = "noise " if fit.engine == "least_squares" else ""  # a point estimate has no other uncertainty
    header = [fit.curve.x_label, "median", f"50 % {noise}interval", f"90 % {noise}interval"]
    held_out = any(y is not None for y in observed)
    if held_out:
        header += ["held out", "in 90 %"]
    if threshold is not None:
        header.append(f"P(y < {threshold:g})" + (", noise alone" if noise else ""))
    rows = []
    for i, (x, (low90, low50, median, high50, high90)) in enumerate(zip(xs, quantiles, strict=True)):
        row = [_number(x), _number(median)]
        row += [f"{_number(low)} to {_number(high)}" for low, high in ((low50, high50), (low90, high90))]
        y = observed[i]
        if held_out:
            row += ["", ""] if y is None else [_number(y), "yes" if low90 <= y <= high90 else "no"]
        if below is not None:
            row.append(f"{below[i]:.3f}")
        rows.append(row)
    return format_table(header, rows)


@warnings_in_a_line()
def _agreement(fits: Sequence[Fit], xs: Sequence[float]) -> str:
    """Every engine against the first, at each x: medians, 90 % widths, and their ratios."""
    rows = []
    predictions = [fit.predict(xs, levels=LEVELS)["quantiles"].transpose("x", "quantile").values for fit in fits]
    for i, x in enumerate(xs):
        reference = predictions[0][i]
        for fit, quantiles in zip(fits, predictions, strict=True):
            low, _, median, _, high = quantiles[i]
            ratios = (median / reference[2], (high - low) / (reference[4] - reference[0]))
            noise = " (noise alone)" if fit.engine == "least_squares" else ""
            row = [_number(x), fit.engine, _number(median), f"{_number(low)} to {_number(high)}{noise}"]
            rows.append([*row, *(f"{ratio:.3f}" for ratio in ratios)])
    first = fits[0].engine
    header = [fits[0].curve.x_label, "engine", "median", "90 % interval", f"median / {first}", f"width / {first}"]
    return format_table(header, rows, left=(0, 1))


def _describe(curve: Curve) -> str:
    name = f"{curve.name}: " if curve.name else ""
    held_out = len(_targets(curve)[0])
    also = f", {held_out} held out" if held_out else ""
    return f"{name}{len(curve.x)} points, {curve.x_label} {_number(curve.x[0])} to {_number(curve.x[-1])}{also}"


def _compare(
    curve: Curve,
    prior: AbstractPrior,
    horizon: float,
    seed: int,
    y_scale: float | None = None,
    at: Sequence[float] = (),
    threshold: float | None = None,
) -> list[Fit]:
    """Fit by every engine that can serve the prior, print the forecasts and how they agree; name the engines that cannot.

    Raises
    ------
    EngineUnavailableError
        If no engine can serve the prior.
    """
    from hybrid.fitting import fit

    fits: list[Fit] = []
    for engine in COMPARED:
        try:
            fits.append(fit(curve, prior, engine, horizon, y_scale, seed))
        except EngineUnavailableError as error:
            click.echo(f"{engine}: skipped, {error}")
            continue
        click.echo(fits[-1].verdict)
    if not fits:
        raise EngineUnavailableError(f"no engine can serve prior {prior.name!r}")
    xs, observed = _positions(fits[0], at)
    for each in fits:
        click.echo(f"\n{each.engine}\n{_forecast(each, xs, observed, threshold)}")
    if len(fits) > 1:
        click.echo(f"\nagreement\n{_agreement(fits, xs)}")
        from hybrid.comparing import verdicts

        for found in verdicts(fits, xs if at else None):
            click.echo(f"\n{found.verdict}")
    return fits


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hybrid-scaling-laws", prog_name="hybrid")
def main() -> None:
    """Forecast neural scaling curves, with honest uncertainty."""


@main.command("fit")
@_request_options
@click.option("--engine", default="nuts", show_default=True, help="nuts, pfn, least_squares or auto.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the engine, such as forecast=draws for pfn; repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the fit as NetCDF: .nc.")
def fit_command(engine: str, settings: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Fit one curve, from a CSV file or `example:NAME`, and forecast.

    Without --horizon the forecast is about ten times the last x, or further if --at or a held-out point asks for it.
    Without --at the table is about the held-out points, or the horizon where there are none.
    """
    request = _Request(**options)
    check_output(out, (".nc",))
    check_output(request.plot, PLOT_FORMATS)
    from hybrid.fitting import fit
    from hybrid.reading import read_prior

    curve = request.read()
    horizon = _horizon(curve, request.at, request.horizon)
    chosen = dict(map(_setting, settings))
    own = [name for name in chosen if name in inspect.signature(fit).parameters]
    if own:
        raise InvalidArgumentError(f"--set is for options of the engine, and {own[0]!r} is none")
    found = fit(curve, read_prior(request.prior), engine, horizon, request.y_scale, request.seed, **chosen)
    click.echo(f"{_describe(curve)}; {_said_horizon(curve, horizon, request)}, seed {request.seed}")
    click.echo(found.verdict)
    try:
        click.echo(f"\n{_forecast(found, *_positions(found, request.at), request.threshold)}")
    finally:  # whatever is wrong with what is asked of it, the fit is kept
        if out is not None:
            _save_fit(found, out)
    if request.plot is not None:
        _save_plot(found.plot, request.plot)


@main.command("compare")
@_request_options
def compare_command(**options: Any) -> None:
    """Fit one curve with every engine that can serve the prior, side by side.

    The table holds medians and 90 % intervals, and their ratios to those of the first engine. Where two engines have
    uncertainty, a line below says whether they agree: by the difference of their predictive distributions up to the horizon,
    and by a classifier that tries to tell their parameters apart.
    """
    from hybrid.reading import read_prior

    request = _Request(**options)
    check_output(request.plot, PLOT_FORMATS)
    curve = request.read()
    horizon = _horizon(curve, request.at, request.horizon)
    click.echo(f"{_describe(curve)}; {_said_horizon(curve, horizon, request)}, seed {request.seed}")
    fits = _compare(curve, read_prior(request.prior), horizon, request.seed, request.y_scale, request.at, request.threshold)
    if request.plot is not None:
        from hybrid.plotting import plot_compare

        _save_plot(lambda ax: plot_compare(fits, ax), request.plot)


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a number where it reads as one."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgumentError(f"--set takes NAME=VALUE, got {text!r}")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


@main.command("train")
@click.option("--prior", required=True, help="A name from `hybrid priors`, or a JSON file that prior.to_json() wrote.")
@click.option("--preset", default="small", show_default=True, help="small (for a CPU) or paper (for GPUs).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; default where the engine looks first.")
@click.option("--design", "design_file", type=click.Path(path_type=Path), help="JSON file with the x positions to train on.")
@click.option("--interpolated", type=float, help="Share of targets inside the context's range; most designs have 0.2.")
@click.option("--from", "origin", type=click.Path(), help="Weights to begin with: a checkpoint, or a name.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="How many; torchrun overrides it.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting of the preset; repeatable.")
def train_command(
    prior: str,
    preset: str,
    out: Path | None,
    design_file: Path | None,
    interpolated: float | None,
    origin: str | None,
    device: str,
    devices: int,
    settings: Sequence[str],
) -> None:
    """Train a network for a prior; writes its weights and model card. Without --out the engine finds them by itself.

    An interrupted run goes on where it stopped when the same command is given again. To train on several devices or
    machines, start the command with torchrun.
    """
    from hybrid.amortized.cards import BEFORE
    from hybrid.amortized.release import train_prior, weights_folder
    from hybrid.amortized.settings import check_names, design_for
    from hybrid.reading import read_prior

    changes = dict(map(_setting, settings))
    check_names(changes)  # before they could be taken for other arguments
    chosen = read_prior(prior)
    design = design_for(chosen) if design_file is None else _read_design(design_file)
    if interpolated is not None:
        design = dataclasses.replace(design, interpolated=interpolated)
    folder = weights_folder(out)
    stood = (folder / f"{chosen.name}.safetensors").exists()
    try:
        card = train_prior(chosen, preset, out, design, device, devices, origin=origin, **changes)
    except KeyboardInterrupt:
        if (folder / f"{chosen.name}.training").exists():
            click.echo(
                f"\ninterrupted; {folder / chosen.name}.training is kept, and the same command goes on from there", err=True
            )
        raise
    if card is not None:
        click.echo(f"wrote {card.weights} and {card.path.name}")
        if stood:
            click.echo(f"the weights that were there are kept as {card.weights.name}{BEFORE}, their card beside them")


def _read_design(path: Path) -> Design:
    from hybrid.amortized.design import Design
    from hybrid.reading import read_text

    text = read_text(path)
    try:
        return Design.from_dict(json.loads(text))
    except (FileFormatError, InvalidArgumentError) as error:
        raise FileFormatError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path} is not JSON: {error}") from None


for _command in (benchmark_command, calibrate_command, report_command):
    main.add_command(_command)


@main.command("priors")
def priors_command() -> None:
    """List the priors, and the engines that can serve each."""
    from hybrid.fitting import priors

    rows = [
        (str(name), str(row["engines"]), str(row["checkpoint"]), str(len(row["parameters"].split(", "))), str(row["law"]))
        for name, row in priors().iterrows()
    ]
    click.echo(format_table(("name", "engines", "checkpoint", "parameters", "law"), rows, left=(0, 1, 2, 4)))


@main.command("examples")
def examples_command() -> None:
    """List the published curves that ship with Hybrid; fit one as `example:NAME`."""
    from hybrid.published import examples

    for name, row in examples().iterrows():
        click.echo(f"{name}: {row['points']} points, {row['shape']}")
        click.echo(f"    {row['y_label']} against {row['x_label']}")
        click.echo(f"    {row['citation']}")


@main.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder to write to.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed.")
def demo_command(out: Path, seed: int) -> None:
    """Forecast the two largest Cerebras-GPT models from the five smaller ones, with every engine.

    The same as `hybrid compare example:cerebras_gpt_pile --holdout 2`, and the first fit and its plot are kept.
    """
    from hybrid.models.files import make_folder
    from hybrid.models.registry import get_prior
    from hybrid.plotting import plot_compare
    from hybrid.published import load_example

    make_folder(out)
    curve = load_example(DEMO_EXAMPLE, holdout=DEMO_HOLDOUT)
    horizon = _horizon(curve, (), None)
    click.echo(f"{_describe(curve)}; horizon {_number(horizon)}, seed {seed}")
    fits = _compare(curve, get_prior("m4"), horizon, seed=seed)
    click.echo()
    _save_fit(fits[0], out / "demo.nc")
    _save_plot(fits[0].plot, out / "demo.png")
    _save_plot(lambda ax: plot_compare(fits, ax), out / "demo_engines.png")

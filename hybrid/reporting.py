"""Reports: an executed notebook about a calibration or a fit, as one HTML page that needs nothing else."""

import atexit
import importlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid.calibrating import Calibration
from hybrid.models.errors import InvalidArgumentError, ReportError
from hybrid.models.files import as_path, check_writable, replacing
from hybrid.result import Fit

COLOURED = re.compile(r"\x1b\[[0-9;]*m")  # what terminals colour text by
TIMEOUT = 1800  # seconds a cell may take
Cell = tuple[str, str]  # "markdown" or "code", and its source

_SETUP = """import warnings
from IPython.display import Markdown, display
import matplotlib.pyplot as plt
import hybrid
from hybrid.output import as_html, as_markdown, as_table
warnings.filterwarnings("ignore")
plt.rcParams.update({{"figure.dpi": 110, "font.size": 9}})

def shown(make):  # what a check gives, or why it is not for this fit
    try:
        found = make()
    except hybrid.HybridError as error:
        return display(Markdown(as_markdown(f"Not for this fit: {{error}}.")))
    display(found)
    plt.close("all")"""

_VERSIONS = """import json
attrs = {attrs}
rows = ["| | |", "|---|---|"]
versions = json.loads(attrs["versions"])
rows += [f"| {{as_markdown(name)}} | {{as_markdown(str(version))}} |" for name, version in versions.items()]
display(Markdown("\\n".join(rows)))"""

CALIBRATION_CELLS: tuple[Cell, ...] = (
    ("code", _SETUP + "\ncalibration = hybrid.load_calibration({source!r})"),
    (
        "code",
        "attrs = calibration.data.attrs\n"
        "mark = 'No miscalibration found.' if calibration.ok else 'Miscalibrated.'\n"
        "engine, prior = (as_markdown(attrs[name]) for name in ('engine', 'prior'))\n"
        "display(Markdown(f'# Calibration of {{engine}} on the prior {{prior}}\\n\\n'\n"
        "                 f'> **{{mark}}** {{as_markdown(calibration.verdict)}}'))",
    ),
    (
        "markdown",
        "Curves are drawn from the prior, each is fitted, and the true value of every quantity is ranked among its posterior "
        "draws. If the posteriors are right, ranks are uniform (Talts et al. 2018), also those of quantities that depend on "
        "the data (Modrák et al. 2023), and do not depend on anything that the posterior knew.\n\n"
        "## Ranks\n\nECDF of the ranks less that of the uniform; the grey band holds 99.5 % of all such lines as a whole "
        "(Säilynoja et al. 2022). A quantity also fails where the normal scores of its ranks have a mean or a variance that "
        "is off, or where they correlate with a feature of the data. Where one fails alone, and not when all are judged "
        "together, its title says so: of ten right ones one does in a tenth of all calibrations.",
    ),
    ("code", "figure = calibration.plot(); display(figure); plt.close(figure)"),
    ("code", "as_table(calibration.table())"),
    (
        "markdown",
        "`excess`: how far the line leaves its band. `shift` and `spread`: standard normal if all is well; a "
        "positive shift means that the truth lies higher than the posterior has it, a positive spread that it is too narrow. "
        "`dependence`: of as many standard normals as there are features of the data, the one furthest from 0. `p`: of all "
        "these tests by Bonferroni; the band is not among them. `ok`: at 99 % by itself; `ok_together`: at 99 % for all "
        "quantities, as the verdict has it. `contraction`: 1 - posterior variance over prior variance; a posterior that equals "
        "the prior has 0.\n\n## Forecasts of held-out points\n\nCoverage of central intervals by how far beyond the context "
        "the points lie, and how wide the 90 % intervals are (`width`, over the median).",
    ),
    ("code", "figure = calibration.plot_coverage(); display(figure); plt.close(figure)"),
    ("code", "as_table(calibration.coverage())"),
    (
        "markdown",
        "## Recovery\n\nPosterior mean, one sd either way, against the truth, on the real line: log or logit, a number of "
        "breaks as it is.",
    ),
    (
        "code",
        "if 'truth' in calibration.data.children:\n"
        "    figure = calibration.plot_recovery(); display(figure); plt.close(figure)\n"
        "else:\n    display(Markdown('The engine gives no parameters for this prior.'))",
    ),
    ("markdown", "## How this was made\n\nThe command that makes this report again:\n\n```bash\n{command}\n```"),
    ("code", _VERSIONS.replace("{attrs}", "calibration.data.attrs")),
)

FIT_CELLS: tuple[Cell, ...] = (
    ("code", _SETUP + "\n{load}"),
    (
        "code",
        "name, engine, prior = map(as_markdown, (fit.curve.name or 'one curve', fit.engine, fit.prior.name))\n"
        "display(Markdown(f'# {{name}}: forecast by {{engine}} under the prior {{prior}}\\n\\n'\n"
        '                 f\'> **{{fit.status.replace("_", " ")}}** {{as_markdown(fit.verdict)}}\'))',
    ),
    (
        "code",
        "figure, ax = plt.subplots(figsize=(7.2, 4.6), layout='constrained'); fit.plot(ax); display(figure); plt.close(figure)",
    ),
    ("markdown", "## Forecast\n\nOf a new observation, its noise included."),
    (
        "code",
        "import numpy as np\n"
        "held = fit.curve.x_target is not None and len(fit.curve.x_target) > 0\n"
        "targets = fit.curve.x_target if held else np.array([fit.horizon])\n"
        "known = (targets >= fit.defined_for[0]) & (targets <= fit.defined_for[1])  # where the prior is defined\n"
        "if not known.all():\n"
        "    display(Markdown(f'Held-out points left out: {{(~known).sum()}}; the prior is not defined before '\n"
        "                     'the first context x or beyond the horizon.'))\n"
        "if known.any():\n"
        "    forecast = fit.predict(targets[known])\n"
        "    table = forecast['quantiles'].transpose('x', 'quantile').to_pandas()\n"
        "    table.columns = [f'{{100 * q:g}} %' for q in table.columns]\n"
        "    if held:\n"
        "        table['held out'] = fit.curve.y_target[known]\n"
        "    display(table.rename_axis(as_html(fit.curve.x_label)).style.format('{{:.5g}}').format_index('{{:.6g}}'))",
    ),
    ("markdown", "## Posterior"),
    (
        "code",
        "has_posterior = 'posterior' in fit.data.children\n"
        "display(as_table(fit.summary(), '{{:.4g}}') if has_posterior else Markdown('The engine gives no parameters.'))\n"
        "drawn = fit.data['posterior'].data_vars.items() if has_posterior else ()\n"
        "meant = {{k: v.attrs['meaning'] for k, v in drawn if v.attrs.get('meaning') and not k.startswith('drift_')}}\n"
        "display(Markdown('\\n'.join(f'- `{{k}}`: {{as_markdown(v)}}' for k, v in meant.items())))",
    ),
    ("markdown", "## Health\n\nEach threshold with its source; what fails says what to do."),
    ("code", "shown(lambda: as_table(hybrid.health(fit)))"),
    (
        "markdown",
        "## Does the model fit its own points?\n\nDistribution of replicated data against the observed ones. The band of the "
        "leave-one-out PIT is that of independent values; those of one fit are more even, as it goes through their middle, so "
        "that a line outside says much and one inside little.",
    ),
    (
        "code",
        "shown(lambda: hybrid.plot_checks(fit))",
    ),
    (
        "markdown",
        "## Leave-one-out\n\nlog density of each point given the others, PIT, and k-hat; where that is .7 or more, or "
        "1 - 1 / log10(draws) where that is less, neither can be trusted.",
    ),
    (
        "code",
        "shown(lambda: hybrid.loo(fit).rename_axis(as_html(fit.curve.x_label)).style.format(precision=3)\n"
        "      .format('{{:.5g}}', subset=['y']).format_index('{{:.6g}}'))",
    ),
    (
        "markdown",
        "## Sensitivity to prior and likelihood\n\nBy power-scaling (Kallioinen et al. 2024). Above .05 a parameter is "
        "sensitive. On short curves one is often so to both, without any conflict: the data do not outweigh the prior.",
    ),
    ("code", "shown(lambda: as_table(hybrid.sensitivity(fit)))"),
    ("markdown", "## How this was made\n\n```bash\n{command}\n```"),
    ("code", _VERSIONS.replace("{attrs}", "fit.data.attrs")),
)


def _page(cells: Sequence[Cell], values: dict[str, Any], title: str, folder: Path) -> str:
    """Execute the cells and convert them to HTML."""
    nbformat = importlib.import_module("nbformat")
    client = importlib.import_module("nbclient")
    exporters = importlib.import_module("nbconvert.exporters")
    notebook = nbformat.v4.new_notebook(metadata={"title": title, "language_info": {"name": "python"}})
    kinds = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook.cells = [kinds[kind](source.format(**values)) for kind, source in cells]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    runner = client.NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # it would warn the user's terminal of its own sockets
    )
    try:
        runner.execute(env={**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    except client.exceptions.CellExecutionError as error:
        last = COLOURED.sub("", str(error)).strip().splitlines()[-1]
        raise ReportError(f"the report stopped at a cell: {last}") from None
    except client.exceptions.CellTimeoutError:
        raise ReportError(
            f"a cell of the report took longer than {TIMEOUT} seconds: report on a fit with fewer draws"
        ) from None
    except (client.exceptions.DeadKernelError, RuntimeError, AssertionError, KeyError) as error:
        atexit.unregister(runner._cleanup_kernel)  # it would complain that there is none
        raise ReportError(
            f"the kernel that makes the report did not run ({str(error) or type(error).__name__}): install ipykernel into this "
            "environment, and look for a kernel called python3 elsewhere with `jupyter kernelspec list`"
        ) from None
    # Without these two the page would fetch scripts from the network.
    exporter = exporters.HTMLExporter(mathjax_url="", require_js_url="", exclude_input=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    body: str = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})[0]
    return body


def _loading(subject: Calibration | Fit, source: Path) -> str:
    """What loads a fit in the page's own process; a law of one's own goes along, code and all."""
    law = getattr(subject.prior, "law", None) if isinstance(subject, Fit) else None
    if law is None or not law.is_own:
        return f"fit = hybrid.load_fit({str(source)!r})"
    carried = source.with_name("law.pkl")
    carried.write_bytes(importlib.import_module("cloudpickle").dumps(law))
    read = f"cloudpickle.loads(Path({str(carried)!r}).read_bytes())"
    # What is defined in a module goes by the module's name, which the page's process must find where this one does.
    places = [str(Path(place).absolute()) for place in sys.path]
    found = f"import sys\nsys.path += [place for place in {places!r} if place not in sys.path]"
    return f"{found}\nimport cloudpickle\nfrom pathlib import Path\nfit = hybrid.load_fit({str(source)!r}, law={read})"


def _this_command() -> str:
    """What started this process; a script by `python`."""
    name = Path(sys.argv[0]).name
    return " ".join(shlex.quote(word) for word in (*(["python"] if name.endswith(".py") else []), name, *sys.argv[1:]))


def write_report(subject: Calibration | Fit, path: str | os.PathLike[str], command: str | None = None) -> Path:
    """Write a report about a calibration or a fit: one HTML page with its figures in it, which needs no network.

    Parameters
    ----------
    subject
        What it is about.
    path
        The page, ending in .html.
    command
        The command that makes it again; None takes that of this process.

    Returns
    -------
    The path.

    Raises
    ------
    InvalidArgumentError
        If the subject is neither, or the path does not end in .html or cannot be written.
    ReportError
        If a cell of the notebook fails.
    """
    if not isinstance(subject, (Calibration, Fit)):
        raise InvalidArgumentError(f"a report is about a fit or a calibration, got {type(subject).__name__}")
    path = as_path(path, "path").absolute()
    if path.suffix.lower() != ".html":
        raise InvalidArgumentError(f"{path}: the name of a report must end in .html")
    check_writable(path)
    command = command or _this_command()
    cells = CALIBRATION_CELLS if isinstance(subject, Calibration) else FIT_CELLS
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "subject.nc"
        subject.save(source)
        values = {"source": str(source), "command": command, "load": _loading(subject, source)}
        page = _page(cells, values, path.stem, Path(folder))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path

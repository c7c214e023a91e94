"""README.md and docs/measured.md: Python runs as printed, commands parse, tables are complete, links lead on."""

import re
import shlex
from pathlib import Path

import click
import matplotlib as mpl
import pytest

mpl.use("Agg")

from matplotlib import pyplot as plt

from hybrid.cli import main
from hybrid.fitting import ENGINES
from hybrid.models.registry import prior_names

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/measured.md")
TEXT, MEASURED = ((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
ALL = TEXT + MEASURED


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", ALL, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    words = [shlex.split(line) for line in lines if line]
    return [w[1:] for w in words if Path(w[0]).name == "hybrid"]


@pytest.mark.parametrize("code", [pytest.param(code, id=f"block{i}") for i, code in enumerate(blocks("python"))])
def test_python_runs_as_printed(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), space)
    for name in re.findall(r'(?:savefig|save)\("(.*?)"\)', code):
        assert (tmp_path / name).stat().st_size > 0
    plt.close("all")


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    name, *rest = arguments
    command = main.commands[name]
    with command.make_context(name, rest) as context:
        assert isinstance(context, click.Context)


@pytest.mark.parametrize("command", sorted({" ".join(c.split()) for c in re.findall(r"benchmarks/(\w+\.py[^`]*)`", ALL)}))
def test_options_of_the_benchmarks_exist(command: str) -> None:
    script, *words = command.split()
    source = (ROOT / "benchmarks" / script).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))


def test_blocks_are_found() -> None:
    assert len(blocks("python")) >= 3
    assert {c[0] for c in commands()} == set(main.commands)


def test_tables_name_every_prior_and_engine() -> None:
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert set(prior_names()) <= set(named)
    assert set(named) - set(prior_names()) <= set(ENGINES)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", ALL)) <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).is_file()] == []

"""The three folders are subpackages of hybrid, in a checkout, in a wheel and in an sdist, and only that."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("models", "amortized", "diagnostics")
IMPORT_ALL = """
import importlib, pkgutil, sys
import hybrid
for module in pkgutil.walk_packages(hybrid.__path__, "hybrid."):
    if module.name != "hybrid.__main__":
        importlib.import_module(module.name)
print(*sys.modules)
"""


def _python(code: str, cwd: Path, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def _sources() -> list[Path]:
    return [p for folder in ("hybrid", *FOLDERS, "tests", "benchmarks") for p in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_resolve(folder: str) -> None:
    link = ROOT / "hybrid" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert link.resolve() == ROOT / folder
    assert (link / "__init__.py").is_file()


def test_everything_imports_under_one_name() -> None:
    loaded = _python(IMPORT_ALL, ROOT).split()  # from the root, where a top-level `models` would be found
    for folder in FOLDERS:
        assert f"hybrid.{folder}" in loaded
        assert folder not in loaded


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_copy_loaded_here(folder: str) -> None:
    assert folder not in sys.modules


def test_files_are_short() -> None:
    long = {str(p.relative_to(ROOT)): n for p in _sources() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's sources to build in, links kept."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    copy.mkdir()
    for folder in ("hybrid", *FOLDERS):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def _build(tree: Path, kind: str) -> Path:
    out = tree.parent / f"{kind}-{tree.name}"
    out.mkdir()
    _python(f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})", tree)
    return next(iter(out.iterdir()))


def _expected() -> set[str]:
    names = {f"hybrid/{p.name}" for p in (ROOT / "hybrid").glob("*.py")}
    names |= {f"hybrid/{folder}/{p.name}" for folder in FOLDERS for p in (ROOT / folder).glob("*.py")}
    names |= {f"hybrid/amortized/weights/{p.name}" for p in (ROOT / "amortized" / "weights").iterdir()}
    return names | {f"hybrid/data/{p.name}" for p in (ROOT / "hybrid" / "data").glob("*.csv")} | {"hybrid/py.typed"}


def test_wheel_holds_everything_and_runs(tree: Path, tmp_path: Path) -> None:
    wheel = _build(tree, "wheel")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
        archive.extractall(site)
    assert names == _expected()
    code = "import hybrid, hybrid.models.m4 as m4; print(hybrid.__file__, m4.__file__, len(hybrid.examples()))"
    package, module, count = _python(code, tmp_path, PYTHONPATH=str(site)).split()
    assert Path(package).is_relative_to(site)
    assert Path(module).is_relative_to(site)
    assert int(count) > 0


def test_sdist_builds_the_same_wheel(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(_build(tree, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(iter(tmp_path.iterdir()))
    wheel = _build(unpacked, "wheel")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == _expected()

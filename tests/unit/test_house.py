"""The house stays one to live in: small rooms, none forgotten when the wheel is built."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = [*PROJECT["tool"]["importlinter"]["root_packages"], "benchmarks"]
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted(path for kind in ("js", "css") for path in (ROOT / "app").rglob(f"*.{kind}"))


def test_no_folder_has_more_than_twelve_modules() -> None:
    counts = Counter(path.parent for path in [*MODULES, *PAGES] if not path.stem.startswith("__"))
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > 12} == {}


def test_no_module_is_longer_than_350_lines() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in [*MODULES, *PAGES]}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 350} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": length
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > 60
    }
    assert long == {}


@pytest.mark.parametrize("root", ["cynosure", "jobs", "app", "workers", "models"])
def test_the_wheel_has_every_package(root: str) -> None:
    packages = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / root).rglob("__init__.py")}
    listed = {name for name in PROJECT["tool"]["setuptools"]["packages"] if name.split(".")[0] == root}
    assert listed == packages

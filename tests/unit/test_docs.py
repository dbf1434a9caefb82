"""The documents keep up with the code."""

import re
import runpy
import tomllib
from pathlib import Path

import cynosure
from cynosure.errors import CynosureError

ROOT = Path(__file__).resolve().parents[2]


def _tree(root: type[CynosureError]) -> set[type[CynosureError]]:
    ours = [child for child in root.__subclasses__() if child.__module__.startswith("cynosure.errors.")]
    return {root}.union(*map(_tree, ours))


def _sections(markdown: str) -> dict[str, str]:
    """Text below each third-level heading, by heading: one section an error code."""
    parts = re.split(r"^### (.+)$", markdown, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_error_code_is_documented_with_its_status() -> None:
    sections = _sections((ROOT / "docs/errors.md").read_text())
    classes = _tree(CynosureError)
    assert len(classes) > 10
    before_a_route = {"not_found", "method_not_allowed", "http_error"}
    assert sections.keys() == {kind.code for kind in classes} | before_a_route
    for kind in classes:
        assert f"**{kind.status}**" in sections[kind.code], kind.code


def test_error_codes_are_unique() -> None:
    codes = [kind.code for kind in _tree(CynosureError)]
    assert len(codes) == len(set(codes))


def test_the_changelog_and_the_project_have_the_version() -> None:
    assert f"## [{cynosure.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == cynosure.__version__


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert documents
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert broken == []


def test_the_trees_in_the_documents_are_the_folders() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(re.findall(r"^(\w+)/ ", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert listed == {*project["tool"]["importlinter"]["root_packages"], "tests", "docs", "deploy", "benchmarks"}
    assert all((ROOT / name).is_dir() for name in listed)
    packages = set(re.findall(r"^- `([\w.]+)`: ", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    shipped = set(project["tool"]["setuptools"]["packages"])
    assert packages - shipped == {"harness", "chaos"}
    folders_of = ("cynosure.", "workers.")  # described with the package that they are in
    assert {name for name in shipped - packages if name.count(".") < 2 and not name.startswith(folders_of)} == set()


def test_the_reference_of_settings_is_the_codes() -> None:
    program = runpy.run_path(str(ROOT / ".ci/settings.py"))
    assert (ROOT / "docs/settings.md").read_text() == program["page"](), "run `make settings`"
    declared = set(re.findall(r"class (\w+)\(BaseSettings\)", _product()))
    assert {settings.__name__ for settings, *_ in program["READERS"]} == declared


def test_every_environment_variable_that_is_read_is_documented() -> None:
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs/settings.md").read_text()))
    deployed = [ROOT / "docker-compose.yml", *(file for file in (ROOT / "deploy").rglob("*") if file.is_file())]
    text = _product() + "".join(file.read_text() for file in deployed)
    named = set(re.findall(r"\b(?:CYNOSURE|REDIS)_[A-Z_]*[A-Z]\b", text))
    read = set(re.findall(r"environ(?:\.\w+\(|\[)\s*\"([A-Z]\w+)\"", text))
    assert named
    assert read
    assert (named | read) - documented == set()


def _product() -> str:
    files = [
        path for folder in ("cynosure", "jobs", "app", "workers", "models") for path in (ROOT / folder).rglob("*.py")
    ]
    return "\n".join(path.read_text() for path in files)

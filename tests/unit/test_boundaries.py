"""Imports run one way: contracts notice breaches, and no dynamic import or eager `__init__` slips past them."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _loaded_by(module: str) -> set[str]:
    """Top-level names of everything that a fresh interpreter has loaded after importing `module`."""
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    return set(child.stdout.split())


@pytest.mark.parametrize(
    ("module", "barred"),
    [
        ("app.main", {"torch", "diffusers", "models", "workers"}),
        ("jobs.queue.gateway", {"fastapi", "torch", "models", "workers", "app"}),
        ("jobs.queue.worker", {"fastapi", "torch", "models", "workers", "app"}),
        (
            "workers.__main__",
            {"fastapi", "torch", "diffusers", "transformers", "app", "opentelemetry"},
        ),  # what can't be served is refused at once
        ("cynosure", {"fastapi", "redis", "celery", "torch", "jobs", "app", "models", "workers"}),
        ("models", {"redis", "celery", "fastapi", "httpx", "opentelemetry", "jobs", "app", "workers", "cynosure"}),
    ],
)
def test_an_import_loads_nothing_from_beyond_its_boundary(module: str, barred: set[str]) -> None:
    loaded = _loaded_by(module)
    assert module.partition(".")[0] in loaded
    assert not loaded & barred


BREACHES = {
    "house": ("workers/claims.py", "import app.main"),
    "science": ("models/noise.py", "import cynosure"),
    "gateway-is-light": ("app/gateway/state.py", "import torch"),
    "sdk-is-lighter": ("cynosure/batches.py", "import redis"),
    "record-knows-no-http": ("jobs/plans.py", "import fastapi"),
    "jobs-order": ("jobs/settings.py", "import jobs.batches"),
    "gateway-order": ("app/gateway/errors/problems.py", "import app.gateway.submission"),
    "science-order": ("models/spec.py", "import models.training"),
    "engine-order": ("models/engine/schedule.py", "import models.engine.tick"),
    "no-cycles": ("cynosure/errors/base.py", "import cynosure.client"),
    "policy-without-tensors": ("models/calibration/packing.py", "import torch"),
}
"""A line that each import contract forbids."""


def test_every_import_contract_notices_its_breach(tmp_path: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    names = {contract["id"]: contract["name"] for contract in settings["contracts"]}
    assert BREACHES.keys() == names.keys()
    for package in settings["root_packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("packs", "golden"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in BREACHES.values():
        with (tmp_path / module).open("a") as file:
            file.write(f"\n{line}\n")
    lint = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    output = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    kept = [identity for identity, name in names.items() if f"{name} BROKEN" not in output]
    assert kept == [], output

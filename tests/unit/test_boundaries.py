"""What a static import check misses: a third party that imports torch, a dynamic import, an eager `__init__`."""

import subprocess
import sys
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
        ("cynosure", {"fastapi", "redis", "celery", "torch", "jobs", "app", "models", "workers"}),
        ("models", {"redis", "celery", "fastapi", "httpx", "jobs", "app", "workers", "cynosure"}),
    ],
)
def test_an_import_loads_nothing_from_beyond_its_boundary(module: str, barred: set[str]) -> None:
    loaded = _loaded_by(module)
    assert module.partition(".")[0] in loaded
    assert not loaded & barred

"""Programs that run as processes of their own."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module.

    `-P`: the current folder is not searched for modules, because it may hold an `app.py` of another project.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries, whose objects stay until the process ends.

    torch, diffusers and transformers make half a million. The garbage collector would search them again and again while
    they are imported, later, and at the end: more than a third of what a worker takes to start and to stop.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

"""Programs that run as processes of their own."""

from __future__ import annotations

import sys


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module.

    `-P`: the current folder is not searched for modules, because it may hold an `app.py` of another project.
    """
    return [sys.executable, "-P", "-m", module, *arguments]

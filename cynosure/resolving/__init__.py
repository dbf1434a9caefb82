"""Resolving requests: fill in defaults, lay out sweeps, detach input pictures."""

from cynosure.resolving.inputs import attached, detached, has_pictures
from cynosure.resolving.requests import resolve
from cynosure.resolving.result_keys import result_key
from cynosure.resolving.sweeps import cells_of, resolve_sweep, varied

__all__ = [
    "attached",
    "cells_of",
    "detached",
    "has_pictures",
    "resolve",
    "resolve_sweep",
    "result_key",
    "varied",
]

"""Resolving requests: fill in defaults, lay out sweeps, detach input pictures."""

from cynosure.resolving.choice import choose, choose_by_prompt, label_in_prompt, labels_in, real_name, with_real_names
from cynosure.resolving.inputs import attached, detached, has_pictures
from cynosure.resolving.labels import label_index
from cynosure.resolving.loras import marked
from cynosure.resolving.requests import resolve
from cynosure.resolving.result_keys import result_key
from cynosure.resolving.sweeps import cells_of, fields_of, resolve_sweep, varied

__all__ = [
    "attached",
    "cells_of",
    "choose",
    "choose_by_prompt",
    "detached",
    "fields_of",
    "has_pictures",
    "label_in_prompt",
    "label_index",
    "labels_in",
    "marked",
    "real_name",
    "resolve",
    "resolve_sweep",
    "result_key",
    "varied",
    "with_real_names",
]

"""The key under which a job's result is cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cynosure.contract import DELIVERY_FIELDS


def result_key(shown: Mapping[str, Any], *digests: str) -> str:
    """A SHA-256 over everything that a job's pictures depend on.

    That is the request without its delivery fields, and `ModelCard.drawn_by` of its model and its guide, if any.

    Args:
        shown: a resolved request, detached from its pictures, as a JSON object.
        digests: `drawn_by` of each model.
    """
    drawn = {name: value for name, value in shown.items() if name not in DELIVERY_FIELDS}
    return hashlib.sha256(json.dumps([*digests, drawn], sort_keys=True).encode()).hexdigest()

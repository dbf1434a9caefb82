"""What the pictures of a job depend on, as a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cynosure.contract import DELIVERY_FIELDS


def result_key(shown: Mapping[str, Any], *digests: str) -> str:
    """What a job's pictures depend on, as a SHA-256.

    That is the request without its delivery, and `ModelCard.drawn_by` of its model and of its guide, if it has one.

    Args:
        shown: a resolved request, detached from its pictures, as a JSON object.
        digests: of the models.
    """
    drawn = {name: value for name, value in shown.items() if name not in DELIVERY_FIELDS}
    return hashlib.sha256(json.dumps([*digests, drawn], sort_keys=True).encode()).hexdigest()

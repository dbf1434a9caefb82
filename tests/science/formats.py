"""Number formats that this machine's CPU has."""

from __future__ import annotations

import pytest

from models.calibration.machine import multiplies_bfloat16

IF_MULTIPLIED = pytest.mark.skipif(
    not multiplies_bfloat16(), reason="this CPU computes bfloat16 in parts, which would take minutes"
)
"""For tests in bfloat16 that others resemble, in float32 or of smaller networks."""

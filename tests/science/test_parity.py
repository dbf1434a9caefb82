"""The reference systems' results, within the tolerances that `cynosure selftest` prints."""

from __future__ import annotations

import pytest

from models.parity.cases import Case, cases


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_the_reference_systems_result(case: Case) -> None:
    assert case.measure() <= case.tolerance

"""Labels by name."""

from __future__ import annotations

import difflib
from dataclasses import replace

from models.spec import InvalidSpec, SampleSpec


def with_class_index(spec: SampleSpec, labels: tuple[str, ...]) -> SampleSpec:
    """The spec with its label as an index that the pack has, whose labels these are.

    Raises:
        InvalidSpec: there is no such label.
    """
    if isinstance(spec.label, str):
        if spec.label not in labels:
            similar = difflib.get_close_matches(spec.label, labels, 1)
            hint = f"did you mean '{similar[0]}'?" if similar else f"it has {', '.join(labels[:20]) or 'none'}"
            raise InvalidSpec(f"'{spec.pack}' has no label '{spec.label}'; {hint}")
        return replace(spec, label=labels.index(spec.label))
    if spec.label is not None and labels and not 0 <= spec.label < len(labels):
        raise InvalidSpec(f"label {spec.label} is out of range: '{spec.pack}' has classes 0 to {len(labels) - 1}")
    return spec

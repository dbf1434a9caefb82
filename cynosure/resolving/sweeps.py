"""Requests for several pictures: sweeps, their cells and variations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cynosure.contract import (
    MAX_SWEEP_CELLS,
    ModelCard,
    ResolvedRequest,
    SweepAxes,
    SweepRequest,
    VaryRequest,
)
from cynosure.errors import InvalidRequest
from cynosure.resolving.requests import resolve

AXES = {"class_labels": "class_label", "prompts": "prompt", "guidance_scales": "guidance_scale", "seeds": "seed"}
"""The field that each axis of a sweep varies."""


@contextmanager
def fields_of(grid: SweepRequest) -> Iterator[None]:
    """Let refusals of a sweep's shared request or its cells name the field where it stands in the sweep."""
    try:
        yield
    except InvalidRequest as error:
        if error.field is not None and error.field not in AXES:
            axes = (axis for axis, field in AXES.items() if field == error.field and getattr(grid, axis))
            error.field = next(axes, f"request.{error.field}")
        raise


def resolve_sweep(grid: SweepRequest, card: ModelCard, *, seed: int) -> ResolvedRequest:
    """Resolve a sweep to one request for all its pictures. Pure, like `resolve`.

    Args:
        grid: the sweep.
        card: what the model can do.
        seed: used if neither an axis nor the shared request has one.

    Raises:
        InvalidRequest: names the axis or field and says what would be right.
    """
    request = grid.request
    axes = {axis: (field, getattr(grid, axis)) for axis, field in AXES.items()}
    for axis, (field, values) in axes.items():
        if values and getattr(request, field) is not None:
            raise InvalidRequest(f"The sweep varies {axis}; leave {field} out of 'request'.", field=axis)
        if len(set(values)) < len(values):
            raise InvalidRequest(f"{axis} contains a value twice.", field=axis)
    if grid.class_labels and grid.prompts:
        raise InvalidRequest("A sweep varies class_labels or prompts, not both.", field="prompts")
    if request.num_images != 1:
        raise InvalidRequest("A sweep draws one picture per cell; for more, list more seeds.", field="num_images")
    swept = {field: values for field, values in axes.values() if values}
    count = 1
    for values in swept.values():
        count *= len(values)
    if not 1 < count <= MAX_SWEEP_CELLS:
        raise InvalidRequest(f"A sweep has 2 to {MAX_SWEEP_CELLS} pictures; this one has {count}.", field="seeds")
    cells = [
        resolve(request.model_copy(update=dict(zip(swept, values, strict=True))), card, seed=seed)
        for values in itertools.product(*swept.values())
    ]
    if any(cell.loras != cells[0].loras for cell in cells):
        raise InvalidRequest("The prompts name different LoRAs; pictures of a sweep have the same.", field="prompts")
    labels = tuple(dict.fromkeys(cell.class_label for cell in cells if cell.class_label is not None))
    if len(labels) < len(grid.class_labels):
        raise InvalidRequest("class_labels contains a class twice, by name and by index.", field="class_labels")
    sweep = SweepAxes(
        class_labels=labels if grid.class_labels else (),
        prompts=tuple(dict.fromkeys(cell.prompt or "" for cell in cells)) if grid.prompts else (),
        guidance_scales=grid.guidance_scales,
        seeds=grid.seeds,
    )
    return cells[0].model_copy(update={"sweep": sweep, "num_images": count})


def varied(request: ResolvedRequest, changes: VaryRequest, draw_seed: Callable[[], int]) -> ResolvedRequest:
    """The same request with a new seed; a sweep over seeds gets as many new ones.

    Raises:
        InvalidRequest: `num_images` is given for a sweep, which has one picture per cell.
    """
    if request.sweep is None:
        count = request.num_images if changes.num_images is None else changes.num_images
        return request.model_copy(update={"seed": draw_seed(), "num_images": count})
    if changes.num_images is not None:
        raise InvalidRequest("A sweep has one picture per cell; leave num_images out.", field="num_images")
    seeds = tuple(draw_seed() for _ in request.sweep.seeds)
    sweep = request.sweep.model_copy(update={"seeds": seeds})
    return request.model_copy(update={"seed": seeds[0] if seeds else draw_seed(), "sweep": sweep})


def cells_of(request: ResolvedRequest) -> list[tuple[ResolvedRequest, int]]:
    """For each picture of a job: (the request for that picture alone, its image index there)."""
    if request.sweep is None:
        return [(request, request.first_image + index) for index in range(request.num_images)]
    sweep = request.sweep
    swept = {field: values for axis, field in AXES.items() if (values := getattr(sweep, axis))}
    return [
        (
            request.model_copy(update={"sweep": None, "num_images": 1, **dict(zip(swept, values, strict=True))}),
            request.first_image,
        )
        for values in itertools.product(*swept.values())
    ]

"""Warnings about requests that can be drawn, but probably not as they were meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cynosure.contract import GuidanceMode, ModelCard, PromptSyntax, ResolvedRequest
from cynosure.resolving import cells_of
from models.engine import Handle, Outline
from models.spec import Row
from workers.drawing.specs import guidance_of

MAX_WARNINGS = 20
NO_PREVIEWS = "There are no previews: pictures are reviewed before anyone sees them."
PLAIN = "guidance_scale 1 is plain conditional sampling: the same as guidance_mode 'none' with the label or prompt."
_A1111 = re.compile(r"\([^()]*:\s*[\d.]+\s*\)|<(?:lora|lyco|hypernet):[^<>]*>|\[[^\[\]]*:\s*[\d.]+\s*\]|\bBREAK\b")
"""What A1111's prompts hold besides words: weights, adapters, schedules, breaks."""


def warnings_of(request: ResolvedRequest, card: ModelCard, course: Outline | Handle) -> tuple[str, ...]:
    """What is to be said of one picture's request and of the course that it takes."""
    said = [*_of_guidance(request, card, course.guided), *_of_prompts(request, card), *course.remarks]
    said += [
        f"controls: '{control.model}' steers nothing: none of the {course.evaluations} evaluations lies as a whole "
        f"between its start, {control.start:g}, and its end, {control.end:g}."
        for control in request.controls
        if not control.steers(course.evaluations)
    ]
    if 2 * course.evaluations < request.steps:
        said.append(f"strength leaves {course.evaluations} evaluations of {request.steps} steps.")
    return tuple(dict.fromkeys(said))


def warnings_of_job(request: ResolvedRequest, card: ModelCard, handles: Sequence[Handle]) -> tuple[str, ...]:
    """The warnings of all pictures of a job, each once; of many, the first."""
    cells = zip(cells_of(request), handles, strict=True)
    said = dict.fromkeys(one for (cell, _), handle in cells for one in warnings_of(cell, card, handle))
    if request.preview_every and card.review is not None and card.review.hides:
        said[NO_PREVIEWS] = None
    is_meant = {PLAIN} if request.sweep is not None and request.sweep.guidance_scales else set[str]()
    found = [one for one in said if one not in is_meant]
    if len(found) <= MAX_WARNINGS:
        return tuple(found)
    return (*found[:MAX_WARNINGS], f"There are {len(found) - MAX_WARNINGS} more warnings.")


def _of_guidance(request: ResolvedRequest, card: ModelCard, guided: range) -> list[str]:
    mode, warnings = request.guidance_mode, []
    if mode is not GuidanceMode.NONE and not guided:
        warnings.append("No evaluation lies in guidance_interval: nothing is guided.")
    if mode is GuidanceMode.CLASSIFIER_FREE and request.guidance_scale == 1.0 != card.defaults.guidance_scale:
        warnings.append(PLAIN)
    guidance = guidance_of(request, card)
    uses_classifier = mode in (GuidanceMode.CLASSIFIER, GuidanceMode.COMBINED)
    if uses_classifier and not (guided and guidance.wants_classifier(active=True)):
        warnings.append("The classifier is never evaluated: its scale is 0, or no evaluation lies in the interval.")
    if request.negative_prompt and Row.UNCONDITIONAL not in guidance.rows(active=bool(guided)):
        warnings.append("negative_prompt has no effect: the guidance evaluates nothing without the prompt.")
    return warnings


def _of_prompts(request: ResolvedRequest, card: ModelCard) -> list[str]:
    warnings = []
    if request.prompt is not None and not request.prompt.strip() and not request.image_prompts:
        warnings.append("prompt is empty: the picture is drawn as if there were none.")
    if request.prompt_syntax is PromptSyntax.WEIGHTED:
        return warnings
    hint = " prompt_syntax 'weighted' reads weights." if PromptSyntax.WEIGHTED in card.prompt_syntaxes else ""
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if marks := _A1111.findall(text or ""):
            named = ", ".join(marks[:5])
            warnings.append(f"{field} has marks of another program, which are read as words: {named}.{hint}")
    return warnings

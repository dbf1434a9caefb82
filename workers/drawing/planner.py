"""Answering plans: the cost of a request before it is drawn. On its own thread, so that a busy worker answers too."""

from __future__ import annotations

import logging

from cynosure.contract import GuidanceMode, JobError, ModelCard, NetworkCalls, Plan, ResolvedRequest
from cynosure.errors import CynosureError, InvalidRequest
from jobs.plans import Inquiry, InquiryDesk
from models.engine import Engine, Outline
from models.samplers import InvalidRespacing, NotLinear
from models.spec import InvalidSpec
from workers.background import BackgroundThread
from workers.drawing.specs import course_spec_of, specs_of

log = logging.getLogger(__name__)

LISTEN_S = 1.0


class Planner(BackgroundThread):
    """Takes one question after another, and answers it."""

    def __init__(self, engine: Engine, cards: dict[str, ModelCard], desk: InquiryDesk) -> None:
        super().__init__("planner")
        self._engine = engine
        self._cards = cards
        self._desk = desk

    def _turn(self) -> None:
        inquiry = self._desk.take(timeout_s=LISTEN_S)
        if inquiry is not None:
            self._desk.answer(inquiry, self._answer(inquiry))

    def _answer(self, inquiry: Inquiry) -> Plan | JobError | None:
        request = inquiry.request
        try:
            if inquiry.is_check:
                self._engine.check(course_spec_of(request, self._cards[request.model]))
                return None
            specs = specs_of(inquiry.id, request, self._cards[request.model])
            return plan_of(request, self._engine.outline(specs))
        except (InvalidSpec, NotLinear, InvalidRespacing, InvalidRequest) as error:
            return JobError(code=InvalidRequest.code, message=str(error))
        except Exception as error:
            log.exception("planning a request failed")
            return JobError(code=CynosureError.code, message=f"{type(error).__name__}: {error}")


def plan_of(request: ResolvedRequest, outline: Outline) -> Plan:
    """The engine's outline in the contract's terms."""
    return Plan(
        request=request,
        timesteps=outline.timesteps,
        sigmas=outline.sigmas,
        guided_evaluations=len(outline.guided) if request.guidance_mode is not GuidanceMode.NONE else 0,
        rows=NetworkCalls(
            denoiser=outline.denoiser_rows, guide_model=outline.guide_rows, classifier=outline.classifier_rows
        ),
        flop=outline.flop,
        seconds=outline.seconds,
        warnings=tuple(warnings_of(request, outline)),
    )


def warnings_of(request: ResolvedRequest, outline: Outline) -> list[str]:
    """Warnings about settings that are legal but probably not intended."""
    warnings = []
    is_guided = request.guidance_mode is not GuidanceMode.NONE
    if is_guided and not outline.guided:
        warnings.append("No evaluation lies in guidance_interval: nothing is guided.")
    if request.guidance_mode is GuidanceMode.CLASSIFIER_FREE and request.guidance_scale == 1.0:
        warnings.append(
            "guidance_scale 1 is plain conditional sampling: the same as guidance_mode 'none' with the label."
        )
    uses_classifier = request.guidance_mode in (GuidanceMode.CLASSIFIER, GuidanceMode.COMBINED)
    if uses_classifier and not outline.classifier_rows:
        warnings.append("The classifier is never evaluated: its scale is 0, or no evaluation lies in the interval.")
    if request.init_image is not None and len(outline.timesteps) < request.steps:
        warnings.append(f"strength leaves {len(outline.timesteps)} evaluations of {request.steps} steps.")
    return warnings

"""Answers what a request would take. A thread of its own, so that a worker full of jobs answers too."""

from __future__ import annotations

import logging

from cynosure.contract import GuidanceMode, JobError, ModelCard, NetworkCalls, Plan, ResolvedRequest
from cynosure.errors import CynosureError, InvalidRequest
from jobs.plans import Inquiry, InquiryDesk
from models.engine import Engine, Outline
from models.samplers import InvalidRespacing, NotLinear
from models.spec import InvalidSpec
from workers.background import BackgroundThread
from workers.drawing.specs import specs_of

log = logging.getLogger(__name__)

LISTEN_S = 1.0


class Planner(BackgroundThread):
    """Takes a question after the other."""

    def __init__(self, engine: Engine, cards: dict[str, ModelCard], desk: InquiryDesk) -> None:
        super().__init__("planner")
        self._engine = engine
        self._cards = cards
        self._desk = desk

    def _turn(self) -> None:
        inquiry = self._desk.take(timeout_s=LISTEN_S)
        if inquiry is not None:
            self._desk.answer(inquiry, self._answer(inquiry))

    def _answer(self, inquiry: Inquiry) -> Plan | JobError:
        request = inquiry.request
        try:
            specs = specs_of(inquiry.id, request, self._cards[request.model])
            return plan_of(request, self._engine.outline(specs))
        except (InvalidSpec, NotLinear, InvalidRespacing, InvalidRequest) as error:
            return JobError(code=InvalidRequest.code, message=str(error))
        except Exception as error:
            log.exception("a plan failed")
            return JobError(code=CynosureError.code, message=f"{type(error).__name__}: {error}")


def plan_of(request: ResolvedRequest, found: Outline) -> Plan:
    """The outline in the contract's terms."""
    return Plan(
        request=request,
        timesteps=found.timesteps,
        sigmas=found.sigmas,
        guided_evaluations=len(found.guided) if request.guidance_mode is not GuidanceMode.NONE else 0,
        rows=NetworkCalls(denoiser=found.denoiser_rows, guide_model=found.guide_rows, classifier=found.classifier_rows),
        flop=found.flop,
        seconds=found.seconds,
        warnings=tuple(warnings_of(request, found)),
    )


def warnings_of(request: ResolvedRequest, found: Outline) -> list[str]:
    """What in the request is legal and probably not meant."""
    said = []
    is_guided = request.guidance_mode is not GuidanceMode.NONE
    if is_guided and not found.guided:
        said.append("guidance_interval holds no evaluation: nothing is guided.")
    if request.guidance_mode is GuidanceMode.CLASSIFIER_FREE and request.guidance_scale == 1.0:
        said.append("guidance_scale 1 is plain conditional sampling: the same as guidance_mode 'none' with the label.")
    uses_classifier = request.guidance_mode in (GuidanceMode.CLASSIFIER, GuidanceMode.COMBINED)
    if uses_classifier and not found.classifier_rows:
        said.append("The classifier is never asked: its scale is 0, or the interval is empty.")
    if request.init_image is not None and len(found.timesteps) < request.steps:
        said.append(f"strength leaves {len(found.timesteps)} evaluations of {request.steps} steps.")
    return said

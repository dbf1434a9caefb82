"""Answering plans: the cost of a request before it is drawn. On its own thread, so that a busy worker answers too."""

from __future__ import annotations

import logging

from cynosure.contract import GuidanceMode, JobError, ModelCard, NetworkCalls, Plan, PromptTokens, ResolvedRequest
from cynosure.errors import CynosureError, InvalidRequest
from jobs.plans import Inquiry, InquiryDesk
from models.engine import Engine, Outline
from models.samplers import InvalidRespacing, NotLinear
from models.spec import InvalidSpec
from workers.background import BackgroundThread
from workers.drawing.specs import course_specs_of, specs_of
from workers.drawing.warnings import warnings_of

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
                self._engine.check(course_specs_of(request, self._cards[request.model]))
                return None
            specs = specs_of(inquiry.id, request, self._cards[request.model])
            return plan_of(request, self._cards[request.model], self._engine.outline(specs))
        except (InvalidSpec, NotLinear, InvalidRespacing, InvalidRequest) as error:
            field = getattr(error, "field", None)
            return JobError(code=InvalidRequest.code, message=str(error), field=field)
        except Exception as error:
            log.exception("planning a request failed")
            return JobError(code=CynosureError.code, message=f"{type(error).__name__}: {error}")


def plan_of(request: ResolvedRequest, card: ModelCard, outline: Outline) -> Plan:
    """The engine's outline in the contract's terms."""
    return Plan(
        request=request,
        timesteps=outline.timesteps,
        sigmas=outline.sigmas,
        guided_evaluations=len(outline.guided) if request.guidance_mode is not GuidanceMode.NONE else 0,
        rows=NetworkCalls(
            denoiser=outline.denoiser_rows,
            reusing=outline.reusing_rows,
            guide_model=outline.guide_rows,
            classifier=outline.classifier_rows,
        ),
        flop=outline.flop,
        seconds=outline.seconds,
        tokens=tuple(
            PromptTokens(
                field=field,
                encoder=reading.encoder,
                tokens=reading.tokens,
                limit=reading.limit,
                chunks=reading.chunks,
                cut=reading.cut or None,
            )
            for field, readings in outline.readings.items()
            for reading in readings
        ),
        warnings=warnings_of(request, card, outline),
    )

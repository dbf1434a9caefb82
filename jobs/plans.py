"""Questions about a request that only a worker can answer, asked and answered through Redis.

They are not jobs: they leave no record, and a question that no worker takes in time is dropped.
"""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from pydantic import TypeAdapter

from cynosure.contract import JobError, LongPrompt, ModelCard, Plan, PromptSyntax, ResolvedRequest
from cynosure.errors import CynosureError, InvalidRequest, NoWorker
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient, connect
from jobs.store.keyspace import Keys

_KEPT_S = 60
_ANSWER: TypeAdapter[Plan | JobError | None] = TypeAdapter(Plan | JobError | None)
_CHECK_S = 20.0  # for a check: usually milliseconds, but seconds for a thousand steps of some samplers
_MAX_CHECKED = 4096
_COURSE = ("sampler", "steps", "timestep_spacing", "sigma_schedule", "timestep_respacing", "eta", "strength", "profile")
"""The fields that decide which noise levels a sampler passes through."""
_READING = ("prompt", "negative_prompt", "long_prompt", "prompt_syntax", "sweep")
"""The fields that decide whether prompts can be read."""


@dataclass(frozen=True)
class Inquiry:
    """A request to plan, or only to check; `id` names the list that receives the answer.

    A request to check is detached: it has digests in place of its pictures.
    """

    id: str
    request: ResolvedRequest
    is_check: bool = False


class Inquiries(StoreClient):
    """The gateway's side: ask, and wait for the answer."""

    timeout_s = 30.0  # longer than any caller waits for an answer

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._checked: OrderedDict[tuple[str, str], JobError | None] = OrderedDict()  # refusals; `None` if it works

    async def check(self, request: ResolvedRequest, card: ModelCard) -> None:
        """Refuse steps that the request's sampler can't take, and prompts that can't be read, before there is a job.

        What is not certain by the card is asked of a worker, once for each combination of the fields that matter. If
        none holds the model and jobs wait for one, it turns out when the job is drawn.

        Raises:
            InvalidRequest: names the fields.
            NoWorker: none answered in time, and jobs do not wait for one.
            StoreFull, StoreUnavailable: Redis is at its memory limit, or away.
        """
        if _has_certain_steps(request, card) and not _is_strict(request):
            return
        deciding = request.model_dump(mode="json", include={*_COURSE, *(_READING if _is_strict(request) else ())})
        # Noise levels may be shifted for the size.
        deciding |= {"inputs": sorted(request.inputs), "size": [request.width, request.height]}
        key = card.drawn_by, json.dumps(deciding)
        if key not in self._checked:
            if not card.served:
                return
            try:
                answer = await self._asked(request, timeout_s=_CHECK_S, is_check=True)
            except NoWorker:  # the last one has just left
                if self._settings.accept_without_worker:
                    return
                raise
            is_refused = isinstance(answer, JobError) and answer.code == InvalidRequest.code
            self._checked[key] = answer if isinstance(answer, JobError) and is_refused else None
        self._checked.move_to_end(key)
        if len(self._checked) > _MAX_CHECKED:
            self._checked.popitem(last=False)
        if (reason := self._checked[key]) is not None:
            raise _refusal(request, reason)

    async def plan(self, request: ResolvedRequest, *, timeout_s: float) -> Plan:
        """Ask a worker what drawing `request` would take.

        Raises:
            InvalidRequest: it can't be drawn.
            CynosureError: the worker failed to plan it.
            NoWorker: no worker answered in time.
            StoreFull, StoreUnavailable: Redis is at its memory limit, or away.
        """
        answer = await self._asked(request, timeout_s=timeout_s)
        if isinstance(answer, Plan):
            return answer
        if answer is not None and answer.code == InvalidRequest.code:
            raise InvalidRequest(answer.message, field=answer.field)
        raise CynosureError("The worker failed to plan this request; its log has the cause.")

    async def _asked(
        self, request: ResolvedRequest, *, timeout_s: float, is_check: bool = False
    ) -> Plan | JobError | None:
        """A worker's answer.

        Raises:
            NoWorker: none answered in time.
        """
        inquiry_id, queue = secrets.token_hex(8), self._keys.inquiries(request.model)
        fields = {"id": inquiry_id, "request": request.model_dump(mode="json"), "is_check": is_check}
        question = json.dumps(fields)
        async with answering():
            async with self._client.pipeline() as pipe:
                pipe.rpush(queue, question)
                pipe.expire(queue, _KEPT_S)
                await pipe.execute()
            popped: Any = await self._client.blpop([self._keys.inquiry(inquiry_id)], timeout=timeout_s)
            if popped is None:
                await self._client.lrem(queue, 1, question)
        if popped is None:
            raise NoWorker(f"No worker of '{request.model}' answered in {timeout_s:g} s; try again.", retry_after_s=5)
        return _ANSWER.validate_json(popped[1])


def _is_strict(request: ResolvedRequest) -> bool:
    """Whether prompts may be refused that the gateway, which has no tokenizer, can't judge."""
    return request.long_prompt is LongPrompt.REFUSE or request.prompt_syntax is PromptSyntax.WEIGHTED


def _has_certain_steps(request: ResolvedRequest, card: ModelCard) -> bool:
    options = (request.timestep_spacing, request.sigma_schedule, request.timestep_respacing, request.eta)
    is_plain = not any(options) and "init_image" not in request.inputs and request.profile == card.defaults.profile
    return not card.certain_steps or (is_plain and request.steps <= card.certain_steps.get(request.sampler, 0))


def _refusal(request: ResolvedRequest, reason: JobError) -> InvalidRequest:
    if reason.field is not None:
        return InvalidRequest(f"{reason.message}.", field=reason.field)
    given = {name: value for name in _COURSE if (value := getattr(request, name))}
    field = next((name for name in ("sigma_schedule", "timestep_spacing", "strength") if name in given), "steps")
    told = ", ".join(f"{name} {value}" for name, value in given.items())
    return InvalidRequest(
        f"These can't go together: {told}. Change one of them. The cause: {reason.message}.", field=field
    )


class InquiryDesk:
    """The worker's side: take questions about its models, as they are at any time, and answer them."""

    def __init__(self, settings: StoreSettings, models: Collection[str]) -> None:
        self._client = connect(settings, "cynosure-inquiries")
        self._keys = Keys(settings.key_prefix)
        self._models = models

    def take(self, *, timeout_s: float) -> Inquiry | None:
        """The next question, or `None` if there is none in time."""
        queues = [self._keys.inquiries(model) for model in tuple(self._models)]
        popped: Any = self._client.blpop(queues, timeout=timeout_s)
        if popped is None:
            return None
        question = json.loads(popped[1])
        request = ResolvedRequest.model_validate(question["request"])
        return Inquiry(question["id"], request, question.get("is_check", False))  # older gateways never check

    def answer(self, inquiry: Inquiry, plan: Plan | JobError | None) -> None:
        """Send the answer to the gateway that asked."""
        key = self._keys.inquiry(inquiry.id)
        with self._client.pipeline() as pipe:
            pipe.rpush(key, _ANSWER.dump_json(plan))
            pipe.expire(key, _KEPT_S)
            pipe.execute()

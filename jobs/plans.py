"""Questions about a request that only a worker can answer, asked and answered through Redis.

They are not jobs: they leave no record, and a question that no worker takes in time is dropped.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from cynosure.contract import JobError, Plan, ResolvedRequest
from cynosure.errors import CynosureError, InvalidRequest, NoWorker
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient, connect
from jobs.store.keyspace import Keys

_KEPT_S = 60
_ANSWER: TypeAdapter[Plan | JobError] = TypeAdapter(Plan | JobError)


@dataclass(frozen=True)
class Inquiry:
    """A request to plan; `id` names the list that receives the answer."""

    id: str
    request: ResolvedRequest


class Inquiries(StoreClient):
    """The gateway's side: ask, and wait for the answer."""

    timeout_s = 30.0  # longer than any caller waits for an answer

    async def plan(self, request: ResolvedRequest, *, timeout_s: float) -> Plan:
        """Ask a worker what drawing `request` would take.

        Raises:
            InvalidRequest: it can't be drawn.
            CynosureError: the worker failed to plan it.
            NoWorker: no worker answered in time.
            StoreFull, StoreUnavailable: Redis is at its memory limit, or away.
        """
        inquiry_id, queue = secrets.token_hex(8), self._keys.inquiries(request.model)
        question = json.dumps({"id": inquiry_id, "request": request.model_dump(mode="json")})
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
        answer = _ANSWER.validate_json(popped[1])
        if not isinstance(answer, JobError):
            return answer
        if answer.code == InvalidRequest.code:
            raise InvalidRequest(answer.message)
        raise CynosureError("The worker failed to plan this request; its log has the cause.")


class InquiryDesk:
    """The worker's side: take questions, and answer them."""

    def __init__(self, settings: StoreSettings, models: Sequence[str]) -> None:
        self._client = connect(settings, "cynosure-inquiries")
        self._keys = Keys(settings.key_prefix)
        self._queues = [self._keys.inquiries(model) for model in models]

    def take(self, *, timeout_s: float) -> Inquiry | None:
        """The next question, or `None` if there is none in time."""
        popped: Any = self._client.blpop(self._queues, timeout=timeout_s)
        if popped is None:
            return None
        question = json.loads(popped[1])
        return Inquiry(question["id"], ResolvedRequest.model_validate(question["request"]))

    def answer(self, inquiry: Inquiry, plan: Plan | JobError) -> None:
        """Send the answer to the gateway that asked."""
        key = self._keys.inquiry(inquiry.id)
        with self._client.pipeline() as pipe:
            pipe.rpush(key, plan.model_dump_json())
            pipe.expire(key, _KEPT_S)
            pipe.execute()

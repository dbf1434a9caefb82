"""What every route that takes a job does: find the model, accept, ring, wait, answer."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from typing import Annotated

from fastapi import Header, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.gateway.formats import in_format
from app.gateway.shaping import job_of
from app.gateway.state import State
from app.gateway.webhooks.deliverer import check_webhook
from cynosure.contract import GenerateRequest, JobStatus, ModelCard, OutputFormat, ResolvedRequest
from cynosure.errors import InvalidRequest, JobCancelled, JobFailed, NoWorker, UnknownModel
from cynosure.metadata import MadeFrom, again
from cynosure.resolving import resolve, result_key
from jobs.accounts.allowance import UNLIMITED
from jobs.accounts.api_keys import Caller
from jobs.queue.record import JobRecord, new_job_id

log = logging.getLogger(__name__)

POLL_S = 1.0  # the safety net under the subscription, for those who follow a job
WAIT_POLL_S = 5.0  # for those who wait for its end, of whom there may be thousands
DEFAULT_IMAGE_WAIT_S = 60.0
Prefer = Annotated[str | None, Header(description="wait=SECONDS holds the answer until done")]
IdempotencyKey = Annotated[str | None, Header(max_length=255)]


def _wait_of(prefer: str | None) -> float | None:
    """Seconds of `Prefer: wait=SECONDS` (RFC 7240), or `None`."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)", prefer or "")
    return float(found.group(1)) if found else None


def held_for(state: State, prefer: str | None, default_s: float | None = None) -> float | None:
    """Seconds that an answer is held, or `None` where nobody asked for that."""
    wait_s = _wait_of(prefer)
    wait_s = default_s if wait_s is None else wait_s
    return None if wait_s is None else min(wait_s, state["settings"].max_wait_s)


def draw_seed() -> int:
    """A seed for a request that has none."""
    return secrets.randbits(63)


async def card_of(state: State, name: str | None, *, prompted: bool = False) -> ModelCard:
    """The card of the model asked for; without a name, of the first for prompts, or the first for labels alone.

    Where there is none of that kind, it is the first of the other.

    Raises:
        NoWorker, UnknownModel: no worker is up, or none holds it.
    """
    cards = await state["fleet"].cards()
    if not cards:
        raise NoWorker("No worker is up yet; try again in a few seconds.", retry_after_s=5)
    if name is None:
        return next((card for card in cards.values() if card.takes_prompt == prompted), next(iter(cards.values())))
    if name not in cards:
        raise UnknownModel(name, list(cards))
    return cards[name]


async def resolved(
    state: State, asked: GenerateRequest, card: ModelCard | None = None
) -> tuple[ResolvedRequest, str | None]:
    """The request with everything decided, and the key that a result for it is kept under, if it may be.

    `card` is that of its model, where that is chosen already.

    Raises:
        InvalidRequest: naming the field, and what would be right.
        NoWorker: none is up.
    """
    asked, made = again(asked)
    if card is None:
        card = await card_of(state, asked.model, prompted=asked.prompt is not None)
    if made is not None:
        guide = (await state["fleet"].cards()).get(asked.guide_model or "")
        check_made_here(made, card, guide)
    request = resolve(asked, card, seed=draw_seed())
    check_webhook(state, request)
    return request, await cache_key(state, request, card, is_seeded=asked.seed is not None)


def check_made_here(made: MadeFrom, card: ModelCard, guide: ModelCard | None) -> None:
    """Whether the models that made a picture are those that are here.

    Raises:
        InvalidRequest: one has other weights.
    """
    for model, digest in ((card, made.digest), (guide, made.guide_digest)):
        if model is not None and digest is not None and digest != model.digest:
            raise InvalidRequest(
                f"The picture was made by another '{model.name}' ({digest[:10]}…; here it is {model.digest[:10]}…), so "
                f'its bytes can\'t be had here. To draw its request anyway, add "model": "{card.name}".',
                field="from_image",
            )


async def cache_key(state: State, request: ResolvedRequest, card: ModelCard, *, is_seeded: bool) -> str | None:
    """The key that a result for the request is kept under, if it may be.

    It may not be where the client left the seed to us, or no worker has said that it holds the guide.
    """
    if not is_seeded or not request.use_cache or request.telemetry:
        return None
    if request.guide_model is None:
        return result_key(request, card.drawn_by)
    guide = (await state["fleet"].cards()).get(request.guide_model)
    return result_key(request, card.drawn_by, guide.drawn_by) if guide else None


async def enqueue(
    state: State,
    caller: Caller,
    request: ResolvedRequest,
    asked: BaseModel,
    idempotency_key: str | None,
    cached_as: str | None,
    *,
    of_job: str = "",
) -> str:
    """Accept a resolved request for `caller`, ring, and return the job's id.

    `asked` is what the client sent, and `of_job` the job that it sent it to: both make the request that an idempotency
    key stands for.
    """
    fingerprint = hashlib.sha256(f"{of_job}{asked.model_dump_json()}".encode()).hexdigest()
    return await accept(
        state,
        caller,
        request,
        fingerprint=fingerprint,
        idempotency_key=idempotency_key,
        cached_as=cached_as,
    )


async def accept(
    state: State,
    caller: Caller,
    request: ResolvedRequest,
    *,
    fingerprint: str,
    idempotency_key: str | None,
    cached_as: str | None,
) -> str:
    """Accept a resolved request for `caller`, count it, ring, and return the job's id."""
    steps = request.steps * request.num_images
    limits = caller.limits
    if limits.has_quota and await state["store"].has_answer(caller.owner, idempotency_key, cached_as):
        limits = UNLIMITED  # replays and cache hits are free, so an exhausted quota must not block them
    async with state["allowance"].charged(caller.owner, limits, request.num_images, steps) as bill:
        accepted = await state["store"].accept(
            new_job_id(),
            request,
            owner=caller.owner,
            steps=steps,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            cached_as=cached_as,
        )
        bill.stands = accepted.waits  # what was accepted before, or drawn before, costs nothing
    if accepted.waits:
        try:
            await run_in_threadpool(state["doorbell"].ring, request.model, accepted.id)
        except Exception:
            # The job is accepted and on record: the reaper rings for it. Failing here would make the client send twice.
            log.exception("the bell for job %s could not be rung; the reaper will", accepted.id)
    return accepted.id


async def wait_for(state: State, caller: Caller, job_id: str, seconds: float) -> JobRecord:
    """The record, once it is final or the time is up."""
    until = time.monotonic() + seconds
    async with state["news"].of(job_id) as event:
        while True:
            event.clear()
            record = await state["store"].get(job_id, caller.sees)
            left = until - time.monotonic()
            if record.status.is_final or left <= 0 or state["news"].is_closing:
                return record
            try:
                await asyncio.wait_for(event.wait(), min(left, WAIT_POLL_S))
            except TimeoutError:
                continue


def refuse_unless_drawn(record: JobRecord) -> None:
    """Raise what became of a finished job that has no pictures."""
    if record.status is JobStatus.CANCELLED:
        raise JobCancelled(f"Job '{record.id}' was cancelled.")
    if record.status is JobStatus.FAILED and record.error is not None:
        raise JobFailed(record.error.message, job_code=record.error.code)


async def _picture(state: State, caller: Caller, record: JobRecord, to: OutputFormat) -> Response:
    refuse_unless_drawn(record)
    picture = await in_format(await state["store"].image(record.id, 0, caller.sees), to)
    headers = {"Location": f"/jobs/{record.id}", "X-Cynosure-Seed": str(record.request.seed), "Vary": "Accept"}
    return Response(picture, media_type=to.media_type, headers=headers)


async def answer(
    state: State, caller: Caller, job_id: str, prefer: str | None, *, as_picture: OutputFormat | None = None
) -> Response:
    """202 with the job, or 200 with what came of it where the client asked to wait and it is done."""
    held_s = held_for(state, prefer, DEFAULT_IMAGE_WAIT_S if as_picture else None)
    record = await wait_for(state, caller, job_id, held_s or 0.0)
    if as_picture and record.status.is_final:
        return await _picture(state, caller, record, as_picture)
    job = job_of(record, await state["store"].outlook(record))
    headers = {"Location": f"/jobs/{job_id}"}
    if held_s is not None:
        headers["Preference-Applied"] = f"wait={held_s:g}"
    done = record.status.is_final and held_s is not None
    return JSONResponse(job.model_dump(mode="json"), 200 if done else 202, headers=headers)

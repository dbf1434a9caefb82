"""From what a client sends to an accepted job: decide, accept, ring."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Header
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from app.gateway.state import State
from app.gateway.webhooks.deliverer import check_webhook
from cynosure.contract import GenerateRequest, ModelCard, ResolvedRequest
from cynosure.errors import InvalidRequest, NoWorker, UnknownModel
from cynosure.metadata import MadeFrom, again
from cynosure.resolving import has_pictures, resolve, result_key
from jobs.accounts.allowance import UNLIMITED
from jobs.accounts.api_keys import Caller
from jobs.queue.record import Submission, new_job_id

log = logging.getLogger(__name__)

IdempotencyKey = Annotated[str | None, Header(max_length=255)]
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def draw_seed() -> int:
    """A seed for a request that has none."""
    return secrets.randbits(63)


async def card_of(state: State, name: str | None, *, prompted: bool = False) -> ModelCard:
    """The card of the model asked for.

    Without a name it is the first model that takes prompts, or none, as `prompted` says; if no model does, the first.

    Raises:
        NoWorker, UnknownModel: no worker is up, or none holds it.
    """
    cards = await state["store"].fleet.cards()
    if not cards:
        raise NoWorker("No worker is up yet; try again in a few seconds.", retry_after_s=5)
    if name is None:
        return next((card for card in cards.values() if card.takes_prompt == prompted), next(iter(cards.values())))
    if name not in cards:
        raise UnknownModel(name, list(cards))
    return cards[name]


async def decide(state: State, asked: GenerateRequest, card: ModelCard | None = None) -> Submission:
    """Decide everything that the request leaves open.

    Args:
        state: the gateway's.
        asked: what the client sent.
        card: of its model, if that is chosen already.

    Raises:
        InvalidRequest: naming the field, and what would be right.
        NoWorker: none is up.
    """
    asked, made = await _off_loop_if(has_pictures(asked), again, asked)
    if card is None:
        card = await card_of(state, asked.model, prompted=asked.prompt is not None)
    if made is not None:
        guide = (await state["store"].fleet.cards()).get(asked.guide_model or "")
        check_made_here(made, card, guide)
    return await submission_of(state, resolve(asked, card, seed=draw_seed()), card, is_seeded=asked.seed is not None)


async def submission_of(state: State, request: ResolvedRequest, card: ModelCard, *, is_seeded: bool) -> Submission:
    """A resolved request with its pictures checked, once and off the event loop, and taken out of it.

    Raises:
        InvalidRequest: a picture is none, or the webhook can't be called.
    """
    check_webhook(state, request)
    submission = await _off_loop_if(has_pictures(request), Submission.of, request)
    if not is_seeded:
        return submission
    return replace(submission, cached_as=await cache_key(state, submission.request, submission.shown, card))


async def keyed(
    submission: Submission, idempotency_key: str | None, sent: BaseModel, *, of_job: str = ""
) -> Submission:
    """The submission under a client's idempotency key, which stands for what was `sent`, and to which job."""
    if idempotency_key is None:
        return submission

    def fingerprint() -> str:
        return hashlib.sha256(f"{of_job}{sent.model_dump_json()}".encode()).hexdigest()

    made = await _off_loop_if(bool(submission.inputs), fingerprint)
    return replace(submission, idempotency_key=idempotency_key, fingerprint=made)


async def _off_loop_if(
    is_slow: bool, call: Callable[_Given, _Result], *args: _Given.args, **kwargs: _Given.kwargs
) -> _Result:
    """The result of a call, which runs in a thread if it is slow: the event loop answers others meanwhile."""
    return await run_in_threadpool(call, *args, **kwargs) if is_slow else call(*args, **kwargs)


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


async def cache_key(state: State, request: ResolvedRequest, shown: Mapping[str, Any], card: ModelCard) -> str | None:
    """The key that a result for the seeded request is kept under, if it may be.

    It may not if the client said so, or if no worker has said that it holds the guide.
    """
    if not request.use_cache or request.telemetry:
        return None
    if request.guide_model is None:
        return result_key(shown, card.drawn_by)
    guide = (await state["store"].fleet.cards()).get(request.guide_model)
    return result_key(shown, card.drawn_by, guide.drawn_by) if guide else None


async def accept(state: State, caller: Caller, submission: Submission) -> str:
    """Accept a submission for `caller`, count it, ring, and return the job's id.

    Raises:
        IdempotencyConflict, QueueFull, QuotaExceeded, StoreFull, StoreUnavailable: not accepted.
    """
    request, store = submission.request, state["store"]
    evaluations = request.steps * request.num_images
    key, cached_as = submission.idempotency_key, submission.cached_as
    limits = caller.limits
    if limits.has_quota and await store.jobs.has_answer(caller.owner, key, cached_as):
        limits = UNLIMITED  # replays and cache hits are free, so an exhausted quota must not block them
    async with store.allowance.charged(caller.owner, limits, request.num_images, evaluations) as bill:
        accepted = await store.jobs.accept(
            new_job_id(),
            submission,
            owner=caller.owner,
            evaluations=evaluations,
        )
        bill.stands = accepted.waits  # what was accepted before, or drawn before, costs nothing
    if accepted.waits:
        try:
            await run_in_threadpool(state["doorbell"].ring, request.model, accepted.id)
        except Exception:
            # The job is accepted and on record: the reaper rings for it. Failing here would make the client send twice.
            log.exception("the bell for job %s could not be rung; the reaper will", accepted.id)
    return accepted.id

"""Turning a client's request into an accepted job: decide, accept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Header
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from app.gateway.metrics.meters import JobRoute
from app.gateway.state import State
from app.gateway.webhooks.deliverer import check_webhook
from cynosure.contract import GenerateRequest, ModelCard, ResolvedRequest
from cynosure.errors import InvalidRequest, NoWorker
from cynosure.metadata import MadeFrom, again
from cynosure.resolving import (
    choose,
    has_pictures,
    labels_in,
    real_name,
    resolve,
    result_key,
    with_real_names,
)
from jobs import traces
from jobs.accounts.allowance import UNLIMITED
from jobs.accounts.api_keys import Caller
from jobs.logs import kept
from jobs.queue.gateway import Accepted
from jobs.queue.record import Origin, Submission, new_job_id

SEED_BITS = 53  # what every JSON reader keeps: JavaScript's numbers have no more
IdempotencyKey = Annotated[str | None, Header(max_length=255)]
_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


def draw_seed() -> int:
    """A random seed for a request that has none."""
    return secrets.randbits(SEED_BITS)


async def served(state: State) -> Mapping[str, ModelCard]:
    """The cards of all served models by name, in their order.

    Raises:
        NoWorker: no worker is running.
    """
    cards = await state["store"].fleet.cards()
    if not cards:
        raise NoWorker("No worker is running yet; try again in a few seconds.", retry_after_s=5)
    return cards


async def card_of(state: State, name: str) -> ModelCard:
    """The card of the model that a job's request names.

    Raises:
        NoWorker: no worker is running.
        UnknownModel: no worker holds the model.
    """
    cards = await served(state)
    return cards[real_name(name, cards, {})]


async def named_card(state: State, name: str) -> ModelCard:
    """The card of the model in an address, by its name or an alias.

    Raises:
        ModelNotFound: no live worker holds it.
    """
    cards = await state["store"].fleet.cards()
    return await state["store"].fleet.card(name if name in cards else state["settings"].model_aliases.get(name, name))


async def decide(state: State, request: GenerateRequest, card: ModelCard | None = None) -> Submission:
    """Decide everything that the request leaves open.

    Args:
        state: the gateway's state.
        request: the request as the client sent it.
        card: its model's card, if the model is chosen already.

    Raises:
        InvalidRequest: names the field and says what would be right.
        NoWorker: no worker is running.
    """
    request, made = await _off_loop_if(has_pictures(request), again, request)
    cards = await served(state)
    request = with_real_names(request, cards, state["settings"].model_aliases)
    if card is None:
        is_prompted = request.prompt is not None or bool(request.image_prompts)
        card = choose(cards, model=request.model, prompted=is_prompted, labels=labels_in(request))
    if made is not None:
        check_made_here(made, card, cards.get(request.guide_model or ""))
    resolved = resolve(request, card, seed=draw_seed())
    return await submission_of(state, resolved, card, is_seeded=request.seed is not None)


async def submission_of(state: State, request: ResolvedRequest, card: ModelCard, *, is_seeded: bool) -> Submission:
    """Check a resolved request's pictures, once and off the event loop, and detach them; have its steps checked.

    Raises:
        InvalidRequest: a field does not hold a picture, the webhook's URL is not allowed, or the sampler can't take the
            steps.
        NoWorker: no worker was there to check the steps.
    """
    check_webhook(state, request)
    submission = await _off_loop_if(has_pictures(request), Submission.of, request)
    await state["store"].plans.check(submission.request, card)
    if not is_seeded:
        return submission
    return replace(submission, cached_as=await cache_key(state, submission.request, submission.shown, card))


async def keyed(
    submission: Submission, idempotency_key: str | None, sent: BaseModel, *, of_job: str = ""
) -> Submission:
    """Add the client's idempotency key to the submission; it stands for what was `sent`, and to which job."""
    if idempotency_key is None:
        return submission

    def fingerprint() -> str:
        return hashlib.sha256(f"{of_job}{sent.model_dump_json()}".encode()).hexdigest()

    digest = await _off_loop_if(bool(submission.inputs), fingerprint)
    return replace(submission, idempotency_key=idempotency_key, fingerprint=digest)


async def _off_loop_if(
    is_slow: bool, call: Callable[_Params, _Result], *args: _Params.args, **kwargs: _Params.kwargs
) -> _Result:
    """Run a call, in a thread if it is slow, so that the event loop can answer others meanwhile."""
    return await run_in_threadpool(call, *args, **kwargs) if is_slow else call(*args, **kwargs)


def check_made_here(made: MadeFrom, card: ModelCard, guide: ModelCard | None) -> None:
    """Refuse a picture that was made by other weights than those of the models here.

    Raises:
        InvalidRequest: a model has other weights.
    """
    for model, digest in ((card, made.digest), (guide, made.guide_digest)):
        if model is not None and digest is not None and digest != model.digest:
            raise InvalidRequest(
                f"The picture was made by another '{model.name}' ({digest[:10]}…; this server has "
                f"{model.digest[:10]}…), so it can't be reproduced byte for byte. To draw its request anyway, add "
                f'"model": "{card.name}".',
                field="from_image",
            )


async def cache_key(state: State, request: ResolvedRequest, shown: Mapping[str, Any], card: ModelCard) -> str | None:
    """The key under which the result of a seeded request is cached, or `None` if it must not be.

    It must not be if the client forbids it or wants telemetry, or if no worker holds the guide.
    """
    if not request.use_cache or request.telemetry:
        return None
    if request.guide_model is None:
        return result_key(shown, card.drawn_by)
    guide = (await state["store"].fleet.cards()).get(request.guide_model)
    return result_key(shown, card.drawn_by, guide.drawn_by) if guide else None


async def accept(state: State, caller: Caller, submission: Submission, route: JobRoute) -> Accepted:
    """Accept a submission for `caller`, and charge its quota.

    `route` is where it came from.

    Raises:
        IdempotencyConflict, ModelLeaving, QueueFull, QuotaExceeded, StoreFull, StoreUnavailable: the job was not
            accepted.
    """
    request, store = submission.request, state["store"]
    evaluations = request.steps * request.num_images
    key, cached_as = submission.idempotency_key, submission.cached_as
    limits = caller.limits
    if limits.has_quota and await store.jobs.has_answer(caller.owner, key, cached_as):
        limits = UNLIMITED  # replays and cache hits are free, so an exhausted quota must not block them
    async with store.allowance.charged(caller.owner, limits, request.num_images, evaluations) as bill:
        with traces.span("accept", model=request.model):
            origin = Origin(key=caller.name, request_id=kept("request_id"), traceparent=traces.traceparent())
            accepted = await store.jobs.accept(
                new_job_id(),
                replace(submission, origin=origin),
                owner=caller.owner,
                evaluations=evaluations,
                of_batch=route == "batches",
            )
            traces.describe({"cynosure.job": accepted.id})
        bill.stands = accepted.waits  # a replay or a cache hit costs nothing
    state["metrics"].job_accepted(request.model, route, accepted, may_be_cached=cached_as is not None)
    return accepted

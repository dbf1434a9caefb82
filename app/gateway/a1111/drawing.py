"""Drawing for A1111's clients: from a call to its job, and back to their answer."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from app.gateway.a1111.samplers import names_of
from app.gateway.a1111.shapes import TextToImage, as_theirs, model_name, request_of
from app.gateway.answers import HeldJob, unless_gone
from app.gateway.errors.problems import A1111_PREFIX
from app.gateway.shaping import moment
from app.gateway.state import State
from app.gateway.submission import accept, served, submission_of
from cynosure import __version__
from cynosure.contract import MAX_IMAGES, GenerateRequest, ModelCard, ResolvedRequest, SweepRequest
from cynosure.errors import CynosureError, InvalidRequest
from cynosure.hints import listed
from cynosure.metadata import encoded_picture, texts_of
from cynosure.resolving import cells_of, choose, choose_by_prompt, real_name, resolve, resolve_sweep
from jobs.accounts.api_keys import Caller
from jobs.queue.record import JobRecord

_SEEDS = 2**32
"""Seeds that clients of A1111 expect are below this."""


async def drawn(params: TextToImage, request: Request, state: State, caller: Caller) -> dict[str, Any]:
    """Draw, and return the body of the answer. If the client goes, the job is cancelled.

    Raises:
        CynosureError: as POST /generate, with A1111's names of fields; JobFailed, JobCancelled, ShuttingDown.
    """
    with as_theirs():
        card = await _card_for(params, state, caller)
        ours, ignored = await run_in_threadpool(request_of, params, card)
        is_seeded = ours.seed is not None
        submission = await submission_of(state, _resolved(ours, params.count, card), card, is_seeded=is_seeded)
        job_id = (await accept(state, caller, submission, "a1111")).id
    held, sessions = HeldJob(state=state, caller=caller, job_id=job_id), state["store"].sessions
    try:
        await sessions.begin(caller.owner, job_id)
        record = await unless_gone(request, held, held.finished())
    finally:
        with suppress(CynosureError):
            await sessions.end(caller.owner, job_id)
    pngs = await state["store"].jobs.images(job_id, caller.sees)
    return await run_in_threadpool(_answer, params, card, record, pngs, ignored)


async def _card_for(params: TextToImage, state: State, caller: Caller) -> ModelCard:
    """The model that the request names, or else the caller chose, or else that suits the prompt."""
    cards = await served(state)
    named, chosen = params.override_settings.sd_model_checkpoint, await state["store"].sessions.chosen(caller.owner)
    if not named and chosen is not None and chosen not in cards:
        gone = f"'{chosen}', chosen with POST {A1111_PREFIX}options, is not served any more"
        raise InvalidRequest(f"{gone}: choose again, one of {listed(list(cards))}.", field="model")
    model = served_name(named, cards, state) if named else chosen
    if not params.prompt.strip():
        return choose(cards, model=model, prompted=True, labels=[])
    return choose_by_prompt(cards, model=model, prompt=params.prompt, labels=[])


def served_name(checkpoint: str, cards: Mapping[str, ModelCard], state: State) -> str:
    """The served model that A1111's name of a checkpoint means.

    Raises:
        UnknownModel: none.
    """
    return real_name(model_name(checkpoint, cards), cards, state["settings"].model_aliases)


def _resolved(request: GenerateRequest, count: int, card: ModelCard) -> ResolvedRequest:
    """One job for all pictures; each has a seed of its own, as in A1111, so it is drawn as if alone."""
    seed = secrets.randbelow(_SEEDS - MAX_IMAGES) if request.seed is None else request.seed
    if count == 1:
        return resolve(request, card, seed=seed)
    shared = request.model_copy(update={"seed": None})
    return resolve_sweep(SweepRequest(request=shared, seeds=tuple(range(seed, seed + count))), card, seed=seed)


def _answer(
    params: TextToImage, card: ModelCard, record: JobRecord, pngs: list[bytes], ignored: list[str]
) -> dict[str, Any]:
    """The body of the answer. Slow."""
    texts = [texts_of(encoded_picture(png), "image").get("parameters", "") for png in pngs]
    images = [base64.b64encode(png).decode() for png in pngs] if params.send_images else []
    return {
        "images": images,
        "parameters": params.known(),
        "info": json.dumps(_info(params, card, record, texts) | {"ignored": ignored}),
    }


def _info(params: TextToImage, card: ModelCard, record: JobRecord, texts: list[str]) -> dict[str, Any]:
    request, count = record.request, len(texts)
    seeds = [cell.seed for cell, _ in cells_of(request)]
    return {
        "prompt": params.prompt,
        "all_prompts": [params.prompt] * count,
        "negative_prompt": params.negative_prompt,
        "all_negative_prompts": [params.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": names_of(request.sampler)[0],
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": params.batch_size,
        "sd_model_name": card.name,
        "sd_model_hash": card.digest[:10],
        "denoising_strength": request.strength,
        "clip_skip": request.clip_skip or 1,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": timestamp(record),
        "version": f"Cynosure {__version__}",
        "job": record.id,
        "warnings": list(record.warnings),
    }


def timestamp(record: JobRecord) -> str:
    """The time at which a job was accepted, as A1111 writes it, in UTC."""
    return moment(record.created_ms).strftime("%Y%m%d%H%M%S")

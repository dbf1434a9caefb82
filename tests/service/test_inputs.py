"""Pictures that clients send: looked at once, off the event loop, and kept beside the record."""

from __future__ import annotations

import base64
import io
import threading
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import redis
from PIL import Image

from app.gateway.metrics.meters import GatewayMetrics
from app.gateway.settings import GatewaySettings
from app.gateway.shaping import job_of
from app.gateway.state import State
from app.gateway.submission import accept, decide, keyed, submission_of
from cynosure.client import Client
from cynosure.contract import GenerateRequest, JobStatus, ModelCard, ResolvedRequest, SweepRequest
from cynosure.errors import InvalidRequest
from cynosure.metadata import encoded_picture
from cynosure.resolving import attached, detached, inputs, resolve, resolve_sweep
from jobs.accounts.allowance import Allowance
from jobs.accounts.api_keys import NOBODY
from jobs.plans import Inquiries
from jobs.queue.gateway import JobStore
from jobs.queue.pace import Outlook
from jobs.queue.record import ANONYMOUS, Claim, NoClaim
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from jobs.store.keyspace import Keys
from tests.conftest import accept as accept_job
from workers.drawing.specs import pixels_of

pytestmark = pytest.mark.anyio


def picture(shade: int = 90) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(buffer, "PNG")
    return encoded_picture(buffer.getvalue())


def state_of(card: ModelCard, **store: object) -> State:
    async def cards() -> dict[str, ModelCard]:
        return {card.name: card}

    plans = Inquiries(redis.asyncio.Redis(), StoreSettings())  # never asked: every step of the card is certain
    held = SimpleNamespace(fleet=SimpleNamespace(cards=cards), plans=plans, **store)
    return cast(State, {"store": held, "settings": GatewaySettings(), "metrics": GatewayMetrics()})


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads in which pictures were opened."""
    threads: list[int] = []
    check = inputs.check_picture

    def noted(encoded: str, field: str) -> None:
        threads.append(threading.get_ident())
        check(encoded, field)

    monkeypatch.setattr(inputs, "check_picture", noted)
    return threads


async def test_a_sweep_of_256_cells_has_its_picture_looked_at_once_and_in_another_thread(
    card: ModelCard, looks: list[int]
) -> None:
    shared = GenerateRequest(class_label=1, init_image=picture(), guidance_mode="classifier_free")
    asked = SweepRequest(request=shared, seeds=tuple(range(256)))
    submission = await submission_of(state_of(card), resolve_sweep(asked, card, seed=0), card, is_seeded=True)
    assert len(looks) == 1
    assert threading.get_ident() not in looks
    assert submission.request.num_images == 256


async def test_a_picture_is_looked_at_once_and_in_another_thread(card: ModelCard, looks: list[int]) -> None:
    await decide(state_of(card), GenerateRequest(class_label=1, init_image=picture(), mask_image=picture()))
    assert len(looks) == 2
    assert threading.get_ident() not in looks


async def test_a_request_is_validated_never_again_and_serialised_once(
    card: ModelCard, store: JobStore, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str) -> Any:
        method = getattr(ResolvedRequest, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return method(*args, **kwargs)

        return call

    asked = GenerateRequest(class_label=1, seed=3)
    async with Allowance.connect(store_settings) as allowance:
        for name in ("model_validate", "model_validate_json", "model_dump", "model_dump_json"):
            monkeypatch.setattr(ResolvedRequest, name, counted(name))
        state = state_of(card, jobs=store, allowance=allowance)
        submission = await keyed(await decide(state, asked), "a key", asked)
        await accept(state, NOBODY, submission, route="generate")
    assert calls == ["model_dump"]


async def test_the_record_has_the_digests_and_the_worker_the_pictures(
    card: ModelCard,
    store: JobStore,
    worker_store: WorkerStore,
    store_settings: StoreSettings,
    raw: redis.Redis,
) -> None:
    request = resolve(GenerateRequest(class_label=1, init_image=picture()), card, seed=1)
    job_id, keys = await accept_job(store, request), Keys(store_settings.key_prefix)
    assert request.init_image.encode() not in cast(bytes, raw.hget(keys.job(job_id), "request"))
    record = await store.get(job_id, ANONYMOUS)
    shown = job_of(record, Outlook(), "").request
    assert shown.init_image is None
    assert shown.inputs["init_image"].size == len(base64.b64decode(picture()))
    assert await store.inputs(record) == {"init_image": picture()}
    claim = worker_store.claim("fashion", "w", held=0)
    assert isinstance(claim, Claim)
    assert claim.request == request
    await store.cancel(job_id, ANONYMOUS)
    assert 0 < cast(int, raw.ttl(keys.inputs(job_id))) <= store_settings.result_ttl_s


async def test_a_job_whose_pictures_are_gone_fails_by_name(
    card: ModelCard, store: JobStore, worker_store: WorkerStore, store_settings: StoreSettings, raw: redis.Redis
) -> None:
    job_id = await accept_job(store, resolve(GenerateRequest(class_label=1, init_image=picture()), card, seed=1))
    raw.delete(Keys(store_settings.key_prefix).inputs(job_id))
    assert worker_store.claim("fashion", "w", held=0) is NoClaim.NOTHING
    record = await store.get(job_id, ANONYMOUS)
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert "init_image is no longer kept" in record.error.message


async def test_records_that_hold_their_pictures_are_read_and_shown_without_them(
    card: ModelCard, store: JobStore, worker_store: WorkerStore, store_settings: StoreSettings, raw: redis.Redis
) -> None:
    request = resolve(GenerateRequest(class_label=1, init_image=picture()), card, seed=1)
    job_id, keys = await accept_job(store, request), Keys(store_settings.key_prefix)
    raw.hset(keys.job(job_id), "request", request.model_dump_json())
    raw.delete(keys.inputs(job_id))
    assert set(job_of(await store.get(job_id, ANONYMOUS), Outlook(), "").request.inputs) == {"init_image"}
    claim = worker_store.claim("fashion", "w", held=0)
    assert isinstance(claim, Claim)
    assert claim.request.init_image == picture()


def test_detaching_and_attaching_gives_the_same_request(card: ModelCard) -> None:
    request = resolve(GenerateRequest(class_label=1, init_image=picture(), mask_image=picture(9)), card, seed=1)
    light, pictures = detached(request)
    assert set(light.inputs) == set(pictures) == {"init_image", "mask_image"}
    assert attached(light, pictures) == request
    with pytest.raises(InvalidRequest, match="mask_image is no longer kept"):
        attached(light, {"init_image": pictures["init_image"]})


def test_a_job_from_a_picture_can_be_varied_and_shows_no_picture(server_url: str) -> None:
    with Client(server_url) as client:
        job = client.wait(client.submit(class_label=1, steps=4, init_image=picture(), strength=0.5).id)
        varied = client.wait(client.vary(job.id).id)
        assert varied.status is JobStatus.SUCCEEDED
        assert varied.request.inputs == job.request.inputs
        sweep = SweepRequest(
            request=GenerateRequest(class_label=1, steps=4, init_image=picture(), strength=0.5), seeds=(1, 2)
        )
        assert client.wait(client.submit_sweep(sweep).id).status is JobStatus.SUCCEEDED
    shown = httpx.get(f"{server_url}/jobs/{job.id}").json()
    assert shown["request"]["init_image"] is None
    again = httpx.post(f"{server_url}/generate", json=shown["request"])
    assert (again.status_code, again.json()["field"]) == (422, "inputs")


def test_specs_have_pictures_on_white_and_masks_on_black() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (3, 2), (255, 255, 255, 0)).save(buffer, "PNG")
    clear = encoded_picture(buffer.getvalue())
    start, mask = pixels_of(clear, "init_image"), pixels_of(clear, "mask_image")
    assert start is not None
    assert mask is not None
    assert (start.shape, set(start.data)) == ((2, 3, 3), {255})
    assert (mask.shape, set(mask.data)) == ((2, 3, 1), {0})

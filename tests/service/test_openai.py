"""The official `openai` package, unchanged, against a running service."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import httpx
import openai
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import Message

from app.gateway import answers
from app.gateway.openai import work
from cynosure import Client, JobStatus
from harness.processes import wait_until

SMALL = {"steps": 6, "seed": 3}


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def picture(b64_json: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64_json or "")))


def test_models_are_listed_and_looked_up(client: openai.OpenAI) -> None:
    assert "fashion" in [model.id for model in client.models.list()]
    assert client.models.retrieve("fashion").owned_by == "cynosure"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_prompt_that_is_a_label_draws_it_in_every_format(client: openai.OpenAI, output_format: str) -> None:
    answer = client.images.generate(
        model="fashion",
        prompt="Ankle Boot",
        n=2,
        size="28x28",
        output_format=output_format,  # type: ignore[arg-type]
        extra_body={**SMALL, "guidance_mode": "classifier_free", "guidance_scale": 4},
    )
    pictures = [picture(one.b64_json) for one in answer.data or ()]
    assert [(one.format, one.size) for one in pictures] == [(output_format.upper(), (28, 28))] * 2
    text = pictures[0].info.get("cynosure") or pictures[0].getexif()[0x010E]
    assert json.loads(text)["request"]["guidance_scale"] == 4
    assert (answer.size, answer.output_format) == ("28x28", output_format)


def test_the_picture_is_the_one_that_generate_draws(client: openai.OpenAI, server_url: str) -> None:
    answer = client.images.generate(model="fashion", prompt="bag", extra_body=SMALL)
    body = {"class_label": "bag", **SMALL, "use_cache": False}
    ours = httpx.post(f"{server_url}/generate", json=body, headers={"Accept": "image/png"}, timeout=60)
    assert base64.b64decode((answer.data or [])[0].b64_json or "") == ours.content


def test_an_address_leads_to_the_picture(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="coat", response_format="url", output_format="webp", extra_body=SMALL)
    content = httpx.get((answer.data or [])[0].url or "").content
    assert Image.open(io.BytesIO(content)).format == "WEBP"


def test_a_stream_has_partial_pictures_and_then_the_whole(client: openai.OpenAI) -> None:
    body = {"steps": 40, "seed": 5, "use_cache": False}
    stream = client.images.generate(prompt="sneaker", stream=True, partial_images=3, extra_body=body)
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]  # type: ignore[union-attr]
    assert last.type == "image_generation.completed"
    whole = client.images.generate(prompt="sneaker", extra_body=body)
    assert last.b64_json == (whole.data or [])[0].b64_json


def test_an_edit_keeps_what_the_mask_covers(client: openai.OpenAI) -> None:
    start, mask = io.BytesIO(), io.BytesIO()
    Image.new("L", (28, 28), 200).save(start, "PNG")
    hole = Image.new("RGBA", (28, 28), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 14, 28))
    hole.save(mask, "PNG")
    answer = client.images.edit(
        image=("start.png", start.getvalue()),
        mask=("mask.png", mask.getvalue()),
        prompt="bag",
        extra_body=SMALL,
    )
    drawn = picture((answer.data or [])[0].b64_json).convert("L")
    kept = drawn.crop((15, 0, 28, 28)).getextrema()
    assert 195 <= kept[0] <= kept[1] <= 205  # type: ignore[operator]
    assert drawn.crop((0, 0, 14, 28)).getextrema() != kept
    *_, last = client.images.edit(
        image=("start.png", start.getvalue()), prompt="bag", stream=True, extra_body={**SMALL, "strength": 0.5}
    )
    assert last.type == "image_edit.completed"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI itself, whose models have gone
def test_variations_start_from_the_picture(client: openai.OpenAI, server_url: str) -> None:
    start = io.BytesIO()
    Image.new("L", (40, 30), 200).save(start, "PNG")
    answer = client.images.create_variation(
        image=("start.png", start.getvalue()), model="fashion", n=2, response_format="url", extra_body=SMALL
    )
    urls = [one.url or "" for one in answer.data or ()]
    body = {"model": "fashion", "init_image": base64.b64encode(start.getvalue()).decode(), "strength": 0.6, **SMALL}
    ours = httpx.post(f"{server_url}/generate", json=body, headers={"Accept": "image/png"}, timeout=60)
    assert [httpx.get(url).content == ours.content for url in urls] == [True, False]
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.create_variation(image=("start.png", b"no picture"))
    assert refusal.value.param == "image"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.images.create_variation(image=("start.png", start.getvalue()), extra_body={"mask": "x"})
    assert unknown.value.param == "mask"


def test_errors_are_those_that_clients_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.generate(prompt="a corgi in space")
    assert (refusal.value.param, refusal.value.code) == ("prompt", "unknown_label")
    assert len(refusal.value.request_id or "") == 16, "the server's log has it, too"
    assert "sneaker" in refusal.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="bag", model="dall-e-3")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as size:
        client.images.generate(prompt="bag", size="1024x1024")
    assert size.value.param == "size"
    assert "28×28" in size.value.message
    with pytest.raises(openai.BadRequestError, match="size must be like '1536x1024', 'auto'"):
        client.images.generate(prompt="bag", size="1024")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.images.generate(prompt="bag", extra_body={"colour": "red"})
    assert unknown.value.param == "colour"
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="bag", stream=True, extra_body={"steps": 100_000})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="cyn_nonsense").models.list()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_gateway_that_stops_lets_go_of_the_client_and_not_of_the_job(
    open_gateway: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(work, "PING_S", 0.0)
    gateway = open_gateway()
    body = {"prompt": "sneaker", "stream": stream}
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(gateway.post, "/v1/images/generations", json=body)
        wait_until(lambda: len(gateway.get("/jobs").json()["jobs"]) == 1, what="the job is accepted")
        assert gateway.portal is not None
        gateway.portal.call(gateway.app_state["store"].news.hang_up)
        answer = asking.result(timeout=60)
    [job] = gateway.get("/jobs").json()["jobs"]
    assert job["status"] == "queued"
    assert "shutting_down" in answer.text
    assert job["id"] in answer.text
    if stream:
        assert ": ping\n\n" in answer.text
        assert (answer.headers["X-Accel-Buffering"], answer.headers["Cache-Control"]) == ("no", "no-store")
    else:
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


@pytest.mark.anyio
async def test_work_for_a_client_ends_with_the_call_that_did_it() -> None:
    ended, began = asyncio.Event(), asyncio.Event()

    async def drawing() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def silent() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http"}, silent)
    call = asyncio.create_task(answers.unless_gone(request, cast(answers.HeldJob, None), drawing()))
    await began.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await ended.wait()


def test_a_client_that_drops_the_connection_cancels_its_job_unless_it_can_come_back(server_url: str) -> None:
    begun: dict[str, str] = {}  # labels by job

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0) as client:
            long = {"steps": 1000, "seed": 77, "use_cache": False}
            stream = await client.images.generate(prompt="dress", n=2, stream=True, partial_images=3, extra_body=long)
            async for _ in stream:
                break
            assert await labels() == {"dress"}
            await stream.close()
            whole = asyncio.create_task(client.images.generate(prompt="shirt", n=8, extra_body=long))
            async with asyncio.timeout(60):
                while "shirt" not in await labels():
                    await asyncio.sleep(0.1)
            keyed = asyncio.create_task(
                client.images.generate(prompt="coat", n=8, extra_body=long, extra_headers={"Idempotency-Key": "1"})
            )
            stream = await client.images.generate(
                prompt="bag",
                n=8,
                stream=True,
                partial_images=3,
                extra_body=long,
                extra_headers={"Idempotency-Key": "2"},
            )
            async for _ in stream:
                break
            await stream.close()
            whole.cancel()
            keyed.cancel()
            async with asyncio.timeout(60):
                while await labels() != {"coat", "bag"}:
                    await asyncio.sleep(0.1)

    async def labels() -> set[str]:
        def look() -> set[str]:
            with Client(server_url) as ours:
                names = ours.models()[0].labels
                found = {
                    job.id: names[job.request.class_label]
                    for job in ours.jobs(limit=100).jobs
                    if job.request.seed == 77 and job.request.class_label is not None and not job.status.is_final
                }
                begun.update(found)
                return set(found.values())

        return await asyncio.to_thread(look)

    asyncio.run(leave())
    with Client(server_url) as ours:
        ended = {label for job_id, label in begun.items() if ours.job(job_id).status is JobStatus.CANCELLED}
        assert (ended, set(begun.values())) == ({"dress", "shirt"}, {"dress", "shirt", "coat", "bag"})
        for job_id in begun:
            ours.cancel(job_id)

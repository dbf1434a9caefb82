"""Batches: streamed in, checked line by line, resumed, drawn, fetched, cancelled."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import ClientDisconnect

from app.gateway.batches import feeder
from app.gateway.batches.names import MemberNames
from app.gateway.batches.upload import receive
from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from cynosure import Client
from cynosure.batches import BatchStatus
from cynosure.contract import GenerateRequest, ModelCard
from cynosure.errors import BatchNotFound, BatchSuperseded, JobUnfinished, QueueFull, StoreUnavailable
from cynosure.resolving import resolve
from harness.processes import wait_until
from jobs.accounts.api_keys import NOBODY
from jobs.batches import Batches, BatchRecord, Line
from jobs.fleet import Fleet, FleetRegistry
from jobs.plans import Inquiries
from jobs.queue.gateway import JobStore
from jobs.settings import StoreSettings
from tests.conftest import bearer

Open = Callable[..., TestClient]


NDJSON = {"Content-Type": "application/x-ndjson"}


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def simple(count: int) -> list[dict[str, Any]]:
    return [{"class_label": n % 3, "seed": n, "custom_id": f"no {n}"} for n in range(count)]


def post(gateway: TestClient, content: Any, **headers: str) -> httpx.Response:
    return gateway.post("/batches", content=content, headers={**NDJSON, **headers})


@pytest.mark.parametrize(
    ("body", "status", "code", "line"),
    [
        (lines({"class_label": 1}, {"class_label": "sneker"}), 422, "unknown_label", 2),
        (lines({"class_label": 1}, {"class_label": 1, "colour": 1}), 422, "unknown_field", 2),
        (lines({"class_label": 1}) + b"\n\n{nonsense\n", 400, "malformed_body", 2),
        (lines({"class_label": 1}, [1]), 400, "malformed_body", 2),
        (b'[{"class_label": 1}, {"steps": 0}]', 422, "invalid_request", 2),
        (b'[{"class_label": 1}, {"steps": 1', 400, "malformed_body", 2),
        (b"[]", 422, "invalid_request", None),
        (b"", 422, "invalid_request", None),
        (lines(*[{"steps": 1}] * 10_001), 413, "body_too_large", None),
    ],
    ids=["label", "field", "json", "array in a line", "value in an array", "cut array", "none", "empty", "too many"],
)
def test_a_refusal_names_the_line_and_nothing_is_drawn(
    open_gateway: Open, body: bytes, status: int, code: str, line: int | None
) -> None:
    gateway = open_gateway()
    answer = post(gateway, body, **{"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"], answer.json().get("line")) == (status, code, line), answer.text
    assert gateway.get("/jobs").json()["jobs"] == []


def test_a_corrected_body_under_the_same_key_goes_on(open_gateway: Open) -> None:
    gateway = open_gateway()
    good = simple(5)
    key = {"Idempotency-Key": "again"}
    assert post(gateway, lines(*good[:3], {"steps": 0}, good[4]), **key).status_code == 422
    batch = post(gateway, lines(*good), **key).json()
    assert (batch["counts"]["total"], batch["status"]) == (5, "running")
    assert post(gateway, json.dumps(good), **key).json()["id"] == batch["id"]
    for other in (lines(*good[:4]), lines(*good, good[0]), lines(*good[:4], {"class_label": 0})):
        assert post(gateway, other, **key).json()["code"] == "idempotency_conflict"


def test_the_lines_behind_a_corrected_one_stay(open_gateway: Open) -> None:
    gateway, key = open_gateway(), {"Idempotency-Key": "corrected"}
    asked = simple(300)
    assert post(gateway, lines(*asked, {"steps": 0}), **key).json()["line"] == 301
    asked[2]["seed"] = 1000
    batch = post(gateway, lines(*asked), **key).json()
    assert batch["counts"]["total"] == 300
    results = [json.loads(line) for line in gateway.get(f"/batches/{batch['id']}/results").text.splitlines()]
    assert [one["custom_id"] for one in results] == [f"no {n}" for n in range(300)]
    assert [one["seed"] for one in results] == [0, 1, 1000, *range(3, 300)]


@pytest.mark.anyio
async def test_a_client_that_dies_in_the_middle_comes_back_to_the_lines_that_had_arrived(
    store_settings: StoreSettings, card: ModelCard
) -> None:
    FleetRegistry(store_settings).publish("worker", [card])
    unseeded = [{"class_label": n % 3} for n in range(450)]

    async def dying() -> AsyncIterator[bytes]:
        yield lines(*unseeded[:200])
        yield lines(*unseeded[200:300])
        raise ClientDisconnect

    async def whole() -> AsyncIterator[bytes]:
        yield lines(*unseeded)

    async with (
        Batches.connect(store_settings) as batches,
        Fleet.connect(store_settings) as fleet,
        Inquiries.connect(store_settings) as plans,
    ):
        store = SimpleNamespace(batches=batches, fleet=fleet, plans=plans)
        state = cast(State, {"store": store, "settings": GatewaySettings()})
        with pytest.raises(ClientDisconnect):
            await receive(state, NOBODY, dying(), "k")
        batch_id = await batches.open("new", NOBODY.owner, "look", "k")
        assert (await batches.look(batch_id, NOBODY.owner)).status is BatchStatus.RECEIVING
        staged = await batches.lines(batch_id, 0, 450)
        assert len(staged) == 300
        assert await receive(state, NOBODY, whole(), "k") == batch_id
        after = await batches.lines(batch_id, 0, 450)
        assert len(after) == 450
        assert after[:300] == staged, "a seed that was drawn for a line stays"
        assert (await batches.look(batch_id, NOBODY.owner)).status is BatchStatus.RUNNING
        with pytest.raises(BatchSuperseded):
            await batches.stage(batch_id, "look", 0, staged)


@pytest.mark.anyio
async def test_a_batch_is_kept_for_as_long_as_it_is_fed_and_leaves_nothing_behind(
    store_settings: StoreSettings, card: ModelCard
) -> None:
    request = resolve(GenerateRequest(class_label=1, seed=3), card, seed=0)
    line = Line("0" * 64, None, request, None)
    async with Batches.connect(store_settings) as batches:
        await batches.open("b", NOBODY.owner, "upload", None)
        await batches.stage("b", "upload", 0, [line, line])
        await batches.start("b", "anonymous", "upload")
        with redis.Redis.from_url(store_settings.redis_url) as client:

            def names() -> list[str]:
                return sorted(name.decode() for name in client.scan_iter(f"{store_settings.key_prefix}:batch*"))

            for name in names():
                client.expire(name, 100)
            await batches.fed("b", 0, "job")
            assert [client.ttl(name) > 100 for name in names()] == [True] * 5
            client.delete(f"{store_settings.key_prefix}:batch:b")
            with pytest.raises(BatchNotFound):
                await batches.look("b", NOBODY.owner)
            assert f"{store_settings.key_prefix}:batch:b" not in names()


@pytest.mark.anyio
async def test_a_start_that_is_repeated_starts_once(store_settings: StoreSettings) -> None:
    """A client whose connection broke before the answer asks again."""
    async with Batches.connect(store_settings) as batches:
        await batches.open("b", NOBODY.owner, "upload", None)
        for _ in range(2):
            await batches.start("b", "anonymous", "upload")
        with pytest.raises(BatchSuperseded):
            await batches.start("b", "anonymous", "another")


def test_lines_become_jobs_as_there_is_room_each_once(open_gateway: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "WINDOW", 4)
    monkeypatch.setattr(feeder, "LOOK_S", 0.02)
    gateway, other = open_gateway(), open_gateway()  # two gateways feed, and no line becomes two jobs
    batch_id = post(gateway, lines(*simple(10))).json()["id"]

    def counts() -> dict[str, int]:
        return gateway.get(f"/batches/{batch_id}").json()["counts"]

    ended = 0
    while ended < 10:
        room = min(4, 10 - ended)
        wait_until(lambda room=room: counts()["queued"] == room, what="the window is full")  # type: ignore[misc]
        assert counts()["waiting"] == max(0, 10 - ended - 4)
        for job in gateway.get("/jobs", params={"status": "queued"}).json()["jobs"]:
            gateway.delete(f"/jobs/{job['id']}")
            ended += 1
    wait_until(lambda: other.get(f"/batches/{batch_id}").json()["status"] == "finished", what="finished")
    assert counts() == {**dict.fromkeys(counts(), 0), "total": 10, "cancelled": 10}
    assert len(gateway.get("/jobs").json()["jobs"]) == 10
    results = [json.loads(line) for line in gateway.get(f"/batches/{batch_id}/results").text.splitlines()]
    assert [(one["line"], one["custom_id"], one["seed"]) for one in results] == [
        (n + 1, f"no {n}", n) for n in range(10)
    ]


def test_a_cancelled_batch_leaves_nothing_waiting(open_gateway: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "WINDOW", 3)
    gateway = open_gateway()
    batch_id = post(gateway, lines(*simple(8))).json()["id"]
    path = f"/batches/{batch_id}"
    wait_until(lambda: gateway.get(path).json()["counts"]["queued"] == 3, what="some are queued")
    cancelled = gateway.delete(path).json()
    assert (cancelled["status"], cancelled["counts"]["cancelled"]) == ("cancelled", 8)
    assert gateway.get("/jobs", params={"status": "queued"}).json()["jobs"] == []
    assert gateway.delete(path).json() == cancelled


def test_a_cancellation_that_broke_off_can_be_sent_again(open_gateway: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "WINDOW", 3)
    gateway = open_gateway()
    path = f"/batches/{post(gateway, lines(*simple(8))).json()['id']}"
    wait_until(lambda: gateway.get(path).json()["counts"]["queued"] == 3, what="some are queued")

    async def away(*arguments: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as broken:
        broken.setattr(JobStore, "cancel", away)
        assert gateway.delete(path).status_code == 503
    assert gateway.get(path).json()["counts"]["queued"] == 3
    cancelled = gateway.delete(path).json()
    assert (cancelled["status"], cancelled["counts"]["cancelled"]) == ("cancelled", 8)


def test_a_batch_that_can_not_be_fed_keeps_no_other_waiting(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feeder.Feeder._feed
    poison: list[str] = []

    async def failing(self: feeder.Feeder, record: BatchRecord) -> None:
        if not poison or record.id in poison:
            raise JobUnfinished("no")
        await feed(self, record)

    monkeypatch.setattr(feeder.Feeder, "_feed", failing)
    gateway = open_gateway()
    first, second = (post(gateway, lines(*simple(2))).json()["id"] for _ in range(2))
    poison.append(first)
    wait_until(lambda: gateway.get(f"/batches/{second}").json()["counts"]["queued"] == 2, what="the second is fed")
    assert gateway.get(f"/batches/{first}").json()["counts"]["waiting"] == 2


def test_no_key_of_a_client_stands_in_a_lines_way(open_gateway: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "WINDOW", 0)
    gateway = open_gateway()
    batch_id = post(gateway, lines(*simple(2))).json()["id"]
    for index in range(2):
        taken = {"Idempotency-Key": f"batch:{batch_id}:{index}"}
        assert gateway.post("/generate", json={"class_label": 2}, headers=taken).status_code == 202
    monkeypatch.setattr(feeder, "WINDOW", 4)
    wait_until(lambda: gateway.get(f"/batches/{batch_id}").json()["counts"]["queued"] == 2, what="it is fed")


def test_a_refused_batch_reads_few_lines_in_vain(open_gateway: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    lines_of = Batches.lines

    async def counting(self: Batches, batch_id: str, first: int, count: int) -> list[Line]:
        read.append(count)
        return await lines_of(self, batch_id, first, count)

    async def full(*arguments: object, **named: object) -> None:
        raise QueueFull("full")

    monkeypatch.setattr(Batches, "lines", counting)
    monkeypatch.setattr(JobStore, "accept", full)
    gateway = open_gateway()
    post(gateway, lines(*simple(200)))
    wait_until(lambda: bool(read), what="a look at it")
    assert max(read) <= 16


def test_a_stranger_sees_no_batch(open_gateway: Open, make_key: Callable[..., str]) -> None:
    gateway = open_gateway(auth="required")
    mine, other = bearer(make_key()), bearer(make_key())
    path = f"/batches/{post(gateway, lines(*simple(2)), **mine).json()['id']}"
    for method, tail in (("GET", ""), ("GET", "/results"), ("GET", "/images.zip"), ("DELETE", "")):
        answer = gateway.request(method, path + tail, headers=other)
        assert (answer.status_code, answer.json()["code"]) == (404, "batch_not_found")
    assert gateway.get(path, headers=mine).json()["status"] == "running"


def test_a_batch_is_drawn_and_comes_back_as_lines_and_as_a_zip(server_url: str) -> None:
    asked = [{"class_label": n, "steps": 4, "seed": n, "num_images": 1 + n % 2} for n in range(6)]
    asked[5] |= {"output_format": "webp", "custom_id": "../the: last"}
    with Client(server_url) as client:
        batch = client.submit_batch(asked)
        wait_until(lambda: client.batch_status(batch.id).status is BatchStatus.FINISHED, what="the batch is drawn")
        assert client.batch_status(batch.id).counts.succeeded == 6
        results = client.batch_results(batch.id)
        assert [len(one.images) for one in results] == [1, 2, 1, 2, 1, 2]
        assert results[5].custom_id == "../the: last"
        assert batch.id in [one.id for one in client.batches(status=BatchStatus.FINISHED).batches]
        with zipfile.ZipFile(io.BytesIO(httpx.get(f"{server_url}/batches/{batch.id}/images.zip").content)) as files:
            assert files.testzip() is None
            assert len(files.namelist()) == 9
            assert {one.extract_version for one in files.infolist()} == {zipfile.ZIP64_VERSION}, "or it ends at 4 GiB"
            assert files.read("00004-01.png") == client.image(results[3].job_id or "", 1)
            assert Image.open(io.BytesIO(files.read("_the_ last-00.webp"))).format == "WEBP"


def test_members_are_named_safely_and_each_by_another_name() -> None:
    names = MemberNames()
    asked = ["cat", "Cat", None, "00005", None, "a/b\\c:d", "..", "con\0\n", "é" * 150, "é" * 149, "cat~2", "猫 1"]
    assert [names.of(line, custom_id) for line, custom_id in enumerate(asked, start=1)] == [
        *("cat", "Cat~00002", "00003", "00005", "00005~00005", "a_b_c_d", "00007", "con__"),
        *("é" * 100, f"{'é' * 100}~00010", "cat_2", "猫 1"),
    ]


def test_batches_are_listed_newest_first_page_by_page_to_their_owner(
    open_gateway: Open, make_key: Callable[..., str]
) -> None:
    token, other = make_key(), make_key()
    gateway = open_gateway(auth="required")
    ids = [post(gateway, lines({"class_label": 1}), **bearer(token)).json()["id"] for _ in range(5)]
    assert post(gateway, lines({"steps": 0}), **bearer(token), **{"Idempotency-Key": "refused"}).status_code == 422
    assert gateway.delete(f"/batches/{ids[1]}", headers=bearer(token)).status_code == 200
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = gateway.get("/batches", params=params, headers=bearer(token)).json()
        seen += page["batches"]
        cursor, pages = page["next_cursor"], pages + 1
    assert (sorted(one["id"] for one in seen), pages) == (sorted(ids), 3)
    assert [one["created_at"] for one in seen] == sorted((one["created_at"] for one in seen), reverse=True)
    found = gateway.get("/batches", params={"status": "cancelled"}, headers=bearer(token)).json()["batches"]
    assert [one["id"] for one in found] == [ids[1]]
    assert gateway.get("/batches", headers=bearer(other)).json() == {"batches": [], "next_cursor": None}
    assert gateway.get("/batches", headers=bearer(make_key("submit"))).status_code == 403


@pytest.mark.anyio
async def test_a_feeder_that_was_too_slow_leaves_the_next_ones_lock(store_settings: StoreSettings) -> None:
    async with Batches.connect(store_settings) as batches, AsyncExitStack() as late:
        assert await late.enter_async_context(batches.feeding("b", ttl_s=0.05))
        await asyncio.sleep(0.1)
        async with batches.feeding("b", ttl_s=30) as is_the_next_ones:
            assert is_the_next_ones
            await late.aclose()
            async with batches.feeding("b", ttl_s=30) as is_free:
                assert not is_free

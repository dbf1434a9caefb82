"""API keys: who gets in, who sees what, and what an end of a key does."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from app.commands.keys import URL_FILE
from app.commands.keys import main as keys
from cynosure.contract import ModelCard
from cynosure.errors import Unauthenticated
from harness.processes import wait_until
from jobs.accounts import api_keys
from jobs.accounts.api_keys import KeyRing, NoSuchKey, Scope
from jobs.queue.record import Claim, Finished
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import bearer

Open = Callable[..., TestClient]
ASKED = {"class_label": 1, "steps": 4, "seed": 1}
OPEN_PATHS = {"/healthz", "/readyz"}


def code_of(answer: object) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_a_token_is_verified_and_kept_nowhere(
    ring: KeyRing, store_settings: StoreSettings, raw: redis.Redis
) -> None:
    key, token = await ring.create("app", [Scope.READ], days=1)
    assert await ring.verify(token) == key
    secret = token.removeprefix(f"cyn_{key.id}_")
    stored = raw.hgetall(f"{store_settings.key_prefix}:api-key:{key.id}")
    assert stored[b"name"] == b"app"
    assert not any(secret.encode() in value for value in stored.values())
    assert raw.ttl(f"{store_settings.key_prefix}:api-key:{key.id}") > 0
    assert raw.ttl(f"{store_settings.key_prefix}:api-keys") > 0
    for wrong in ("", "cyn_", token[:-1], token[:-1] + ("A" if token[-1] != "A" else "B"), f"cyn_{'0' * 16}_{secret}"):
        with pytest.raises(Unauthenticated) as refusal:
            await ring.verify(wrong)
        assert secret not in refusal.value.detail


@pytest.mark.anyio
async def test_an_expired_key_is_refused(ring: KeyRing, store_settings: StoreSettings, raw: redis.Redis) -> None:
    key, token = await ring.create("app", [Scope.READ], days=1)
    raw.hset(f"{store_settings.key_prefix}:api-key:{key.id}", "expires_ms", int(time.time() * 1000) - 1)
    with pytest.raises(Unauthenticated):
        await ring.verify(token)


@pytest.mark.anyio
async def test_a_rotated_keys_old_token_goes_on_for_the_overlap_alone(
    ring: KeyRing, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, first = await ring.create("app", [Scope.READ], days=1)
    second = await ring.rotate(key.id, overlap_s=3600)
    async with KeyRing.connect(store_settings) as fresh:
        assert (await fresh.verify(first)).id == (await fresh.verify(second)).id == key.id
    third = await ring.rotate(key.id, overlap_s=0)
    async with KeyRing.connect(store_settings) as fresh:
        assert (await fresh.verify(third)).id == key.id
        for old in (first, second):
            with pytest.raises(Unauthenticated):
                await fresh.verify(old)
    monkeypatch.setattr(api_keys.secrets, "token_urlsafe", lambda size: "S" * 43)
    for _ in range(2):  # the second time by a client whose connection broke before the answer
        await ring.rotate(key.id, overlap_s=3600)
    async with KeyRing.connect(store_settings) as fresh:
        assert (await fresh.verify(third)).id == key.id
    await ring.revoke(key.id)
    with pytest.raises(NoSuchKey, match="revoked"):
        await ring.rotate(key.id, overlap_s=0)
    for call in (ring.revoke("nosuch"), ring.rotate("nosuch", overlap_s=0)):
        with pytest.raises(NoSuchKey, match=r"^No key 'nosuch'\.$"):
            await call


@pytest.mark.anyio
async def test_a_gateway_that_remembers_a_key_forgets_it_when_it_is_revoked(
    ring: KeyRing, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = await ring.create("app", [Scope.READ], days=1)
    async with KeyRing.connect(store_settings) as gateway:
        assert (await gateway.verify(token)).id == key.id
        await ring.revoke(key.id)
        monkeypatch.setattr(api_keys, "_REMEMBERED_S", 0.0)  # the second is over
        with pytest.raises(Unauthenticated):
            await gateway.verify(token)
    assert [(known.id, known.is_revoked) for known in await ring.all()] == [(key.id, True)]


def test_every_route_asks_who_calls(open_gateway: Open) -> None:
    gateway = open_gateway(auth="required")
    routes = [
        (path, method) for path, methods in gateway.get("/openapi.json").json()["paths"].items() for method in methods
    ]
    assert len(routes) > 10
    unasked = {
        path
        for path, method in routes
        if gateway.request(method.upper(), re.sub(r"{\w+}", "1", path)).status_code != 401
    }
    assert unasked == OPEN_PATHS


def test_without_a_valid_key_nothing_but_health_is_answered(open_gateway: Open) -> None:
    gateway = open_gateway(auth="required")
    assert gateway.get("/healthz").status_code == gateway.get("/readyz").status_code == 200
    for method, path in (("GET", "/models"), ("GET", "/jobs/x"), ("DELETE", "/jobs/x"), ("GET", "/jobs/x/events")):
        for headers in ({}, bearer("nonsense"), bearer(f"cyn_{'0' * 16}_{'A' * 43}"), {"Authorization": "Basic YTpi"}):
            answer = gateway.request(method, path, headers=headers)
            assert code_of(answer) == (401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    answer = gateway.post(f"/generate?api_key=cyn_{'0' * 16}_{'A' * 43}", json=ASKED)
    assert code_of(answer) == (401, "unauthenticated")
    bad = gateway.post("/generate", content=b"{bad", headers={"Content-Type": "application/json"})
    assert bad.status_code == 401, "a stranger's body is not looked at"


def test_a_loopback_gateway_is_open_until_there_is_a_key_and_any_other_never_is(
    open_gateway: Open, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, everywhere = open_gateway(host="127.0.0.1"), open_gateway(host="0.0.0.0")
    told_otherwise = open_gateway(host="0.0.0.0", auth="off")
    assert [gateway.get("/models").status_code for gateway in (here, everywhere, told_otherwise)] == [200, 401, 200]
    token = make_key()
    wait_until(lambda: here.get("/models").status_code == 401, seconds=5, what="the first key is noticed")
    assert here.get("/models", headers=bearer(token)).status_code == 200
    assert told_otherwise.get("/models").status_code == 200
    assert told_otherwise.get("/models", headers=bearer("wrong")).status_code == 401


def test_a_scope_allows_what_it_says(open_gateway: Open, make_key: Callable[..., str]) -> None:
    gateway = open_gateway(auth="required")
    submit, read = bearer(make_key("submit")), bearer(make_key("read"))
    job_id = gateway.post("/generate", json=ASKED, headers=submit).json()["id"]
    assert code_of(gateway.post("/generate", json=ASKED, headers=read)) == (403, "forbidden")
    assert code_of(gateway.delete(f"/jobs/{job_id}", headers=read)) == (403, "forbidden")
    assert code_of(gateway.get(f"/jobs/{job_id}", headers=submit)) == (403, "forbidden")
    assert gateway.get("/models", headers=read).status_code == 200


def test_a_job_is_its_owners_alone(
    open_gateway: Open,
    make_key: Callable[..., str],
    worker_store: WorkerStore,
    store_settings: StoreSettings,
    card: ModelCard,
    raw: redis.Redis,
) -> None:
    gateway = open_gateway(auth="required")
    owner, stranger, admin = bearer(make_key()), bearer(make_key()), bearer(make_key("admin"))
    post = {**owner, "Idempotency-Key": "once"}
    job_id = gateway.post("/generate", json=ASKED, headers=post).json()["id"]
    claim = worker_store.claim("fashion", "w", held=0)
    assert isinstance(claim, Claim)
    assert worker_store.finish(claim, Finished(pictures=(b"png",), reproducible=True, digests=(card.drawn_by,)))
    paths = [f"/jobs/{job_id}", f"/jobs/{job_id}/images/0.png", f"/jobs/{job_id}/events"]

    for path in paths:
        assert gateway.get(path, headers=owner).status_code == 200
        assert gateway.get(path, headers=admin).status_code == 200
        asked = {**stranger, "X-Request-Id": "same"}
        theirs, nobodys = (gateway.get(path.replace(job_id, id_), headers=asked) for id_ in (job_id, "A" * 22))
        assert (theirs.status_code, nobodys.status_code) == (404, 404)
        assert theirs.text.replace(job_id, "") == nobodys.text.replace("A" * 22, ""), (
            "the answers differ in the id alone"
        )
    assert code_of(gateway.delete(f"/jobs/{job_id}", headers=stranger)) == (404, "job_not_found")

    same_key = gateway.post("/generate", json=ASKED, headers={**stranger, "Idempotency-Key": "once"}).json()
    assert same_key["id"] != job_id
    assert same_key["cached"] is False, "what one had drawn is not told to another, not even by its speed"
    assert gateway.post("/generate", json=ASKED, headers=post).json()["id"] == job_id
    assert gateway.post("/generate", json=ASKED, headers=owner).json()["cached"] is True

    raw.delete(f"{store_settings.key_prefix}:job:{job_id}")
    assert [gateway.get(paths[0], headers=who).status_code for who in (owner, admin, stranger)] == [410, 410, 404]


def test_keys_are_listed_without_secrets(
    make_key: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_key()
    key_id, secret = token.split("_", 2)[1:]
    keys(["list"])
    shown = capsys.readouterr().out
    assert key_id in shown
    assert "valid" in shown
    assert secret not in shown
    keys(["revoke", key_id])
    keys(["list"])
    assert "revoked" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"No key '0000000000000000'\."):
        keys(["rotate", "0" * 16])
    with pytest.raises(SystemExit):
        keys(["create", "--name", "x", "--scopes", "root"])
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SystemExit, match="does not answer"):
        keys(["list"])


def test_the_embedded_store_is_asked_without_another_stores_password(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / URL_FILE).write_text(valkey_url)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "of another store, and not there"))
    monkeypatch.setenv("REDIS_CA_FILE", "/of/another/store")
    keys(["list", "--data", str(tmp_path)])
    assert capsys.readouterr().err == ""

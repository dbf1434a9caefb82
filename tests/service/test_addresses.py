"""Where an answer's links lead: through proxies, past clients who lie, and for browsers without a key."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.commands.keys import main as keys
from cynosure.contract import ModelCard
from harness.processes import wait_until
from jobs.accounts import api_keys
from jobs.queue.record import Claim, Finished
from jobs.queue.worker import WorkerStore
from tests.conftest import bearer

Open = Callable[..., TestClient]
ASKED = {"class_label": 1, "steps": 4}
FORWARDED = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example, img.example.org",  # the proxy's own value comes last
    "X-Forwarded-Prefix": "/draw",
}
PUBLIC = "https://img.example.org/draw"


@pytest.mark.parametrize(
    ("settings", "told", "root"),
    [
        ({"peer": "10.0.0.9"}, FORWARDED, ""),
        ({"peer": "10.0.0.9", "trusted_proxies": ("10.0.0.0/8",)}, FORWARDED, PUBLIC),
        ({"peer": "127.0.0.1"}, FORWARDED, PUBLIC),
        ({"peer": "127.0.0.1", "trusted_proxies": ()}, FORWARDED, ""),
        ({"peer": "127.0.0.1"}, {"X-Forwarded-Prefix": "/draw/"}, "/draw"),
        ({"peer": "127.0.0.1", "public_url": PUBLIC}, {"X-Forwarded-Host": "evil.example"}, PUBLIC),
    ],
    ids=["a stranger", "a named proxy", "this machine", "nobody is trusted", "only a prefix", "the setting"],
)
def test_every_link_begins_with_the_public_address(
    open_gateway: Open, settings: dict[str, Any], told: dict[str, str], root: str
) -> None:
    gateway = open_gateway(auth="off", **settings)
    posted = gateway.post("/generate", json=ASKED, headers=told)
    path = f"/jobs/{posted.json()['id']}"
    assert posted.headers["Location"] == posted.json()["links"]["self"] == root + path
    assert gateway.get("/jobs", headers=told).json()["jobs"][0]["links"]["self"] == root + path
    batch = gateway.post("/batches", json=[ASKED], headers=told).json()
    assert batch["links"]["results"] == f"{root}/batches/{batch['id']}/results"
    problem = gateway.get("/nothing", headers=told).json()
    assert problem["type"] == f"{root}/docs/errors#not_found"
    assert gateway.get("/openapi.json", headers=told).json().get("servers", [{"url": ""}]) == [{"url": root}]
    redirected = gateway.get("/jobs/", headers=told, follow_redirects=False)
    assert redirected.headers["Location"] == f"{root}/jobs"
    if root:  # a proxy may leave the prefix in the path
        assert gateway.get(f"/draw{path}", headers=told).status_code == 200


@pytest.mark.parametrize(
    "told",
    [{"X-Forwarded-Host": "evil.example/x"}, {"X-Forwarded-Prefix": "//evil.example"}, {"X-Forwarded-Proto": "ftp"}],
    ids=lambda told: next(iter(told)),
)
def test_a_proxy_that_says_what_is_no_address_is_refused(open_gateway: Open, told: dict[str, str]) -> None:
    answer = open_gateway(auth="off", peer="127.0.0.1").get("/models", headers=told)
    assert (answer.status_code, answer.json()["field"]) == (422, *told)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_open_gateway_behind_a_proxy_knows_its_own_pages_and_no_others(open_gateway: Open) -> None:
    gateway = open_gateway(host="127.0.0.1", peer="127.0.0.1")

    def post(**headers: str) -> int:
        return gateway.post("/generate", json=ASKED, headers=headers).status_code

    assert post(**FORWARDED, Origin="https://img.example.org") == 202
    assert post(**FORWARDED, Origin="https://evil.example") == 403
    assert post(**{"Host": "evil.example", "X-Forwarded-Host": "localhost"}) == 403, "a page that rebinds its name"
    public = open_gateway(host="127.0.0.1", peer="127.0.0.1", public_url=PUBLIC)
    headers = {"Host": "img.example.org", "Origin": "https://img.example.org"}
    assert public.post("/generate", json=ASKED, headers=headers).status_code == 202


def finish(worker_store: WorkerStore, card: ModelCard) -> str:
    """Have the next job drawn; its id."""
    claim = None

    def claimed() -> bool:
        nonlocal claim
        claim = worker_store.claim("fashion", "w", held=0)
        return isinstance(claim, Claim)

    wait_until(claimed, what="a job")
    assert isinstance(claim, Claim)
    assert worker_store.finish(claim, Finished(pictures=(b"png",), reproducible=True, digests=(card.drawn_by,)))
    return claim.job_id


def test_a_signed_link_opens_its_picture_alone_for_a_while(
    open_gateway: Open,
    make_key: Callable[..., str],
    worker_store: WorkerStore,
    card: ModelCard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_keys, "_REMEMBERED_S", 0.0)
    gateway, token = open_gateway(auth="required"), make_key()
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "sneaker", "response_format": "url"}
        asking = pool.submit(gateway.post, "/v1/images/generations", json=body, headers=bearer(token))
        job_id = finish(worker_store, card)
    [theirs] = [picture["url"] for picture in asking.result().json()["data"]]
    links = gateway.post(f"/jobs/{job_id}/links", headers=bearer(token)).json()
    [url] = links["images"]
    for link in (theirs, url):
        answer = gateway.get(link)
        assert (answer.status_code, answer.content) == (200, b"png")
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"

    def refusal(address: str, **headers: str) -> tuple[int, str]:
        answer = gateway.get(address, headers=headers)
        return answer.status_code, answer.json()["code"]

    query = url.partition("?")[2]
    expires = query.partition("=")[2].partition("&")[0]
    for forged in (
        url[:-1] + ("A" if url[-1] != "A" else "B"),
        url.replace(expires, str(int(expires) + 1)),
        url.replace("0.png", "0.webp"),
        url.replace(job_id, "A" * 22),
        url.partition("&")[0],
    ):
        assert refusal(forged) == (403, "invalid_link")
    assert refusal(f"/jobs/{job_id}?{query}") == (401, "unauthenticated")
    stranger = make_key()
    assert gateway.post(f"/jobs/{job_id}/links", headers=bearer(stranger)).status_code == 404

    assert gateway.portal is not None
    signer, path = gateway.app_state["store"].links, f"/jobs/{job_id}/images/0.png"
    owner = token.split("_")[1]
    over, [signature] = gateway.portal.call(lambda: signer.sign(owner, [path], lifetime_s=-1))
    assert refusal(f"{path}?expires={over}&signature={signature}") == (403, "link_expired")
    keys(["revoke-links"])
    assert refusal(url) == (403, "invalid_link")
    [again] = gateway.post(f"/jobs/{job_id}/links", headers=bearer(token)).json()["images"]
    assert gateway.get(again).status_code == 200
    keys(["revoke", owner])
    assert refusal(again) == (403, "invalid_link")

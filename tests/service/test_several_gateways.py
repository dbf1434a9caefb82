"""Two gateways behind Caddy, as deploy/compose.tls.yml has them: any of them answers any request."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from httpx_sse import EventSource

from app.gateway.settings import GatewaySettings
from app.gateway.webhooks.signing import encoded_secret
from cynosure.programs import program
from harness.processes import Process, clean_environment, free_port, is_ready, wait_until
from tests.conftest import serving

ROOT = Path(__file__).resolve().parents[2]
CADDYFILE = (ROOT / "deploy/caddy/Caddyfile").read_text()
SERVED_BY = "X-Served-By"
PICTURE = {"class_label": 1, "steps": 2, "use_cache": False}


def caddyfile(upstreams: list[str]) -> str:
    """The Caddyfile with these gateways in place of a name that only Compose knows, and a header that tells of them."""
    text = CADDYFILE
    for old, new in (
        ("dynamic a gateway 8000 {\n\t\t\trefresh 2s\n\t\t}", f"to {' '.join(upstreams)}"),
        (
            "flush_interval -1",
            f"flush_interval -1\n\t\theader_down {SERVED_BY} {{http.reverse_proxy.upstream.hostport}}",
        ),
        ("admin off", "admin off\n\tskip_install_trust\n\tauto_https disable_redirects"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def caddy() -> str:
    return str(Path(sys.executable).with_name("caddy"))


@dataclass
class Deployment:
    """What stands behind the proxy; `gateways` are by their address, as the proxy knows it."""

    http: httpx.Client
    gateways: dict[str, Process]
    hook: str
    told: list[str]

    def served_by(self, answer: httpx.Response) -> str:
        return str(answer.headers[SERVED_BY])

    def get(self, path: str, *, by: str) -> httpx.Response:
        """The answer of this gateway; the other one is asked first if it is its turn."""
        for _ in range(2):
            answer = self.http.get(path).raise_for_status()
            if self.served_by(answer) == by:
                return answer
        raise AssertionError("the proxy does not take turns")


@pytest.fixture(scope="module")
def deployment(valkey_url: str, small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder, told = tmp_path_factory.mktemp("gateways"), list[str]()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.append(event["data"]["id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ExitStack() as running:
        hook = running.enter_context(serving(Receiver))
        ports, public = [free_port() for _ in range(2)], f"localhost:{free_port()}"
        environment = clean_environment(
            REDIS_URL=valkey_url,
            CYNOSURE_KEY_PREFIX=f"test-{uuid.uuid4().hex[:8]}",
            CYNOSURE_GATEWAY_PUBLIC_URL=f"https://{public}",
            CYNOSURE_GATEWAY_WEBHOOK_SECRET=encoded_secret(bytes(range(32))),
            CYNOSURE_OUTBOUND_SCHEMES='["http"]',
            CYNOSURE_OUTBOUND_PORTS=f"[{urlsplit(hook).port}]",
            CYNOSURE_OUTBOUND_ALLOWED_NETWORKS='["127.0.0.0/8"]',
        )
        (folder / "Caddyfile").write_text(caddyfile([f"127.0.0.1:{port}" for port in ports]))
        command = [caddy(), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
        own = {**os.environ, "CYNOSURE_DOMAIN": public, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        worker = Process("worker", program("workers", "--models", str(small_pack)), environment, folder)
        gateways = {
            f"127.0.0.1:{port}": Process(f"gateway-{port}", program("app", "--port", str(port)), environment, folder)
            for port in ports
        }
        for process in (worker, *gateways.values(), Process("caddy", command, own, folder)):
            process.start()
            running.callback(process.kill)
        for address in gateways:
            wait_until(lambda address=address: is_ready(f"http://{address}"), what="it is ready")  # type: ignore[misc]
        root = folder / "caddy/pki/authorities/local/root.crt"
        wait_until(root.exists, what="the proxy has its certificate")
        context = ssl.create_default_context(cafile=str(root))
        http = running.enter_context(httpx.Client(base_url=f"https://{public}", verify=context, timeout=60))
        wait_until(lambda: answers(http), what="the proxy answers")
        yield Deployment(http, gateways, f"{hook}/hook", told)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def submitted(deployment: Deployment, **asked: Any) -> tuple[dict[str, Any], str]:
    """An accepted job, and the gateway that accepted it."""
    answer = deployment.http.post("/generate", json=PICTURE | asked)
    assert answer.status_code == 202, answer.text
    return answer.json(), deployment.served_by(answer)


def other_than(deployment: Deployment, gateway: str) -> str:
    [other] = deployment.gateways.keys() - {gateway}
    return other


def test_a_job_is_seen_and_its_picture_fetched_through_the_other_gateway(deployment: Deployment) -> None:
    job, first = submitted(deployment)
    second, path = other_than(deployment, first), f"/jobs/{job['id']}"
    wait_until(lambda: deployment.get(path, by=second).json()["status"] == "succeeded", what="it is drawn")
    [picture] = deployment.get(path, by=second).json()["images"]
    assert picture["url"] == f"{deployment.http.base_url}{path}/images/0.png"
    images = [deployment.get(f"{path}/images/0.png", by=gateway).content for gateway in (first, second)]
    assert images[0] == images[1]
    assert images[0].startswith(b"\x89PNG")


def test_a_stream_that_was_cut_off_goes_on_at_the_other_gateway(deployment: Deployment) -> None:
    job, _ = submitted(deployment, steps=200, preview_every=20)

    def events(stop: Callable[[str, dict[str, Any]], bool], **headers: str) -> tuple[str, list[tuple[str, int]], str]:
        """The gateway, ids and progress of the events up to the one at which to stop, and that one's name."""
        seen: list[tuple[str, int]] = []
        with deployment.http.stream("GET", f"/jobs/{job['id']}/events", headers=headers) as answer:
            for event in EventSource(answer).iter_sse():
                data = json.loads(event.data)
                if event.event == "progress":
                    seen.append((event.id, data["evaluations_done"]))
                if stop(event.event, data):
                    return deployment.served_by(answer), seen, event.event
        raise AssertionError("the stream ended too early")

    first, before, _ = events(lambda name, data: name == "progress" and data["evaluations_done"] >= 20)
    deployment.get("/healthz", by=first)  # so that it is the other one's turn
    second, after, last = events(lambda name, data: name == "done", **{"Last-Event-ID": before[-1][0]})
    assert second == other_than(deployment, first)
    assert last == "done"
    done = [evaluations for _, evaluations in before + after]
    assert done == sorted(set(done)), "none is told twice"
    assert after[-1][1] == 200


def test_a_webhook_is_told_once(deployment: Deployment) -> None:
    jobs = [submitted(deployment, webhook_url=deployment.hook)[0]["id"] for _ in range(8)]

    def are_delivered() -> bool:
        states = [deployment.http.get(f"/jobs/{job}/webhook").json().get("status") for job in jobs]
        return states == ["delivered"] * len(jobs)

    wait_until(are_delivered, what="all are delivered")
    assert sorted(job for job in deployment.told if job in jobs) == sorted(jobs)


def test_a_batch_goes_on_when_the_gateway_that_accepted_it_dies(deployment: Deployment) -> None:
    lines = "\n".join(json.dumps({**PICTURE, "seed": seed}) for seed in range(300))  # more than are jobs at a time
    headers = {"Content-Type": "application/x-ndjson"}
    answer = deployment.http.post("/batches", content=lines, headers=headers)
    batch, first = answer.json()["id"], deployment.served_by(answer)
    deployment.gateways[first].kill()

    def counts() -> dict[str, int]:
        answer = deployment.http.get(f"/batches/{batch}")
        assert deployment.served_by(answer) != first
        found: dict[str, int] = answer.raise_for_status().json()["counts"]
        return found

    try:
        wait_until(lambda: counts()["succeeded"] == 300, what="all of it is drawn")
        results = deployment.http.get(f"/batches/{batch}/results").text.splitlines()
        assert len({json.loads(line)["job_id"] for line in results}) == 300
    finally:
        deployment.gateways[first].start()
        http = deployment.http
        wait_until(lambda: deployment.served_by(http.get("/healthz")) == first, what="the proxy has it back")


def test_the_proxy_lets_through_what_gateways_take() -> None:
    [limit] = [line.split()[1] for line in CADDYFILE.splitlines() if "max_size" in line]
    assert int(limit.removesuffix("MB")) * 1_000_000 >= GatewaySettings.model_fields["max_batch_bytes"].default


def test_compose_has_the_proxy_where_the_gateways_are() -> None:
    class Loader(yaml.SafeLoader):
        """Knows Compose's tag for what an override file takes out."""

    Loader.add_constructor("!reset", lambda loader, node: None)
    base, over = (
        yaml.load((ROOT / name).read_text(), Loader)["services"]
        for name in ("docker-compose.yml", "deploy/compose.tls.yml")
    )
    assert over["gateway"]["ports"] is None, "two could not publish one port"
    assert set(over["caddy"]["networks"]) <= set(base["gateway"]["networks"])
    command = [caddy(), "adapt", "--config", str(ROOT / "deploy/caddy/Caddyfile")]
    adapted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"dynamic_upstreams":{"name":"gateway","port":"8000"' in adapted
    assert '"--port", "8000"' in (ROOT / "Dockerfile").read_text()
    assert "./deploy/caddy:/etc/caddy:ro" in over["caddy"]["volumes"], "as seen from the first file's folder"

"""What a browser is told, and what a page of another site can do: nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from cynosure.errors import CynosureError
from jobs.queue.gateway import JobStore

Open = Callable[..., TestClient]
STRICT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
ASKED = {"class_label": 1, "steps": 4}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models", 200),
        ("GET", "/healthz", 200),
        ("GET", "/jobs/unknown", 404),
        ("GET", "/nothing/here", 404),
        ("PUT", "/generate", 405),
        ("POST", "/generate", 400),
    ],
)
def test_every_answer_forbids_what_a_browser_might_make_of_it(
    open_gateway: Open, method: str, path: str, status: int
) -> None:
    answer = open_gateway(auth="off").request(method, path, content=b"{")
    assert answer.status_code == status
    assert answer.headers["Content-Security-Policy"] == STRICT
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    refused = open_gateway(auth="required").get("/models")
    assert refused.status_code == 401
    assert refused.headers["Content-Security-Policy"] == STRICT


def test_an_answer_to_a_fault_of_our_own_forbids_as_much(open_gateway: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, named = open_gateway(auth="off"), {"X-Request-Id": "same"}
    wanted = dict(gateway.get("/jobs/unknown", headers=named).headers)

    async def failing(*arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(JobStore, "look", failing)
    answer = gateway.get("/jobs/unknown", headers=named)
    assert answer.status_code == 500
    assert {**answer.headers, "content-length": ""} == {**wanted, "content-length": ""}


def test_the_apis_page_runs_its_own_script_and_needs_no_other_host(open_gateway: Open) -> None:
    gateway = open_gateway(auth="required")
    page = gateway.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    [script] = re.findall(r"<script>(.*?)</script>", page.text, flags=re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert scripts is not None
    assert "unsafe" not in scripts.group(1)
    assert "://" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert loaded == ["docs/swagger-ui.css", "favicon.ico", "docs/swagger-ui-bundle.js"]
    sheet, bundle = gateway.get("/docs/swagger-ui.css"), gateway.get("/docs/swagger-ui-bundle.js")
    assert (sheet.headers["Content-Type"].split(";")[0], sheet.status_code) == ("text/css", 200)
    assert bundle.headers["Content-Type"].split(";")[0] in ("text/javascript", "application/javascript")
    assert b"SwaggerUIBundle" in bundle.content
    assert gateway.get("/docs/../../secret").status_code in (401, 404)
    assert gateway.get("/docs/redoc.standalone.js").status_code in (401, 404)
    assert "frame-ancestors 'none'" in policy


def test_the_page_of_errors_has_every_code_and_nothing_to_load(open_gateway: Open) -> None:
    page = open_gateway(auth="required").get("/docs/errors")
    [style] = re.findall(r"<style>(.*?)</style>", page.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert page.headers["Content-Security-Policy"] == STRICT.replace(";", f"; style-src 'sha256-{digest}';", 1)
    assert not re.findall(r"""(?:src=|<script|<link|style=|url\()""", page.text)
    anchors = set(re.findall(r'<h3 id="(\w+)">', page.text))
    assert {*(kind.code for kind in _tree(CynosureError)), "not_found", "method_not_allowed", "http_error"} <= anchors
    assert "<table>" in page.text


def _tree(root: type[CynosureError]) -> set[type[CynosureError]]:
    return {root}.union(*(_tree(child) for child in root.__subclasses__()))


def test_another_origin_is_told_nothing_unless_it_is_named(open_gateway: Open) -> None:
    asking = {"Origin": "https://studio.example.org", "Access-Control-Request-Method": "POST"}
    closed, opened = open_gateway(auth="off"), open_gateway(auth="off", cors_origins=("https://studio.example.org",))
    assert "Access-Control-Allow-Origin" not in closed.get("/models", headers=asking).headers
    assert closed.options("/generate", headers=asking).status_code == 405
    preflight = opened.options(
        "/generate", headers={**asking, "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    )
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://studio.example.org"
    assert "Access-Control-Allow-Credentials" not in preflight.headers
    other = opened.options("/generate", headers={**asking, "Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    told = opened.get("/models", headers={"Origin": "https://studio.example.org"}).headers
    assert "RateLimit" in told["Access-Control-Expose-Headers"]


def test_pages_in_this_machines_browser_do_not_reach_an_open_gateway(open_gateway: Open) -> None:
    """DNS rebinding shows in the Host header, a form sent from another site in the Origin header."""
    gateway = open_gateway(host="127.0.0.1", allowed_hosts=("box.lan", "[fd00::1]"))

    def post(**headers: str) -> int:
        return gateway.post("/generate", json=ASKED, headers=headers).status_code

    assert post(Host="127.0.0.1:8000") == post(Host="localhost:8000") == post(Host="[::1]:8000") == 202
    assert post(Host="127.0.0.2:8000") == post(Host="box.lan") == post(Host="[fd00::1]:8000") == 202
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[fd00::2]:8000", "[", ""):
        assert post(Host=host) == 403
    assert post(Host="localhost:8000", Origin="http://localhost:8000") == 202
    for origin in ("https://evil.example", "null", "http://localhost:3000"):
        assert post(Host="localhost:8000", Origin=origin) == 403


def test_json_must_be_called_so(open_gateway: Open) -> None:
    """A form can send text/plain to another site without asking; JSON it can't."""
    answer = open_gateway(auth="off").post(
        "/generate", content=b'{"class_label": 1, "steps": 4}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400

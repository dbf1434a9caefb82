"""Bodies that are too large in bytes or in parts, and names that are too long to repeat."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.gateway.batches.body import MAX_NESTING, Nesting
from cynosure.errors import MalformedBody

Open = Callable[..., TestClient]
JSON = {"Content-Type": "application/json"}


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((28, 28), 50).convert("RGBA").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()


def answered(url: str, request: bytes) -> bytes:
    """The first bytes that a server answers."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as client:
        client.sendall(request)
        return client.recv(4096)


@pytest.mark.parametrize("endless", [b"X: %s", b"X: 1\r\n\r\n0\r\nTrailer: %s"], ids=["a header", "a trailer"])
def test_a_head_that_does_not_end_is_refused(server_url: str, endless: bytes) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
    assert answered(server_url, head + endless % (b"a" * 300_000)).startswith(b"HTTP/1.1 400")


def test_a_body_with_an_offer_to_upgrade_is_read(server_url: str) -> None:
    """Java's client offers HTTP/2 so with its first request, whatever that is."""
    body = b'{"class_label": 1, "steps": 2}'
    head = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    assert answered(server_url, head % len(body) + offer + body).startswith(b"HTTP/1.1 202")


def in_pieces(body: bytes) -> Iterator[bytes]:
    """Without an announced length."""
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1001,
        b'{"a":' * 1001,
        b"{" + b",".join(b'"k%d":1' % n for n in range(1001)) + b"}",
        b'"' + b"a" * 5000 + b'"',
    ],
    ids=["deep", "deep objects", "many fields", "long"],
)
def test_a_body_of_too_many_bytes_or_parts_is_refused_as_it_arrives(open_gateway: Open, body: bytes) -> None:
    gateway = open_gateway(auth="off", max_json_parts=1000, max_body_bytes=20_000 if b"a" * 9 not in body else 4000)
    for path in ("/generate", "/sweeps", "/plan", "/v1/images/generations"):
        answer = gateway.post(path, content=in_pieces(body), headers=JSON)
        assert answer.status_code == 413
        assert "body_too_large" in answer.text


LINE = json.dumps({"class_label": 1}).encode()
GZIP = gzip.compress(LINE)
ENCODED = ["plain", "two-parts", "deflate", "identity", "cut-short", "no-gzip", "goes-on", "bomb", "br", "twice"]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("gzip", GZIP, 202, ""),
        ("x-gzip", gzip.compress(LINE[:7]) + gzip.compress(LINE[7:]), 202, ""),
        ("deflate", zlib.compress(LINE), 202, ""),
        ("identity", LINE, 202, ""),
        ("gzip", GZIP[:-3], 400, "cut short"),
        ("gzip", LINE, 400, "is not gzip"),
        ("deflate", zlib.compress(LINE) + b"more", 400, "goes on"),
        ("gzip", gzip.compress(b" " * 10_000_000), 413, "larger than"),
        ("br", LINE, 415, "gzip, deflate"),
        ("gzip, gzip", gzip.compress(GZIP), 415, "gzip, deflate"),
    ],
    ids=ENCODED,
)
@pytest.mark.parametrize("path", ["/generate", "/batches"])
def test_a_compressed_body_is_taken_within_the_limits_of_what_it_holds(
    open_gateway: Open, path: str, encoding: str, body: bytes, status: int, said: str
) -> None:
    gateway = open_gateway(auth="off", max_body_bytes=100_000, max_batch_bytes=100_000)
    for content in (body, in_pieces(body)):
        answer = gateway.post(path, content=content, headers={**JSON, "Content-Encoding": encoding})
        assert answer.status_code == status, answer.text
        assert said in answer.json().get("detail", "")
        assert answer.headers.get("Accept-Encoding") == ("gzip, deflate" if status == 415 else None)


@pytest.mark.parametrize("is_array", [False, True], ids=["lines", "array"])
def test_a_line_of_a_batch_has_so_many_parts_and_no_more(open_gateway: Open, is_array: bool) -> None:
    gateway = open_gateway(auth="off", max_json_parts=100)
    small = {"class_label": 1, "guidance_interval": [0.2, 1]}

    def post(*values: object) -> httpx.Response:
        texts = [json.dumps(value).encode() for value in values]
        body = b"[" + b",".join(texts) + b"]" if is_array else b"\n".join(texts)
        return gateway.post("/batches", content=in_pieces(body), headers=JSON)

    assert post(*[small] * 100).status_code == 202, "together they may have more"
    answer = post(small, {f"k{number}": number for number in range(101)}, small)
    assert (answer.status_code, answer.json()["line"]) == (413, 2)
    assert post(small, {"class_label": [[0, 1] * 99]}).json()["line"] == 2


def test_json_in_a_form_has_so_many_parts_and_no_more_and_may_not_end_its_parser(open_gateway: Open) -> None:
    gateway = open_gateway(auth="off", max_json_parts=50_000)

    def code(**fields: str) -> tuple[int, str]:
        files = {"image": ("image.png", PICTURE)}
        answer = gateway.post("/v1/images/edits", data={"prompt": "sneaker", **fields}, files=files)
        return answer.status_code, answer.json()["error"]["code"]

    half = "[0" + ",0" * 30_000 + "]"
    assert code(classifier_condition="[" * 49_000) == (400, "malformed_body")
    assert code(classifier_condition="[" * 50_001) == (413, "body_too_large")
    assert code(classifier_condition=half, guidance_interval=half) == (413, "body_too_large")
    assert code(class_label="9" * 5000) == (400, "invalid_request")


def test_a_mask_that_is_cut_short_is_the_mask_at_fault(open_gateway: Open) -> None:
    files = {"image": ("image.png", PICTURE), "mask": ("mask.png", PICTURE[:-200])}
    answer = open_gateway(auth="off").post("/v1/images/edits", data={"prompt": "sneaker"}, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mask"), answer.text


def test_what_a_client_sent_is_repeated_in_part_alone(open_gateway: Open) -> None:
    gateway = open_gateway(auth="off")
    long = "k" * 1_000_000
    for body in ({long: 1}, {"class_label": 1, "sampler": "s" * 100}, {"model": "m" * 200}, {"steps": {long: [long]}}):
        answer = gateway.post("/generate", json=body)
        assert answer.status_code == 422
        assert len(answer.content) < 10_000
    many = gateway.post("/generate", json={f"k{number}": number for number in range(10_000)})
    assert many.status_code == 422
    assert len(many.content) < 20_000


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"\\ud800": 1}', 400), (b'{"class_label": "\\ud800"}', 422), (b'{"model": "\\udfff"}', 422)],
    ids=["name", "label", "text"],
)
def test_half_a_surrogate_pair_is_refused(open_gateway: Open, body: bytes, status: int) -> None:
    gateway = open_gateway(auth="off")
    for path, expected in (("/generate", status), ("/batches", 422), ("/v1/images/generations", 400)):
        answer = gateway.post(path, content=body, headers=JSON)
        assert answer.status_code == expected
        assert answer.json()


def test_a_range_of_thousands_of_digits_is_no_range(open_gateway: Open) -> None:
    gateway = open_gateway(auth="off")
    job_id = gateway.post("/generate", json={"class_label": 1, "steps": 4}).json()["id"]
    for header in ("bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 5000):
        assert gateway.get(f"/jobs/{job_id}/images/0.png", headers={"Range": header}).status_code == 404
    assert gateway.get("/jobs", params={"cursor": "9" * 5000}).status_code == 422


@pytest.mark.parametrize(
    ("opening", "status"),
    [(b"[", 400), (b'[{"a":', 400), (b'{"a":', 413)],
    ids=["lists", "objects in a list", "objects"],
)
def test_a_batch_that_is_nested_too_deep_is_refused_and_ends_nobody(
    open_gateway: Open, opening: bytes, status: int
) -> None:
    gateway = open_gateway(auth="off")
    answer = gateway.post("/batches", content=in_pieces(opening + b'{"a":[' * 100_000), headers=JSON)
    assert answer.status_code == status
    deep = gateway.post("/generate", content=b"[" * 49_000, headers=JSON)
    assert deep.status_code == 400


@given(
    st.recursive(
        st.text(st.sampled_from('"\\[]{}a')), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_nesting_is_counted_over_any_pieces(value: object, sizes: list[int]) -> None:
    def depth(part: object) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    def counted(extra: int) -> None:
        text = json.dumps([value]).encode()
        text = b"[" * extra + text + b"]" * extra
        nesting, start = Nesting(max_parts=len(text)), 0
        for size in itertools.cycle(sizes):
            nesting.feed(text[start : start + size])
            start += size
            if start >= len(text):
                return

    room = MAX_NESTING - depth([value])
    counted(room)
    with pytest.raises(MalformedBody):
        counted(room + 1)

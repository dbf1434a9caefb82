"""Hostile requests: wrong types, sizes, Unicode, decompression bombs, wrong keys, other owners' ids."""

from __future__ import annotations

import json
import socket
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from chaos.bombs import BOMBS, bomb

POSTS = (
    "/generate",
    "/sweeps",
    "/plan",
    "/batches",
    "/v1/images/generations",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
)
MANY = 200_000


@dataclass
class Tally:
    """The result of an attack; `faults` should stay empty."""

    sent: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attack:
    """One request. With `may_pass`, an answer of 2xx is no fault."""

    method: str
    path: str
    headers: dict[str, bytes] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    may_pass: bool = True


bombs = st.sampled_from(BOMBS).map(bomb)
texts = st.one_of(
    st.text(st.characters(codec=None), max_size=60),  # including lone surrogates
    st.sampled_from(
        ["\0", "\ud800", "\u202e\u0000", "𝕏" * 300, "a" * 100_000, "../../etc/passwd", "{{7*7}}", "' OR 1=1--"]
    ),
    bombs,
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, 5e-324, float("nan"), -0.0])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
# fmt: off
FIELDS = (
    "model", "class_label", "prompt", "negative_prompt", "guidance_mode", "guidance_scale", "scale",
    "long_prompt", "prompt_syntax", "clip_skip",
    "classifier_scale", "classifier_base", "classifier_condition", "guidance_interval", "guidance_interval_unit",
    "guidance_rescale", "guidance_rule", "guide_model", "sampler", "steps", "num_inference_steps", "eta", "seed",
    "num_images", "first_image", "width", "height", "original_size", "crops_coords_top_left", "target_size",
    "negative_original_size", "negative_crops_coords_top_left", "negative_target_size",
    "init_image", "strength", "mask_image", "from_image",
    "profile", "clip", "dynamic_threshold", "timestep_spacing", "sigma_schedule", "timestep_respacing",
    "use_cache", "preview_every", "priority", "telemetry", "output_format", "webhook_url", "n", "size", "quality",
    "response_format", "stream", "partial_images", "user", "request", "class_labels", "prompts", "guidance_scales",
    "seeds", "init_images", "mask", "override_settings", "sampler_name", "scheduler", "cfg_scale", "n_iter",
    "alwayson_scripts", "custom_id", "extra_body", "__proto__", "__class__",
)
# fmt: on
few_fields = st.lists(st.tuples(st.sampled_from(FIELDS), values), min_size=1, max_size=4).map(
    lambda odd: {"class_label": 1, "steps": 2, **dict(odd)}
)
pictures = st.tuples(st.sampled_from(("init_image", "mask_image", "from_image", "image")), bombs).map(
    lambda odd: {"class_label": 1, "steps": 2, "strength": 0.5, odd[0]: odd[1]}
)
raw = st.one_of(
    st.binary(max_size=300),
    st.sampled_from(
        [
            b"[" * MANY,
            b'{"a":' * MANY,
            b'{"classifier_condition":' * 900 + b"1" + b"}" * 900,
            b'{"seed": ' + b"9" * 100_000 + b"}",
            b'{"steps": 1e999999}',
            b'{"steps": 2, "steps": -1, "class_label": 1}',
            b"{" + b",".join(b'"k%d":1' % n for n in range(30_000)) + b"}",
            b'{"' + b"k" * 1_000_000 + b'": 1}',
            b'{"class_label": "' + b"\\ud800" * 30 + b'"}',
            b'{"\\ud800": 1}',
            b'{"class_label": "\xff\xfe"}',
            '{"class_label": 1}'.encode("utf-16"),
            b"\xef\xbb\xbf{}",
            b"null",
            b'"text"',
            b"NaN",
            b"{}" * 50_000,
            b"\n" * 50_000,
        ]
    ),
)
kinds = st.sampled_from(
    (b"application/json", b"application/json", b"application/x-ndjson", b"text/plain", b"multipart/form-data", b"a/b")
)
odd_headers = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "Prefer",
                "Range",
                "Last-Event-ID",
                "Idempotency-Key",
                "Accept",
                "If-None-Match",
                "X-Forwarded-For",
                "X-Request-Id",
                "Origin",
            )
        ),
        st.one_of(
            st.binary(max_size=40).map(lambda text: bytes(byte for byte in text if byte > 31 and byte != 127)),
            st.sampled_from(
                (b"wait=99999999999999999999999", b"wait=" + b"9" * 5000, b"bytes=" + b"9" * 5000 + b"-", b"bytes=9-1")
            ),
            st.sampled_from(
                (b"bytes=0-0,5-6", b"x" * 3000, b"9" * 30 + b"-0", b"*/*;q=nan", b"image/png;q=" + b"9" * 99)
            ),
        ),
    ),
    max_size=2,
).map(dict)


def _paths(known: list[str]) -> st.SearchStrategy[str]:
    ids = st.one_of(
        st.sampled_from([*known, "..%2f..%2fetc%2fpasswd", "%00", "*", "A" * 22, "a" * 5000, "%ff%fe", "job:1"]),
        texts.map(lambda text: quote(text.encode("utf-8", "replace")[:500], safe="")),
    )
    tails = ("", "/events", "/sheet.png", "/images/0.png", "/images/-1.png", "/images/" + "9" * 400 + ".png")
    others = (
        "/images/0.exe",
        "/images/0.png?quality=-5",
        "/retry",
        "/vary",
        "/results",
        "/images.zip",
        "/%2e%2e/models",
    )
    return st.one_of(
        st.tuples(
            st.sampled_from(("/jobs/", "/batches/", "/models/", "/v1/models/")), ids, st.sampled_from(tails + others)
        ).map("".join),
        st.sampled_from(
            ("/jobs?limit=-1", "/jobs?limit=99999", "/jobs?cursor=%00%ff", "/jobs?status=x", "//", "/jobs//")
        ),
        st.sampled_from(("/metrics", "/.env", "/docs/../jobs", "/openapi.json?x=" + "y" * 9000)),
    )


def _tokens(token: str) -> st.SearchStrategy[bytes]:
    key_id = token.split("_")[1]
    wrong = (
        token[:-1],
        token + "A",
        f"cyn_{key_id}_{'A' * 43}",
        f"cyn_{'0' * 16}_{'A' * 43}",
        token.upper(),
        "",
        "cyn_",
    )
    schemes = ("Bearer ", "bearer  ", "Basic ", "Token ", "")
    return st.one_of(
        st.tuples(st.sampled_from(schemes), st.sampled_from(wrong)).map(lambda pair: "".join(pair).encode()),
        st.just(b"Basic " + token.encode()),
        st.just(b"Bearer " + b"A" * 20_000),
        st.binary(max_size=60).map(lambda text: bytes(byte for byte in text if byte > 32 and byte != 127)),
    )


def attacks(token: str, known: list[str], strangers: list[str]) -> st.SearchStrategy[Attack]:
    """All kinds of attack, by the owner of `token` and of the jobs `known`, including on others' jobs, `strangers`."""
    own = {"Authorization": b"Bearer " + token.encode()}

    def posted(path: str, body: bytes, kind: bytes, headers: dict[str, bytes]) -> Attack:
        return Attack("POST", path, {**own, "Content-Type": kind, **headers}, body)

    def written(body: Any) -> bytes:
        return json.dumps(body).encode()

    posts = st.sampled_from(POSTS)
    json_kind = st.just(b"application/json")
    with_fields = st.builds(posted, posts, few_fields.map(written), json_kind, odd_headers)
    with_anything = st.builds(posted, posts, values.map(written), json_kind, odd_headers)
    with_pictures = st.builds(posted, posts, pictures.map(written), json_kind, st.just({}))
    with_bytes = st.builds(posted, posts, raw, kinds, odd_headers)
    methods = st.sampled_from(("GET", "GET", "DELETE", "POST", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"))
    at_paths = st.builds(
        lambda method, path, headers: Attack(method, path, {**own, **headers}), methods, _paths(known), odd_headers
    )
    on_others = st.builds(
        lambda method, path: Attack(method, path, own, may_pass=False),
        st.sampled_from(("GET", "DELETE", "POST")),
        st.tuples(
            st.just("/jobs/"),
            st.sampled_from(strangers),
            st.sampled_from(("", "/images/0.png", "/events", "/retry", "/vary")),
        ).map("".join),
    )
    unknown = st.builds(
        lambda path, bad, method: Attack(method, path, {"Authorization": bad} if bad else {}, b"{}", may_pass=False),
        st.one_of(posts, st.sampled_from([f"/jobs/{job_id}" for job_id in known]), st.just(f"/models?api_key={token}")),
        _tokens(token),
        st.sampled_from(("GET", "POST", "DELETE")),
    )
    return st.one_of(with_fields, with_fields, with_anything, with_pictures, with_bytes, at_paths, on_others, unknown)


BROKEN = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /jobs HTTP/1.1\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nBad Header\r\n\r\n",
    b"\0" * 1000,
)


def break_protocol(url: str, tally: Tally) -> None:
    """Send bytes that are not HTTP: the connection may be closed, but no 5xx except 505 may be answered."""
    address = urlsplit(url)
    for sent in BROKEN:
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(4096)
            except OSError:
                answer = b""
        tally.sent += 1
        if answer.startswith(b"HTTP/1.1 5") and not answer.startswith(b"HTTP/1.1 505"):
            tally.faults.append(f"{sent[:60]!r}: {answer[:60]!r}")


def attack(
    url: str,
    token: str,
    known: list[str],
    strangers: list[str],
    *,
    count: int,
    number: int,
    each: Callable[[int], None],
) -> Tally:
    """Send `count` attacks, generated from the seed `number`; calls `each` with the number sent so far.

    Accepted jobs are cancelled immediately. An answer of 5xx is a fault, and so is 2xx to a client without permission.
    A 500 with `job_failed` is no fault: it reports a failed job, such as one with NaN, to the client waiting for it.
    """
    tally = Tally()
    client = httpx.Client(base_url=url, timeout=60, trust_env=False)
    own = {"Authorization": f"Bearer {token}"}

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(attacks(token, known, strangers))
    def send_one(sent: Attack) -> None:
        tally.sent += 1
        each(tally.sent)
        try:
            headers = [(name.encode(), value) for name, value in sent.headers.items()]
            request = client.build_request(sent.method, sent.path, headers=headers, content=sent.body)
            answer = client.send(request, stream=True)
            text = b"" if "event-stream" in answer.headers.get("content-type", "") else answer.read()
            answer.close()
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError):
            return  # the client itself refuses to send it
        except httpx.TransportError as error:
            # A server may refuse a body and close the connection early, but it must still be up.
            if client.get("/healthz").status_code != 200:
                tally.faults.append(f"{sent.method} {sent.path[:80]}: {error!r}")
            return
        tally.answers[answer.status_code] += 1
        request_text = f"{sent.method} {sent.path[:80]} {sent.body[:200]!r} {list(sent.headers)}"
        exchange = f"{request_text}: {answer.status_code} {text[:200]!r}"
        if answer.status_code >= 500 and b"job_failed" not in text:
            tally.faults.append(exchange)
        if answer.is_success and not sent.may_pass:
            tally.faults.append(f"let in: {exchange}")
        if answer.status_code == 202 and (location := answer.headers.get("Location")):
            client.delete(location, headers=own)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # it warns about large examples, which are intended
        send_one()
    break_protocol(url, tally)
    client.close()
    return tally

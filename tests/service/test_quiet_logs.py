"""A gateway writes nothing of strangers' habits into its log."""

from __future__ import annotations

import logging
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from app.gateway.streams import NoticeHangUps
from cynosure.programs import program
from harness.processes import clean_environment, free_port, is_ready, wait_until
from jobs.settings import StoreSettings

PARTS = 200


def warnings_of_a_dropped_stream(caplog: pytest.LogCaptureFixture, *, noticing: bool) -> tuple[list[str], int]:
    """What is logged when a client breaks off before a burst of parts, and how many of them were still made."""
    is_gone, made = threading.Event(), 0

    async def parts(request: Request) -> StreamingResponse:
        async def burst() -> AsyncIterator[bytes]:
            nonlocal made
            yield b"first"
            is_gone.wait(30)  # the loop has no turn to see it go
            for _ in range(PARTS):
                made += 1
                yield b"x" * 1000

        return StreamingResponse(burst())

    app: ASGIApp = Starlette(routes=[Route("/", parts)])
    config = uvicorn.Config(
        NoticeHangUps(app) if noticing else app, port=free_port(), log_level="warning", loop="asyncio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    with caplog.at_level(logging.WARNING, "asyncio"):
        thread.start()
        wait_until(lambda: server.started, what="the server listens")
        with socket.create_connection(("127.0.0.1", config.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while b"first" not in received:
                received += client.recv(4096)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # to reset, as a crash does
        is_gone.set()
        wait_until(lambda: not server.server_state.tasks, what="the stream has ended")
        server.should_exit = True
        thread.join()
    return [record.getMessage() for record in caplog.records if record.name == "asyncio"], made


@pytest.mark.parametrize("noticing", [False, True])
def test_a_dropped_stream_is_written_to_no_more(caplog: pytest.LogCaptureFixture, noticing: bool) -> None:
    warnings, made = warnings_of_a_dropped_stream(caplog, noticing=noticing)
    if noticing:
        assert warnings == []
        assert made < 10
    else:
        assert made == PARTS, "without it the fault is there: else this test would show nothing"
        assert set(warnings) == {"socket.send() raised exception."}


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n",
    ],
    ids=["HTTP/2", "WebSocket"],
)
def test_an_offer_to_upgrade_is_passed_over_without_a_word(
    store_settings: StoreSettings, tmp_path: Path, offer: bytes
) -> None:
    port, log = free_port(), tmp_path / "log"
    environment = clean_environment(REDIS_URL=store_settings.redis_url, CYNOSURE_KEY_PREFIX=store_settings.key_prefix)
    with log.open("wb") as out:
        gateway = subprocess.Popen(program("app", "--port", str(port)), env=environment, stdout=out, stderr=out)
        try:
            wait_until(lambda: is_ready(f"http://127.0.0.1:{port}", "/healthz"), what="the gateway answers")
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + offer + b"\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
        finally:
            gateway.terminate()
            gateway.wait(30)
    said = [line.split(maxsplit=3)[3] for line in log.read_text().splitlines()]
    port_text = f"INFO the gateway listens on 127.0.0.1:{port}"
    assert said == [port_text, "INFO the gateway is stopping", "INFO the gateway has stopped"]

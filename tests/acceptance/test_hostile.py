"""Five hundred requests in bad faith: no fault of the server, no death, no growth, and nobody is let in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from chaos.hostile import attack
from cynosure.client import Client
from cynosure.contract import GenerateRequest
from tests.acceptance.test_survival import Up
from tests.conftest import clean_environment

COUNT = 500
ASKED = GenerateRequest(class_label=1, steps=4, seed=9, use_cache=False)


def key_of(data: Path, *options: str) -> str:
    command = [sys.executable, "-m", "app.keys", "create", "--data", str(data), "--name", "test", *options]
    made = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    return made.stdout.strip()


def resident_mb(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def test_no_request_breaks_the_server_or_gets_in(tmp_path: Path) -> None:
    up = Up(tmp_path, CYNOSURE_GATEWAY_AUTH="required", CYNOSURE_GATEWAY_MAX_WAIT_S="1")
    try:
        up.wait_ready()
        token, other = (key_of(tmp_path, "--requests-per-s", "0") for _ in range(2))
        processes = {module: up.child(module) for module in ("app", "workers")}
        warm: dict[str, float] = {}

        def watch(sent: int) -> None:
            if sent == COUNT // 2:
                warm.update({module: resident_mb(pid) for module, pid in processes.items()})

        with Client(up.url, api_key=other) as stranger, Client(up.url, api_key=token) as client:
            theirs = stranger.wait(stranger.submit(ASKED).id)
            before = client.generate(ASKED)
            mine = client.submit(ASKED)
            tally = attack(up.url, token, [mine.id], [theirs.id], count=COUNT, number=1, each=watch)
            assert tally.faults == []
            assert tally.sent > COUNT
            assert tally.answers[401] > 0
            assert tally.answers[404] > 0
            assert tally.answers[413] > 0
            assert tally.answers[422] > COUNT // 10
            assert client.generate(ASKED) == before
            assert stranger.job(theirs.id).status == "succeeded"
        assert processes == {module: up.child(module) for module in processes}, "none was started anew"
        grown = {module: resident_mb(pid) - warm[module] for module, pid in processes.items()}
        assert all(megabytes < 50 for megabytes in grown.values()), grown
        assert httpx.get(f"{up.url}/readyz").status_code == 200
    finally:
        if up.process.poll() is None:
            up.stop()

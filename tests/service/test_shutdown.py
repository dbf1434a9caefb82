"""A gateway that is stopped: nobody who waits is cut off."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx

from cynosure.contract import ModelCard
from cynosure.programs import program
from harness.processes import clean_environment, free_port, is_ready, wait_until
from jobs.fleet import FleetRegistry
from jobs.settings import StoreSettings


def test_who_waits_for_a_job_is_answered_before_the_gateway_stops(
    store_settings: StoreSettings, card: ModelCard, tmp_path: Path
) -> None:
    FleetRegistry(store_settings).publish("worker", [card])
    port, answers = free_port(), list[httpx.Response]()
    environment = clean_environment(REDIS_URL=store_settings.redis_url, CYNOSURE_KEY_PREFIX=store_settings.key_prefix)
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(program("app", "--port", str(port)), env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(url), seconds=60, what="the gateway is ready")

        def post() -> None:
            headers = {"Prefer": "wait=30"}
            answers.append(httpx.post(f"{url}/generate", json={"class_label": 1}, headers=headers, timeout=60))

        waiting = threading.Thread(target=post)
        waiting.start()
        time.sleep(1)  # no worker draws it
        assert waiting.is_alive()
        stopped = time.monotonic()
        gateway.send_signal(signal.SIGTERM)
        waiting.join(20)
        assert time.monotonic() - stopped < 8, "before the grace period of 10 s ends"
        assert [answer.status_code for answer in answers] == [202]
        gateway.wait(20)
    finally:
        gateway.kill()
        gateway.wait()

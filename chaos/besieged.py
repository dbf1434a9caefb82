"""Scenario 8: hostile requests while ordinary jobs run."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator

from chaos.books import Result
from chaos.hostile import attack
from chaos.house import PREFIX, House
from cynosure.client import Client
from cynosure.contract import GenerateRequest, Job
from harness.processes import wait_until
from jobs.accounts.api_keys import KeyRing, Scope
from jobs.settings import StoreSettings

GOOD = 20
MAX_GROWTH_MB = 64.0
MEASURED_S = 300.0
WEBHOOK_SECRET = base64.b64encode(bytes(range(32))).decode()
SETTINGS = {
    "CYNOSURE_GATEWAY_AUTH": "required",
    "CYNOSURE_GATEWAY_MAX_WAIT_S": "1",
    "CYNOSURE_GATEWAY_ACCESS_LOG": "true",
    "CYNOSURE_GATEWAY_WEBHOOK_SECRET": f"whsec_{WEBHOOK_SECRET}",
    "CYNOSURE_LOG_FORMAT": "json",
}


async def _tokens(settings: StoreSettings) -> tuple[str, str]:
    async with KeyRing.connect(settings) as ring:
        created = [await ring.create("besieged", (Scope.SUBMIT, Scope.READ), days=1) for _ in range(2)]
    return created[0][1], created[1][1]


def _warm_up(client: Client, requests: list[GenerateRequest]) -> None:
    # Measuring batches takes a worker some 200 MB, and on a busy machine it goes on for long after it is ready.
    wait_until(lambda: all(card.measured for card in client.models()), seconds=MEASURED_S, what="models are measured")
    for job in [client.submit(request) for request in requests]:
        client.wait(job.id)


def besieged(count: int, number: int, models: str = "fashion") -> Result:
    """Send `count` hostile requests, seeded by `number`.

    No 5xx, crash, memory growth or unauthorized success; no secret and no forged line in a log that has every request.
    """
    result = Result(name="8 hostile requests")
    with House(models=models, settings=SETTINGS) as house:
        settings = StoreSettings(redis_url=f"redis://127.0.0.1:{house.port}/0", key_prefix=PREFIX)
        token, other = asyncio.run(_tokens(settings))
        processes = {"gateway": house.gateways[0], "worker": house.workers[0], "store": house.store}
        pids = {name: process.pid for name, process in processes.items()}
        warm: dict[str, float] = {}

        def watch(sent: int) -> None:
            if sent == count // 4:
                warm.update({name: process.resident_mb for name, process in processes.items()})

        with Client(house.urls[0], api_key=token) as client, Client(house.urls[0], api_key=other) as stranger:
            good = [GenerateRequest(class_label=1, steps=5, seed=seed, use_cache=False) for seed in range(GOOD)]
            _warm_up(stranger, good)
            jobs = [stranger.submit(request) for request in good]
            own = client.submit(good[0])
            tally = attack(
                house.urls[0], token, [own.id], [job.id for job in jobs], count=count, number=number, each=watch
            )
            ended = [stranger.wait(job.id) for job in jobs]
            again = [stranger.wait(stranger.submit(request).id) for request in good]
        result.accepted = len(jobs)
        result.finished_once = sum(_hashes(job) == _hashes(repeat) for job, repeat in zip(ended, again, strict=True))
        result.lost = result.accepted - result.finished_once
        result.faults, result.answers = tally.faults, tally.answers
        grown = {name: process.resident_mb - warm[name] for name, process in processes.items()}
        result.faults += [f"{name} died" for name, process in processes.items() if not process.is_alive]
        result.faults += [f"{name} was restarted" for name, pid in pids.items() if processes[name].pid != pid]
        result.faults += [
            f"{name} grew by {grown[name]:.0f} MB" for name in ("gateway", "worker") if grown[name] > MAX_GROWTH_MB
        ]
        secrets = (token[21:41], other[21:41], WEBHOOK_SECRET[:20])
        logs = {name: processes[name].log.read_text(errors="replace") for name in ("gateway", "worker")}
        result.faults += [f"{name}: {fault}" for name, text in logs.items() for fault in _faults_in(text, secrets)]
        result.endless = len(house.endless_keys())
        result.rows = house.rows_left()
        answers = ", ".join(f"{status}: {times}" for status, times in sorted(tally.answers.items()))
        memory = ", ".join(f"{name} {warm[name]:.0f}{grown[name]:+.0f}" for name in grown)
        result.note = f"{tally.sent} sent; {answers}; MB resident: {memory}"
    return result


def _faults_in(log: str, secrets: tuple[str, ...]) -> Iterator[str]:
    if any(secret.lower() in log.lower() for secret in secrets):
        yield "a secret is in the log"
    for line in log.splitlines():
        try:
            json.loads(line)["message"]
        except (ValueError, TypeError, KeyError):
            yield f"this is no line of the log: {line[:200]!r}"


def _hashes(job: Job) -> list[str]:
    return [image.sha256 for image in job.images]

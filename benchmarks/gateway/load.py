"""Load from a process of its own, `hey`, so that what is measured is the gateway and not its client."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

CONNECTIONS = 32
CONNECTIONS_AT_HALF = 8  # the generator sends a request over each at the same moment


@dataclass(frozen=True)
class Load:
    """What so many requests took.

    Attributes:
        per_s: answers a second, by the clock.
        per_core_s: answers per second of the gateway's CPU time.
        per_store_s: answers per second of the store's.
        client_share: CPU time of the load generator, in units of the gateway's.
        p50_ms: half of the answers took no longer.
        p99_ms: 99 of 100.
    """

    per_s: float
    per_core_s: float
    per_store_s: float
    client_share: float
    p50_ms: float
    p99_ms: float


def cpu_s(members: Sequence[psutil.Process]) -> float:
    return sum(sum(member.cpu_times()[:2]) for member in members)


def generator() -> str:
    """The load generator's path."""
    path = shutil.which("hey")
    if path is None:
        sys.exit("This needs the load generator `hey`: apt-get install hey, or brew install hey.")
    return path


def put_load(
    url: str,
    body: str | None,
    *,
    count: int,
    gateways: Sequence[psutil.Process],
    store: psutil.Process,
    connections: int = CONNECTIONS,
    per_s: float | None = None,
) -> Load:
    """Send `count` requests over so many connections, as fast as they are answered or at most `per_s`."""
    command = [generator(), "-n", str(count), "-c", str(connections), "-o", "csv"]
    command += ["-m", "POST", "-T", "application/json", "-d", body] if body is not None else []
    command += ["-q", f"{per_s / connections:.3f}"] if per_s is not None else []
    before, before_store, started = cpu_s(gateways), cpu_s([store]), time.perf_counter()
    with psutil.Popen([*command, url], stdout=subprocess.PIPE, text=True) as client:
        rows = list(csv.DictReader(client.stdout))
        taken_s, client_s = time.perf_counter() - started, cpu_s([client])
    refused = {row["status-code"] for row in rows} - {"200", "202"}
    if refused or len(rows) != count // connections * connections:  # as many for each
        sys.exit(f"{url}: {len(rows)} of {count} requests were answered, some with {sorted(refused)}")
    busy_s, busy_store_s = cpu_s(gateways) - before, cpu_s([store]) - before_store
    ms = sorted(1000 * float(row["response-time"]) for row in rows)
    return Load(
        per_s=len(rows) / taken_s,
        per_core_s=len(rows) / busy_s,
        per_store_s=len(rows) / busy_store_s,
        client_share=client_s / busy_s,
        p50_ms=ms[len(ms) // 2],
        p99_ms=ms[int(0.99 * len(ms))],
    )


def loads(
    url: str, body: str | None, *, count: int, gateways: Sequence[psutil.Process], store: psutil.Process
) -> tuple[Load, Load]:
    """As much as the gateway answers, and half of that."""
    full = put_load(url, body, count=count, gateways=gateways, store=store)
    half = put_load(
        url,
        body,
        count=count // 2,
        gateways=gateways,
        store=store,
        connections=CONNECTIONS_AT_HALF,
        per_s=full.per_s / 2,
    )
    return full, half

"""`python -m benchmarks.gateway`: submits and polls, listeners, the queue's memory, a batch, and what metrics cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gateway.house import BATCH_LINES, House, house
from benchmarks.gateway.load import CONNECTIONS, Load, generator, loads
from benchmarks.gateway.metering import counting_us, scrape_s

BODY = {"class_label": "sneaker", "scale": 3}


def rates(at: House, requests: int) -> dict[str, tuple[Load, Load]]:
    """Submits and polls, each at full and at half load."""
    processes = {"gateways": at.gateway.members(), "store": at.store}
    submit, body = f"{at.gateway.url}/generate", json.dumps(BODY)
    job = httpx.post(submit, json=BODY, trust_env=False).json()["id"]
    return {
        "polls": loads(f"{at.gateway.url}/jobs/{job}", None, count=requests, **processes),
        "submits": loads(submit, body, count=requests, **processes),
    }


def measured_rates(at: House, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what, (full, half) in rates(at, arguments.requests).items():
        print(
            f"{what}: {full.per_core_s:.0f} per second of the gateway's CPU time, {full.per_store_s:.0f} of the "
            f"store's; {full.per_s:.0f}/s by the clock, {CONNECTIONS} connections, the client taking "
            f"{full.client_share:.2f} of the gateway's time; at {half.per_s:.0f}/s p50 {half.p50_ms:.1f} ms, "
            f"p99 {half.p99_ms:.1f} ms",
            flush=True,
        )
        found[what] = {"full": asdict(full), "half": asdict(half)}
    return found


def measured_listeners(at: House, arguments: argparse.Namespace) -> dict[str, float]:
    at.empty()
    found = at.listened_to(at.queue(arguments.listeners))
    print(
        f"{found['listeners']:.0f} listeners: {found['mib']:.0f} MiB, {found['mib_before']:.0f} before; opened in "
        f"{found['opened_s']:.1f} s, {found['opened_cpu_s']:.1f} s of the gateway's; then "
        f"{100 * found['share_of_core']:.0f} % of a core",
        flush=True,
    )
    return found


def measured_batch(at: House, arguments: argparse.Namespace) -> dict[str, float]:
    at.empty()
    taken = at.batch_s()
    print(f"a batch of {BATCH_LINES} lines: {taken['wall']:.1f} s, {taken['cpu']:.1f} s of the gateway's", flush=True)
    return taken


def measured_queue(at: House, arguments: argparse.Namespace) -> dict[str, float]:
    at.empty()
    before = at.memory()
    at.queue(arguments.jobs)
    found = {"jobs": arguments.jobs, "bytes_per_job": (at.memory() - before) / arguments.jobs}
    print(f"{arguments.jobs} queued jobs: {found['bytes_per_job']:.0f} bytes of the store each", flush=True)
    found["scrape_s"] = scrape_s(at.metrics_url)
    print(f"a scrape with them: {found['scrape_s'] * 1000:.1f} ms", flush=True)
    return found


def measured_metering(at: House, arguments: argparse.Namespace) -> dict[str, float]:
    found = counting_us()
    print("counting: " + ", ".join(f"{name} {taken:.1f} µs" for name, taken in found.items()), flush=True)
    return found


PARTS: dict[str, Callable[[House, argparse.Namespace], Any]] = {
    "rates": measured_rates,
    "listeners": measured_listeners,
    "batch": measured_batch,
    "queue": measured_queue,
    "metering": measured_metering,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--listeners", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000, help="queued, to see what one takes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("-o", "--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    generator()
    with house() as at:
        found = {part: PARTS[part](at, arguments) for part in arguments.only}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gateway.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

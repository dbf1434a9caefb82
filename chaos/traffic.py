"""Clients that post jobs, retrying through faults, and record every job."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

MODES: tuple[dict[str, Any], ...] = (
    {"guidance_mode": "none"},
    {"guidance_mode": "classifier_free", "scale": 3},
    {"guidance_mode": "classifier", "scale": 2},
    {"guidance_mode": "combined", "scale": 2, "classifier_scale": 1},
)
SAMPLERS = ("ddim", "dpmpp_2m", "euler")
HONEST = {429, 503}
FINAL = {"succeeded", "failed", "cancelled"}
LONGEST_PAUSE_S = 2.0
PATIENCE_S = 600.0


def mixed_job(random_: random.Random, *, steps: tuple[int, int], images: int = 2) -> dict[str, Any]:
    """A request with random mode, sampler, length, priority and seed."""
    return {
        "class_label": random_.randrange(10),
        "seed": random_.randrange(2**40),
        "steps": random_.randint(*steps),
        "sampler": random_.choice(SAMPLERS),
        "num_images": random_.randint(1, images),
        "priority": random_.choice(["low", "normal", "high"]),
        "use_cache": False,
        **random_.choice(MODES),
    }


class Traffic:
    """Posts jobs and follows them; use it as a context manager.

    Each job has a unique `Idempotency-Key` and is posted until it is accepted. An answer that is neither success nor a
    proper refusal (429 or 503, with Retry-After) is a fault.
    """

    def __init__(self, urls: Sequence[str], *, seed: int) -> None:
        self.accepted: dict[str, dict[str, Any]] = {}
        self.finished: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.refusals: Counter[int] = Counter()
        self.broken_connections = 0
        self.random = random.Random(seed)
        self._urls = itertools.cycle(urls)
        self._url_lock = threading.Lock()
        self._http = httpx.Client(timeout=30, trust_env=False)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def mixed(self, count: int, *, steps: tuple[int, int], images: int = 2) -> list[dict[str, Any]]:
        """`count` jobs of `mixed_job`."""
        return [mixed_job(self.random, steps=steps, images=images) for _ in range(count)]

    @contextmanager
    def posting(self, jobs: Sequence[dict[str, Any]]) -> Iterator[None]:
        """Post jobs in the background while the body runs; on exit, wait until all are accepted."""
        with ThreadPoolExecutor(1) as poster:
            posted = poster.submit(self.post_all, jobs, threads=4, patience_s=PATIENCE_S)
            yield
        posted.result()

    def post_all(self, jobs: Sequence[dict[str, Any]], *, threads: int = 8, patience_s: float = 120) -> list[str]:
        """Post jobs in parallel; returns their ids in the order of `jobs`."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda job: self.post(job, patience_s=patience_s), jobs))

    def post(self, job: dict[str, Any], *, patience_s: float = 120) -> str:
        """Post a job until it is accepted; returns its id.

        Raises:
            TimeoutError: it was not accepted in time.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            answer = self._exchange("POST", "/generate", json=job, headers=headers)
            if answer is not None and answer.status_code in (200, 202):
                job_id: str = answer.json()["id"]
                self.accepted[job_id] = job
                return job_id
            pause = float(answer.headers.get("retry-after", 1)) if answer is not None else 0.2
            time.sleep(min(LONGEST_PAUSE_S, pause))
        raise TimeoutError(f"not accepted within {patience_s:g} s")

    def wait_all(self, *, patience_s: float = PATIENCE_S) -> None:
        """Poll until all jobs are final, or the time is up; a job seen final is not polled again."""
        until = time.monotonic() + patience_s
        while (left := self.accepted.keys() - self.finished.keys()) and time.monotonic() < until:
            for job_id in left:
                job = self.look(job_id)
                if job is not None and job["status"] in FINAL:
                    self.finished[job_id] = job
            time.sleep(0.2)

    def look(self, job_id: str) -> dict[str, Any] | None:
        """The job, or `None` if no gateway returns it."""
        answer = self._exchange("GET", f"/jobs/{job_id}")
        if answer is None or answer.status_code != 200:
            return None
        job: dict[str, Any] = answer.json()
        return job

    def picture(self, url: str, *, patience_s: float = 60) -> bytes | None:
        """The picture, asked for again while it is refused properly; `None` if no gateway returns it."""
        until = time.monotonic() + patience_s
        while True:
            answer = self._exchange("GET", url)
            if answer is None or answer.status_code not in HONEST or time.monotonic() > until:
                break
            time.sleep(min(LONGEST_PAUSE_S, float(answer.headers.get("retry-after", 1))))
        return answer.content if answer is not None and answer.status_code == 200 else None

    def _exchange(self, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        with self._url_lock:
            url = next(self._urls)
        try:
            answer = self._http.request(method, url + path, **arguments)
        except httpx.TransportError:
            self.broken_connections += 1
            return None
        if answer.status_code in HONEST:
            self.refusals[answer.status_code] += 1
            if "retry-after" not in answer.headers:
                self.faults.append(f"{method} {path}: {answer.status_code} without Retry-After")
        elif answer.is_error:
            self.faults.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer

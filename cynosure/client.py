"""The Python client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from cynosure.contract import (
    GenerateRequest,
    Job,
    JobStatus,
    ModelCard,
    ModelList,
    Plan,
    Preview,
    Problem,
    Progress,
    SweepRequest,
)
from cynosure.errors import CynosureError, JobCancelled, JobFailed, Unreachable, error_of

MAX_FOLLOW_FAILURES = 8
_EVENTS: Mapping[str, type[Job | Progress | Preview]] = {
    "status": Job,
    "progress": Progress,
    "preview": Preview,
    "done": Job,
}


class Client:
    """A synchronous client; use it as a context manager.

    What the server refuses is raised as the class of `cynosure.errors` that has the answer's code.

    Args:
        url: the server, such as `http://127.0.0.1:8000`.
        api_key: `cyn_…`, where the server asks for one.
        timeout_s: for one HTTP exchange.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def models(self) -> tuple[ModelCard, ...]:
        """What can be asked."""
        return ModelList.model_validate(self._call("GET", "/models").json()).models

    def submit(self, request: GenerateRequest, *, idempotency_key: str | None = None) -> Job:
        """Post a job and return at once."""
        return self._submit("/generate", request, idempotency_key)

    def submit_sweep(self, request: SweepRequest, *, idempotency_key: str | None = None) -> Job:
        """Post a grid of pictures as one job and return at once."""
        return self._submit("/sweeps", request, idempotency_key)

    def plan(self, request: GenerateRequest) -> Plan:
        """What the request would take; nothing is drawn."""
        body = request.model_dump(mode="json", exclude_unset=True)
        return Plan.model_validate(self._call("POST", "/plan", json=body).json())

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return Job.model_validate(self._call("GET", f"/jobs/{job_id}").json())

    def cancel(self, job_id: str) -> Job:
        """Cancel the job unless it is finished."""
        return Job.model_validate(self._call("DELETE", f"/jobs/{job_id}").json())

    def image(self, job_id: str, index: int = 0) -> bytes:
        """PNG bytes of one picture."""
        return self._call("GET", f"/jobs/{job_id}/images/{index}.png").content

    def sheet(self, job_id: str) -> bytes:
        """PNG bytes of a finished sweep's contact sheet."""
        return self._call("GET", f"/jobs/{job_id}/sheet.png").content

    def wait(self, job_id: str, *, on_progress: Callable[[Job], None] = lambda job: None, poll_s: float = 0.2) -> Job:
        """Poll until the job has succeeded.

        Raises:
            JobFailed, JobCancelled: it ended otherwise.
        """
        while True:
            job = self.job(job_id)
            on_progress(job)
            if job.status is JobStatus.FAILED and job.error is not None:
                raise JobFailed(job.error.message, job_code=job.error.code)
            if job.status is JobStatus.CANCELLED:
                raise JobCancelled(f"Job '{job_id}' was cancelled.")
            if job.status is JobStatus.SUCCEEDED:
                return job
            time.sleep(poll_s)

    def follow(self, job_id: str) -> Iterator[Job | Progress | Preview]:
        """What happens to the job, as it happens: the job when its place or state changes, progress, previews.

        Ends with the job as it ended. A connection that breaks is opened again where it was.

        Raises:
            Unreachable: the server was away for many attempts on end.
        """
        seen, failures = "", 0
        while True:
            try:
                for event in self._events(job_id, seen):
                    seen, failures = event.id or seen, 0
                    if event.event in _EVENTS:
                        yield _EVENTS[event.event].model_validate_json(event.data)
                    if event.event == "done":
                        return
            except httpx.TransportError as error:
                failures += 1
                if failures == MAX_FOLLOW_FAILURES:
                    raise self._unreachable(error) from error
                time.sleep(min(5.0, 0.2 * 2**failures))

    def _events(self, job_id: str, after: str) -> Iterator[ServerSentEvent]:
        headers = {"Last-Event-ID": after} if after else {}
        with connect_sse(self._http, "GET", f"/jobs/{job_id}/events", headers=headers) as source:
            if source.response.is_error:
                source.response.read()
                raise _error_in(source.response)
            yield from source.iter_sse()

    def generate(
        self, request: GenerateRequest, *, on_progress: Callable[[Job], None] = lambda job: None
    ) -> list[bytes]:
        """Submit, wait, and fetch all pictures as PNG bytes."""
        job = self.wait(self.submit(request).id, on_progress=on_progress)
        return [self.image(job.id, image.index) for image in job.images]

    def _submit(self, path: str, request: GenerateRequest | SweepRequest, idempotency_key: str | None) -> Job:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = request.model_dump(mode="json", exclude_unset=True)
        return Job.model_validate(self._call("POST", path, json=body, headers=headers).json())

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _error_in(response)
        return response

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"No answer from {self.url}: {error}. Is `cynosure up` running?")


def _error_in(response: httpx.Response) -> CynosureError:
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return CynosureError(f"{response.url} answered {response.status_code} {response.reason_phrase}.")
    problem = Problem.model_validate_json(response.content)
    return error_of(problem.code, problem.detail, field=problem.field, job_code=problem.job_code)

"""The calls that the clients make and the parsers of their answers: pure, and shared by `Client` and `AsyncClient`."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from PIL import Image
from pydantic import BaseModel

from cynosure.batches import Batch, BatchList, BatchResult, BatchStatus
from cynosure.contract import (
    GenerateRequest,
    Job,
    JobList,
    JobStatus,
    LeavingJobs,
    LoadState,
    LoraInfo,
    LoraList,
    ModelCard,
    ModelList,
    ModelLoad,
    ModelLoads,
    OutputFormat,
    Plan,
    ServiceStatus,
    SweepRequest,
    WorkerList,
    WorkerStatus,
)
from cynosure.errors import JobCancelled, JobFailed, ModelNotLoaded
from cynosure.refusals import parsed

Result = TypeVar("Result")
LONG_POLL_S = 20
"""Seconds that the server may hold one look at a job: below what proxies commonly allow (30 s or more)."""
RESULTS_PAGE = 500
"""Lines of a batch fetched at a time."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One exchange: the request, and the parser of its answer. Sending it twice is harmless."""

    method: str
    path: str
    parse: Any  # Callable[[httpx.Response], Result]; a frozen dataclass would bind it as a method
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    held_s: float = 0.0

    def arguments(self, timeout_s: float) -> dict[str, Any]:
        """Keyword arguments of httpx's `request`."""
        arguments: dict[str, Any] = {"headers": dict(self.headers), "timeout": timeout_s + self.held_s}
        if self.method == "GET":
            arguments["follow_redirects"] = True  # to the storage of pictures; httpx gives the key to no other host
        if self.params:
            arguments["params"] = {key: value for key, value in self.params.items() if value is not None}
        if self.json is not None:
            arguments["json"] = self.json
        if self.content is not None:
            arguments["content"] = self.content
        return arguments


def _body(request: BaseModel) -> Any:
    return request.model_dump(mode="json", exclude_unset=True)


def _keyed(key: str | None, **more: str) -> dict[str, str]:
    """Headers of a post that creates something: the key makes sending it again harmless."""
    return {"Idempotency-Key": key or secrets.token_urlsafe(16), **more}


def _job(response: httpx.Response) -> Job:
    return Job.model_validate_json(response.content)


def _load(response: httpx.Response) -> ModelLoad:
    return ModelLoad.model_validate_json(response.content)


def _loads(response: httpx.Response) -> tuple[ModelLoad, ...]:
    return ModelLoads.model_validate_json(response.content).models


def _batch(response: httpx.Response) -> Batch:
    return Batch.model_validate_json(response.content)


def models() -> Call[tuple[ModelCard, ...]]:
    """The models of the server."""
    return Call("GET", "/models", lambda response: ModelList.model_validate_json(response.content).models)


def loras() -> Call[tuple[LoraInfo, ...]]:
    """The LoRAs of the server."""
    return Call("GET", "/loras", lambda response: LoraList.model_validate_json(response.content).loras)


def status() -> Call[ServiceStatus]:
    """Workers, queues and pace."""
    return Call("GET", "/status", lambda response: ServiceStatus.model_validate_json(response.content))


def model_loads(*, wait_s: int = 0) -> Call[tuple[ModelLoad, ...]]:
    """How far the workers are with each model; with `wait_s`, the answer is held until they have no more to do."""
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    return Call("GET", "/admin/models", _loads, headers=headers, held_s=wait_s)


def add_model(model: str, *, wait_s: int = 0) -> Call[ModelLoad]:
    """Have every worker load a model."""
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    return Call("POST", "/admin/models", _load, json={"model": model}, headers=headers, held_s=wait_s)


def remove_model(name: str, jobs: LeavingJobs, *, wait_s: int = 0) -> Call[ModelLoad]:
    """Have every worker unload a model."""
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    path = f"/admin/models/{quote(name, safe='')}"
    return Call("DELETE", path, _load, params={"jobs": jobs.value}, headers=headers, held_s=wait_s)


def workers() -> Call[tuple[WorkerStatus, ...]]:
    """The live workers."""
    return Call("GET", "/admin/workers", lambda response: WorkerList.model_validate_json(response.content).workers)


def drain_worker(name: str, *, wait_s: int = 0) -> Call[bool]:
    """Have a worker end; whether it has."""
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    path = f"/admin/workers/{quote(name, safe='')}/drain"
    return Call("POST", path, lambda response: response.status_code == 200, headers=headers, held_s=wait_s)


def submit(request: GenerateRequest, key: str | None = None, *, wait_s: int = 0) -> Call[Job]:
    """Post a job; with `wait_s`, the server holds the answer until the job is done."""
    headers = _keyed(key, Prefer=f"wait={wait_s}") if wait_s else _keyed(key)
    return Call("POST", "/generate", _job, json=_body(request), headers=headers, held_s=wait_s)


def submit_sweep(request: SweepRequest, key: str | None = None) -> Call[Job]:
    """Post a grid of pictures as one job."""
    return Call("POST", "/sweeps", _job, json=_body(request), headers=_keyed(key))


def plan(request: GenerateRequest) -> Call[Plan]:
    """What a request would cost."""
    return Call("POST", "/plan", lambda response: Plan.model_validate_json(response.content), json=_body(request))


def job(job_id: str, *, wait_s: int = 0) -> Call[Job]:
    """A job; with `wait_s`, the server holds the answer until the job is done."""
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    return Call("GET", f"/jobs/{job_id}", _job, headers=headers, held_s=wait_s)


def jobs(status: JobStatus | None, cursor: str | None, limit: int) -> Call[JobList]:
    """A page of the caller's jobs."""
    params = {"status": status, "cursor": cursor, "limit": limit}
    return Call("GET", "/jobs", lambda response: JobList.model_validate_json(response.content), params=params)


def cancel(job_id: str) -> Call[Job]:
    """Cancel a job."""
    return Call("DELETE", f"/jobs/{job_id}", _job)


def erase(job_id: str) -> Call[Job]:
    """Delete a job."""
    return Call("DELETE", f"/jobs/{job_id}", _job, params={"erase": "true"})


def retry(job_id: str) -> Call[Job]:
    """Post a job's request again."""
    return Call("POST", f"/jobs/{job_id}/retry", _job, headers=_keyed(None))


def vary(job_id: str, num_images: int | None = None) -> Call[Job]:
    """Post a job's request again with a new seed."""
    body = {} if num_images is None else {"num_images": num_images}
    return Call("POST", f"/jobs/{job_id}/vary", _job, json=body, headers=_keyed(None))


def image(job_id: str, index: int, to: OutputFormat = OutputFormat.PNG) -> Call[bytes]:
    """The file of a picture."""
    return Call("GET", f"/jobs/{job_id}/images/{index}.{to}", lambda response: response.content)


def file(path: str) -> Call[bytes]:
    """The file at a URL from an answer."""
    return Call("GET", path, lambda response: response.content)


def sheet(job_id: str) -> Call[bytes]:
    """A sweep's contact sheet."""
    return Call("GET", f"/jobs/{job_id}/sheet.png", lambda response: response.content)


def ndjson(requests: bytes | Iterable[GenerateRequest | Mapping[str, Any]]) -> bytes:
    """The requests as NDJSON; bytes are taken to be NDJSON already."""
    if isinstance(requests, bytes):
        return requests
    lines = (request if isinstance(request, Mapping) else _body(request) for request in requests)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def submit_batch(lines: bytes, key: str | None = None) -> Call[Batch]:
    """Post a batch, one request per line."""
    headers = _keyed(key, **{"Content-Type": "application/x-ndjson"})
    return Call("POST", "/batches", _batch, content=lines, headers=headers, held_s=60.0)


def batch(batch_id: str) -> Call[Batch]:
    """A batch's counts."""
    return Call("GET", f"/batches/{batch_id}", _batch)


def batches(status: BatchStatus | None, cursor: str | None, limit: int) -> Call[BatchList]:
    """A page of the caller's batches."""
    params = {"status": status, "cursor": cursor, "limit": limit}
    return Call("GET", "/batches", lambda response: BatchList.model_validate_json(response.content), params=params)


def cancel_batch(batch_id: str) -> Call[Batch]:
    """Cancel the unfinished part of a batch."""
    return Call("DELETE", f"/batches/{batch_id}", _batch)


def batch_results(batch_id: str, first_line: int, limit: int) -> Call[list[BatchResult]]:
    """A page of the lines' results."""

    def parse(response: httpx.Response) -> list[BatchResult]:
        return [BatchResult.model_validate_json(line) for line in response.content.splitlines()]

    params = {"first_line": first_line, "limit": limit}
    return Call("GET", f"/batches/{batch_id}/results", parse, params=params)


Flow = Generator[Call[Any], Any, Result]
"""A sequence of calls; each may depend on the answers before it. Either client can run it."""


def ended(final: Job) -> Job:
    """The job if it has succeeded.

    Raises:
        JobFailed, JobCancelled: it ended otherwise.
    """
    if final.status is JobStatus.FAILED and final.error is not None:
        raise JobFailed(final.error.message, job_code=final.error.code)
    if final.status is JobStatus.CANCELLED:
        raise JobCancelled(f"Job '{final.id}' was cancelled.")
    return final


def until_done(latest: Job) -> Flow[Job]:
    """Long-poll until the job is done."""
    while not latest.status.is_final:
        latest = yield job(latest.id, wait_s=LONG_POLL_S)
    return ended(latest)


def drawn(request: GenerateRequest) -> Flow[list[Image.Image]]:
    """Submit, wait, fetch."""
    submitted = yield submit(request, wait_s=LONG_POLL_S)
    done = yield from until_done(submitted)
    return (yield from pictures_of(done))


def pictures_of(done: Job) -> Flow[list[Image.Image]]:
    """The job's pictures, fetched in its output format and decoded."""
    pictures = []
    for info in done.images:
        content = yield image(done.id, info.index, done.request.output_format)
        pictures.append(decoded(content))
    return pictures


def decoded(content: bytes) -> Image.Image:
    """The decoded picture, with no file left open; its metadata is in `info`."""
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def request_of(request: GenerateRequest | None, fields: Mapping[str, Any]) -> GenerateRequest:
    """The request with `fields` set in it.

    Raises:
        InvalidRequest: a field is unknown or out of range.
    """
    if request is None:
        return parsed(GenerateRequest, fields)
    return parsed(GenerateRequest, {**request.model_dump(exclude_unset=True), **fields}) if fields else request


def loaded(model: str) -> Flow[ModelLoad]:
    """Load a model, and wait until every worker has it.

    Raises:
        ModelNotLoaded: no worker could load it.
    """
    load = yield add_model(model, wait_s=LONG_POLL_S)
    while not load.workers or any(at.state is LoadState.LOADING for at in load.workers):
        load = next((one for one in (yield model_loads(wait_s=LONG_POLL_S)) if one.name == load.name), load)
    if all(at.state is LoadState.FAILED for at in load.workers):
        raise ModelNotLoaded(f"{load.workers[0].reason}.", field="model")
    return load


def results_of(batch_id: str, first_line: int, limit: int) -> Flow[list[BatchResult]]:
    """The lines of a batch from `first_line` on, at most `limit` of them, page by page."""
    results: list[BatchResult] = []
    while (size := min(RESULTS_PAGE, limit - len(results))) > 0:
        page = yield batch_results(batch_id, first_line + len(results), size)
        results += page
        if len(page) < size:
            break
    return results

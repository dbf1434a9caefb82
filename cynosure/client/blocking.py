"""The synchronous Python client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import httpx
from httpx_sse import connect_sse
from PIL import Image

from cynosure.batches import Batch, BatchList, BatchResult, BatchStatus
from cynosure.client import calls
from cynosure.client.address import server_url
from cynosure.client.attempts import Attempts, Retries, Server, connection
from cynosure.client.calls import Call, Flow
from cynosure.client.following import Follower
from cynosure.contract import (
    MAX_BATCH_LINES,
    GenerateRequest,
    Job,
    JobList,
    JobStatus,
    LeavingJobs,
    LoraInfo,
    ModelCard,
    ModelLoad,
    OutputFormat,
    Plan,
    Preview,
    Progress,
    ServiceStatus,
    SweepRequest,
    WorkerStatus,
)
from cynosure.drawn import Drawn
from cynosure.errors import CynosureError
from cynosure.refusals import parsed

DEFAULT_URL = "http://127.0.0.1:8000"
Result = TypeVar("Result")


class Client:
    """A synchronous client; use it as a context manager. Threads may share one.

    If the server refuses a call, the client raises the class of `cynosure.errors` with the answer's code. If no server
    answers, the queue is full or a limit is exceeded, it retries (`retries`), for longer if the server has answered
    before; posts carry an idempotency key, so a retry creates nothing twice. Fields that no model accepts raise
    `cynosure.errors.InvalidRequest` before anything is sent.

    >>> with Client(url) as client:
    ...     [picture] = client.generate(class_label="sneaker", steps=4, seed=1)
    >>> picture.size
    (28, 28)

    Args:
        url: the server, such as `http://127.0.0.1:8000`; without a scheme, http.
        api_key: `cyn_…`, if the server requires one.
        timeout_s: for one HTTP exchange; waiting for a job may take many of them.
        retries: how often, and after which pauses, a failed call is sent again.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  frozen
    ) -> None:
        self.url = url = server_url(url)
        self._timeout_s = timeout_s
        self._server = Server(url, retries)
        self._http = httpx.Client(**connection(url, api_key, timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> tuple[ModelCard, ...]:
        """The models of the server."""
        return self._do(calls.models())

    def loras(self) -> tuple[LoraInfo, ...]:
        """The LoRAs of the server, with the models that can use each."""
        return self._do(calls.loras())

    def status(self) -> ServiceStatus:
        """Workers, queues and pace."""
        return self._do(calls.status())

    def add_model(self, model: str) -> ModelLoad:
        """Have every worker load a model, and wait until it is served. Takes a key with the scope `admin`.

        Args:
            model: a bundled model's name, a folder in the workers' `CYNOSURE_MODELS_ROOT` or `owner/name@COMMIT`; with
                `NAME=` before it, the model has that name.

        Raises:
            ModelNotLoaded: no worker could load it; the message says why.
            ModelExists: there is one of that name.
        """
        return self._run(calls.loaded(model))

    def remove_model(self, name: str, *, jobs: LeavingJobs = LeavingJobs.FINISH, wait_s: int = 30) -> ModelLoad:
        """Have every worker unload a model, and wait for that, but at most `wait_s` seconds.

        Raises:
            ModelNotFound: there is none of that name.
            ModelPinned: a worker has it from its `--models`.
        """
        return self._do(calls.remove_model(name, jobs, wait_s=wait_s))

    def model_loads(self) -> tuple[ModelLoad, ...]:
        """How far each worker is with each model."""
        return self._do(calls.model_loads())

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The live workers. Takes a key with the scope `admin`, as `drain_worker` does."""
        return self._do(calls.workers())

    def drain_worker(self, name: str, *, wait_s: int = 30) -> bool:
        """Have a worker finish its jobs or hand them back, and end; whether it has, after at most `wait_s` seconds.

        Raises:
            WorkerNotFound: there is none of that name.
        """
        return self._do(calls.drain_worker(name, wait_s=wait_s))

    def generate(self, request: GenerateRequest | None = None, /, **fields: Any) -> list[Image.Image]:
        """Submit, wait, and fetch all pictures. Their metadata (`picture.info`) holds the request.

        >>> len(client.generate(class_label="bag", scale=3, steps=4, num_images=2))
        2

        Raises:
            InvalidRequest: the request can't be served; `field` names what to change.
            JobFailed, JobCancelled: the job was accepted but did not succeed.
        """
        return self._run(calls.drawn(calls.request_of(request, fields)))

    def submit(
        self, request: GenerateRequest | None = None, /, *, idempotency_key: str | None = None, **fields: Any
    ) -> Job:
        """Post a job and return at once.

        >>> job = client.submit(class_label="coat", steps=4, num_images=2)
        >>> job.request.sampler
        'ddim'
        """
        return self._do(calls.submit(calls.request_of(request, fields), idempotency_key))

    def submit_sweep(self, request: SweepRequest, *, idempotency_key: str | None = None) -> Job:
        """Post a grid of pictures as one job and return at once."""
        return self._do(calls.submit_sweep(request, idempotency_key))

    def plan(self, request: GenerateRequest | None = None, /, **fields: Any) -> Plan:
        """What the request would cost; nothing is drawn.

        >>> client.plan(class_label="coat", scale=3, steps=10).rows.denoiser
        20
        """
        return self._do(calls.plan(calls.request_of(request, fields)))

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._do(calls.job(job_id))

    def jobs(self, *, status: JobStatus | None = None, cursor: str | None = None, limit: int = 20) -> JobList:
        """Your jobs, newest first, one page at a time: pass a page's `next_cursor` as the next call's `cursor`."""
        return self._do(calls.jobs(status, cursor, limit))

    def cancel(self, job_id: str) -> Job:
        """Cancel the job unless it is finished."""
        return self._do(calls.cancel(job_id))

    def erase(self, job_id: str) -> Job:
        """Cancel the job unless it is finished, and delete it with its pictures; returns its last state."""
        return self._do(calls.erase(job_id))

    def retry(self, job_id: str) -> Job:
        """Post a finished job's request again, as a new job."""
        return self._do(calls.retry(job_id))

    def vary(self, job_id: str, *, num_images: int | None = None) -> Job:
        """Post a job's request again with a new seed."""
        return self._do(calls.vary(job_id, num_images))

    def wait(self, job_id: str, *, on_event: Callable[[Job | Progress | Preview], None] | None = None) -> Job:
        """Wait until the job has succeeded; `on_event` is called with each event on the way.

        Raises:
            JobFailed, JobCancelled: it did not succeed.
        """
        if on_event is None:
            return self._run(calls.until_done(self.job(job_id)))
        event: Job | Progress | Preview | None = None
        for event in self.stream(job_id):
            on_event(event)
        return calls.ended(event if isinstance(event, Job) else self.job(job_id))

    def stream(self, job_id: str) -> Iterator[Job | Progress | Preview]:
        """Yield events as they happen: the job when its queue position or state changes, progress, previews.

        The last one is the job as it ended. A broken connection is reopened, and the stream resumes where it was.

        >>> *_, last = client.stream(client.submit(class_label="bag", steps=4).id)
        >>> last.status.value
        'succeeded'

        Raises:
            Unreachable: more consecutive tries failed than `retries` allows (half a minute if it has answered before).
        """
        attempts = Attempts(self._server)
        follower = Follower(job_id, attempts)
        while not follower.is_done:
            pause = 0.0
            try:
                with connect_sse(self._http, "GET", follower.path, headers=follower.headers) as source:
                    if source.response.is_error:
                        source.response.read()
                        pause = attempts.pause_after(source.response)
                    else:
                        for event in source.iter_sse():
                            if (update := follower.read(event)) is not None:
                                yield update
            except httpx.TransportError as error:
                pause = attempts.pause_after(error)
            time.sleep(pause)

    def image(self, job_id: str, index: int = 0, to: OutputFormat = OutputFormat.PNG) -> bytes:
        """The file of one picture."""
        return self._do(calls.image(job_id, index, to))

    def file(self, url: str) -> bytes:
        """The file at a URL from an answer, such as a picture's `url`."""
        return self._do(calls.file(url))

    def images(self, job: Job) -> list[Image.Image]:
        """All pictures of a finished job."""
        return self._run(calls.pictures_of(job))

    def sheet(self, job_id: str) -> bytes:
        """PNG bytes of a finished sweep's contact sheet."""
        return self._do(calls.sheet(job_id))

    def batch(
        self, requests: Iterable[GenerateRequest | Mapping[str, Any]], *, concurrency: int = 8
    ) -> Iterator[Drawn]:
        """Draw many requests, at most `concurrency` at once; yield each result as it is done.

        A request that fails is yielded with its error, and the others continue. `requests` may be
        endless: it is read as there is room. For thousands at once, `submit_batch` lets the server keep them.

        >>> with Client(url) as client:
        ...     drawn = list(client.batch([{"class_label": n, "steps": 4} for n in range(3)], concurrency=2))
        >>> sorted(one.index for one in drawn), all(one.pictures for one in drawn)
        ([0, 1, 2], True)
        """
        numbered = enumerate(requests)
        with ThreadPoolExecutor(concurrency, thread_name_prefix="cynosure-batch") as pool:
            waiting: set[Future[Drawn]] = set()
            while True:
                for index, request in islice(numbered, concurrency - len(waiting)):
                    waiting.add(pool.submit(self._draw, index, request))
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()

    def submit_batch(
        self, requests: bytes | Iterable[GenerateRequest | Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> Batch:
        """Hand up to 10,000 requests to the server, which queues them as there is room.

        >>> batch = client.submit_batch([{"class_label": n, "steps": 4} for n in range(3)])
        >>> batch.counts.total
        3
        """
        return self._do(calls.submit_batch(calls.ndjson(requests), idempotency_key))

    def batch_status(self, batch_id: str) -> Batch:
        """How many of the batch's requests are in which state."""
        return self._do(calls.batch(batch_id))

    def batches(self, *, status: BatchStatus | None = None, cursor: str | None = None, limit: int = 20) -> BatchList:
        """Your batches, newest first, one page at a time, as `jobs`."""
        return self._do(calls.batches(status, cursor, limit))

    def batch_results(self, batch_id: str, *, first_line: int = 1, limit: int = MAX_BATCH_LINES) -> list[BatchResult]:
        """The results of the lines from `first_line` on, in order, at most `limit` of them."""
        return self._run(calls.results_of(batch_id, first_line, limit))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel the unfinished part of the batch."""
        return self._do(calls.cancel_batch(batch_id))

    def _draw(self, index: int, request: GenerateRequest | Mapping[str, Any]) -> Drawn:
        try:
            asked = request if isinstance(request, GenerateRequest) else parsed(GenerateRequest, request)
            return Drawn(index, request, self._run(calls.drawn(asked)))
        except (CynosureError, ValueError) as error:
            return Drawn(index, request, error=error)

    def _run(self, flow: Flow[Result]) -> Result:
        answer: Any = None
        while True:
            try:
                call = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = self._do(call)

    def _do(self, call: Call[Result]) -> Result:
        attempts = Attempts(self._server)
        while True:
            try:
                response = self._http.request(call.method, call.path, **call.arguments(self._timeout_s))
            except httpx.TransportError as error:
                pause = attempts.pause_after(error)
            else:
                if not response.is_error:
                    attempts.succeeded()
                    return call.parse(response)
                pause = attempts.pause_after(response)
            time.sleep(pause)

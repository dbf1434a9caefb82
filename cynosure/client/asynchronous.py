"""The asynchronous Python client, with the same calls as `Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import httpx
from httpx_sse import aconnect_sse
from PIL import Image

from cynosure.batches import Batch, BatchList, BatchResult, BatchStatus
from cynosure.client import calls
from cynosure.client.address import server_url
from cynosure.client.attempts import Attempts, Retries, Server, connection
from cynosure.client.blocking import DEFAULT_URL
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

Result = TypeVar("Result")


class AsyncClient:
    """An asynchronous client; use it as a context manager. Arguments and errors are those of `Client`.

    >>> import asyncio
    >>> async def draw():
    ...     async with AsyncClient(url) as client:
    ...         [picture] = await client.generate(class_label="sneaker", steps=4, seed=1)
    ...     return picture.size
    >>> asyncio.run(draw())
    (28, 28)
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
        self._http = httpx.AsyncClient(**connection(url, api_key, timeout_s))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> tuple[ModelCard, ...]:
        """The models of the server."""
        return await self._do(calls.models())

    async def loras(self) -> tuple[LoraInfo, ...]:
        """The LoRAs of the server, with the models that can use each."""
        return await self._do(calls.loras())

    async def status(self) -> ServiceStatus:
        """Workers, queues and pace."""
        return await self._do(calls.status())

    async def add_model(self, model: str) -> ModelLoad:
        """Have every worker load a model, and wait until it is served. Takes a key with the scope `admin`.

        Args:
            model: a bundled model's name, a folder in the workers' `CYNOSURE_MODELS_ROOT` or `owner/name@COMMIT`; with
                `NAME=` before it, the model has that name.

        Raises:
            ModelNotLoaded: no worker could load it; the message says why.
            ModelExists: there is one of that name.
        """
        return await self._run(calls.loaded(model))

    async def remove_model(self, name: str, *, jobs: LeavingJobs = LeavingJobs.FINISH, wait_s: int = 30) -> ModelLoad:
        """Have every worker unload a model, and wait for that, but at most `wait_s` seconds.

        Raises:
            ModelNotFound: there is none of that name.
            ModelPinned: a worker has it from its `--models`.
        """
        return await self._do(calls.remove_model(name, jobs, wait_s=wait_s))

    async def model_loads(self) -> tuple[ModelLoad, ...]:
        """How far each worker is with each model."""
        return await self._do(calls.model_loads())

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """The live workers. Takes a key with the scope `admin`, as `drain_worker` does."""
        return await self._do(calls.workers())

    async def drain_worker(self, name: str, *, wait_s: int = 30) -> bool:
        """Have a worker finish its jobs or hand them back, and end; whether it has, after at most `wait_s` seconds.

        Raises:
            WorkerNotFound: there is none of that name.
        """
        return await self._do(calls.drain_worker(name, wait_s=wait_s))

    async def generate(self, request: GenerateRequest | None = None, /, **fields: Any) -> list[Image.Image]:
        """Submit, wait, and fetch all pictures. Their metadata (`picture.info`) holds the request.

        Raises:
            InvalidRequest: the request can't be served; `field` names what to change.
            JobFailed, JobCancelled: the job was accepted but did not succeed.
        """
        return await self._run(calls.drawn(calls.request_of(request, fields)))

    async def submit(
        self, request: GenerateRequest | None = None, /, *, idempotency_key: str | None = None, **fields: Any
    ) -> Job:
        """Post a job and return at once."""
        return await self._do(calls.submit(calls.request_of(request, fields), idempotency_key))

    async def submit_sweep(self, request: SweepRequest, *, idempotency_key: str | None = None) -> Job:
        """Post a grid of pictures as one job and return at once."""
        return await self._do(calls.submit_sweep(request, idempotency_key))

    async def plan(self, request: GenerateRequest | None = None, /, **fields: Any) -> Plan:
        """What the request would cost; nothing is drawn."""
        return await self._do(calls.plan(calls.request_of(request, fields)))

    async def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._do(calls.job(job_id))

    async def jobs(self, *, status: JobStatus | None = None, cursor: str | None = None, limit: int = 20) -> JobList:
        """Your jobs, newest first, one page at a time: pass a page's `next_cursor` as the next call's `cursor`."""
        return await self._do(calls.jobs(status, cursor, limit))

    async def cancel(self, job_id: str) -> Job:
        """Cancel the job unless it is finished."""
        return await self._do(calls.cancel(job_id))

    async def erase(self, job_id: str) -> Job:
        """Cancel the job unless it is finished, and delete it with its pictures; returns its last state."""
        return await self._do(calls.erase(job_id))

    async def retry(self, job_id: str) -> Job:
        """Post a finished job's request again, as a new job."""
        return await self._do(calls.retry(job_id))

    async def vary(self, job_id: str, *, num_images: int | None = None) -> Job:
        """Post a job's request again with a new seed."""
        return await self._do(calls.vary(job_id, num_images))

    async def wait(
        self, job_id: str, *, on_event: Callable[[Job | Progress | Preview], Awaitable[None]] | None = None
    ) -> Job:
        """Wait until the job has succeeded; `on_event` is called with each event on the way.

        Raises:
            JobFailed, JobCancelled: it did not succeed.
        """
        if on_event is None:
            return await self._run(calls.until_done(await self.job(job_id)))
        event: Job | Progress | Preview | None = None
        async for event in self.stream(job_id):
            await on_event(event)
        return calls.ended(event if isinstance(event, Job) else await self.job(job_id))

    async def stream(self, job_id: str) -> AsyncIterator[Job | Progress | Preview]:
        """Yield events as they happen: the job when its queue position or state changes, progress, previews.

        The last one is the job as it ended. A broken connection is reopened, and the stream resumes where it was.

        Raises:
            Unreachable: more consecutive tries failed than `retries` allows (half a minute if it has answered before).
        """
        attempts = Attempts(self._server)
        follower = Follower(job_id, attempts)
        while not follower.is_done:
            pause = 0.0
            try:
                async with aconnect_sse(self._http, "GET", follower.path, headers=follower.headers) as source:
                    if source.response.is_error:
                        await source.response.aread()
                        pause = attempts.pause_after(source.response)
                    else:
                        async for event in source.aiter_sse():
                            if (update := follower.read(event)) is not None:
                                yield update
            except httpx.TransportError as error:
                pause = attempts.pause_after(error)
            await asyncio.sleep(pause)

    async def image(self, job_id: str, index: int = 0, to: OutputFormat = OutputFormat.PNG) -> bytes:
        """The file of one picture."""
        return await self._do(calls.image(job_id, index, to))

    async def file(self, url: str) -> bytes:
        """The file at a URL from an answer, such as a picture's `url`."""
        return await self._do(calls.file(url))

    async def images(self, job: Job) -> list[Image.Image]:
        """All pictures of a finished job."""
        return await self._run(calls.pictures_of(job))

    async def sheet(self, job_id: str) -> bytes:
        """PNG bytes of a finished sweep's contact sheet."""
        return await self._do(calls.sheet(job_id))

    async def batch(
        self, requests: Iterable[GenerateRequest | Mapping[str, Any]], *, concurrency: int = 8
    ) -> AsyncIterator[Drawn]:
        """Draw many requests, at most `concurrency` at once; yield each result as it is done.

        A request that fails is yielded with its error, and the others continue.

        >>> import asyncio
        >>> async def draw():
        ...     async with AsyncClient(url) as client:
        ...         return [one.index async for one in client.batch({"class_label": n, "steps": 4} for n in range(3))]
        >>> sorted(asyncio.run(draw()))
        [0, 1, 2]
        """
        numbered = enumerate(requests)
        waiting: set[asyncio.Task[Drawn]] = set()
        try:
            while True:
                for index, request in islice(numbered, concurrency - len(waiting)):
                    waiting.add(asyncio.create_task(self._draw(index, request)))
                if not waiting:
                    return
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        finally:
            for task in waiting:
                task.cancel()

    async def submit_batch(
        self, requests: bytes | Iterable[GenerateRequest | Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> Batch:
        """Hand up to 10,000 requests to the server, which queues them as there is room."""
        return await self._do(calls.submit_batch(calls.ndjson(requests), idempotency_key))

    async def batch_status(self, batch_id: str) -> Batch:
        """How many of the batch's requests are in which state."""
        return await self._do(calls.batch(batch_id))

    async def batches(
        self, *, status: BatchStatus | None = None, cursor: str | None = None, limit: int = 20
    ) -> BatchList:
        """Your batches, newest first, one page at a time, as `jobs`."""
        return await self._do(calls.batches(status, cursor, limit))

    async def batch_results(
        self, batch_id: str, *, first_line: int = 1, limit: int = MAX_BATCH_LINES
    ) -> list[BatchResult]:
        """The results of the lines from `first_line` on, in order, at most `limit` of them."""
        return await self._run(calls.results_of(batch_id, first_line, limit))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel the unfinished part of the batch."""
        return await self._do(calls.cancel_batch(batch_id))

    async def _draw(self, index: int, request: GenerateRequest | Mapping[str, Any]) -> Drawn:
        try:
            asked = request if isinstance(request, GenerateRequest) else parsed(GenerateRequest, request)
            return Drawn(index, request, await self._run(calls.drawn(asked)))
        except (CynosureError, ValueError) as error:
            return Drawn(index, request, error=error)

    async def _run(self, flow: Flow[Result]) -> Result:
        answer: Any = None
        while True:
            try:
                call = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = await self._do(call)

    async def _do(self, call: Call[Result]) -> Result:
        attempts = Attempts(self._server)
        while True:
            try:
                response = await self._http.request(call.method, call.path, **call.arguments(self._timeout_s))
            except httpx.TransportError as error:
                pause = attempts.pause_after(error)
            else:
                if not response.is_error:
                    attempts.succeeded()
                    return call.parse(response)
                pause = attempts.pause_after(response)
            await asyncio.sleep(pause)

"""The models that all workers are to hold besides their own `--models`, and how far each worker is with them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import redis.asyncio

from cynosure.contract import LeavingJobs, LoadState, ModelAtWorker, ModelLoad
from cynosure.errors import InvalidRequest, ModelExists, ModelPinned
from cynosure.refusals import no_such_model
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient, connect
from jobs.store.keyspace import Keys
from jobs.store.scripts import script

GONE = "gone"
"""Instead of a value of `LeavingJobs`: the model has left, with all of its jobs."""
_KEPT_S = 86_400  # only those of live workers are read
_LINES_AT_ONCE = 256
_DIGEST_LENGTH = 64  # before the JSON of a batch's line


@dataclass(frozen=True)
class Wanted:
    """A model to be held by every worker.

    Attributes:
        id: of this wish; the same name, wanted again, has another.
        model: what to open, without the name.
    """

    id: str
    model: str

    def encoded(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decoded(cls, raw: bytes) -> Wanted:
        return cls(**json.loads(raw))


class Roster(StoreClient):
    """The gateway's side. Every method raises `StoreUnavailable` if Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._add = client.register_script(script("model_add"))

    async def loads(self) -> list[ModelLoad]:
        """Every model that a live worker holds, is to hold, or gives up, and those that wait for one; by name."""
        keys = self._keys
        async with answering():
            wanted: Any = await self._client.hgetall(keys.models)
            leaving: Any = await self._client.hgetall(keys.models_leaving)
            workers: list[Any] = list(await self._client.zrange(keys.workers, 0, -1))
            told: list[Any] = await self._client.mget([keys.worker_models(raw.decode()) for raw in workers] or ["-"])
            known: Any = await self._client.hkeys(keys.models_known) if self._settings.accept_without_worker else ()
        waiting = (raw for raw in known if raw not in leaving)
        by_name: dict[str, list[ModelAtWorker]] = {raw.decode(): [] for raw in (*wanted, *waiting)}
        for worker, raw in zip((raw.decode() for raw in workers), told, strict=False):
            told_of = json.loads(raw or "{}")
            for name, (wish, state) in told_of.items():
                at = ModelAtWorker(worker=worker, **state)
                now = wanted.get(name.encode())
                if at.state is LoadState.FAILED and (now is None or Wanted.decoded(now).id != wish):
                    continue  # of an earlier wish
                by_name.setdefault(name, []).append(at)
            for name, known in by_name.items():
                if name.encode() in wanted and all(at.worker != worker for at in known):
                    known.append(ModelAtWorker(worker=worker, state=LoadState.LOADING))
        return [
            ModelLoad(
                name=name,
                model=Wanted.decoded(wanted[name.encode()]).model if name.encode() in wanted else None,
                jobs=_jobs_of(leaving.get(name.encode())),
                workers=tuple(at),
            )
            for name, at in sorted(by_name.items())
        ]

    async def load(self, name: str) -> ModelLoad | None:
        """One of `loads`."""
        return next((load for load in await self.loads() if load.name == name), None)

    async def add(self, name: str, model: str) -> Wanted:
        """Have all workers load `model`, and serve it under `name`. One that no worker could load is replaced.

        Raises:
            ModelExists: there is one of that name, or it has not left yet.
        """
        now = await self.load(name)
        if now is not None and any(at.state is not LoadState.FAILED for at in now.workers):
            is_own = any(at.own for at in now.workers)
            left = ", which has not been unloaded yet" if now.jobs or not (now.model or is_own) else ""
            raise ModelExists(f"There is a model '{name}' here already{left}. Give this one another name: NAME={model}")
        async with answering():
            before: Any = await self._client.hget(self._keys.models, name)
            if before is not None and not (now is not None and now.workers):
                raise ModelExists(f"A model '{name}' is about to be loaded already.")
            wanted = Wanted(secrets.token_hex(8), model)
            is_added = await self._add(
                keys=[self._keys.models, self._keys.models_leaving],
                args=[name, wanted.encoded(), before or ""],
            )
        if not is_added:
            raise ModelExists(f"A model '{name}' was added at the same time.")
        return wanted

    async def give_up(self, name: str, wanted: Wanted) -> None:
        """Want this no longer: no worker could load it."""
        async with answering():
            now: Any = await self._client.hget(self._keys.models, name)
            if now is not None and Wanted.decoded(now) == wanted:
                await self._client.hdel(self._keys.models, name)

    async def remove(self, name: str, jobs: LeavingJobs) -> None:
        """Have all workers unload the model. One that no worker holds, and only waits for one, is forgotten.

        Raises:
            InvalidRequest: jobs wait for it, and no worker is there to finish or refuse them.
            ModelNotFound: there is none of that name.
            ModelPinned: a worker has it from its --models.
        """
        loads = {load.name: load for load in await self.loads()}
        if name not in loads and not await self._is_known(name):
            raise no_such_model(name, loads)
        load = loads.get(name, ModelLoad(name=name))
        if not load.workers and load.model is None and jobs is not LeavingJobs.WAIT:
            await self._forget(name)
            return
        if pinning := [at.worker for at in load.workers if at.own]:
            raise ModelPinned(
                f"'{name}' is one of the --models of {', '.join(pinning)}, which keeps it until it ends: restart it "
                "without this model."
            )
        async with answering(), self._client.pipeline() as pipe:
            pipe.hset(self._keys.models_leaving, name, jobs.value)
            if jobs is LeavingJobs.WAIT:
                pipe.hdel(self._keys.models, name)
            await pipe.execute()

    async def _is_known(self, name: str) -> bool:
        async with answering():
            return self._settings.accept_without_worker and await self._client.hexists(self._keys.models_known, name)

    async def _forget(self, name: str) -> None:
        """Forget a model that no worker holds.

        Raises:
            InvalidRequest: jobs wait for it.
        """
        keys = self._keys
        async with answering(), self._client.pipeline() as pipe:
            for place in (*keys.queues(name), keys.delayed(name), keys.suspects(name)):
                pipe.zcard(place)
            if waiting := sum(await pipe.execute()):
                raise InvalidRequest(
                    f"Jobs wait for '{name}' ({waiting}), and no worker is there to finish or refuse them. Give "
                    "jobs=wait to leave them waiting, or cancel them first.",
                    field="jobs",
                )
            pipe.hdel(keys.models_known, name)
            pipe.hdel(keys.models_leaving, name)
            await pipe.execute()


def _jobs_of(raw: bytes | None) -> LeavingJobs | None:
    return None if raw is None or raw.decode() == GONE else LeavingJobs(raw.decode())


class RosterDesk:
    """The worker's side. Thread-safe; raises `redis.RedisError`."""

    def __init__(self, settings: StoreSettings) -> None:
        self._client = connect(settings, "cynosure-roster")
        self._keys = Keys(settings.key_prefix)
        self._drop = self._client.register_script(script("model_drop"))

    def wanted(self) -> dict[str, tuple[Wanted, LeavingJobs | None]]:
        """What to hold, by name; with what becomes of its jobs if it is leaving."""
        with self._client.pipeline() as pipe:
            pipe.hgetall(self._keys.models)
            pipe.hgetall(self._keys.models_leaving)
            wanted, leaving = pipe.execute()
        return {raw.decode(): (Wanted.decoded(what), _jobs_of(leaving.get(raw))) for raw, what in wanted.items()}

    def tell(self, worker: str, states: Mapping[str, tuple[Wanted | None, ModelAtWorker]]) -> None:
        """Publish how far this worker is with each model."""
        told = {
            name: (wanted and wanted.id, at.model_dump(mode="json", exclude={"worker"}))
            for name, (wanted, at) in states.items()
        }
        self._client.set(self._keys.worker_models(worker), json.dumps(told), ex=_KEPT_S)

    def keep(self, names: Collection[str]) -> None:
        """Serve these whatever has left before: a worker has them from its --models."""
        self._client.hdel(self._keys.models_leaving, *names)

    def drop(self, name: str, wanted: Wanted) -> None:
        """Have all workers unload a leaving model: it has no jobs any more."""
        self._drop(keys=[self._keys.models, self._keys.models_leaving], args=[name, wanted.encoded()])

    def begin_loading(self, wanted: Wanted) -> int:
        """Count a worker that loads this; returns how many have begun and not ended, this one included."""
        with self._client.pipeline() as pipe:
            pipe.incr(self._keys.model_loading(wanted.id))
            pipe.expire(self._keys.model_loading(wanted.id), _KEPT_S)
            return int(pipe.execute()[0])

    def end_loading(self, wanted: Wanted) -> None:
        self._client.decr(self._keys.model_loading(wanted.id))

    def workers_in(self, name: str, states: Collection[LoadState]) -> int:
        """Number of live workers that are in one of these states with the model."""
        workers: list[Any] = list(self._client.zrange(self._keys.workers, 0, -1))
        told: list[Any] = list(self._client.mget([self._keys.worker_models(raw.decode()) for raw in workers] or ["-"]))
        of_model = (json.loads(raw).get(name) for raw in told if raw)
        return sum(one is not None and one[1]["state"] in states for one in of_model)

    def has_jobs(self, name: str, others: Iterable[str]) -> bool:
        """Whether an accepted job needs the model: one of its own, one of `others` that it guides, or a batch's."""
        # In the order in which jobs move: a line becomes a job before it counts as fed.
        return any(
            name in _needed(request) for requests in (self._lines, self._open) for request in requests(name, others)
        )

    def _lines(self, name: str, others: Iterable[str]) -> Iterator[bytes]:
        """Requests of the running batches that are not jobs yet."""
        batches: list[Any] = list(self._client.zrange(self._keys.batches, 0, -1))
        for batch in (raw.decode() for raw in batches):
            fed: Any = self._client.hget(self._keys.batch(batch), "fed")
            first = int(fed or 0)
            while lines := list(self._client.lrange(self._keys.batch_lines(batch), first, first + _LINES_AT_ONCE - 1)):
                for line in lines:
                    yield json.dumps(json.loads(line[_DIGEST_LENGTH:])["request"]).encode()
                first += len(lines)

    def _open(self, name: str, others: Iterable[str]) -> Iterator[bytes]:
        """Requests of jobs that wait or run, as of one moment."""
        with self._client.pipeline() as pipe:  # a transaction: a job moves between these sets
            pipe.zrange(self._keys.leases, 0, -1)
            for model in {name, *others}:
                for place in (*self._keys.queues(model), self._keys.delayed(model), self._keys.suspects(model)):
                    pipe.zrange(place, 0, -1)
            ids = [raw.decode() for place in pipe.execute() for raw in place]
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(self._keys.job(job_id), "request")
            yield from (request for request in pipe.execute() if request is not None)


def _needed(request: bytes) -> tuple[str, str | None]:
    fields = json.loads(request)
    return fields["model"], fields.get("guide_model")

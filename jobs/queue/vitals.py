"""How the queues and the store are, in one round trip that does not grow with the queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cynosure.contract import RecentJobs
from jobs.queue.pace import Pace
from jobs.queue.recent import MAX_JOBS, recent_jobs
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.keyspace import PRIORITIES

BACK_OFF = "back_off"
SUSPECT = "suspect"
PLACES = (*(priority.value for priority in PRIORITIES), BACK_OFF, SUSPECT)
"""Where a job may wait: in the queue of its priority, until a retry is due, or apart, because it lost two workers."""
_ALONE = 1e16  # added by _queue.lua to the score of suspects that run alone


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """A model's queue.

    Attributes:
        waiting: jobs by their place in `PLACES`.
        oldest_s: time since the oldest job was accepted; 0 if none waits. Those in back-off are left out.
    """

    waiting: Mapping[str, int]
    oldest_s: float


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A model's queue, how fast its jobs are done, and the last of them, if there were any lately."""

    queue: QueueState
    pace: Pace
    recent: RecentJobs | None


@dataclass(frozen=True, kw_only=True)
class StoreState:
    """The store itself.

    Attributes:
        used_bytes: memory of its data.
        limit_bytes: its memory limit, 0 without one.
        writes: whether its last writes to disk succeeded.
        file_bytes: size of its append-only file, 0 without one.
    """

    used_bytes: int
    limit_bytes: int
    writes: bool
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class VitalSigns:
    """The store and its queues at one moment.

    Attributes:
        queues: by model.
        running: jobs that workers hold.
        overdue_s: time since the first of their leases expired that no reaper has seen yet; 0 if none has.
        store: the store itself.
    """

    queues: Mapping[str, QueueState]
    running: int
    overdue_s: float
    store: StoreState


class Vitals(StoreClient):
    """Reads the vital signs."""

    async def read(self, models: Sequence[str]) -> VitalSigns:
        """Those of these models' queues.

        Raises:
            StoreUnavailable: Redis is away.
        """
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.info("memory")
            pipe.info("persistence")
            pipe.zcard(self._keys.leases)
            pipe.zrange(self._keys.leases, 0, 0, withscores=True)
            for model in models:
                self._ask(pipe, model)
            (seconds, microseconds), memory, disk, running, leases, *answers = await pipe.execute()
        now_us, answer = seconds * 1_000_000 + microseconds, iter(answers)
        return VitalSigns(
            queues={model: _state(answer, now_us) for model in models},
            running=running,
            overdue_s=max((0.0, *(now_us / 1_000_000 - expiry_ms / 1000 for _, expiry_ms in leases))),
            store=StoreState(
                used_bytes=memory["used_memory"],
                limit_bytes=memory.get("maxmemory", 0),
                writes=disk["aof_last_write_status"] == "ok" and disk["rdb_last_bgsave_status"] == "ok",
                file_bytes=disk.get("aof_current_size", 0),
            ),
        )

    async def flows(self, models: Sequence[str]) -> tuple[list[Flow], int]:
        """Those of these models, and the number of jobs that workers hold.

        Raises:
            StoreUnavailable: Redis is away.
        """
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zcard(self._keys.leases)
            for model in models:
                pipe.hgetall(self._keys.pace(model))
                pipe.lrange(self._keys.recent(model), 0, MAX_JOBS - 1)
                self._ask(pipe, model)
            (seconds, microseconds), running, *answers = await pipe.execute()
        now_us, answer = seconds * 1_000_000 + microseconds, iter(answers)
        return [
            Flow(
                pace=Pace.of(next(answer)),
                recent=recent_jobs(next(answer), now_us // 1000),
                queue=_state(answer, now_us),
            )
            for _ in models
        ], running

    def _ask(self, pipe: Any, model: str) -> None:
        """Add the commands whose answers `_state` reads."""
        for place in (*self._keys.queues(model), self._keys.delayed(model), self._keys.suspects(model)):
            pipe.zcard(place)
        for place in (*self._keys.queues(model), self._keys.suspects(model)):
            pipe.zrange(place, 0, 0, withscores=True)


def _state(answer: Any, now_us: int) -> QueueState:
    waiting = dict(zip(PLACES, islice(answer, len(PLACES)), strict=True))
    accepted = [score % _ALONE for first in islice(answer, len(PRIORITIES) + 1) for _, score in first]
    oldest_s = max(0.0, (now_us - min(accepted)) / 1_000_000) if accepted else 0.0
    return QueueState(waiting=waiting, oldest_s=oldest_s)

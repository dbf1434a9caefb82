"""What is remembered of an owner between requests, for protocols whose requests name neither a model nor a job."""

from __future__ import annotations

import time
from typing import Any

from jobs.store.answering import answering
from jobs.store.connection import StoreClient

_CHOICE_KEPT_S = 30 * 86_400  # after its last use
_CALLS_KEPT_S = 3600  # longer than any call is held; those of a gateway that died are forgotten then


class Sessions(StoreClient):
    """The model that an owner chose, and its calls in progress. Every method raises `StoreUnavailable`."""

    async def choose(self, owner: str, model: str) -> None:
        """Remember the model, for a month after its last use."""
        async with answering():
            await self._client.set(self._keys.chosen_model(owner), model, ex=_CHOICE_KEPT_S)

    async def chosen(self, owner: str) -> str | None:
        """The model that the owner chose last."""
        async with answering():
            name: Any = await self._client.getex(self._keys.chosen_model(owner), ex=_CHOICE_KEPT_S)
        return None if name is None else name.decode()

    async def begin(self, owner: str, job_id: str) -> None:
        """Remember that a call waits for the job."""
        key = self._keys.calls(owner)
        async with answering(), self._client.pipeline() as pipe:
            pipe.zadd(key, {job_id: time.time()})
            pipe.expire(key, _CALLS_KEPT_S)
            await pipe.execute()

    async def end(self, owner: str, job_id: str) -> None:
        """Forget the call."""
        async with answering():
            await self._client.zrem(self._keys.calls(owner), job_id)

    async def calls(self, owner: str) -> list[str]:
        """The jobs that calls wait for, the latest first."""
        async with answering():
            job_ids: Any = await self._client.zrevrange(self._keys.calls(owner), 0, -1)
        return [job_id.decode() for job_id in job_ids]

"""One way to say that the store is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis

from cynosure.errors import StoreUnavailable


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Turn a Redis that does not answer into `StoreUnavailable`."""
    try:
        yield
    except redis.RedisError as error:
        detail = "The job store does not answer; try again, with an Idempotency-Key."
        raise StoreUnavailable(detail, retry_after_s=2) from error

"""One way to say that the store is away, or full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
from redis.exceptions import OutOfMemoryError

from cynosure.errors import StoreFull, StoreUnavailable

RETRY_FULL_S = 30  # until results expire, or somebody looks


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Turn a Redis that does not answer into `StoreUnavailable`, and one at its memory limit into `StoreFull`."""
    try:
        yield
    except OutOfMemoryError as error:
        detail = "The job store is at its memory limit: what was accepted goes on, but nothing more fits."
        raise StoreFull(detail, retry_after_s=RETRY_FULL_S) from error
    except redis.RedisError as error:
        detail = "The job store does not answer; try again, with an Idempotency-Key."
        raise StoreUnavailable(detail, retry_after_s=2) from error

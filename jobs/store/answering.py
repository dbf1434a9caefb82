"""Redis errors as the errors that clients get: the store is unavailable, or full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
from redis.exceptions import OutOfMemoryError

from cynosure.errors import StoreFull, StoreUnavailable

RETRY_FULL_S = 30  # until results expire, or an operator steps in


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Turn a Redis that does not answer into `StoreUnavailable`, and one at its memory limit into `StoreFull`."""
    try:
        yield
    except OutOfMemoryError as error:
        detail = "The job store is at its memory limit: accepted jobs go on, but new ones do not fit."
        raise StoreFull(detail, retry_after_s=RETRY_FULL_S) from error
    except redis.RedisError as error:
        detail = "The job store does not answer; try again, with an Idempotency-Key."
        raise StoreUnavailable(detail, retry_after_s=2) from error

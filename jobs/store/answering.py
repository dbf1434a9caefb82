"""Redis errors as the errors that clients get: the store is unavailable, or full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
from redis.exceptions import AskError, ClusterCrossSlotError, OutOfMemoryError

from cynosure.errors import StoreFull, StoreUnavailable

CLUSTER_ERRORS = (AskError, ClusterCrossSlotError)
"""A server in cluster mode says that a key is elsewhere, or the keys of a script not in one place."""
IS_CLUSTER = (
    "the job store runs in cluster mode, which spreads keys over servers, but a transition needs all of its keys on "
    "one: use a server with cluster mode disabled, with replicas if it is to survive"
)
RETRY_FULL_S = 30  # until results expire, or an operator steps in


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Turn a Redis that does not answer into `StoreUnavailable`, and one at its memory limit into `StoreFull`."""
    try:
        yield
    except OutOfMemoryError as error:
        detail = "The job store is at its memory limit: accepted jobs go on, but new ones do not fit."
        raise StoreFull(detail, retry_after_s=RETRY_FULL_S) from error
    except CLUSTER_ERRORS as error:
        raise StoreUnavailable(f"{IS_CLUSTER[:1].upper()}{IS_CLUSTER[1:]}.", retry_after_s=RETRY_FULL_S) from error
    except redis.RedisError as error:
        detail = "The job store does not answer; try again, with an Idempotency-Key."
        raise StoreUnavailable(detail, retry_after_s=2) from error

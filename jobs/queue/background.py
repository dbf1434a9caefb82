"""Ending tasks that run alongside requests."""

from __future__ import annotations

import asyncio
from typing import Any

_RETRY_S = 0.1


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel `task` until it has ended: the Redis client loses a cancellation that arrives while it connects."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_RETRY_S)

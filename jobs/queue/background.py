"""Ending tasks that run beside the requests."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.1


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel `task` until it has ended: the Redis client loses a cancellation that meets it while it connects."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)

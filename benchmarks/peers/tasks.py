"""One Celery task per request, without batching, as in many tutorials. `tasks.py PORT` runs its FastAPI front end."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
import torch
import uvicorn
from fastapi import FastAPI

from benchmarks.peers.drawing import PlainPipeline
from benchmarks.stream import Asked

url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
queue = celery.Celery(
    "peer", broker=url.replace("unix://", "redis+socket://"), backend=url.replace("unix://", "redis+socket://")
)
queue.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)


@functools.cache
def pipeline() -> PlainPipeline:
    torch.set_num_threads(1)  # one process per core: two processes are faster here than one with two threads
    return PlainPipeline()


@queue.task(name="draw")
def draw(body: dict[str, Any]) -> list[str]:
    return pipeline().draw([Asked(**body)])[0]


app = FastAPI()
# Waiting on FastAPI's forty threads would block it with more than forty clients, since it needs one for every answer.
waiting = ThreadPoolExecutor(256)


@app.get("/health")
async def health() -> str:
    return "ok"


@app.post("/draw")
async def post(body: dict[str, Any]) -> list[str]:
    return await asyncio.get_running_loop().run_in_executor(waiting, lambda: draw.delay(body).get(timeout=3600))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

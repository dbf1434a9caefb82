"""diffusers in FastAPI behind a lock: one request at a time, on a dedicated thread."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.drawing import PlainPipeline
from benchmarks.stream import Asked

app = FastAPI()
# The lock is a pool of one thread: with a real lock, each of FastAPI's threads would start an OpenMP pool.
drawing = ThreadPoolExecutor(1)
pipeline = drawing.submit(PlainPipeline)


@app.get("/health")
async def health() -> str:
    await asyncio.wrap_future(pipeline)
    return "ok"


@app.post("/draw")
async def draw(body: dict[str, Any]) -> list[str]:
    return await asyncio.wrap_future(drawing.submit(lambda: pipeline.result().draw([Asked(**body)])[0]))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

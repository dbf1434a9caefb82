"""diffusers in FastAPI behind a lock: one request at a time."""

from __future__ import annotations

import sys
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.drawing import PlainPipeline
from benchmarks.stream import Asked

app = FastAPI()
pipeline = PlainPipeline()
lock = threading.Lock()


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/draw")
def draw(body: dict[str, Any]) -> list[str]:
    with lock:
        return pipeline.draw([Asked(**body)])[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

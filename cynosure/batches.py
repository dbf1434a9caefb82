"""The contract of batches: thousands of requests in one body, and their results."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract import GenerateRequest, ImageInfo, JobError


class BatchStatus(StrEnum):
    """States of a batch: `receiving → running → finished | cancelled`."""

    RECEIVING = "receiving"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class BatchLine(GenerateRequest):
    """One line of a batch: a request, optionally with a name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"class_label": "bag", "seed": 1, "custom_id": "first"}]})

    custom_id: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="Your own name for the line, repeated in the results."
    )


class BatchCounts(BaseModel):
    """How many requests of a batch are in which state."""

    model_config = ConfigDict(frozen=True)

    total: int
    waiting: int = Field(description="Not posted yet: a batch keeps only a limited number of jobs in the queue.")
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = Field(0, description="Finished, and no longer kept.")


class BatchLinks(BaseModel):
    """URLs of the batch's parts."""

    model_config = ConfigDict(frozen=True)

    self: str
    results: str
    images: str


class Batch(BaseModel):
    """A batch as the API shows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: BatchStatus
    created_at: datetime
    counts: BatchCounts
    links: BatchLinks


class BatchList(BaseModel):
    """GET /batches: a page of your batches, newest first."""

    model_config = ConfigDict(frozen=True)

    batches: tuple[Batch, ...]
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null after the last.")


class BatchResult(BaseModel):
    """The result of one line of a batch."""

    model_config = ConfigDict(frozen=True)

    line: int = Field(description="Line number, counted from 1.")
    custom_id: str | None = None
    status: str = Field(description="Status of the line's job, or `waiting`, `cancelled` or `expired`.")
    job_id: str | None = None
    seed: int | None = None
    images: tuple[ImageInfo, ...] = ()
    error: JobError | None = None
    warnings: tuple[str, ...] = Field((), description="As the job's.")

"""What the service is doing: workers, queues and pace."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Quantiles(BaseModel):
    """The time that half of the jobs took at most, and nineteen in twenty."""

    model_config = ConfigDict(frozen=True)

    p50: float
    p95: float


class RecentJobs(BaseModel):
    """Jobs of a model that succeeded in the last five minutes, the last 256 at most."""

    model_config = ConfigDict(frozen=True)

    jobs: int
    pictures_per_second: float = Field(description="Pictures drawn in the last minute, by second.")
    waited_s: Quantiles = Field(description="Seconds from acceptance until a worker took them for the last time.")
    ran_s: Quantiles = Field(description="Seconds from then until their pictures were stored.")


class ModelStatus(BaseModel):
    """One model: who draws with it, what waits for it, and how fast it is drawn with."""

    model_config = ConfigDict(frozen=True)

    name: str
    workers: int = Field(description="Live workers that hold it.")
    waiting: int = Field(description="Jobs that wait for it, of all callers.")
    waiting_by_priority: dict[str, int] = Field(
        description="These by priority (`high`, `normal`, `low`); `back_off`: until a retry is due; `suspect`: to run "
        "apart, because they lost two workers."
    )
    pictures_per_second: float | None = Field(
        None, description="Pictures drawn per second of the last minutes in which any job ran; null if none were."
    )
    reviewed: bool = Field(False, description="Whether its pictures are reviewed before they are stored.")
    evaluations_per_second: float | None = Field(None, description="Network evaluations, likewise.")
    recent: RecentJobs | None = Field(None, description="Its last jobs; null if none succeeded lately.")


class ServiceStatus(BaseModel):
    """GET /status."""

    version: str
    workers: int = Field(description="Live workers.")
    running: int = Field(description="Jobs being drawn, of all callers.")
    models: tuple[ModelStatus, ...]


class WorkerState(StrEnum):
    """What a worker is doing."""

    SERVING = "serving"
    MEASURING = "measuring"
    """It takes jobs, and between them measures batch sizes, which slows pictures."""
    DRAINING = "draining"
    """It takes no more jobs, and ends when it has none left."""


class WorkerStatus(BaseModel):
    """A live worker, as it was a second ago."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: WorkerState
    device: str = Field(description="Where it draws: `cpu`, `cuda:0`, or the name of a MIG device.")
    hardware: str = Field(description="What that is.")
    models: tuple[str, ...] = Field(description="Models that it holds.")
    jobs: int = Field(description="Jobs that it holds.")
    max_jobs: int = Field(description="Jobs that it can hold.")
    pictures: int = Field(description="Pictures of these jobs that are not drawn yet.")
    busy: float = Field(ge=0, le=1, description="Share of the device that drew, averaged over about half a minute.")
    version: str
    since: datetime = Field(description="When it began to serve.")


class WorkerList(BaseModel):
    """GET /admin/workers."""

    workers: tuple[WorkerStatus, ...]

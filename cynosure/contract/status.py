"""What the service is doing: workers, queues and pace."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ModelStatus(BaseModel):
    """One model: who draws with it, what waits for it, and how fast it is drawn with."""

    model_config = ConfigDict(frozen=True)

    name: str
    workers: int = Field(description="Live workers that hold it.")
    waiting: int = Field(description="Jobs that wait for it, of all callers.")
    pictures_per_second: float | None = Field(
        None, description="Pictures drawn per second of the last minutes in which any job ran; null if none were."
    )
    reviewed: bool = Field(False, description="Whether its pictures are reviewed before they are stored.")
    evaluations_per_second: float | None = Field(None, description="Network evaluations, likewise.")


class ServiceStatus(BaseModel):
    """GET /status."""

    version: str
    workers: int = Field(description="Live workers.")
    running: int = Field(description="Jobs being drawn, of all callers.")
    models: tuple[ModelStatus, ...]

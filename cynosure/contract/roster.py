"""Which models the workers are told to load, and how far they are."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class LoadRequest(BaseModel):
    """POST /admin/models."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"model": "shoes=my-folder"}]}
    )

    model: str = Field(
        min_length=1,
        max_length=500,
        description="A bundled model's name, a folder in the workers' CYNOSURE_MODELS_ROOT, or owner/name@COMMIT on "
        "the hub if they allow it. NAME= before it gives it another name.",
    )


class LeavingJobs(StrEnum):
    """What becomes of the accepted jobs of a model that is unloaded. In every case it takes no new ones."""

    FINISH = "finish"
    """They are drawn first."""
    WAIT = "wait"
    """Those being drawn are finished; the rest wait until the model is loaded again."""
    REFUSE = "refuse"
    """Those being drawn are finished; the rest fail with `model_removed`."""


class LoadState(StrEnum):
    """How far a worker is with a model."""

    LOADING = "loading"
    SERVING = "serving"
    LEAVING = "leaving"
    FAILED = "failed"

    @property
    def is_passing(self) -> bool:
        return self in (LoadState.LOADING, LoadState.LEAVING)


class ModelAtWorker(BaseModel):
    """A model at one worker."""

    model_config = ConfigDict(frozen=True)

    worker: str
    state: LoadState
    own: bool = Field(False, description="Whether it is one of the worker's --models, which it keeps until it ends.")
    reason: str | None = Field(None, description="Why it could not be loaded.")


class ModelLoad(BaseModel):
    """A model that workers hold, or are to hold, or that waits for a worker."""

    model_config = ConfigDict(frozen=True)

    name: str
    model: str | None = Field(None, description="What was asked to be loaded; null if only --models name it.")
    jobs: LeavingJobs | None = Field(None, description="If it is being unloaded: what becomes of its jobs.")
    workers: tuple[ModelAtWorker, ...] = ()


class ModelLoads(BaseModel):
    """GET /admin/models."""

    models: tuple[ModelLoad, ...]

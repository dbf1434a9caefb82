"""What a job says of itself."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, computed_field

from cynosure.contract.requests import ResolvedRequest
from cynosure.contract.terms import JobStatus


class ImageInfo(BaseModel):
    """One finished picture of a job."""

    model_config = ConfigDict(frozen=True)

    index: int
    url: str
    seed: int = Field(
        description="Its noise is that of (seed, first_image + index); of a sweep's picture, of (seed, first_image)."
    )
    sha256: str


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class JobLinks(BaseModel):
    """Where the job's parts are."""

    model_config = ConfigDict(frozen=True)

    self: str
    images: tuple[str, ...] = ()
    sheet: str | None = Field(None, description="All pictures of a sweep on one sheet.")


class JobAttempt(BaseModel):
    """One time that a worker took the job."""

    model_config = ConfigDict(frozen=True)

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str = Field(
        description="running, succeeded, failed or cancelled; handed_back by a worker that stopped, lost with its "
        "worker, or faulted: tried again, if attempts are left."
    )
    error: JobError | None = Field(None, description="Why, where it did not end in good order.")


class Job(BaseModel):
    """A job as the API shows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue_position: int | None = Field(None, description="Jobs that start before this one; null once it has started.")
    eta_seconds: float | None = Field(
        None, description="Until the job should be done, at the pace of the last minutes; null where that is not known."
    )
    not_before: datetime | None = Field(None, description="After a fault that may pass, when it is tried again.")
    progress: float = Field(ge=0, le=1)
    evaluations_done: int = Field(description="Network evaluations done, over all pictures of the job.")
    evaluations: int = Field(description="Network evaluations to do, over all pictures of the job.")
    attempt: int = Field(description="How often a worker has taken the job.")
    attempts: tuple[JobAttempt, ...] = Field((), description="Those times, as far as they are kept: the last ones.")
    request: ResolvedRequest
    images: tuple[ImageInfo, ...] = ()
    error: JobError | None = None
    cached: bool = Field(False, description="Answered from an earlier identical job; nothing was drawn.")
    reproducible: bool | None = Field(
        None, description="Whether the same request gives the same bytes; known when done."
    )
    telemetry: tuple[tuple[dict[str, float], ...], ...] | None = Field(
        None,
        description="By picture and evaluation: timestep, clipped (share of the prediction out of range), "
        "conditional_minus_unconditional and gradient_norm (Euclidean), probability (exp of what the classifier steers "
        "by) or similarity (of prompt and picture).",
    )
    links: JobLinks

    @computed_field(  # type: ignore[prop-decorator]
        description="The old name of evaluations_done.", json_schema_extra={"deprecated": True}
    )
    @property
    def step(self) -> int:
        return self.evaluations_done

    @computed_field(  # type: ignore[prop-decorator]
        description="The old name of evaluations.", json_schema_extra={"deprecated": True}
    )
    @property
    def steps(self) -> int:
        return self.evaluations


class JobList(BaseModel):
    """GET /jobs: a page of one's own jobs, newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: tuple[Job, ...] = Field(description="Without the pictures that their requests held and without telemetry.")
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null after the last.")


class Progress(BaseModel):
    """How far a job is, on its event stream."""

    model_config = ConfigDict(frozen=True)

    evaluations_done: int = Field(description="Network evaluations done, over all pictures of the job.")
    evaluations: int = Field(description="Network evaluations to do.")
    telemetry: tuple[dict[str, float], ...] = Field(
        (), description="Of each evaluation since the last event: image, evaluation, and the fields of the job's own."
    )

    @computed_field(  # type: ignore[prop-decorator]
        description="The old name of evaluations_done.", json_schema_extra={"deprecated": True}
    )
    @property
    def step(self) -> int:
        return self.evaluations_done

    @computed_field(  # type: ignore[prop-decorator]
        description="The old name of evaluations.", json_schema_extra={"deprecated": True}
    )
    @property
    def steps(self) -> int:
        return self.evaluations


class Preview(BaseModel):
    """What a picture looks like so far, on the event stream: the guided prediction of the finished one."""

    model_config = ConfigDict(frozen=True)

    image: int = Field(description="Index of the picture.")
    evaluations_done: int = Field(description="Network evaluations of it that are done.")
    png: str = Field(description="Base64 PNG, at most 256 pixels wide and high.")

    @computed_field(  # type: ignore[prop-decorator]
        description="The old name of evaluations_done.", json_schema_extra={"deprecated": True}
    )
    @property
    def step(self) -> int:
        return self.evaluations_done

"""Jobs as the API reports them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract.requests import ResolvedRequest
from cynosure.contract.terms import JobStatus


class Flag(BaseModel):
    """A label that the review of a picture found."""

    model_config = ConfigDict(frozen=True)

    label: str
    score: float = Field(description="0 to 1, rounded to four digits.")


class ImageInfo(BaseModel):
    """One finished picture of a job."""

    model_config = ConfigDict(frozen=True)

    index: int
    url: str
    seed: int = Field(description="The job's seed, or in a sweep the cell's.")
    first_image: int = Field(
        description="Number of the picture among those of its seed, from which (seed, number) give its noise. "
        "A request with this seed and first_image draws this picture alone."
    )
    sha256: str
    flagged: tuple[Flag, ...] = Field(
        (), description="Why the review flagged the picture; if its action is `grey`, the picture is grey."
    )


class JobError(BaseModel):
    """The reason why a job failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    field: str | None = Field(None, description="The field of the request that is at fault, if it is a single one.")


class JobLinks(BaseModel):
    """URLs of the job's parts."""

    model_config = ConfigDict(frozen=True)

    self: str
    images: tuple[str, ...] = ()
    sheet: str | None = Field(None, description="Contact sheet of a sweep: all pictures on one sheet.")


class PictureLinks(BaseModel):
    """Signed links to a job's pictures, which work without an API key."""

    model_config = ConfigDict(frozen=True)

    expires_at: datetime = Field(description="The time from which the links no longer work.")
    images: tuple[str, ...] = Field(description="One for each finished picture, in order.")
    sheet: str | None = Field(None, description="Contact sheet of a sweep.")


class JobAttempt(BaseModel):
    """One attempt by a worker to run the job."""

    model_config = ConfigDict(frozen=True)

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str = Field(
        description="running, succeeded, failed or cancelled; handed_back by a worker that stopped, lost because its "
        "worker died, or faulted: the job is tried again if attempts are left."
    )
    error: JobError | None = Field(None, description="The reason, if the attempt did not end in good order.")


class Job(BaseModel):
    """A job as the API shows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue_position: int | None = Field(
        None, description="Number of jobs that start before this one; null once it has started."
    )
    eta_seconds: float | None = Field(
        None, description="Estimated seconds until the job is done, at the rate of the last minutes; null if unknown."
    )
    not_before: datetime | None = Field(None, description="After a transient fault: when the job is tried again.")
    progress: float = Field(ge=0, le=1)
    evaluations_done: int = Field(description="Network evaluations done, over all pictures of the job.")
    evaluations: int = Field(description="Network evaluations to do, over all pictures of the job.")
    attempt: int = Field(description="How many times a worker has taken the job.")
    attempts: tuple[JobAttempt, ...] = Field((), description="The most recent attempts; older ones are not kept.")
    request: ResolvedRequest
    images: tuple[ImageInfo, ...] = ()
    error: JobError | None = None
    cached: bool = Field(False, description="Answered with the result of an earlier identical job; nothing was drawn.")
    reproducible: bool | None = Field(
        None, description="Whether the same request always gives the same bytes; known once the job is done."
    )
    telemetry: tuple[tuple[dict[str, float], ...], ...] | None = Field(
        None,
        description="For each picture and evaluation: timestep, clipped (share of the prediction out of range), "
        "conditional_minus_unconditional and gradient_norm (Euclidean), probability (exp of the classifier's "
        "objective) or similarity (of prompt and picture).",
    )
    warnings: tuple[str, ...] = Field(
        (), description="What was probably not meant, such as a prompt that is cut off; known once the job is done."
    )
    links: JobLinks


class JobList(BaseModel):
    """GET /jobs: a page of your jobs, newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: tuple[Job, ...] = Field(
        description="The jobs, without the pictures sent with their requests and without telemetry."
    )
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null after the last.")


class Progress(BaseModel):
    """Event of a job's stream: how far the job is."""

    model_config = ConfigDict(frozen=True)

    evaluations_done: int = Field(description="Network evaluations done, over all pictures of the job.")
    evaluations: int = Field(description="Network evaluations to do.")
    telemetry: tuple[dict[str, float], ...] = Field(
        (), description="For each evaluation since the last event: image, evaluation, and the fields of Job.telemetry."
    )


class Preview(BaseModel):
    """Event of a job's stream: the guided prediction of a finished picture, as it is so far."""

    model_config = ConfigDict(frozen=True)

    image: int = Field(description="Index of the picture.")
    evaluations_done: int = Field(description="Network evaluations done for this picture.")
    png: str = Field(description="Base64 PNG, at most 256 pixels wide and high.")

"""Errors of the service: of models, workers, jobs and limits, and of parts that are away."""

from __future__ import annotations

from cynosure.errors.base import CynosureError
from cynosure.errors.requests import InvalidRequest


class ModelNotFound(CynosureError):
    """No live worker holds a model of that name."""

    code, status, title = "model_not_found", 404, "Model not found"


class ModelNotLoaded(CynosureError):
    """No worker could load the model; the message says why."""

    code, status, title = "model_not_loaded", 422, "Model not loaded"


class ModelExists(CynosureError):
    """Another model has the name."""

    code, status, title = "model_exists", 409, "Model exists"


class ModelPinned(CynosureError):
    """A worker has the model from its `--models`, and keeps it until it ends."""

    code, status, title = "model_pinned", 409, "Model pinned"


class ModelLeaving(CynosureError):
    """The model is being unloaded, or was; `waits` if its jobs wait until it is loaded again."""

    code, status, title = "model_leaving", 409, "Model leaving"
    waits = False


class WorkerNotFound(CynosureError):
    """No live worker has that name."""

    code, status, title = "worker_not_found", 404, "Worker not found"


class JobNotFound(CynosureError):
    """No job with that id was accepted here."""

    code, status, title = "job_not_found", 404, "Job not found"


class ImageNotFound(JobNotFound):
    """The job has no image with that index, or not yet."""

    code, title = "image_not_found", "Image not found"


class BatchNotFound(CynosureError):
    """No batch with that id was accepted here, or it is no longer kept."""

    code, status, title = "batch_not_found", 404, "Batch not found"


class WebhookNotFound(CynosureError):
    """No webhook was sent for the job, or the deployment sends none."""

    code, status, title = "webhook_not_found", 404, "Webhook not found"


class BatchSuperseded(CynosureError):
    """Another upload of the same batch has taken over."""

    code, status, title = "batch_superseded", 409, "Batch superseded"


class IdempotencyConflict(CynosureError):
    """The idempotency key was used before, with another request."""

    code, status, title = "idempotency_conflict", 409, "Idempotency key reused"


class JobUnfinished(CynosureError):
    """The job has not ended yet."""

    code, status, title = "job_unfinished", 409, "Job unfinished"


class JobExpired(CynosureError):
    """The job is finished and its result is no longer kept."""

    code, status, title = "job_expired", 410, "Job expired"


class JobFailed(CynosureError):
    """The job that a client waited for failed; `job_code` is the job's own error code."""

    code, status, title = "job_failed", 500, "Job failed"

    def __init__(self, detail: str, *, job_code: str) -> None:
        super().__init__(detail)
        self.job_code = job_code
        if job_code in (InvalidRequest.code, "picture_refused"):
            self.status = InvalidRequest.status


class JobCancelled(CynosureError):
    """The job that a client waited for was cancelled before it was done."""

    code, status, title = "job_cancelled", 409, "Job cancelled"


class QueueFull(CynosureError):
    """Too many jobs are waiting already."""

    code, status, title = "queue_full", 429, "Queue full"


class RateLimited(CynosureError):
    """The API key sends requests faster than it may."""

    code, status, title = "rate_limited", 429, "Too many requests"


class QuotaExceeded(CynosureError):
    """The API key's daily quota has less left than the request takes."""

    code, status, title = "quota_exceeded", 429, "Quota exceeded"


class NoWorker(CynosureError):
    """No worker is running to serve the request."""

    code, status, title = "no_worker", 503, "No worker"


class ShuttingDown(CynosureError):
    """The gateway stops before the awaited job is done; the job itself goes on."""

    code, status, title = "shutting_down", 503, "Shutting down"


class StoreUnavailable(CynosureError):
    """The job store does not answer."""

    code, status, title = "store_unavailable", 503, "Job store unavailable"


class StoreFull(StoreUnavailable):
    """The job store is at its memory limit."""

    code, title = "store_full", "Job store full"


class StorageUnavailable(CynosureError):
    """The storage that keeps the pictures does not answer."""

    code, status, title = "storage_unavailable", 503, "Picture storage unavailable"


class Unreachable(CynosureError):
    """Raised by the client: no server answers at the address."""

    code, status, title = "unreachable", 503, "Unreachable"

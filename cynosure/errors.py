"""All errors of Cynosure, as one tree.

    CynosureError
    ├── InvalidRequest            422  the request is well-formed but can't be served as it stands; names the field
    │   ├── UnknownModel          422  no worker holds a model of that name
    │   ├── UnknownLabel          422  the model has no such class
    │   ├── UnknownSampler        422  the model has no such sampler
    │   ├── UnknownField          422  the request has no such field
    │   └── UnsupportedField      422  the field has no meaning for this model or mode
    ├── MalformedBody             400  not JSON, or not a JSON object
    ├── BodyTooLarge              413  the body is over the limit
    ├── UnsupportedEncoding       415  the body is compressed in a way that is not taken
    ├── NotAcceptable             406  the Accept header takes no media type that exists
    ├── Unauthenticated           401  no API key, or an invalid one
    ├── Forbidden                 403  the API key lacks the scope; or no key, and a foreign Host or Origin
    │   ├── InvalidLink           403  the link's signature is not that of its picture
    │   └── LinkExpired           403  the link was signed for a time that is over
    ├── ModelNotFound             404
    ├── ModelNotLoaded            422  no worker could load the model
    ├── ModelExists               409  another model has the name
    ├── ModelPinned               409  a worker has the model from its --models, and keeps it
    ├── ModelLeaving              409  the model is being unloaded, so it takes no new jobs
    ├── WorkerNotFound            404
    ├── JobNotFound               404
    │   └── ImageNotFound         404  the job has no image of that index (yet)
    ├── BatchNotFound             404
    ├── WebhookNotFound           404  no webhook was sent for the job
    ├── BatchSuperseded           409  another upload of the same batch has taken over
    ├── IdempotencyConflict       409  the key was used before, with another request
    ├── JobUnfinished             409  the job has not ended, so it can't be retried, or answered yet
    ├── JobExpired                410  the job is finished and its result is no longer kept
    ├── JobFailed                 500  the awaited job failed; carries its error; 422 if the request was at fault
    ├── JobCancelled              409  the awaited job was cancelled
    ├── QueueFull                 429  too many jobs are waiting already
    ├── RateLimited               429  the API key sends requests too fast
    ├── QuotaExceeded             429  the API key's daily quota has too little left
    ├── NoWorker                  503  no worker is running to serve the request
    ├── ShuttingDown              503  the gateway stops before the awaited job is done
    ├── StoreUnavailable          503  the job store does not answer
    │   └── StoreFull             503  the job store is at its memory limit
    ├── StorageUnavailable        503  the storage that keeps the pictures does not answer
    └── Unreachable               503  raised only by the client: no server answers at the address

`code` is part of the API: it is written here, never derived from a class name, and never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from cynosure.hints import nearest, sampler_hint, sentence, shown, unknown_fields, unknown_label


class CynosureError(Exception):
    """Base of the tree.

    Attributes:
        code: stable machine-readable name.
        status: HTTP status.
        title: name of this kind of problem, the same at every occurrence.
        field: the request field at fault, if there is one.
        retry_after_s: seconds after which a retry makes sense, if known.
        line: the line of a batch at fault, counted from 1.
        faults: all faults, as field and what is wrong with it, if there may be several.
    """

    code: ClassVar[str] = "internal"
    status: int = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s
        self.line: int | None = None
        self.faults: tuple[tuple[str, str], ...] = ()


class InvalidRequest(CynosureError):
    """The request can't be served as it stands; `field` names what to change."""

    code, status, title = "invalid_request", 422, "Invalid request"


class UnknownModel(InvalidRequest):
    """The request names a model that no live worker holds."""

    code, title = "unknown_model", "Unknown model"

    def __init__(self, name: str, known: Sequence[str], *, alias_of: str | None = None, field: str = "model") -> None:
        if alias_of is None:
            said = f"No model '{shown(name)}' here. {sentence(nearest(name, known))}"
        else:
            said = f"No model '{alias_of}' here, of which '{shown(name)}' is an alias. "
        super().__init__(f"{said}Known: {', '.join(known)}.", field=field)


class UnknownLabel(InvalidRequest):
    """No model has such a class: `labels` of those that were looked in, by name. `instead` says what else would do."""

    code, title = "unknown_label", "Unknown class label"

    def __init__(self, label: int | str, labels: Mapping[str, Sequence[str]], *, instead: str = "") -> None:
        said = unknown_label(label, labels, names_models=len(labels) > 1 or bool(instead))
        super().__init__(f"{said} {instead}".strip(), field="class_label")


class UnknownSampler(InvalidRequest):
    """The model has no such sampler."""

    code, title = "unknown_sampler", "Unknown sampler"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"No sampler '{shown(name)}'. {sentence(sampler_hint(name, known))}Known: {', '.join(known)}.",
            field="sampler",
        )


class UnknownField(InvalidRequest):
    """The request has none of these fields.

    A nested one is `outer.inner`; `known` lists the fields allowed there, and `hints` says of some what was meant.
    """

    code, title = "unknown_field", "Unknown field"

    def __init__(self, fields: Sequence[str], known: Sequence[str], hints: Mapping[str, str] | None = None) -> None:
        super().__init__(unknown_fields(fields, known, hints or {}), field=shown(fields[0]))


class UnsupportedField(InvalidRequest):
    """The field has no meaning for this model, mode or deployment."""

    code, title = "unsupported_field", "Unsupported field"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail, field=field)


class MalformedBody(CynosureError):
    """The body is not a JSON object."""

    code, status, title = "malformed_body", 400, "Malformed body"


class BodyTooLarge(CynosureError):
    """The body is over the limit."""

    code, status, title = "body_too_large", 413, "Body too large"


ENCODINGS = ("gzip", "deflate")
"""Values of Content-Encoding that bodies may have."""


class UnsupportedEncoding(CynosureError):
    """The body's Content-Encoding is not taken."""

    code, status, title = "unsupported_encoding", 415, "Unsupported encoding"

    def __init__(self, name: str) -> None:
        ours = ", ".join(ENCODINGS)
        super().__init__(f"Content-Encoding '{shown(name)}' is not taken; these are: {ours}.", field="Content-Encoding")


class NotAcceptable(CynosureError):
    """The Accept header takes no media type that exists."""

    code, status, title = "not_acceptable", 406, "Not acceptable"

    def __init__(self, offers: Sequence[str]) -> None:
        super().__init__(f"Accept takes none of what there is here: {', '.join(offers)}.", field="Accept")


class Unauthenticated(CynosureError):
    """The request carries no API key, or an invalid one."""

    code, status, title = "unauthenticated", 401, "Not authenticated"


class Forbidden(CynosureError):
    """The API key is valid but lacks the scope; or there is no key, and the request comes from another site."""

    code, status, title = "forbidden", 403, "Forbidden"


class InvalidLink(Forbidden):
    """The link's signature is not that of its picture, or no longer counts."""

    code, title = "invalid_link", "Invalid link"


class LinkExpired(Forbidden):
    """The link was signed for a time that is over."""

    code, title = "link_expired", "Link expired"


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

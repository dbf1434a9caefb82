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

`code` is part of the API: it is written with the class, never derived from a class name, and never changes.
"""

from __future__ import annotations

from cynosure.errors.base import (
    CynosureError,
)
from cynosure.errors.requests import (
    ENCODINGS,
    BodyTooLarge,
    Forbidden,
    InvalidLink,
    InvalidRequest,
    LinkExpired,
    MalformedBody,
    NotAcceptable,
    Unauthenticated,
    UnknownField,
    UnknownLabel,
    UnknownModel,
    UnknownSampler,
    UnsupportedEncoding,
    UnsupportedField,
)
from cynosure.errors.service import (
    BatchNotFound,
    BatchSuperseded,
    IdempotencyConflict,
    ImageNotFound,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobUnfinished,
    ModelExists,
    ModelLeaving,
    ModelNotFound,
    ModelNotLoaded,
    ModelPinned,
    NoWorker,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    ShuttingDown,
    StorageUnavailable,
    StoreFull,
    StoreUnavailable,
    Unreachable,
    WebhookNotFound,
    WorkerNotFound,
)

__all__ = [
    "ENCODINGS",
    "BatchNotFound",
    "BatchSuperseded",
    "BodyTooLarge",
    "CynosureError",
    "Forbidden",
    "IdempotencyConflict",
    "ImageNotFound",
    "InvalidLink",
    "InvalidRequest",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "JobUnfinished",
    "LinkExpired",
    "MalformedBody",
    "ModelExists",
    "ModelLeaving",
    "ModelNotFound",
    "ModelNotLoaded",
    "ModelPinned",
    "NoWorker",
    "NotAcceptable",
    "QueueFull",
    "QuotaExceeded",
    "RateLimited",
    "ShuttingDown",
    "StorageUnavailable",
    "StoreFull",
    "StoreUnavailable",
    "Unauthenticated",
    "UnknownField",
    "UnknownLabel",
    "UnknownModel",
    "UnknownSampler",
    "Unreachable",
    "UnsupportedEncoding",
    "UnsupportedField",
    "WebhookNotFound",
    "WorkerNotFound",
]

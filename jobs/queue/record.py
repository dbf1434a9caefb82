"""The job record as values, and its form in Redis. Only the Lua scripts change its state. No I/O."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from json import JSONEncoder
from typing import Any

from pydantic import TypeAdapter

from cynosure.contract import Flag, JobError, JobStatus, ResolvedRequest
from cynosure.resolving import detached

ANONYMOUS = "anonymous"
"""The owner of all jobs of a deployment that requires no API key."""
EVERYONE = "*"
"""A viewer that may see the jobs of every owner. No owner has this name."""
_COMPACT = JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class Verdict(StrEnum):
    """The answer to a heartbeat of a held job."""

    OK = "ok"
    STALE = "stale"
    CANCELLED = "cancelled"
    GONE = "gone"


class NoClaim(StrEnum):
    """The reason why a worker got no job."""

    NOTHING = "nothing"
    WAIT = "wait"
    """A suspect waits for a worker that holds no job: finish the held jobs, then claim again."""


class Outcome(StrEnum):
    """The outcome of an attempt that did not end its job."""

    HANDED_BACK = "handed_back"
    LOST = "lost"
    FAULTED = "faulted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a job; `outcome` is an `Outcome`, a final status, or `None` while it runs."""

    number: int
    started_ms: int
    ended_ms: int | None = None
    outcome: str | None = None
    error: JobError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a job comes from, for logs and traces only; empty strings for what there is not.

    Attributes:
        key: name of the API key.
        request_id: id of the HTTP request that was accepted.
        traceparent: the span that accepted it, as W3C Trace Context writes it.
    """

    key: str = ""
    request_id: str = ""
    traceparent: str = ""

    def encoded(self) -> str:
        return _COMPACT.encode({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def decoded(cls, text: str) -> Origin:
        """The origin in a record; older versions wrote none, and newer ones may write more."""
        written = json.loads(text or "{}")
        return cls(**{each.name: written.get(each.name, "") for each in fields(cls)})


UNKNOWN = Origin()
_FIELDS: Mapping[str, Any] = json.loads(
    _COMPACT.encode(
        {
            name: field.default
            for name, field in ResolvedRequest.model_fields.items()
            if not field.is_required() and field.exclude_if is None
        }
    )
)
"""What the fields that are not written stand for, as JSON: of queued jobs too, so none of it may ever change."""
_FLAGGED: TypeAdapter[tuple[tuple[Flag, ...], ...]] = TypeAdapter(tuple[tuple[Flag, ...], ...])


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as Redis holds it; times in milliseconds of the Redis server's clock.

    Attributes:
        written_request: its request, as JSON.
        model: that it is for; `None` in records of earlier versions, whose requests may hold their pictures.
    """

    id: str
    owner: str
    status: JobStatus
    written_request: str
    model: str | None
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    attempt: int
    evaluations_done: int
    evaluations: int
    error: JobError | None
    image_hashes: tuple[str, ...]
    cached: bool
    reproducible: bool | None
    telemetry: tuple[tuple[dict[str, float], ...], ...] | None
    warnings: tuple[str, ...]
    flagged: tuple[tuple[Flag, ...], ...]
    attempts: tuple[Attempt, ...]
    not_before_ms: int | None
    origin: Origin

    @cached_property
    def request(self) -> ResolvedRequest:
        return ResolvedRequest.model_validate_json(self.written_request)

    @property
    def shown_request(self) -> str:
        """The request without its pictures, as JSON."""
        if self.model is not None:
            return _COMPACT.encode(_FIELDS | json.loads(self.written_request))
        return detached(self.request)[0].model_dump_json()

    @property
    def progress(self) -> float:
        if self.status is JobStatus.SUCCEEDED:
            return 1.0
        return min(1.0, self.evaluations_done / self.evaluations) if self.evaluations else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request with everything decided, ready to be accepted.

    Attributes:
        request: detached from its pictures.
        shown: the same request as a JSON object, so that it is serialised only once.
        inputs: its pictures, base64 by field; kept as long as the record.
        cached_as: the key of its result in the result cache; `None` if it must be drawn.
        idempotency_key: the client's key, if any.
        fingerprint: SHA-256 of the request that the idempotency key stands for.
        origin: where it comes from.
    """

    request: ResolvedRequest
    shown: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    cached_as: str | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    origin: Origin = UNKNOWN

    @classmethod
    def of(cls, request: ResolvedRequest, **rest: Any) -> Submission:
        """A submission of a request that may still hold its pictures."""
        request, inputs = detached(request)
        return cls(request=request, shown=request.model_dump(mode="json"), inputs=inputs, **rest)

    def encoded(self) -> str:
        """The request as the record has it: without what goes without saying, which would be most of it."""
        return _COMPACT.encode(
            {name: value for name, value in self.shown.items() if name not in _FIELDS or value != _FIELDS[name]}
        )

    def told_as(self, webhook_format: str) -> Submission:
        """The same with another format of what its webhook is sent."""
        return replace(
            self,
            request=self.request.model_copy(update={"webhook_format": webhook_format}),
            shown={**self.shown, "webhook_format": webhook_format},
        )

    def previewed(self, every: int) -> Submission:
        """The same with a preview after every `every` evaluations; not from the cache, whose jobs have no previews."""
        every = max(1, every)
        request = self.request.model_copy(update={"preview_every": every})
        return replace(self, request=request, shown={**self.shown, "preview_every": every}, cached_as=None)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to write one job. `attempt` is its fencing token: a write with a stale one is refused."""

    job_id: str
    attempt: int
    request: ResolvedRequest
    owner: str
    most_held: int | None = None
    """For a suspect: most suspects that its worker may hold at once. `None` for an ordinary job."""
    origin: Origin = UNKNOWN
    waited_s: float = 0.0
    """Seconds since it was accepted, or was last given back."""
    asked_at: float = field(default=0.0, compare=False)
    """When the worker asked for a job, on `time.monotonic`."""
    given_at: float = field(default=0.0, compare=False)
    """When it was given this one."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job. `none_waits`: at that moment no other job of its model waited, so there was none to claim."""

    none_waits: bool


@dataclass(frozen=True, slots=True)
class Happening:
    """One entry of a job's event stream; `id` is empty until it is written."""

    name: str
    data: str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat of a held job: evaluations done, evaluations in all, and the news since the last heartbeat.

    `sequence` is the number of the news within the attempt. If an answer is lost, the same news is sent again with
    the same number, and is written once.
    """

    attempt: int
    evaluations_done: int
    evaluations: int
    sequence: int = 0
    happenings: tuple[Happening, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The result of a job.

    Attributes:
        pictures: PNG bytes by index.
        sheet: PNG bytes of a sweep's contact sheet.
        reproducible: whether this worker gives the same bytes for the same request, whatever shares its batches.
        telemetry: measurements of guidance, by picture and evaluation; empty unless requested.
        digests: digest of the model that drew the pictures, and that of its guide, if any.
        warnings: what was probably not meant.
        flagged: why the review flagged a picture, by its index; empty if it flagged none.
    """

    pictures: tuple[bytes, ...]
    sheet: bytes | None = None
    reproducible: bool
    telemetry: tuple[list[dict[str, float]], ...] = ()
    digests: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    flagged: tuple[tuple[Flag, ...], ...] = ()

    @property
    def flagged_json(self) -> str:
        """`flagged` as the record holds it."""
        return _FLAGGED.dump_json(self.flagged).decode() if self.flagged else ""

    @property
    def hashes(self) -> list[str]:
        return [hashlib.sha256(png).hexdigest() for png in self.pictures]


def may_see(viewer: str, owner: str) -> bool:
    """Whether `viewer`, an owner or `EVERYONE`, may see what belongs to `owner`."""
    return viewer in (EVERYONE, owner)


def new_job_id() -> str:
    """About 120 unguessable bits, safe in a URL; no leading hyphen, which a command line would take for an option."""
    # The store holds a waiting job's id six times, and two characters more would take 57 bytes: its sizes are rounded.
    while (job_id := secrets.token_urlsafe(15)).startswith("-"):
        pass
    return job_id


def decode_record(job_id: str, fields: Mapping[bytes, bytes]) -> JobRecord:
    """A record from its Redis hash."""
    text = {key.decode(): value.decode() for key, value in fields.items()}

    def moment(name: str) -> int | None:
        return int(text[name]) if text.get(name) else None

    return JobRecord(
        id=job_id,
        owner=text.get("owner", ANONYMOUS),  # the oldest records have none
        status=JobStatus(text["status"]),
        written_request=text["request"],
        model=text.get("model"),
        created_ms=int(text["created_ms"]),
        started_ms=moment("started_ms"),
        finished_ms=moment("finished_ms"),
        attempt=int(text["attempt"]),
        evaluations_done=int(text["step"]),
        evaluations=int(text["steps"]),
        error=JobError.model_validate_json(text["error"]) if text.get("error") else None,
        image_hashes=tuple(json.loads(text["image_hashes"])) if text.get("image_hashes") else (),
        cached="cached" in text,
        reproducible=text["reproducible"] == "1" if text.get("reproducible") else None,
        telemetry=json.loads(text["telemetry"]) if text.get("telemetry") else None,
        warnings=tuple(json.loads(text["warnings"])) if text.get("warnings") else (),
        flagged=_FLAGGED.validate_json(text["flagged"]) if text.get("flagged") else (),
        attempts=_attempts(text),
        not_before_ms=moment("not_before_ms"),
        origin=Origin.decoded(text.get("origin", "")),
    )


def _attempts(text: Mapping[str, str]) -> tuple[Attempt, ...]:
    attempts = [json.loads(value) for name, value in text.items() if name.startswith("attempt:")]
    return tuple(
        Attempt(**{**fields, "error": JobError(**fields["error"]) if "error" in fields else None})
        for fields in sorted(attempts, key=lambda fields: fields["number"])
    )

"""The event stream of a job, parsed for both clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from httpx_sse import ServerSentEvent

from cynosure.client.attempts import Attempts
from cynosure.contract import Job, Preview, Progress

_EVENTS: Mapping[str, type[Job | Progress | Preview]] = {
    "status": Job,
    "progress": Progress,
    "preview": Preview,
    "done": Job,
}


@dataclass
class Follower:
    """The position in a job's stream, and the failed tries since the last event."""

    job_id: str
    attempts: Attempts
    seen: str = ""
    is_done: bool = False

    @property
    def path(self) -> str:
        return f"/jobs/{self.job_id}/events"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that resume the stream after the last event seen."""
        return {"Last-Event-ID": self.seen} if self.seen else {}

    def read(self, event: ServerSentEvent) -> Job | Progress | Preview | None:
        """Parse an event; `None` for a kind that this version doesn't know."""
        self.attempts.succeeded()
        self.seen = event.id or self.seen
        self.is_done = event.event == "done"
        kind = _EVENTS.get(event.event)
        return None if kind is None else kind.model_validate_json(event.data)

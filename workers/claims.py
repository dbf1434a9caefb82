"""Claiming jobs from the queue, for all threads of one worker."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs.queue.doorbell import Doorbell
from jobs.queue.record import Claim, NoClaim
from jobs.queue.worker import WorkerStore

log = logging.getLogger(__name__)


class Claims:
    """The number of jobs that this worker holds, and the rules for taking more.

    A bell only says that a model has work; the queue decides which job is next. A thread that is done with a job claims
    the next one without waiting for a bell, and the models take turns. Claims are made one at a time, so that the queue
    knows how many jobs the worker holds: suspects (jobs that have lost two workers) run apart from other jobs.
    """

    def __init__(
        self, store: WorkerStore, doorbell: Doorbell, models: Sequence[str], *, worker_name: str, slots: int
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._models = list(models)
        self._worker_name = worker_name
        self._slots = slots
        self._lock = threading.Lock()
        self._claimed: list[Claim] = []
        self._most_held: int | None = None  # limit on held jobs while they are suspects; None while they are not
        self._emptying_for: str | None = None  # the model whose suspect this worker empties itself for
        self._stopping = threading.Event()
        self._unanswered: Counter[str] = Counter()
        self._rung_at = time.monotonic()

    @property
    def has_room(self) -> bool:
        """Whether the worker would answer a bell by claiming a job."""
        return not (self._stopping.is_set() or self._is_restricted or len(self._claimed) >= self._slots)

    @property
    def _is_restricted(self) -> bool:
        return self._most_held is not None or self._emptying_for is not None

    @property
    def silent_s(self) -> float:
        """Seconds since the last bell."""
        return time.monotonic() - self._rung_at

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def stop_taking(self) -> None:
        """Take no more jobs, and pass bells on to others."""
        self._stopping.set()

    def take(self, rung_for: str | None = None, *, emptied: str | None = None) -> Claim | None:
        """Claim the next job; `None` if there is none, or this worker may not take it now.

        Args:
            rung_for: the model of the bell that is answered, if any; its jobs are tried first.
            emptied: a model of which no job waited a moment ago. It isn't asked for: whatever came since has a bell.

        Raises:
            RedisError: the store is away; the bell is lost, and the reaper rings again.
        """
        with self._lock:
            if rung_for is not None:
                self._rung_at = time.monotonic()
            claim = self._next(rung_for, emptied)
        self._ring_again()
        return claim

    def keep_emptying(self) -> None:
        """At each heartbeat: renew the quarantine if this worker empties itself, or take any job again if it is over.

        Raises:
            RedisError: the store is away; the next heartbeat tries again.
        """
        model = self._emptying_for
        if model is None or self._stopping.is_set() or self._store.keep_quarantine(model, self._worker_name):
            return
        with self._lock:
            self._emptying_for = None
        self._ring_again()

    def release(self, claim: Claim) -> None:
        """Count the job as no longer held: it is finished, given back, or another worker's."""
        with self._lock:
            self._claimed.remove(claim)
            if not self._claimed:
                self._most_held = None

    def add(self, model: str) -> None:
        """Claim jobs of this model, too."""
        with self._lock:
            if model not in self._models:
                self._models.append(model)

    def remove(self, model: str) -> None:
        """Claim no more jobs of this model."""
        with self._lock:
            if model in self._models:
                self._models.remove(model)
            if self._emptying_for == model:
                self._emptying_for = None

    def needs(self, model: str) -> bool:
        """Whether a held job is the model's, or is guided by it."""
        with self._lock:
            return any(model in (claim.request.model, claim.request.guide_model) for claim in self._claimed)

    def _next(self, rung_for: str | None, emptied: str | None) -> Claim | None:
        is_full = self._most_held is not None and len(self._claimed) >= self._most_held
        if self._stopping.is_set() or is_full:
            self._leave_unanswered(rung_for)
            return None
        for model in self._in_turn(self._emptying_for or rung_for):
            has_suspects = self._most_held is not None
            claim: Claim | NoClaim = NoClaim.NOTHING
            if model != emptied:
                claim = self._store.claim(model, self._worker_name, held=len(self._claimed), suspects=has_suspects)
            if claim is NoClaim.WAIT:
                if self._emptying_for != model:
                    log.info("finishing the held jobs before any other: a suspect job of '%s' must run apart", model)
                self._emptying_for = model
                self._leave_unanswered(rung_for)
                return None
            self._emptying_for = None  # that model was tried first, and has no suspect to wait for
            if isinstance(claim, Claim):
                self._claimed.append(claim)
                self._most_held = claim.most_held
                return claim
        if self._most_held is not None:
            self._leave_unanswered(rung_for)
        return None

    def _ring_again(self) -> None:
        """Ring again the bells that could not be answered, once they can be."""
        with self._lock:
            if self._is_restricted:
                return
            bells, self._unanswered = self._unanswered, Counter()
        try:
            for model in bells.elements():
                self._doorbell.ring(model)
        except (RedisError, OperationalError) as error:  # a claim just made must not get lost
            log.warning("could not ring again: %s; the reaper will", error)

    def _leave_unanswered(self, rung_for: str | None) -> None:
        if rung_for is not None:
            self._unanswered[rung_for] += 1

    def _in_turn(self, first: str | None) -> list[str]:
        if self._claimed:
            self._models.append(self._models.pop(0))
        return sorted(self._models, key=lambda model: model != first)

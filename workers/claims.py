"""Taking jobs off the queue, for all threads of one worker."""

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
    """What this worker holds, and whether it may take more.

    A bell only says that a model has work: which job that is the queue decides. A thread that is done with a job asks
    for the next one without waiting for a bell, and models take turns. One claim is made at a time, so that the
    queue knows how many jobs the worker holds: suspects (jobs whose workers were lost twice) run apart from others.
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
        self._held = 0
        self._company = 0  # jobs that may be held while suspects are; 0 while none is
        self._emptying_for: str | None = None  # the model whose suspects are to run apart
        self._stopping = threading.Event()
        self._unanswered: Counter[str] = Counter()
        self._rung_at = time.monotonic()

    @property
    def has_room(self) -> bool:
        """Whether a bell would be answered."""
        return not (self._stopping.is_set() or self._is_restricted or self._held >= self._slots)

    @property
    def _is_restricted(self) -> bool:
        return bool(self._company) or self._emptying_for is not None

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

    def take(self, rung_for: str | None = None) -> Claim | None:
        """The next job, or `None`: there is none, or not for this worker now.

        Raises:
            RedisError: the store is away; the bell is lost, and the reaper rings again.
        """
        with self._lock:
            if rung_for is not None:
                self._rung_at = time.monotonic()
            claim = self._next(rung_for)
        self._ring_again()
        return claim

    def keep_emptying(self) -> None:
        """At every heartbeat: hold the place of the worker that empties itself, or take anything again.

        Raises:
            RedisError: the store is away; the next heartbeat asks again.
        """
        model = self._emptying_for
        if model is None or self._stopping.is_set() or self._store.keep_quarantine(model, self._worker_name):
            return
        with self._lock:
            self._emptying_for = None
        self._ring_again()

    def let_go(self, claim: Claim) -> None:
        """The job is finished, given back, or another's."""
        with self._lock:
            self._held -= 1
            if not self._held:
                self._company = 0

    def _next(self, rung_for: str | None) -> Claim | None:
        is_full = bool(self._company) and self._held >= self._company
        if self._stopping.is_set() or is_full:
            self._leave_unanswered(rung_for)
            return None
        for model in self._in_turn(self._emptying_for or rung_for):
            found = self._store.claim(model, self._worker_name, held=self._held, suspects=bool(self._company))
            if found is NoClaim.WAIT:
                if self._emptying_for != model:
                    log.info("finishing what is held: suspect jobs of '%s' are to run apart", model)
                self._emptying_for = model
                self._leave_unanswered(rung_for)
                return None
            self._emptying_for = None  # its suspects were the first that were asked for
            if isinstance(found, Claim):
                self._held += 1
                self._company = found.company
                return found
        if self._company:
            self._leave_unanswered(rung_for)
        return None

    def _ring_again(self) -> None:
        """Ring for the bells that could not be answered, once they could be."""
        with self._lock:
            if self._is_restricted:
                return
            answered, self._unanswered = self._unanswered, Counter()
        try:
            for model in answered.elements():
                self._doorbell.ring(model)
        except (RedisError, OperationalError) as error:  # a claim may have been made before, and must not get lost
            log.warning("bells could not be rung again: %s; the reaper rings", error)

    def _leave_unanswered(self, rung_for: str | None) -> None:
        if rung_for is not None:
            self._unanswered[rung_for] += 1

    def _in_turn(self, first: str | None) -> list[str]:
        if self._held:
            self._models.append(self._models.pop(0))
        return sorted(self._models, key=lambda model: model != first)

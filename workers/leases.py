"""Leases of the jobs that this worker holds, renewed by one heartbeat for all of them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from itertools import islice

from cynosure.contract import Preview, Progress
from jobs.queue.record import Beat, Claim, Happening, Verdict
from jobs.queue.worker import WorkerStore
from models.engine import Handle, Image
from workers.background import BackgroundThread
from workers.drawing.pictures import preview_of

log = logging.getLogger(__name__)

PREVIEWS_TIMEOUT_S = 10.0
MAX_WAITING_PREVIEWS = 64  # if more are requested than can be sent, the oldest are dropped


class HeldJob:
    """A claimed job and the handles of its pictures; `encoder` encodes its previews."""

    def __init__(self, claim: Claim, encoder: Executor) -> None:
        self.claim = claim
        self._encoder = encoder
        self.handles: list[Handle] = []
        self.verdict = Verdict.OK
        self._given_up = False
        self._lock = threading.Lock()
        self._reported_evaluations = 0
        self._sequence = 0
        self._unacknowledged: tuple[Happening, ...] = ()
        self._reported_telemetry: dict[int, int] = {}
        self._previews: deque[Future[Happening]] = deque()

    def add_preview(self, index: int, step: int, picture: Image) -> None:
        """Have a preview encoded, for the first beat after that. Quick, because the engine's threads call it."""
        with self._lock:
            if len(self._previews) == MAX_WAITING_PREVIEWS:
                self._previews.popleft().cancel()
            self._previews.append(self._encoder.submit(_encoded, index, step, picture))

    def wait_for_previews(self) -> None:
        """Wait until the kept previews are encoded, but not for long: they must not delay the pictures."""
        with self._lock:
            waiting = list(self._previews)
        wait(waiting, timeout=PREVIEWS_TIMEOUT_S)

    @property
    def evaluations_done(self) -> int:
        return sum(handle.evaluations_done for handle in self.handles)

    @property
    def evaluations(self) -> int:
        request = self.claim.request
        return sum(handle.evaluations for handle in self.handles) or request.steps * request.num_images

    def attach(self, handles: Sequence[Handle]) -> None:
        """Add the handles of the job's pictures; cancel them if the job was given up meanwhile."""
        with self._lock:
            self.handles += handles
            given_up = self._given_up
        if given_up:
            self.give_up(self.verdict)

    def beat(self) -> Beat:
        """The next heartbeat. Its news is repeated, with the same number, until it is acknowledged."""
        done, evaluations = self.evaluations_done, self.evaluations
        if not self._unacknowledged and (news := self._news(done, evaluations)):
            self._unacknowledged = news
            self._sequence += 1
        return Beat(
            attempt=self.claim.attempt,
            evaluations_done=done,
            evaluations=evaluations,
            sequence=self._sequence,
            happenings=self._unacknowledged,
        )

    @property
    def repeats_news(self) -> bool:
        """Whether the next beat repeats news that the store did not acknowledge."""
        return bool(self._unacknowledged)

    def acknowledge(self) -> None:
        """Note that the store has the last beat."""
        self._unacknowledged = ()

    def _news(self, done: int, evaluations: int) -> tuple[Happening, ...]:
        news = list(self._encoded_previews())
        if done != self._reported_evaluations:
            telemetry = tuple(self._new_telemetry())
            progress = Progress(evaluations_done=done, evaluations=evaluations, telemetry=telemetry)
            news.append(Happening("progress", progress.model_dump_json(exclude_defaults=True)))
            self._reported_evaluations = done
        return tuple(news)

    def _encoded_previews(self) -> Iterator[Happening]:
        while True:
            with self._lock:
                if not self._previews or not self._previews[0].done():
                    return
                preview = self._previews.popleft()
            yield preview.result()

    def _new_telemetry(self) -> Iterator[dict[str, float]]:
        for image, handle in enumerate(self.handles):
            first = self._reported_telemetry.get(image, 0)
            for evaluation, measured in enumerate(islice(handle.telemetry, first, None), start=first):
                self._reported_telemetry[image] = evaluation + 1
                yield {"image": image, "evaluation": evaluation, **measured}

    def give_up(self, verdict: Verdict) -> None:
        """Free the rows. The thread that waits for the handles sees them cancelled and reads `verdict`."""
        with self._lock:
            self.verdict, self._given_up = verdict, True
            while self._previews:
                self._previews.popleft().cancel()
        for handle in self.handles:
            handle.cancel()


def _encoded(index: int, step: int, picture: Image) -> Happening:
    return Happening("preview", Preview(image=index, evaluations_done=step, png=preview_of(picture)).model_dump_json())


class LeaseKeeper(BackgroundThread):
    """Renews all leases and reports all progress in one call per beat; gives up jobs that are no longer ours.

    Args:
        on_beat: called after each beat.
    """

    def __init__(self, store: WorkerStore, *, interval_s: float, on_beat: Callable[[], None]) -> None:
        super().__init__("leases", every_s=interval_s)
        self._store = store
        self._on_beat = on_beat
        self._held: dict[str, HeldJob] = {}
        self._lock, self._beating = threading.Lock(), threading.Lock()

    def hold(self, job: HeldJob) -> None:
        """Keep this attempt's lease; an earlier attempt at the same job has lost its own, and is given up."""
        with self._lock:
            earlier = self._held.get(job.claim.job_id)
            self._held[job.claim.job_id] = job
        if earlier is not None:
            earlier.give_up(Verdict.STALE)

    def release(self, job: HeldJob) -> None:
        """Stop keeping this attempt's lease; that of a later attempt is still kept."""
        with self._lock:
            if self._held.get(job.claim.job_id) is job:
                del self._held[job.claim.job_id]

    def held(self) -> list[HeldJob]:
        with self._lock:
            return list(self._held.values())

    def _turn(self) -> None:
        self._beat(self.held())
        self._on_beat()

    def check(self, job_id: str) -> None:
        """If the job is held and not drawn yet, renew its lease now: it may have been cancelled."""
        with self._lock:
            job = self._held.get(job_id)
        if job is not None and not all(handle.is_done for handle in job.handles):
            self._beat([job])

    def report(self, job: HeldJob) -> None:
        """Write all remaining news of this job now."""
        job.wait_for_previews()
        repeats = job.repeats_news
        self._beat([job])
        if repeats:  # that beat repeated unacknowledged news; this one has what is new since
            self._beat([job])

    def _beat(self, held: Sequence[HeldJob]) -> None:
        jobs = {job.claim.job_id: job for job in held}
        if not jobs:
            return
        with self._beating:  # two beats at once could write their news out of order
            verdicts = self._store.heartbeat({key: job.beat() for key, job in jobs.items()})
            for job in jobs.values():
                job.acknowledge()
        for job_id, verdict in verdicts.items():
            if verdict is not Verdict.OK:
                log.info("the job is no longer ours: %s", verdict, extra={"job": job_id})
                jobs[job_id].give_up(verdict)

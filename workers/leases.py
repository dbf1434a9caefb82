"""Keeping the jobs that this worker holds: one heartbeat for all of them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from app.jobs.record import Beat, Claim, Happening, Verdict
from app.jobs.worker_store import WorkerStore
from cynosure.contract import Preview, Progress
from models.engine import Handle, Image
from workers.background import BackgroundThread
from workers.translate import preview_of

log = logging.getLogger(__name__)

MAX_WAITING_PREVIEWS = 64  # where more are asked for than can be sent, the oldest go


class HeldJob:
    """A claimed job and the pictures on their way for it."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.handles: list[Handle] = []
        self.verdict = Verdict.OK
        self._given_up = False
        self._lock = threading.Lock()
        self._told_step = 0
        self._tellings = 0
        self._untold: tuple[Happening, ...] = ()
        self._told_telemetry: dict[int, int] = {}
        self._previews: deque[tuple[int, int, Image]] = deque(maxlen=MAX_WAITING_PREVIEWS)

    def add_preview(self, index: int, step: int, picture: Image) -> None:
        """Keep a preview for the next beat, where it is encoded: this is called on one of the engine's threads."""
        self._previews.append((index, step, picture))

    @property
    def step(self) -> int:
        return sum(handle.position for handle in self.handles)

    @property
    def steps(self) -> int:
        request = self.claim.request
        return sum(handle.num_positions for handle in self.handles) or request.steps * request.num_images

    def attach(self, handles: Sequence[Handle]) -> None:
        """The job's pictures are on their way; where it was given up already, they are not."""
        with self._lock:
            self.handles += handles
            given_up = self._given_up
        if given_up:
            self.give_up(self.verdict)

    def beat(self) -> Beat:
        """What is new since the last beat that was heard; the same again until it is."""
        step, steps = self.step, self.steps
        if not self._untold and (news := self._news(step, steps)):
            self._untold = news
            self._tellings += 1
        return Beat(attempt=self.claim.attempt, step=step, steps=steps, telling=self._tellings, happenings=self._untold)

    @property
    def owes_news(self) -> bool:
        """Whether the last beat was not heard."""
        return bool(self._untold)

    def heard(self) -> None:
        """The last beat was written."""
        self._untold = ()

    def _news(self, step: int, steps: int) -> tuple[Happening, ...]:
        news = list(self._sent_previews())
        if step != self._told_step:
            telemetry = tuple(self._new_telemetry())
            progress = Progress(step=step, steps=steps, telemetry=telemetry)
            news.append(Happening("progress", progress.model_dump_json(exclude_defaults=True)))
            self._told_step = step
        return tuple(news)

    def _sent_previews(self) -> Iterator[Happening]:
        while self._previews:
            index, step, picture = self._previews.popleft()
            yield Happening("preview", Preview(image=index, step=step, png=preview_of(picture)).model_dump_json())

    def _new_telemetry(self) -> Iterator[dict[str, float]]:
        for image, handle in enumerate(self.handles):
            told = self._told_telemetry.get(image, 0)
            for evaluation, noted in enumerate(islice(handle.telemetry, told, None), start=told):
                self._told_telemetry[image] = evaluation + 1
                yield {"image": image, "evaluation": evaluation, **noted}

    def give_up(self, verdict: Verdict) -> None:
        """Free the rows; whoever waits for the handles sees them cancelled and looks at `verdict`."""
        with self._lock:
            self.verdict, self._given_up = verdict, True
        for handle in self.handles:
            handle.cancel()


class LeaseKeeper(BackgroundThread):
    """Renews every lease and reports every step, in one call a beat; gives up what is no longer ours.

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
        """Keep this attempt's lease; an earlier attempt of the same job, which was lost meanwhile, is given up."""
        with self._lock:
            earlier = self._held.get(job.claim.job_id)
            self._held[job.claim.job_id] = job
        if earlier is not None:
            earlier.give_up(Verdict.STALE)

    def let_go(self, job: HeldJob) -> None:
        """Keep this attempt's lease no longer; a later attempt's is kept."""
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
        """Renew this lease now, where the job is held and not drawn yet: it may have been cancelled."""
        with self._lock:
            job = self._held.get(job_id)
        if job is not None and not all(handle.is_done for handle in job.handles):
            self._beat([job])

    def report(self, job: HeldJob) -> None:
        """Write what is new of this job now, as its last beat."""
        owed = job.owes_news
        self._beat([job])
        if owed:  # that one repeated what was not heard; this one has what is new since
            self._beat([job])

    def _beat(self, held: Sequence[HeldJob]) -> None:
        jobs = {job.claim.job_id: job for job in held}
        if not jobs:
            return
        with self._beating:  # two beats at once would share the news between them out of order
            verdicts = self._store.heartbeat({key: job.beat() for key, job in jobs.items()})
            for job in jobs.values():
                job.heard()
        for job_id, verdict in verdicts.items():
            if verdict is not Verdict.OK:
                log.info("job %s is no longer ours: %s", job_id, verdict)
                jobs[job_id].give_up(verdict)

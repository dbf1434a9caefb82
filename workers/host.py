"""The engine's host: takes a job by its id, has it drawn, and writes what came of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from app.jobs.doorbell import Doorbell
from app.jobs.record import Claim, Finished, Verdict
from app.jobs.store import WorkerStore
from cynosure.contract import JobError, ModelCard
from cynosure.errors import InvalidRequest
from cynosure.resolving import cells_of
from models.engine import DeadlineExceeded, Engine, EngineDied, SampleCancelled, SampleFailed
from models.samplers import InvalidRespacing, NotLinear
from models.spec import InvalidSpec
from workers.leases import HeldJob, LeaseKeeper
from workers.translate import card_of, png_of, sheet_of, specs_of

log = logging.getLogger(__name__)


class EngineHost:
    """Runs jobs on one engine; called from many threads, one a job."""

    def __init__(
        self,
        engine: Engine,
        store: WorkerStore,
        doorbell: Doorbell,
        *,
        worker_name: str,
        heartbeat_s: float,
        job_timeout_s: float,
        on_beat: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._store = store
        self._doorbell = doorbell
        self._worker_name = worker_name
        self._job_timeout_s = job_timeout_s
        self._draining = threading.Event()
        self.leases = LeaseKeeper(store, interval_s=heartbeat_s, on_beat=on_beat)
        self.cards: dict[str, ModelCard] = {name: card_of(pack, engine) for name, pack in engine.packs.items()}

    def run(self, job_id: str) -> None:
        """Claim the job, draw it, finish it. A job that is not there to claim any more is nothing to do."""
        claim = self._store.claim(job_id, self._worker_name)
        if claim is None:
            return
        if self._draining.is_set():
            self._hand_back(claim)
            return
        job = HeldJob(claim, [])
        self.leases.hold(job)
        try:
            made = self._draw(job)
            if claim.request.preview_every or claim.request.telemetry:
                self.leases.report(job)
            if not self._store.finish(claim, made):
                log.warning("job %s: attempt %d finished too late; its pictures are dropped", job_id, claim.attempt)
        except SampleCancelled:
            if self._draining.is_set() and job.verdict is Verdict.OK:
                self._hand_back(claim)
        except EngineDied:
            self._hand_back(claim)
        except DeadlineExceeded as error:
            self._store.fail(claim, JobError(code="deadline_exceeded", message=str(error)))
        except (InvalidSpec, NotLinear, InvalidRespacing, InvalidRequest) as error:
            self._store.fail(claim, JobError(code="invalid_request", message=str(error)))
        except SampleFailed as error:
            self._store.fail(claim, JobError(code="sampling_failed", message=str(error)))
        except Exception as error:
            log.exception("job %s failed", job_id)
            self._store.fail(claim, JobError(code="internal", message=f"{type(error).__name__}: {error}"))
        finally:
            self.leases.let_go(job)

    def hand_back_all(self) -> None:
        """Give every unfinished job back to the queue; their `run` calls return at once."""
        self._draining.set()
        for job in self.leases.held():
            job.give_up(Verdict.OK)

    def _draw(self, job: HeldJob) -> Finished:
        request = job.claim.request
        try:
            specs = specs_of(job.claim.job_id, request, self.cards[request.model])
            job.handles += self._engine.submit_all(
                specs, timeout=self._job_timeout_s, on_preview=job.add_preview if request.preview_every else None
            )
            pictures = [handle.result() for handle in job.handles]
        except BaseException:
            for handle in job.handles:  # one picture failed: its siblings' rows are better used by others
                handle.cancel()
            raise
        card = self.cards[request.model]
        return Finished(
            pictures=tuple(
                png_of(picture, cell, index, card)
                for picture, (cell, index) in zip(pictures, cells_of(request), strict=True)
            ),
            sheet=sheet_of(pictures, request, card),
            reproducible=card.reproducible,
            telemetry=tuple(handle.telemetry for handle in job.handles) if request.telemetry else (),
            digest=card.digest,
        )

    def _hand_back(self, claim: Claim) -> None:
        if self._store.release(claim):
            self._doorbell.ring(claim.job_id, claim.request.model, claim.request.priority)

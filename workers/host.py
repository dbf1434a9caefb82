"""The engine's host: claims jobs, has the engine draw them, and writes their results."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cynosure.contract import JobError, LoraOnCard, ModelCard
from cynosure.errors import InvalidRequest, StorageUnavailable
from cynosure.resolving import cells_of
from jobs import traces
from jobs.logs import about
from jobs.queue.doorbell import Doorbell
from jobs.queue.record import Claim, Ended, Finished, Outcome, Verdict
from jobs.queue.worker import Kept, WorkerStore
from models.adapters import AdapterBase
from models.engine import (
    DeadlineExceeded,
    Engine,
    EngineDied,
    LoadedPack,
    OutOfMemory,
    PackInUse,
    SampleCancelled,
    SampleFailed,
    results,
)
from models.pack import InvalidPack, Pack
from models.samplers import InvalidRespacing, NotLinear
from models.spec import InvalidSpec
from workers.claims import Claims
from workers.drawing.cards import card_of, with_pictures
from workers.drawing.pictures import png_of, sheet_of
from workers.drawing.reviews import PictureRefused, Reviews, reviewed
from workers.drawing.specs import specs_of
from workers.drawing.timeline import traced
from workers.drawing.warnings import warnings_of_job
from workers.leases import HeldJob, LeaseKeeper
from workers.retrying import Retrying

log = logging.getLogger(__name__)


@contextmanager
def _told(claim: Claim) -> Iterator[None]:
    """Tell logs and traces which job it is that is worked on inside."""
    origin, given_at = claim.origin, claim.given_at
    queued_at = given_at - claim.waited_s
    with (
        about(job=claim.job_id, request_id=origin.request_id, trace_id=traces.trace_id_of(origin.traceparent)),
        traces.span(
            "job",
            parent=origin.traceparent,
            began_at=queued_at,
            job=claim.job_id,
            model=claim.request.model,
            attempt=claim.attempt,
        ),
    ):
        traces.add("queue", queued_at, given_at)
        traces.add("claim", claim.asked_at, given_at)
        yield


class EngineHost:
    """Runs jobs on one engine; called from many threads, one per job. `reviews` look at all pictures, if given."""

    def __init__(
        self,
        engine: Engine,
        store: WorkerStore,
        doorbell: Doorbell,
        *,
        worker_name: str,
        slots: int,
        heartbeat_s: float,
        job_timeout_s: float,
        reviews: Reviews | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._doorbell = doorbell
        self._job_timeout_s = job_timeout_s
        self._reviews = reviews
        self._handing_back = threading.Event()
        self._encoder = ThreadPoolExecutor(1, "previews")
        self._retrying = Retrying(timeout_s=job_timeout_s)
        self.cards: dict[str, ModelCard] = {name: self._card_of(loaded) for name, loaded in engine.packs.items()}
        self._loras: Mapping[str, tuple[LoraOnCard, ...]] = {}
        self.claims = Claims(store, doorbell, tuple(self.cards), worker_name=worker_name, slots=slots)
        self.leases = LeaseKeeper(store, interval_s=heartbeat_s, on_beat=self.claims.keep_emptying)

    def _card_of(self, loaded: LoadedPack) -> ModelCard:
        card = card_of(loaded)
        return card if self._reviews is None else card.model_copy(update={"review": self._reviews.card})

    def published(self) -> list[ModelCard]:
        """The cards as they are now; they change as the engine measures packs while it serves."""
        packs = dict(self._engine.packs)  # as of one moment: they come and go
        return [
            card.model_copy(
                update={
                    "reproducible": packs[name].calibration.is_reproducible,
                    "measured": packs[name].is_measured,
                    "memory": with_pictures(card.memory, packs[name].calibration, packs[name].denoiser),
                    "loras": self._loras.get(name, ()),
                }
            )
            for name, card in list(self.cards.items())
            if name in packs
        ]

    def adapter_bases(self) -> dict[str, AdapterBase]:
        """What LoRAs can change of each model that takes them."""
        bases = {name: loaded.denoiser.adapter_base for name, loaded in dict(self._engine.packs).items()}
        return {name: base for name, base in bases.items() if base is not None}

    def show_loras(self, loras: Mapping[str, tuple[LoraOnCard, ...]]) -> None:
        """Have the cards of models show these LoRAs."""
        self._loras = loras

    def add(self, pack: Pack) -> None:
        """Load a pack and take its jobs, while other jobs are drawn.

        Raises:
            InvalidPack: it can't be served.
            EngineDied: the engine has ended.
        """
        self._engine.add(pack)
        try:
            self.cards[pack.name] = self._card_of(self._engine.packs[pack.name])
        except InvalidPack:
            self._engine.remove(pack.name)
            raise
        self.claims.add(pack.name)

    def withdraw(self, model: str) -> None:
        """Take no more jobs of the model."""
        self.claims.remove(model)

    def remove(self, model: str) -> None:
        """Unload a model that was withdrawn.

        Raises:
            PackInUse: a held job needs it.
            EngineDied: the engine has ended.
        """
        if self.claims.needs(model):
            raise PackInUse(f"held jobs need '{model}'")
        card = self.cards.pop(model)
        try:
            self._engine.remove(model)
        except PackInUse:
            self.cards[model] = card
            raise

    def run(self, model: str) -> None:
        """Answer a bell: run the model's next job, and then any waiting jobs until none is left."""
        try:
            claim = self.claims.take(model)
            while claim is not None:
                try:
                    with _told(claim):
                        ended = self._work_on(claim)
                finally:
                    self.claims.release(claim)
                is_last = ended is not None and ended.none_waits
                claim = self.claims.take(emptied=claim.request.model if is_last else None)
        except (RedisError, OperationalError) as error:
            log.warning("the store is away: %s; the reaper will find any unfinished job", error)

    def begin_drain(self) -> None:
        """Take no more jobs, and give back at once those that have not begun."""
        self.claims.stop_taking()
        for job in self.leases.held():
            if job.evaluations_done == 0:
                job.give_up(Verdict.OK)

    def hand_back_all(self) -> None:
        """Give every unfinished job back to the queue; their `run` calls return at once."""
        self._handing_back.set()
        self.claims.stop_taking()
        self._retrying.stop()
        for job in self.leases.held():
            job.give_up(Verdict.OK)

    def _work_on(self, claim: Claim) -> Ended | None:
        """Draw the job; `None` if that did not end it with its pictures."""
        job = HeldJob(claim, self._encoder)
        self.leases.hold(job)
        if self._handing_back.is_set():
            job.give_up(Verdict.OK)
        try:
            return self._finish(job)
        except SampleCancelled:
            if job.verdict is Verdict.OK:
                self._give_back(claim, Outcome.HANDED_BACK)
            else:
                self._store.metrics.attempt_ended(job.verdict)
        except EngineDied as error:
            self.claims.stop_taking()  # the process is about to end; another job would meet the same dead engine
            self._give_back(claim, Outcome.FAULTED, JobError(code="device_lost", message=str(error)))
        except OutOfMemory as error:
            self._give_back(claim, Outcome.FAULTED, JobError(code="out_of_memory", message=str(error)))
        except DeadlineExceeded as error:
            self._fail(claim, "deadline_exceeded", str(error))
        except (InvalidSpec, NotLinear, InvalidRespacing, InvalidRequest) as error:
            self._fail(claim, "invalid_request", str(error), getattr(error, "field", None))
        except SampleFailed as error:
            self._fail(claim, "sampling_failed", str(error))
        except PictureRefused as error:
            self._fail(claim, "picture_refused", str(error))
        except StorageUnavailable as error:  # for as long as a job may take, or until this worker had to stop
            if self._handing_back.is_set():
                self._give_back(claim, Outcome.HANDED_BACK)
            else:
                self._give_back(claim, Outcome.FAULTED, JobError(code=error.code, message=error.detail))
        except RedisError:
            raise
        except Exception as error:
            log.exception("the job failed")
            self._fail(claim, "internal", f"{type(error).__name__}: {error}")
        finally:
            self.leases.release(job)
        return None

    def _finish(self, job: HeldJob) -> Ended | None:
        claim = job.claim
        made = self._draw(job)
        if claim.request.preview_every or claim.request.telemetry:
            self._retrying.call(lambda: self.leases.report(job))
        with traces.span("finish"):
            kept = self._retrying.call(lambda: self._keep(job, made))
            ended = self._retrying.call(lambda: self._store.finish(claim, made, kept))
        if ended is None:
            log.warning("attempt %d finished too late; its pictures are dropped", claim.attempt)
        return ended

    def _keep(self, job: HeldJob, made: Finished) -> Kept:
        """Store the pictures, unless the job was cancelled or lost, which may be while their storage is away."""
        if job.verdict is not Verdict.OK:
            raise SampleCancelled(f"the job is {job.verdict}")
        return self._store.keep(job.claim, made)

    def _draw(self, job: HeldJob) -> Finished:
        request = job.claim.request
        card = self.cards[request.model]
        guide = self.cards.get(request.guide_model) if request.guide_model is not None else None
        try:
            with traces.span("prepare"):
                specs = specs_of(job.claim.job_id, request, card)
                is_hidden = card.review is not None and card.review.hides
                on_preview = job.add_preview if request.preview_every and not is_hidden else None
                job.attach(self._engine.submit_all(specs, timeout=self._job_timeout_s, on_preview=on_preview))
            with traced(job.handles):
                pictures = results(job.handles)
        except BaseException:
            for handle in job.handles:  # one picture failed: free its siblings' rows for other jobs
                handle.cancel()
            raise
        models = [card, guide] if guide is not None else [card]
        made = reviewed(pictures, self._reviews)
        with traces.span("encode"):
            parts = zip(made.pictures, cells_of(request), made.replaced, strict=True)
            pngs = tuple(
                png_of(picture, cell, index, card, guide, replaced) for picture, (cell, index), replaced in parts
            )
            sheet = sheet_of(made.pictures, request, card)
        return Finished(
            pictures=pngs,
            sheet=sheet,
            reproducible=self._is_reproducible(models),
            telemetry=tuple(handle.telemetry for handle in job.handles) if request.telemetry else (),
            digests=tuple(model.drawn_by for model in models),
            warnings=warnings_of_job(request, card, job.handles),
            flagged=made.flagged,
        )

    def _is_reproducible(self, models: Sequence[ModelCard]) -> bool:
        """Whether these models' rows are batch-invariant; a guide runs on the first model's lanes, with its threads."""
        calibrations = [self._engine.packs[model.name].calibration for model in models]
        threads = {calibration.layout.threads for calibration in calibrations}
        return len(threads) == 1 and all(calibration.is_reproducible for calibration in calibrations)

    def _fail(self, claim: Claim, code: str, message: str, field: str | None = None) -> None:
        self._retrying.call(lambda: self._store.fail(claim, JobError(code=code, message=message, field=field)))

    def _give_back(self, claim: Claim, outcome: Outcome, why: JobError | None = None) -> None:
        log.warning("attempt %d is %s%s", claim.attempt, outcome, f": {why.code}: {why.message}" if why else "")
        if self._retrying.call(lambda: self._store.release(claim, outcome, why)) and outcome is Outcome.HANDED_BACK:
            self._doorbell.ring(claim.request.model, claim.job_id)

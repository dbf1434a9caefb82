"""A worker's host, a real engine and a real store: what it does with a fault that may pass, and when told to stop."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
import torch

from cynosure.contract import GenerateRequest, JobStatus, LeavingJobs, ModelCard
from cynosure.resolving import resolve
from harness.processes import wait_until
from jobs.plans import Inquiries, InquiryDesk
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, EVERYONE, Claim, Finished, JobRecord, Submission, Verdict, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.roster import Roster, RosterDesk
from jobs.settings import StoreSettings
from jobs.store.connection import connected
from models.calibration import BatchSize, NetworkCalibration
from models.calibration.result import DEPENDS
from models.engine import Engine, EngineDied, LoadedPack
from models.engine.sample import Sample
from models.pack import open_pack
from workers.drawing.planner import Planner
from workers.host import EngineHost
from workers.leases import MAX_WAITING_PREVIEWS, HeldJob, LeaseKeeper
from workers.upkeep.cancellations import Cancellations
from workers.upkeep.roster import RosterKeeper

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def engine(small_pack: Path) -> Iterator[Engine]:
    with Engine([str(small_pack)]) as engine:
        yield engine


@pytest.fixture
def host(engine: Engine, worker_store: WorkerStore, doorbell: Doorbell) -> EngineHost:
    return EngineHost(
        engine,
        worker_store,
        doorbell,
        worker_name="w",
        slots=4,
        heartbeat_s=1,
        job_timeout_s=60,
    )


async def accept(store: JobStore, host: EngineHost, **asked: object) -> str:
    request = resolve(GenerateRequest.model_validate({"class_label": 1, **asked}), host.cards["fashion"], seed=1)
    evaluations = request.steps * request.num_images
    accepted = await store.accept(new_job_id(), Submission.of(request), owner=ANONYMOUS, evaluations=evaluations)
    return accepted.id


async def record_of(store: JobStore, job_id: str) -> JobRecord:
    return await store.get(job_id, EVERYONE)


async def test_a_job_that_found_no_memory_is_drawn_when_there_is_some(
    store: JobStore,
    host: EngineHost,
    raw: redis.Redis,
    store_settings: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = await accept(store, host, steps=3)
    loaded = host._engine.packs["fashion"]
    runner = loaded.runner

    def no_memory(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as full:
        full.setattr(runner, "tick", no_memory)
        # The engine makes both smaller for good, and other tests have the same engine.
        full.setattr(runner, "max_batch", runner.max_batch)
        full.setattr(loaded.schedule, "row_budget", loaded.schedule.row_budget)
        host.run("fashion")
    put_off = await record_of(store, job_id)
    assert (put_off.status, put_off.attempts[0].outcome) == (JobStatus.QUEUED, "faulted")
    assert put_off.attempts[0].error is not None
    assert put_off.attempts[0].error.code == "out_of_memory"
    raw.zadd(f"{store_settings.key_prefix}:delayed:fashion", {job_id: 1})
    host.run("fashion")
    done = await record_of(store, job_id)
    assert [attempt.outcome for attempt in done.attempts] == ["faulted", "succeeded"]


async def test_a_cancelled_job_frees_its_rows_without_a_heartbeat(
    store: JobStore, host: EngineHost, worker_store: WorkerStore
) -> None:
    job_id = await accept(store, host, steps=1000)
    drawing = threading.Thread(target=host.run, args=("fashion",))
    cancellations = Cancellations(worker_store, host.leases)  # and no one renews the leases
    cancellations.start()
    drawing.start()
    try:
        wait_until(lambda: any(job.evaluations_done > 0 for job in host.leases.held()), what="it has begun")
        assert cancellations.listening.wait(10)
        await store.cancel(job_id, EVERYONE)
        drawing.join(30)
        assert not drawing.is_alive()
    finally:  # the engine is other tests' too
        cancellations.stop()
        for job in host.leases.held():
            job.give_up(Verdict.CANCELLED)
        drawing.join()
    assert host._engine.packs["fashion"].schedule.is_idle
    assert (await record_of(store, job_id)).status is JobStatus.CANCELLED


def test_a_late_attempt_does_not_let_go_of_the_next_ones_lease(worker_store: WorkerStore, card: ModelCard) -> None:
    """A worker that fell silent may be given the very job that was taken from it."""
    request = resolve(GenerateRequest(class_label=1), card, seed=1)
    leases = LeaseKeeper(worker_store, interval_s=1, on_beat=lambda: None)
    encoder = ThreadPoolExecutor(1)
    late, current = (HeldJob(Claim("job", attempt, request, ANONYMOUS), encoder) for attempt in (1, 2))
    leases.hold(late)
    leases.hold(current)
    assert late.verdict is Verdict.STALE, "what it draws is nobody's"
    leases.release(late)
    assert leases.held() == [current]
    leases.release(current)
    assert leases.held() == []


def test_a_beat_does_not_wait_for_previews(worker_store: WorkerStore, card: ModelCard) -> None:
    request = resolve(GenerateRequest(class_label=1, preview_every=1), card, seed=1)
    is_free = threading.Event()
    with ThreadPoolExecutor(1) as encoder:
        encoder.submit(is_free.wait, 60)
        job = HeldJob(Claim("job", 1, request, ANONYMOUS), encoder)
        for step in range(MAX_WAITING_PREVIEWS + 3):
            job.add_preview(0, step, np.zeros((2, 2, 1), np.uint8))
        assert job.beat().happenings == ()
        is_free.set()
        LeaseKeeper(worker_store, interval_s=1, on_beat=lambda: None).report(job)
        assert job.beat().happenings == (), "all were in the report"
        told = job.beat().sequence
    assert told == 1


async def test_pictures_by_a_guide_depend_on_its_weights_too(
    store: JobStore, host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = host.cards["fashion"].model_copy(update={"name": "twin", "digest": "another"})
    monkeypatch.setitem(host.cards, "twin", guide)
    twin = copy.copy(host._engine.packs["fashion"])
    monkeypatch.setitem(host._engine._loop.packs, "twin", twin)
    monkeypatch.setitem(host._engine._runners, "twin", twin.runner)
    leaking = NetworkCalibration(measured=(BatchSize(rows=1, row_ms=1.0, bits=DEPENDS),))
    of_twin = replace(twin.calibration, denoiser=leaking)
    monkeypatch.setattr(
        LoadedPack, "calibration", property(lambda one: of_twin if one is twin else one.runner.calibration)
    )
    made: list[Finished] = []
    monkeypatch.setattr(host._store, "finish", lambda claim, finished, kept: made.append(finished))
    for asked in ({}, {"guide_model": "twin", "guidance_scale": 2.0}):
        await accept(store, host, steps=2, guidance_mode="classifier_free", **asked)
        host.run("fashion")
    drawn_by = host.cards["fashion"].drawn_by
    assert [(one.digests, one.reproducible) for one in made] == [
        ((drawn_by,), True),
        ((drawn_by, guide.drawn_by), False),
    ]


async def test_a_question_that_makes_no_sense_ends_no_planner(
    engine: Engine, host: EngineHost, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.background.PAUSE_S", 0.0)
    planner = Planner(engine, host.cards, InquiryDesk(store_settings, ["fashion"]))
    with redis.Redis.from_url(store_settings.redis_url) as raw:
        raw.rpush(f"{store_settings.key_prefix}:inquiries:fashion", '{"id": "x", "request": {"steps": "many"}}')
    planner.start()
    request = resolve(GenerateRequest(class_label=1, steps=7), host.cards["fashion"], seed=1)
    async with Inquiries.connect(store_settings) as inquiries:
        plan = await inquiries.plan(request, timeout_s=10)
    planner.stop()
    assert len(plan.timesteps) == 7


async def test_an_engine_that_died_takes_no_other_job_with_it(
    store: JobStore, host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit, spared = [await accept(store, host, steps=3) for _ in range(2)]

    def dead(*_: object, **__: object) -> None:
        raise EngineDied("the engine stopped")

    with monkeypatch.context() as fault:
        fault.setattr(host._engine, "submit_all", dead)
        host.run("fashion")
    lost = await record_of(store, hit)
    assert lost.attempts[0].error is not None
    assert (lost.status, lost.attempts[0].error.code) == (JobStatus.QUEUED, "device_lost")
    assert (await record_of(store, spared)).attempt == 0
    assert host.claims.is_stopping


async def test_a_drain_gives_back_at_once_what_has_not_begun(
    store: JobStore, host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running one finishes, the other one is another worker's."""
    schedule = host._engine.packs["fashion"].schedule
    begun, waiting = [await accept(store, host, steps=200, priority=priority) for priority in ("high", "low")]
    take = schedule.take

    def take_begun(*, now: float) -> list[Sample]:
        moving = take(now=now)
        schedule.put_back([one for one in moving if one.group != begun])
        time.sleep(0.01)  # it is asked again at once where nothing moves
        return [one for one in moving if one.group == begun]

    monkeypatch.setattr(schedule, "take", take_begun)
    threads = [threading.Thread(target=host.run, args=("fashion",)) for _ in range(2)]
    rung = host._doorbell.pending_bells("fashion")
    for thread in threads:
        thread.start()
    wait_until(lambda: [job.evaluations_done > 0 for job in host.leases.held()].count(True) == 1, what="one has begun")
    wait_until(lambda: all(job.handles for job in host.leases.held()), what="both are with the engine")
    host.begin_drain()
    for thread in threads:
        thread.join()
    given_back = await record_of(store, waiting)
    assert (given_back.status, given_back.attempts[0].outcome) == (JobStatus.QUEUED, "handed_back")
    assert (await record_of(store, begun)).status is JobStatus.SUCCEEDED
    assert host._doorbell.pending_bells("fashion") == rung + 1


async def test_models_come_and_go_when_the_store_is_away_at_the_end_of_each_step(
    engine: Engine, host: EngineHost, worker_store: WorkerStore, store_settings: StoreSettings, small_pack: Path
) -> None:
    heard: list[tuple[str, bool]] = []

    def publish() -> None:
        raise redis.ConnectionError("away")

    keeper = RosterKeeper(
        host,
        worker_store,
        RosterDesk(store_settings),
        worker_name="w",
        open_pack=lambda name, wanted: open_pack(f"{name}={wanted}"),
        listen=lambda model, is_wanted: heard.append((model, is_wanted)),
        publish=publish,
    )

    def turn() -> None:
        with suppress(redis.ConnectionError):  # the thread takes the next turn
            keeper._turn()

    async with connected(store_settings, "test") as client:
        roster = Roster(client, store_settings)
        await roster.add("second", str(small_pack))
        turn()
        turn()
        assert [one.name for one in host.published()] == ["fashion", "second"]
        await roster.remove("second", LeavingJobs.FINISH)
        turn()
        turn()
        turn()
        assert await roster.load("second") is None
    assert list(engine.packs) == ["fashion"]
    assert heard == [("second", True), ("second", False)]

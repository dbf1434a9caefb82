"""Laws of the engine, on a small pack."""

from __future__ import annotations

import gc
import random
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.processes import wait_until
from models.calibration import BatchSize, Calibration, FileCalibrations, NetworkCalibration, fixed_calibration
from models.engine import (
    Engine,
    EngineDied,
    Image,
    OutOfMemory,
    PackInUse,
    SampleCancelled,
    SampleFailed,
    results,
)
from models.engine.observing import LOAD_S, Load
from models.engine.preparing import Preparation
from models.engine.runner import Runner
from models.engine.sample import Inputs, Sample
from models.engine.schedule import Schedule
from models.engine.tick import Tick
from models.lanes import CallRunner, InlineLane, Layout
from models.loading import InvalidDevice
from models.pack import Pack, open_pack
from models.samplers import CoefficientTable, compile_table
from models.spec import Guidance, InvalidSpec, SampleSpec, StepCache

MIXED = [
    SampleSpec(pack="fashion", label=0, steps=4, seed=1),
    SampleSpec(pack="fashion", label=1, steps=9, seed=2, sampler="ddpm", guidance=Guidance(free_scale=3.0)),
    SampleSpec(pack="fashion", label=7, steps=6, seed=3, sampler="dpmpp_2m", guidance=Guidance(free_scale=0.0)),
    SampleSpec(
        pack="fashion", label=8, steps=5, seed=4, sampler="unipc", guidance=Guidance(free_scale=2.0, rescale=0.7)
    ),
    SampleSpec(pack="fashion", steps=7, seed=5, sampler="euler", guidance=Guidance(conditional=False)),
    SampleSpec(
        pack="fashion", label=9, steps=8, seed=6, sampler="lms", guidance=Guidance(free_scale=4.0, interval=(0.2, 0.7))
    ),
    SampleSpec(pack="fashion", label=3, steps=6, seed=7, eta=1.0, dynamic_threshold=0.995),
    SampleSpec(pack="fashion", label=4, steps=6, seed=8, guidance=Guidance(classifier_scale=5.0, conditional=False)),
    SampleSpec(
        pack="fashion",
        label=6,
        steps=5,
        seed=9,
        sampler="heun",
        guidance=Guidance(free_scale=2.0, classifier_scale=3.0, interval=(0.1, 0.9)),
    ),
    SampleSpec(
        pack="fashion",
        label=5,
        steps=9,
        seed=10,
        guidance=Guidance(free_scale=3.0, interval=(0.2, 0.9)),
        cache=StepCache(3, 0.8),
    ),
    SampleSpec(pack="fashion", label=2, steps=6, seed=11, sampler="dpmpp_2m", cache=StepCache(2)),
]


def in_two_lanes(pack: Pack, by_rule: Calibration) -> Calibration:
    return fixed_calibration(pack, by_rule, lanes=2)


@pytest.fixture(scope="module", params=["as measured", "in two lanes"])
def engine(request: pytest.FixtureRequest, small_pack: Path) -> Iterator[Engine]:
    """One that runs as this machine does best, and one of two lanes, whatever the machine has."""
    how: dict[str, Any] = {"calibrate": in_two_lanes, "cores": 2} if request.param == "in two lanes" else {}
    with Engine([str(small_pack)], **how) as engine:
        assert engine.wait_until_measured(120)
        yield engine


def test_every_row_is_counted(engine: Engine) -> None:
    def counted() -> dict[str, float]:
        tally = engine.packs["fashion"].tally
        return {name: rows.total for name, rows in tally.rows.items()} | {"ticks": float(sum(tally.ticks.counts))}

    loaded = engine.packs["fashion"]
    wait_until(lambda: loaded.schedule.is_idle and not loaded.ticks, what="what other tests cancelled has ended")
    before = counted()
    guided = SampleSpec(pack="fashion", label=1, steps=6, guidance=Guidance(free_scale=3.0))
    steered = SampleSpec(pack="fashion", label=2, steps=4, guidance=Guidance(classifier_scale=5.0, conditional=False))
    # Pictures of one seed could share a row of their first evaluations.
    engine.generate([replace(spec, seed=seed) for seed, spec in enumerate([guided] * 3 + [steered] * 3)])
    grown = {name: count - before[name] for name, count in counted().items()}
    ticks = grown.pop("ticks")
    assert grown == {"denoiser": 3 * (2 * 6 + 4), "classifier": 3 * 4, "decoder": 6}
    assert 6 <= ticks <= 3 * (6 + 4)
    assert 0 < engine.busy_ratio <= 1


def test_the_load_is_the_recent_share_of_the_cores() -> None:
    now = 0.0
    load = Load(2, clock=lambda: now)
    load.change(1)
    now = 600.0
    assert load.ratio == pytest.approx(0.5)
    load.change(1)
    now += 10 * LOAD_S
    assert load.ratio == pytest.approx(1.0, abs=1e-3)
    load.change(-2)
    assert load.ratio == pytest.approx(1.0, abs=1e-3), "it fades"
    now += LOAD_S
    assert load.ratio == pytest.approx(np.exp(-1), abs=1e-3)


def test_bytes_are_the_same_before_and_after_measuring(small_pack: Path, tmp_path: Path) -> None:
    kept = FileCalibrations(tmp_path)
    with Engine([str(small_pack)], calibrations=kept, measure_at_once=False) as engine:
        early = engine.generate(MIXED)
        assert not engine.packs["fashion"].calibration.is_measured
        engine.measure()
        assert engine.wait_until_measured(120)
        late = engine.generate(MIXED)
        assert engine.packs["fashion"].calibration.is_measured
    wait_until(lambda: len(list(tmp_path.glob("*.json"))) == 1, what="the times are kept")
    with Engine([str(small_pack)], calibrations=kept) as engine:
        assert engine.wait_until_measured(120)
        known = engine.generate(MIXED)
    for spec, first, second, third in zip(MIXED, early, late, known, strict=True):
        assert np.array_equal(first, second), spec
        assert np.array_equal(first, third), spec


def test_measuring_ends_while_the_engine_is_never_idle(small_pack: Path, tmp_path: Path) -> None:
    with Engine([str(small_pack)], calibrations=FileCalibrations(tmp_path)) as engine:
        load = engine.submit_all([replace(MIXED[0], steps=1000, seed=seed) for seed in range(60)])
        assert engine.wait_until_measured(300)
        assert not all(handle.is_done for handle in load)


def test_a_pack_that_can_not_be_measured_is_served_in_reference_batches(
    small_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[None]:
        yield
        raise RuntimeError("no stopwatch")

    monkeypatch.setattr("models.engine.measurement.measuring", broken)
    with Engine([str(small_pack)], calibrations=FileCalibrations(tmp_path)) as engine:
        assert engine.wait_until_measured(60)
        engine.generate(MIXED[:2])
        assert not engine.packs["fashion"].calibration.is_measured


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "mps", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str, small_pack: Path) -> None:
    with pytest.raises(InvalidDevice, match=rf"device '{name}' .*; torch \S+ has: cpu"):
        Engine([str(small_pack)], device=name)


def test_a_picture_is_the_same_bytes_in_any_company(engine: Engine) -> None:
    alone = [engine.generate([spec])[0] for spec in MIXED]
    shuffled = random.Random(0).sample(MIXED, len(MIXED))
    together = dict(zip(map(id, shuffled), engine.generate(shuffled), strict=True))
    for spec, picture in zip(MIXED, alone, strict=True):
        assert np.array_equal(together[id(spec)], picture), spec


def test_a_sampler_is_looked_up_once_a_picture_and_not_in_its_ticks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def counted(name: str, *how: Any, **options: Any) -> CoefficientTable:
        looked_up.append(name)
        return compile_table(name, *how, **options)

    monkeypatch.setattr("models.engine.preparing.preparation.compile_table", counted)
    engine.generate(MIXED)
    assert looked_up == [spec.sampler for spec in MIXED]


def test_an_unconditional_base_never_sees_the_label(engine: Engine) -> None:
    shoe, bag = (
        SampleSpec(pack="fashion", label=label, steps=5, guidance=Guidance(conditional=False)) for label in (7, 8)
    )
    assert np.array_equal(*engine.generate([shoe, bag]))
    steered = Guidance(conditional=False, classifier_scale=5.0)
    shoe, bag = (SampleSpec(pack="fashion", label=label, steps=5, guidance=steered) for label in (7, 8))
    assert not np.array_equal(*engine.generate([shoe, bag]))


def test_an_interval_guides_inside_it_alone(engine: Engine) -> None:
    plain, everywhere, nowhere = engine.generate(
        [
            SampleSpec(pack="fashion", label=7, steps=8, guidance=guidance)
            for guidance in (
                Guidance(),
                Guidance(free_scale=6.0, classifier_scale=4.0, interval=(0.0, 1.0)),
                Guidance(free_scale=6.0, classifier_scale=4.0, interval=(0.5, 0.5)),
            )
        ]
    )
    assert np.array_equal(nowhere, plain)
    assert not np.array_equal(everywhere, plain)


def test_a_sweep_over_scales_runs_the_steps_before_its_interval_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [
        SampleSpec(
            pack="fashion",
            label=7,
            steps=10,
            sampler="ddpm",
            seed=3,
            guidance=Guidance(free_scale=scale, interval=(0.6, 1)),
        )
        for scale in (1.5, 2.0, 3.0, 5.0)
    ]
    alone = [engine.generate([spec])[0] for spec in specs]
    rows = 0
    take = Schedule.take

    def counting(schedule: Schedule, *, now: float) -> list[Sample]:
        nonlocal rows
        moving = take(schedule, now=now)
        rows += sum(sample.rows_now for sample in moving)
        return moving

    monkeypatch.setattr(Schedule, "take", counting)
    swept = engine.generate(specs)
    for one, other in zip(alone, swept, strict=True):
        assert np.array_equal(one, other)
    assert rows == 6 + 4 * 4 * 2


def test_every_picture_of_a_sweep_tells_all_its_evaluations(engine: Engine) -> None:
    specs = [
        SampleSpec(
            pack="fashion", label=7, steps=6, telemetry=True, guidance=Guidance(free_scale=scale, interval=(0.5, 1))
        )
        for scale in (2.0, 3.0)
    ]
    handles = engine.submit_all(specs)
    for handle in handles:
        handle.result(timeout=60)
    first, second = (handle.telemetry for handle in handles)
    assert len(first) == len(second) == 6
    assert first[:3] == second[:3]
    assert first[3:] != second[3:]


def test_a_sweep_whose_guidance_never_acts_is_drawn_all_the_same(engine: Engine) -> None:
    plain, *swept = [Guidance(), *(Guidance(free_scale=scale, interval=(1, 1)) for scale in (2.0, 3.0, 4.0))]
    [expected] = engine.generate([SampleSpec(pack="fashion", label=7, steps=4, guidance=plain)])
    specs = [SampleSpec(pack="fashion", label=7, steps=4, guidance=guidance) for guidance in swept]
    for picture in engine.generate(specs):
        assert np.array_equal(picture, expected)


def test_forks_outlive_the_sample_they_share_steps_with(engine: Engine) -> None:
    specs = [
        SampleSpec(pack="fashion", label=7, steps=200, guidance=Guidance(free_scale=scale, interval=(0.99, 1)))
        for scale in (2.0, 3.0, 4.0)
    ]
    expected = engine.generate(specs[1:])
    trunk, *forks = engine.submit_all(specs)
    while trunk.evaluations_done < 3:
        time.sleep(0.01)
    trunk.cancel()
    for fork, picture in zip(forks, expected, strict=True):
        assert np.array_equal(fork.result(timeout=120), picture)
        assert len(fork.evaluated_at) == fork.evaluations
    with pytest.raises(SampleCancelled):
        trunk.result(timeout=1)


def test_a_short_sample_overtakes_a_long_one(engine: Engine) -> None:
    long = engine.submit(SampleSpec(pack="fashion", label=2, steps=400))
    engine.submit(SampleSpec(pack="fashion", label=3, steps=2)).result(timeout=60)
    assert not long.is_done
    long.cancel()
    with pytest.raises(SampleCancelled):
        long.result(timeout=60)


def test_a_sample_that_paused_is_the_same_bytes(engine: Engine) -> None:
    alone = engine.generate([MIXED[1]])[0]
    schedule = engine.packs["fashion"].schedule
    budget, schedule.row_budget = schedule.row_budget, 2
    try:
        together = engine.generate(MIXED)
    finally:
        schedule.row_budget = budget
    assert np.array_equal(together[1], alone)


def test_a_picture_that_is_done_leaves_nothing_behind_though_its_handle_is_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = Runner.start, list[weakref.ref[Sample]]()
    spec = SampleSpec(pack="fashion", label=5, steps=2)

    def noted(runner: Runner, sample: Sample) -> None:
        start(runner, sample)
        if sample.course.spec is spec:  # the engine may still be drawing for an earlier test
            begun.append(weakref.ref(sample))

    monkeypatch.setattr(Runner, "start", noted)
    gc.collect()
    gc.disable()
    try:
        handle = engine.submit(spec)
        handle.result(timeout=60)
        [sample] = begun
        wait_until(lambda: sample() is None, seconds=5, what="the sample, and its tensors with it, are gone")
    finally:
        gc.enable()
    assert handle.evaluations_done == handle.evaluations == 2


def test_previews_come_in_order_and_end_in_the_picture(engine: Engine) -> None:
    seen: list[int] = []
    spec = SampleSpec(pack="fashion", label=5, steps=6, preview_every=2)
    engine.submit(spec, on_preview=lambda index, step, picture: seen.append(step)).result(timeout=60)
    assert seen == [2, 4, 6]


def test_a_deadline_ends_a_sample(engine: Engine) -> None:
    with pytest.raises(SampleFailed, match="not done in time"):
        engine.submit(SampleSpec(pack="fashion", steps=900), timeout=0.2).result(timeout=60)


def test_a_fault_fails_its_own_sample_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Runner.tick

    def faulty(runner: Runner, samples: list[Sample], lanes: CallRunner) -> tuple[Tensor, list[bool]]:
        if any(sample.course.spec.seed == 666 for sample in samples):
            raise RuntimeError("poisoned")
        return tick(runner, samples, lanes)

    expected = engine.generate([MIXED[0]])[0]
    monkeypatch.setattr(Runner, "tick", faulty)
    poisoned = engine.submit(SampleSpec(pack="fashion", label=1, steps=4, seed=666))
    neighbour = engine.submit(MIXED[0])
    with pytest.raises(SampleFailed, match="poisoned"):
        poisoned.result(timeout=60)
    assert np.array_equal(neighbour.result(timeout=60), expected)


@pytest.mark.parametrize("method", ["start", "pictures"])
def test_a_fault_before_or_after_its_evaluations_fails_a_sample_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = getattr(Runner, method)

    def faulty(runner: Runner, samples: Sample | list[Sample], *rest: object) -> object:
        if any(sample.course.spec.seed == 666 for sample in ([samples] if isinstance(samples, Sample) else samples)):
            torch.empty(1 << 50)  # 4 PB
        return whole(runner, samples, *rest)

    expected = engine.generate([MIXED[0]])[0]
    monkeypatch.setattr(Runner, method, faulty)
    poisoned, neighbour = engine.submit_all([replace(MIXED[0], seed=666), MIXED[0]])
    with pytest.raises(OutOfMemory, match="can't allocate memory"):
        poisoned.result(timeout=60)
    assert np.array_equal(neighbour.result(timeout=60), expected)


def test_a_preview_that_fails_fails_its_own_sample_alone(engine: Engine) -> None:
    def refuse(index: int, step: int, picture: Image) -> None:
        raise ValueError("nobody wants to see this")

    neighbour = engine.submit(MIXED[1])
    shown = engine.submit(SampleSpec(pack="fashion", label=5, steps=6, preview_every=6), on_preview=refuse)
    with pytest.raises(SampleFailed, match="nobody wants to see this"):
        shown.result(timeout=60)
    assert np.array_equal(neighbour.result(timeout=60), engine.generate([MIXED[1]])[0])


@pytest.mark.parametrize(
    "no_memory",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_an_evaluation_that_found_no_memory_is_made_again_from_where_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, no_memory: RuntimeError
) -> None:
    """Even where the memory ran out at the very end, when one column of the new states could be written."""
    loaded = engine.packs["fashion"]
    specs = [replace(spec, telemetry=True) for spec in MIXED]
    expected, traces = [], []
    for handle in engine.submit_all(specs):
        expected.append(handle.result(timeout=60))
        traces.append(handle.telemetry)
    zeros, faults = torch.zeros, iter([False, True])

    def allocated(*size: int, **how: Any) -> Tensor:
        if size[1:] == loaded.runner.denoiser.latent_shape and next(faults, False):
            raise no_memory
        return zeros(*size, **how)

    monkeypatch.setattr(torch, "zeros", allocated)
    # The engine makes both smaller for good, and other tests have the same engine.
    monkeypatch.setattr(loaded.runner, "max_batch", loaded.runner.max_batch)
    monkeypatch.setattr(loaded.schedule, "row_budget", loaded.schedule.row_budget)
    handles = engine.submit_all(specs)
    for handle, picture, noted in zip(handles, expected, traces, strict=True):
        assert np.array_equal(handle.result(timeout=60), picture)
        assert [one["timestep"] for one in handle.telemetry] == [one["timestep"] for one in noted]
    assert next(faults, None) is None, "the memory did run out"


def test_an_evaluation_that_found_no_memory_gives_back_what_it_had(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, tick = engine.packs["fashion"], Runner.tick
    held: list[weakref.ref[Tensor]] = []

    def greedy(runner: Runner, samples: list[Sample], lanes: CallRunner) -> tuple[Tensor, list[bool]]:
        def evaluate() -> None:
            activations = torch.zeros(1)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no memory")

        if not held:
            lanes.run([evaluate])
        assert held[0]() is None
        return tick(runner, samples, lanes)

    monkeypatch.setattr(Runner, "tick", greedy)
    monkeypatch.setattr(loaded.runner, "max_batch", loaded.runner.max_batch)
    monkeypatch.setattr(loaded.schedule, "row_budget", loaded.schedule.row_budget)
    gc.collect()
    gc.disable()
    try:
        engine.generate(MIXED[:2])
    finally:
        gc.enable()
    assert held


def test_the_first_picture_that_fails_ends_the_wait_for_all(engine: Engine) -> None:
    long, cancelled = engine.submit_all([SampleSpec(pack="fashion", label=1, steps=900)] * 2)
    cancelled.cancel()
    with pytest.raises(SampleCancelled):
        results([long, cancelled])
    assert not long.is_done
    long.cancel()


@pytest.fixture
def two_lanes(small_pack: Path) -> Iterator[Engine]:
    with Engine([str(small_pack)], calibrate=in_two_lanes, cores=2) as engine:
        yield engine


def test_lanes_tick_without_waiting_for_each_other(two_lanes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tick, held = Runner.tick, threading.Event()

    def slow_for_one(runner: Runner, samples: list[Sample], lanes: CallRunner) -> tuple[Tensor, list[bool]]:
        if any(sample.course.spec.seed == 666 for sample in samples):
            assert held.wait(60)
        return tick(runner, samples, lanes)

    monkeypatch.setattr(Runner, "tick", slow_for_one)
    specs = [SampleSpec(pack="fashion", label=1, steps=3, seed=666)] * 4 + [SampleSpec(pack="fashion", steps=9)] * 5
    handles = two_lanes.submit_all(specs)
    try:
        for quick in handles[4:]:
            quick.result(timeout=60)
        assert not any(slow.is_done for slow in handles[:4])
    finally:
        held.set()
    for slow in handles[:4]:
        slow.result(timeout=60)


def test_batches_are_full_while_rows_wait(small_pack: Path) -> None:
    measured = tuple(BatchSize(rows=rows, row_ms=row_ms, bits="") for rows, row_ms in ((1, 100.0), (4, 90.0)))

    def calibrate(pack: Pack, by_rule: Calibration) -> Calibration:
        return in_two_lanes(pack, by_rule).having("denoiser", NetworkCalibration(measured=measured))

    specs = [SampleSpec(pack="fashion", label=1, steps=9, seed=seed, group=str(seed)) for seed in range(5)]
    with Engine([str(small_pack)], calibrate=calibrate, cores=2) as engine:
        together = engine.generate(specs)
        tally = engine.packs["fashion"].tally
        batches = dict(zip(tally.rows["denoiser"].bounds, tally.rows["denoiser"].counts, strict=False))
        assert batches[4], "an even share is three rows, but a batch of four has room"
        assert tally.padding == 0
        alone = [engine.generate([spec])[0] for spec in specs]
    assert [one.tobytes() for one in together] == [one.tobytes() for one in alone]


def test_a_pack_that_wants_all_cores_gets_them(small_pack: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(small_pack, tmp_path / "twin")

    def calibrate(pack: Pack, by_rule: Calibration) -> Calibration:
        layout = Layout(lanes=1, threads=2) if pack.name == "twin" else Layout(lanes=2, threads=1)
        return replace(fixed_calibration(pack, by_rule), layout=layout)

    with Engine([str(small_pack), str(twin)], calibrate=calibrate, cores=2) as engine:
        long = engine.submit_all([SampleSpec(pack="fashion", label=1, steps=900)] * 8)
        engine.submit(SampleSpec(pack="twin", label=1, steps=3)).result(timeout=60)
        assert not any(handle.is_done for handle in long)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lost_device_ends_the_engine_and_all_its_samples(two_lanes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Runner.tick

    def broken(runner: Runner, samples: list[Sample], lanes: CallRunner) -> tuple[Tensor, list[bool]]:
        if any(sample.course.spec.seed == 666 for sample in samples):
            raise torch.AcceleratorError("the device is lost")
        return tick(runner, samples, lanes)

    monkeypatch.setattr(Runner, "tick", broken)
    fine = [SampleSpec(pack="fashion", steps=900)] * 6
    handles = two_lanes.submit_all([*fine, *[SampleSpec(pack="fashion", steps=3, seed=666)] * 6])
    for handle in handles:
        with pytest.raises(EngineDied, match="the device is lost"):
            handle.result(timeout=60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_device_lost_while_a_picture_is_prepared_ends_the_engine(
    two_lanes: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(preparation: Preparation, spec: SampleSpec) -> Inputs:
        raise torch.AcceleratorError("the device is lost")

    long = two_lanes.submit(SampleSpec(pack="fashion", steps=900))
    monkeypatch.setattr(Preparation, "prepare", broken)
    with pytest.raises(EngineDied, match="the device is lost"):
        two_lanes.submit(SampleSpec(pack="fashion", steps=3))
    with pytest.raises(EngineDied, match="the device is lost"):
        long.result(timeout=60)


def test_what_cannot_be_drawn_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(InvalidSpec, match="no pack 'nope' is loaded; loaded: fashion"):
        engine.submit(SampleSpec(pack="nope"))
    with pytest.raises(InvalidSpec, match="needs a label"):
        SampleSpec(pack="fashion", guidance=Guidance(free_scale=2.0))


def test_a_label_is_a_class_that_is_there_by_index_or_name(engine: Engine) -> None:
    [named, numbered] = engine.generate([SampleSpec(pack="fashion", label=label, steps=3) for label in ("bag", 8)])
    assert np.array_equal(named, numbered)
    with pytest.raises(InvalidSpec, match="'fashion' has no label 'bagg'; did you mean 'bag'"):
        engine.submit(SampleSpec(pack="fashion", label="bagg"))
    for label in (-1, 10):
        with pytest.raises(InvalidSpec, match="'fashion' has classes 0 to 9"):
            engine.submit(SampleSpec(pack="fashion", label=label))


def test_packs_come_and_go_while_others_draw_the_same_bytes(small_pack: Path, tmp_path: Path) -> None:
    other = open_pack(f"other={small_pack}")
    spec = SampleSpec(pack="fashion", label=1, seed=1, steps=8)
    with Engine([str(small_pack)], calibrations=FileCalibrations(tmp_path)) as engine:
        [alone] = engine.generate([spec])
        for _ in range(2):
            handles = [engine.submit(spec) for _ in range(8)]
            engine.add(other)
            long = engine.submit(replace(spec, pack="other", steps=400))
            handles += [engine.submit(replace(spec, pack="other")), *(engine.submit(spec) for _ in range(8))]
            with pytest.raises(PackInUse):
                engine.remove("other")
            long.cancel()
            assert all(np.array_equal(handle.result(), alone) for handle in handles)
            wait_until(lambda: engine.packs["other"].schedule.is_idle, seconds=30, what="the pack is idle")
            engine.remove("other")
            with pytest.raises(InvalidSpec, match="no pack 'other'"):
                engine.submit(replace(spec, pack="other"))
        assert engine.wait_until_measured(120)


def test_a_pack_that_was_removed_is_freed(small_pack: Path) -> None:
    with Engine([str(small_pack)], measure_at_once=False) as engine:
        engine.add(open_pack(f"other={small_pack}"))
        network = weakref.ref(engine.packs["other"].denoiser)
        engine.generate([SampleSpec(pack="other", label=1, seed=1, steps=2)])
        engine.remove("other")
        assert network() is None


def test_rows_that_are_the_same_at_the_first_evaluation_are_evaluated_once(engine: Engine) -> None:
    """A sweep over scales, and another label of the same seed, which shares the unconditional row."""
    loaded = engine.packs["fashion"]
    shared = SampleSpec(pack="fashion", label=3, steps=4, seed=9)
    guided = [replace(shared, guidance=Guidance(free_scale=scale)) for scale in (2.0, 3.0, 5.0)]
    other = replace(guided[0], label=4)
    specs = [*guided, other, replace(other, seed=10)]
    alone = [engine.generate([spec])[0] for spec in specs]
    samples = [Sample.begin(course) for course in engine._courses(specs)]
    evaluated = []
    while not samples[0].is_done:
        before = loaded.tally.rows["denoiser"].total
        Tick(loaded, samples).run(InlineLane())
        evaluated.append(loaded.tally.rows["denoiser"].total - before)
    assert evaluated == [2 + 1 + 2, 10, 10, 10]
    together = loaded.runner.pictures(samples, loaded.runner.latents(samples), InlineLane())
    assert all(map(np.array_equal, together, alone))
    assert samples[0].place is not None
    states = weakref.ref(samples[0].place.states)
    samples.clear()
    assert states() is None, "nothing of them is left"

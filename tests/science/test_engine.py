"""Laws of the engine, on the bundled weights."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from torch import Tensor

from models.engine import Engine, SampleCancelled, SampleFailed
from models.engine.runner import Runner
from models.engine.schedule import Sample
from models.spec import Guidance, InvalidSpec, SampleSpec

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
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(["fashion"]) as engine:
        yield engine


def test_a_picture_is_the_same_bytes_in_any_company(engine: Engine) -> None:
    alone = [engine.generate([spec])[0] for spec in MIXED]
    shuffled = random.Random(0).sample(MIXED, len(MIXED))
    together = dict(zip(map(id, shuffled), engine.generate(shuffled), strict=True))
    for spec, picture in zip(MIXED, alone, strict=True):
        assert np.array_equal(together[id(spec)], picture), spec


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


def test_a_sweep_over_scales_runs_the_steps_before_its_interval_once(engine: Engine) -> None:
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
    runner = engine._loaded["fashion"].runner
    before = runner.denoiser_rows
    swept = engine.generate(specs)
    for one, other in zip(alone, swept, strict=True):
        assert np.array_equal(one, other)
    assert runner.denoiser_rows - before == 6 + 4 * 4 * 2


def test_forks_outlive_the_sample_they_share_steps_with(engine: Engine) -> None:
    specs = [
        SampleSpec(pack="fashion", label=7, steps=200, guidance=Guidance(free_scale=scale, interval=(0.99, 1)))
        for scale in (2.0, 3.0, 4.0)
    ]
    expected = engine.generate(specs[1:])
    trunk, *forks = engine.submit_all(specs)
    while trunk.position < 3:
        time.sleep(0.01)
    trunk.cancel()
    for fork, picture in zip(forks, expected, strict=True):
        assert np.array_equal(fork.result(timeout=120), picture)
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
    schedule = engine._loaded["fashion"].schedule
    budget, schedule.row_budget = schedule.row_budget, 2
    try:
        together = engine.generate(MIXED)
    finally:
        schedule.row_budget = budget
    assert np.array_equal(together[1], alone)


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

    def faulty(runner: Runner, samples: list[Sample]) -> Tensor:
        if any(sample.spec.seed == 666 for sample in samples):
            raise RuntimeError("poisoned")
        return tick(runner, samples)

    expected = engine.generate([MIXED[0]])[0]
    monkeypatch.setattr(Runner, "tick", faulty)
    poisoned = engine.submit(SampleSpec(pack="fashion", label=1, steps=4, seed=666))
    neighbour = engine.submit(MIXED[0])
    with pytest.raises(SampleFailed, match="poisoned"):
        poisoned.result(timeout=60)
    assert np.array_equal(neighbour.result(timeout=60), expected)


def test_what_cannot_be_drawn_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(InvalidSpec, match="no pack 'nope' is loaded; loaded: fashion"):
        engine.submit(SampleSpec(pack="nope"))
    with pytest.raises(InvalidSpec, match="needs a label"):
        SampleSpec(pack="fashion", guidance=Guidance(free_scale=2.0))

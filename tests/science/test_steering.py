"""Ways of steering beyond one scale: conditions, intervals, second models, CFG++, pictures to start from, telemetry."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.lanes import CORES
from models.pack import PACKS_FOLDER
from models.parity import stand_ins
from models.parity.cases import trajectory
from models.parity.stand_ins import LABELS, NUM_CLASSES
from models.samplers import compile_table
from models.samplers.levels import alpha_bars
from models.spec import Guidance, IntervalUnit, InvalidSpec, Pixels, SampleSpec, Term


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The bundled pack, and the same under another name."""
    twin = tmp_path_factory.mktemp("packs") / "twin"
    shutil.copytree(PACKS_FOLDER / "fashion", twin)
    with Engine(["fashion", str(twin)], calibrate=partial(fixed_calibration, lanes=CORES)) as engine:
        yield engine


def spec(**what: object) -> SampleSpec:
    return SampleSpec(**{"pack": "fashion", "label": 7, "steps": 12, "seed": 3, **what})  # type: ignore[arg-type]


def test_a_condition_of_one_label_is_that_label(engine: Engine) -> None:
    by_label, by_term, by_sum = engine.generate(
        [
            spec(guidance=Guidance(classifier_scale=5.0)),
            spec(guidance=Guidance(classifier_scale=5.0, terms=(Term(1.0, (7,)),))),
            spec(guidance=Guidance(classifier_scale=10.0, terms=(Term(0.25, (7,)), Term(0.25, (7,))))),
        ]
    )
    assert np.array_equal(by_label, by_term)
    assert np.abs(by_label.astype(int) - by_sum).max() <= 1


@pytest.mark.parametrize(
    "terms",
    [
        (Term(1.0, (7,)), Term(0.5, (9,))),
        (Term(1.0, (5, 7, 9)),),
        (Term(1.0, tuple(label for label in range(10) if label != 0)),),
    ],
    ids=["weighted", "any of", "not"],
)
def test_steering_makes_a_condition_more_probable(engine: Engine, terms: tuple[Term, ...]) -> None:
    def last_probability(scale: float) -> float:
        guided = Guidance(classifier_scale=scale, terms=terms, conditional=False)
        handles = engine.submit_all(
            [spec(label=None, guidance=guided, seed=seed, steps=25, telemetry=True) for seed in range(6)]
        )
        for handle in handles:
            handle.result()
        return float(np.mean([math.log(handle.telemetry[-1]["probability"]) for handle in handles]))

    assert last_probability(8.0) > last_probability(1e-6)


def test_a_guide_that_agrees_changes_nothing(engine: Engine) -> None:
    plain, *guided = engine.generate(
        [spec(), *(spec(guidance=Guidance(free_scale=scale, guide_pack="twin")) for scale in (2.0, 7.0))]
    )
    for picture in guided:
        assert np.abs(picture.astype(int) - plain).max() <= 1


def test_an_unknown_guide_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidSpec, match="no model 'nobody' is loaded here"):
        engine.submit(spec(guidance=Guidance(free_scale=2.0, guide_pack="nobody")))


def test_intervals_in_every_unit_say_the_same(engine: Engine) -> None:
    table = compile_table("ddim", engine.packs["fashion"].pack.scheduler_config, steps=12)
    sigmas = table.sigma / table.alpha
    intervals = {
        IntervalUnit.FRACTION: (0.25, 0.75),
        IntervalUnit.STEP: (3, 8),
        IntervalUnit.TIMESTEP: (float(table.timestep[8]), float(table.timestep[3])),
        IntervalUnit.SIGMA: (float(sigmas[8]) * 0.999, float(sigmas[3]) * 1.001),
    }
    pictures = engine.generate(
        [
            spec(guidance=Guidance(free_scale=4.0, interval=interval, interval_unit=unit))
            for unit, interval in intervals.items()
        ]
    )
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    assert not np.array_equal(pictures[0], engine.generate([spec(guidance=Guidance(free_scale=4.0))])[0])


def test_cfg_plus_plus_takes_the_noise_from_the_unguided_prediction() -> None:
    share, steps = 0.6, 10
    drawn = trajectory(
        learns_variance=False,
        sampler="ddim",
        steps=steps,
        clip=False,
        guidance=Guidance(free_scale=share, plus_plus=True),
    )
    bars = torch.from_numpy(alpha_bars({"num_train_timesteps": 1000}))
    x, labels = stand_ins.step_noise(0).double(), torch.tensor(LABELS)
    timesteps = [999 - 100 * i for i in range(steps)]
    for now, then in zip(timesteps, [*timesteps[1:], None], strict=True):
        at = torch.full((2,), float(now), dtype=torch.float64)
        conditional, unconditional = (
            stand_ins.epsilon(x, at, y) for y in (labels, torch.full_like(labels, NUM_CLASSES))
        )
        guided = unconditional + share * (conditional - unconditional)
        data = (x - (1 - bars[now]).sqrt() * guided) / bars[now].sqrt()
        before = torch.tensor(1.0) if then is None else bars[then]
        x = before.sqrt() * data + (1 - before).sqrt() * unconditional  # Chung et al. 2024, algorithm 2
    assert float((drawn - x).abs().max()) <= 2e-4 * max(1.0, float(x.abs().max()))


def test_cfg_plus_plus_is_for_first_order_samplers(engine: Engine) -> None:
    with pytest.raises(InvalidSpec, match="CFG\\+\\+ is for ddim, euler; the sampler here is 'heun'"):
        engine.submit(spec(sampler="heun", guidance=Guidance(free_scale=0.5, plus_plus=True)))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler", "heun", "unipc", "ddpm", "pndm"])
def test_little_strength_stays_near_the_picture_and_full_strength_leaves_it(engine: Engine, sampler: str) -> None:
    [start] = engine.generate([spec(label=9)])
    near, far = engine.generate(
        [spec(label=9, sampler=sampler, init_image=Pixels.of(start), strength=share, seed=8) for share in (0.2, 1.0)]
    )

    def distance(picture: np.ndarray) -> float:
        return float(np.abs(picture.astype(int) - start).mean())

    assert distance(near) < 15
    assert distance(near) < 0.6 * distance(far)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_outside_the_mask_the_picture_stays(engine: Engine, sampler: str) -> None:
    [start] = engine.generate([spec(label=9)])
    white = np.zeros((28, 28, 1), np.uint8)
    white[:, 14:] = 255
    [redrawn] = engine.generate(
        [spec(label=8, sampler=sampler, init_image=Pixels.of(start), mask=Pixels.of(white), seed=5)]
    )
    assert np.abs(redrawn[:, :14].astype(int) - start[:, :14]).max() <= 1
    assert np.abs(redrawn[:, 14:].astype(int) - start[:, 14:]).mean() > 5


def test_telemetry_has_a_note_for_every_evaluation(engine: Engine) -> None:
    handle = engine.submit(
        spec(guidance=Guidance(free_scale=3.0, classifier_scale=2.0, interval=(0.5, 1.0)), telemetry=True)
    )
    handle.result()
    assert len(handle.telemetry) == 12
    assert handle.telemetry[0].keys() == {"timestep", "clipped"}
    assert handle.telemetry[-1].keys() == {
        "timestep",
        "clipped",
        "conditional_minus_unconditional",
        "probability",
        "gradient_norm",
    }
    assert 0 <= handle.telemetry[-1]["probability"] <= 1

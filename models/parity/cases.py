"""The parity cases: each computes a reference system's result with our code, and returns the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.adapters import AdapterBase, AdapterFolders, Adapters, ImagePrompts
from models.calibration.probes import stacked
from models.calibration.result import fixed_calibration
from models.classifiers import ClassSteering, conditions, log_probability_gradient
from models.denoisers import Conditioning, Sizes
from models.engine.runner import Runner
from models.engine.sample import Sample
from models.guidance import thresholded
from models.networks import AdmClassifier, AdmUNet
from models.networks.tokens import Readings
from models.parity import stand_ins
from models.parity.stand_ins import LABELS, NUM_CLASSES, SHAPE, TIMESTEPS, TinyClassifier, inputs
from models.samplers import respaced
from models.samplers.levels import alpha_bars
from models.samplers.respacing import InvalidRespacing
from models.spec import Guidance, PromptOptions, SampleSpec, Term

GOLDEN = Path(__file__).parent / "golden"
ADM, DPM_SOLVER, GLIDE = "guided-diffusion", "DPM-Solver", "GLIDE"
RESPACINGS = ("250", "50", "10,15,20", "ddim25", "ddim50", "fast27")
SCALES = (0.0, 1.0, 10.0)
ETAS = (0.0, 0.5, 1.0)
MULTISTEP = ((2, 9), (2, 12), (2, 27), (2, 37), (3, 9), (3, 12), (3, 27), (3, 37))
SINGLESTEP = ((2, 9), (2, 12), (2, 27))
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    },
    "cosine": {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        name: what is compared.
        reference: the reference system.
        tolerance: largest difference allowed: absolute, but relative if results exceed 1.
        measure: computes the difference.
    """

    name: str
    reference: str
    tolerance: float
    measure: Callable[[], float]


def _difference(result: Tensor, golden: Tensor) -> float:
    scale = max(1.0, float(golden.abs().max()))
    return float((result.double() - golden.double()).abs().max()) / scale


def _golden(file: str, key: str) -> Tensor:
    return load_file(GOLDEN / f"{file}.safetensors")[key]


def _unet(name: str) -> float:
    config = stand_ins.unet_config(name)
    network = stand_ins.filled(AdmUNet(**config))
    timesteps, labels = torch.tensor(TIMESTEPS), torch.arange(len(TIMESTEPS)) % NUM_CLASSES
    side = config.get("low_res_size")
    with torch.no_grad():
        output = network(
            inputs(len(TIMESTEPS), 3, 32, 32),
            timesteps,
            None if config["num_classes"] is None else labels,
            inputs(len(TIMESTEPS), 3, side, side, draw=1) if side else None,
        )
    return _difference(output, _golden("networks", f"unet.{name}"))


def _classifier(quantity: str) -> float:
    network = stand_ins.filled(AdmClassifier(**stand_ins.classifier_config())).requires_grad_(False)
    x, timesteps = inputs(len(TIMESTEPS), 3, 32, 32), torch.tensor(TIMESTEPS)
    if quantity == "logits":
        with torch.no_grad():
            return _difference(network(x, timesteps), _golden("networks", "classifier.logits"))
    rows = [conditions([Term(1.0, (number % NUM_CLASSES,))], NUM_CLASSES) for number in range(len(TIMESTEPS))]
    gradient, _ = log_probability_gradient(network, x, timesteps, stacked(rows, torch.device("cpu")))
    return _difference(gradient, _golden("networks", "classifier.gradient"))


def _respacing(text: str) -> float:
    result, golden = torch.tensor(respaced(text, 1000)), _golden("loops", f"respacing.{text}")
    return 0.0 if torch.equal(result, golden) else 1.0


def _possible_strides() -> float:
    def is_possible(count: int) -> bool:
        try:
            return bool(respaced(f"ddim{count}", 1000))
        except InvalidRespacing:
            return False

    golden = _golden("loops", "respacing.possible").tolist()
    return 0.0 if [count for count in range(1, 1001) if is_possible(count)] == golden else 1.0


def _schedule(name: str) -> float:
    golden = torch.cumprod(1 - _golden("loops", f"betas.{name}"), dim=0)
    return float(np.abs(alpha_bars(SCHEDULES[name]) - golden.numpy()).max())


class _StandIn:
    """The stand-in network as a denoiser."""

    latent_shape = SHAPE
    picture_size = SHAPE[1:]
    sizes = Sizes.only(*SHAPE[1:])
    patch = 1
    takes_size_conditioning = False
    prediction_type = "epsilon"
    num_parameters = 0
    has_null = True
    has_classes = True
    takes_prompt = False
    sees_mask = False
    low_res_size: int | None = None
    prompt_options = PromptOptions()
    default_scale = 1.0
    encoders = ()
    has_autoencoder = False
    adapter_base: AdapterBase | None = None
    adapters: Adapters | None = None
    image_prompts: ImagePrompts | None = None
    has_deep_blocks = False

    def __init__(self, *, learns_variance: bool) -> None:
        self.learns_variance = learns_variance

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        pass

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        return {"labels": torch.tensor(spec.class_index)}, {"labels": torch.tensor(NUM_CLASSES)}

    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output = stand_ins.epsilon(x, timesteps, conditioning["labels"])
        return torch.cat([output, stand_ins.variance_share(x, timesteps)], dim=1) if self.learns_variance else output

    def readings(self, spec: SampleSpec) -> Readings:
        return {}

    def decode(self, x: Tensor) -> Tensor:
        return x

    encode = encode_mask = decode


def trajectory(*, learns_variance: bool, schedule: str = "linear", **spec_fields: Any) -> Tensor:
    """Draw a spec for each label with the engine's tick; returns the finished latents (2,*SHAPE)."""
    classifier: Any = TinyClassifier().requires_grad_(False)
    classifier.config = SimpleNamespace(num_classes=NUM_CLASSES)
    runner = Runner(
        _StandIn(learns_variance=learns_variance),
        ClassSteering(classifier),
        fixed_calibration(),
        SCHEDULES[schedule],
        device=torch.device("cpu"),
        siblings={},
        adapters=AdapterFolders(),
    )
    samples = []
    for row, label in enumerate(LABELS):
        spec = SampleSpec(pack="", label=label, seed=stand_ins.SEED, image_index=row, **spec_fields)
        sample = Sample.begin(runner.preparation.course(spec, runner.preparation.prepare(spec)))
        runner.start(sample)
        samples.append(sample)
    while not samples[0].is_done:
        runner.tick(samples, runner.lanes)
    runner.lanes.close()
    return runner.latents(samples)


def _loop(key: str, *, learns_variance: bool = True, file: str = "loops", **spec_fields: Any) -> Callable[[], float]:
    return lambda: _difference(trajectory(learns_variance=learns_variance, **spec_fields), _golden(file, key))


def _thresholding() -> float:
    result = torch.stack([thresholded(row, 0.995) for row in 2 * inputs(4, *SHAPE)])
    return _difference(result, _golden("dpm_solver", "limited"))


def cases() -> Iterator[Case]:
    """All cases, in the order of docs/parity.md."""
    yield from _network_cases()
    yield from _adm_cases()
    yield from _dpm_solver_cases()


def _network_cases() -> Iterator[Case]:
    for name in stand_ins.UNETS:
        yield Case(name=f"UNet: {name}", reference=ADM, tolerance=2e-5, measure=partial(_unet, name))
    yield Case(name="classifier: logits", reference=ADM, tolerance=2e-5, measure=partial(_classifier, "logits"))
    yield Case(name="classifier: gradient", reference=ADM, tolerance=1e-4, measure=partial(_classifier, "gradient"))
    for name in ("linear", "cosine"):
        yield Case(name=f"noise schedule: {name}", reference=ADM, tolerance=1e-15, measure=partial(_schedule, name))


def _adm_cases() -> Iterator[Case]:
    for text in RESPACINGS:
        reference = GLIDE if text == "fast27" else ADM
        yield Case(
            name=f"timesteps of '{text}'",
            reference=reference,
            tolerance=0.0,
            measure=partial(_respacing, text),
        )
    yield Case(name="the N that ddimN takes", reference=ADM, tolerance=0.0, measure=_possible_strides)
    for scale in SCALES:
        guided = Guidance(classifier_scale=scale)
        for clip in (True, False):
            yield Case(
                name=f"DDPM, 50 steps, learned variance, classifier scale {scale:g}, {'' if clip else 'un'}clipped",
                reference=ADM,
                tolerance=2e-5,
                measure=_loop(
                    f"ddpm.{scale}.{clip}", sampler="ddpm", steps=50, profile="adm", clip=clip, guidance=guided
                ),
            )
    for scale in SCALES:
        for eta in ETAS:
            yield Case(
                name=f"DDIM, 'ddim25', eta {eta:g}, classifier scale {scale:g}, clip then guide",
                reference=ADM,
                tolerance=2e-5,
                measure=_loop(
                    f"ddim.{scale}.{eta}",
                    sampler="ddim",
                    respacing="ddim25",
                    eta=eta,
                    profile="adm",
                    guidance=Guidance(classifier_scale=scale),
                ),
            )
    yield Case(
        name="DDPM, 50 steps, classifier-free scale 3, the conditional row's variance",
        reference=GLIDE,
        tolerance=2e-5,
        measure=_loop("glide", sampler="ddpm", steps=50, profile="glide", guidance=Guidance(free_scale=3.0)),
    )


def _dpm_solver_cases() -> Iterator[Case]:
    for schedule in SCHEDULES:
        yield from _dpm_solver_cases_on(schedule)
    yield Case(name="dynamic thresholding, 0.995", reference=DPM_SOLVER, tolerance=0.0, measure=_thresholding)


def _dpm_solver_cases_on(schedule: str) -> Iterator[Case]:
    def case(name: str, key: str, **spec_fields: Any) -> Case:
        shared: dict[str, Any] = {
            "profile": "dpm-solver",
            "clip": False,
            "schedule": schedule,
            "learns_variance": False,
        }
        measure = _loop(f"{schedule}.{key}", file="dpm_solver", **shared, **spec_fields)
        return Case(name=f"{name}, {schedule} schedule", reference=DPM_SOLVER, tolerance=2e-5, measure=measure)

    for order, steps in MULTISTEP:
        name = f"DPM-Solver++ multistep, order {order}, {steps} steps"
        yield case(name, f"multistep.{order}.{steps}", sampler=f"dpmpp_{order}m", steps=steps)
    for order, steps in SINGLESTEP:
        name = f"DPM-Solver++ singlestep, order {order}, {steps} evaluations"
        yield case(name, f"singlestep.{order}.{steps}", sampler="dpm_single", steps=steps)
    for name, key, options in (
        ("dynamic thresholding, 0.995", "thresholded", {"dynamic_threshold": 0.995}),
        ("classifier scale 2", "classifier", {"guidance": Guidance(classifier_scale=2.0)}),
        ("classifier-free scale 3", "classifier_free", {"guidance": Guidance(free_scale=3.0)}),
    ):
        yield case(f"DPM-Solver++ 2M, 27 steps, {name}", key, sampler="dpmpp_2m", steps=27, **options)
    if schedule == "linear":  # ADM's code does not cut a cosine schedule off
        yield case(
            "DPM-Solver of order 1, classifier scale 2, to noise 0: ADM's DDIM over 28 steps, unclipped",
            "first_order",
            sampler="ddim",
            respacing="28",
            guidance=Guidance(classifier_scale=2.0),
        )

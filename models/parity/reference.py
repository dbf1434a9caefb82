"""`python -m models.parity.reference`: regenerate the golden tensors by running the published code.

    git clone https://github.com/openai/guided-diffusion
    git clone https://github.com/LuChengTHU/dpm-solver
    git clone https://github.com/openai/glide-text2im
    python -m models.parity.reference --guided-diffusion guided-diffusion --dpm-solver dpm-solver --glide glide-text2im

The published code is imported from these folders, not copied; only tensors are stored.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.parity import stand_ins
from models.parity.cases import ETAS, GOLDEN, MULTISTEP, RESPACINGS, SCALES, SINGLESTEP
from models.parity.stand_ins import LABELS, NUM_CLASSES, SHAPE, TIMESTEPS, TinyClassifier, inputs, step_noise


class _GivenNoise(torch.overrides.TorchFunctionMode):
    """Replaces `randn_like` by the next seeded draw."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: Iterator[int] = iter(range(1, 10_000))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return step_noise(next(self.draws)) if func is torch.randn_like else func(*args, **(kwargs or {}))


def networks(unet: Any) -> dict[str, Tensor]:
    """Outputs of the published UNet and classifier."""
    outputs: dict[str, Tensor] = {}
    timesteps, labels = torch.tensor(TIMESTEPS), torch.arange(len(TIMESTEPS)) % NUM_CLASSES
    x = inputs(len(TIMESTEPS), 3, 32, 32)
    for name in stand_ins.UNETS:
        config = stand_ins.unet_config(name)
        low_res = config.get("low_res_size")
        kind = unet.SuperResModel if low_res else unet.UNetModel
        network = kind(
            **_shared(config),
            in_channels=3,
            out_channels=6,
            num_classes=config["num_classes"],
            use_new_attention_order=not config.get("legacy_attention", True),
        )
        conditioning: dict[str, Any] = {} if config["num_classes"] is None else {"y": labels}
        if low_res:
            conditioning["low_res"] = inputs(len(TIMESTEPS), 3, low_res, low_res, draw=1)
        with torch.no_grad():
            outputs[f"unet.{name}"] = stand_ins.filled(network)(x, timesteps, **conditioning)
    config = stand_ins.classifier_config()
    classifier = stand_ins.filled(
        unet.EncoderUNetModel(**_shared(config), in_channels=3, out_channels=NUM_CLASSES, pool="attention")
    )
    point = x.clone().requires_grad_(True)
    logits = classifier(point, timesteps)
    chosen = functional.log_softmax(logits, dim=-1)[range(len(labels)), labels]
    outputs["classifier.logits"] = logits.detach()
    outputs["classifier.gradient"] = torch.autograd.grad(chosen.sum(), point)[0]
    return outputs


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": config["image_size"],
        "model_channels": config["model_channels"],
        "num_res_blocks": config["num_res_blocks"],
        "attention_resolutions": tuple(config["image_size"] // side for side in config["attention_resolutions"]),
        "channel_mult": config["channel_mult"],
        "num_heads": config.get("num_heads") or 1,
        "num_head_channels": config["num_head_channels"] or -1,
        "use_scale_shift_norm": config.get("use_scale_shift_norm", True),
        "resblock_updown": config.get("resblock_updown", True),
    }


def loops(diffusion: Any, respace: Any, glide_respace: Any) -> dict[str, Tensor]:
    """ADM's ancestral and implicit sampling, with and without guidance; its schedules and respacings."""
    return _schedules(diffusion, respace, glide_respace) | _trajectories(diffusion, respace)


def _schedules(diffusion: Any, respace: Any, glide_respace: Any) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for name in ("linear", "cosine"):
        outputs[f"betas.{name}"] = torch.from_numpy(diffusion.get_named_beta_schedule(name, 1000))
    for text in RESPACINGS:
        chooser = glide_respace if text == "fast27" else respace
        outputs[f"respacing.{text}"] = torch.tensor(sorted(chooser.space_timesteps(1000, text)))
    possible = []
    for count in range(1, 1001):
        try:
            respace.space_timesteps(1000, f"ddim{count}")
            possible.append(count)
        except ValueError:
            continue
    outputs["respacing.possible"] = torch.tensor(possible)
    return outputs


def _trajectories(diffusion: Any, respace: Any) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    labels, classifier = torch.tensor(LABELS), TinyClassifier()

    def network(x: Tensor, timesteps: Tensor, **_: Any) -> Tensor:
        return torch.cat([stand_ins.epsilon(x, timesteps, labels), stand_ins.variance_share(x, timesteps)], dim=1)

    def gradient(scale: float) -> Callable[..., Tensor]:
        def steer(x: Tensor, timesteps: Tensor, **_: Any) -> Tensor:
            with torch.enable_grad():
                point = x.detach().requires_grad_(True)
                chosen = functional.log_softmax(classifier(point, timesteps), dim=-1)[range(len(labels)), labels]
                return torch.autograd.grad(chosen.sum(), point)[0] * scale

        return steer

    def process(respacing: str) -> Any:
        return respace.SpacedDiffusion(
            use_timesteps=respace.space_timesteps(1000, respacing),
            betas=diffusion.get_named_beta_schedule("linear", 1000),
            model_mean_type=diffusion.ModelMeanType.EPSILON,
            model_var_type=diffusion.ModelVarType.LEARNED_RANGE,
            loss_type=diffusion.LossType.MSE,
        )

    shared = {"device": "cpu", "noise": step_noise(0), "model_kwargs": {}}
    for scale in SCALES:
        guided = {"cond_fn": gradient(scale)} if scale else {}
        for clip in (True, False):
            with _GivenNoise():
                outputs[f"ddpm.{scale}.{clip}"] = process("50").p_sample_loop(
                    network, (2, *SHAPE), clip_denoised=clip, **shared, **guided
                )
        for eta in ETAS:
            with _GivenNoise():
                outputs[f"ddim.{scale}.{eta}"] = process("ddim25").ddim_sample_loop(
                    network, (2, *SHAPE), clip_denoised=True, eta=eta, **shared, **guided
                )
    scale = 3.0

    def guided_network(x: Tensor, timesteps: Tensor, **_: Any) -> Tensor:
        null_labels = torch.full_like(labels, NUM_CLASSES)
        conditional, unconditional = (stand_ins.epsilon(x, timesteps, y) for y in (labels, null_labels))
        mixed = unconditional + scale * (conditional - unconditional)  # the variance stays the conditional row's
        return torch.cat([mixed, stand_ins.variance_share(x, timesteps)], dim=1)

    with _GivenNoise():
        outputs["glide"] = process("50").p_sample_loop(guided_network, (2, *SHAPE), clip_denoised=True, **shared)
    return outputs


def dpm_solver(dpm: Any, diffusion: Any) -> dict[str, Tensor]:
    """Trajectories of the published DPM-Solver++ code, on both of ADM's noise schedules."""
    outputs: dict[str, Tensor] = {}
    for name in ("linear", "cosine"):
        betas = torch.from_numpy(diffusion.get_named_beta_schedule(name, 1000))
        schedule = dpm.NoiseScheduleVP("discrete", betas=betas, dtype=torch.float64)
        outputs |= {f"{name}.{key}": tensor for key, tensor in _solved(dpm, schedule).items()}
    limiter = dpm.DPM_Solver(None, schedule, algorithm_type="dpmsolver++", correcting_x0_fn="dynamic_thresholding")
    outputs["limited"] = limiter.dynamic_thresholding_fn(2 * inputs(4, *SHAPE), None)
    return outputs


def _solved(dpm: Any, schedule: Any) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    labels, classifier = torch.tensor(LABELS), TinyClassifier()
    x = step_noise(0).double()

    def network(x: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            condition = labels
        return stand_ins.epsilon(x, timesteps, condition)

    def chosen(x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        log_probabilities = functional.log_softmax(classifier.double()(x, timesteps), dim=-1)
        return log_probabilities[range(len(labels)), labels]

    def solve(
        wrapped: Any, *, steps: int, order: int, method: str, denoise_to_zero: bool = False, **options: Any
    ) -> Tensor:
        solver = dpm.DPM_Solver(wrapped, schedule, algorithm_type="dpmsolver++", **options)
        arguments = {"method": method, "skip_type": "time_uniform", "denoise_to_zero": denoise_to_zero}
        return solver.sample(x, steps=steps, order=order, **arguments)

    plain = dpm.model_wrapper(network, schedule)
    for order, steps in MULTISTEP:
        outputs[f"multistep.{order}.{steps}"] = solve(plain, steps=steps, order=order, method="multistep")
    for order, steps in SINGLESTEP:
        outputs[f"singlestep.{order}.{steps}"] = solve(plain, steps=steps, order=order, method="singlestep")
    outputs["thresholded"] = solve(
        plain, steps=27, order=2, method="multistep", correcting_x0_fn="dynamic_thresholding"
    )
    steered = dpm.model_wrapper(
        network,
        schedule,
        guidance_type="classifier",
        condition=labels,
        guidance_scale=2.0,
        classifier_fn=chosen,
    )
    outputs["classifier"] = solve(steered, steps=27, order=2, method="multistep")
    outputs["first_order"] = solve(steered, steps=27, order=1, method="multistep", denoise_to_zero=True)
    free = dpm.model_wrapper(
        network,
        schedule,
        guidance_type="classifier-free",
        condition=labels,
        unconditional_condition=torch.full_like(labels, NUM_CLASSES),
        guidance_scale=3.0,
    )
    outputs["classifier_free"] = solve(free, steps=27, order=2, method="multistep")
    return outputs


def _module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the published code and store its tensors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("guided-diffusion", "dpm-solver", "glide"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of its repository")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.guided_diffusion))
    unet, diffusion, respace = (
        importlib.import_module(f"guided_diffusion.{name}") for name in ("unet", "gaussian_diffusion", "respace")
    )
    sys.path.insert(0, str(arguments.glide))
    glide_respace = importlib.import_module("glide_text2im.respace")
    dpm = _module(arguments.dpm_solver / "dpm_solver_pytorch.py", "dpm_solver_pytorch")
    outputs = {
        "networks": networks(unet),
        "loops": loops(diffusion, respace, glide_respace),
        "dpm_solver": dpm_solver(dpm, diffusion),
    }
    for name, tensors in outputs.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, GOLDEN / f"{name}.safetensors")


if __name__ == "__main__":
    main()

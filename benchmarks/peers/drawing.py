"""The plain diffusers loop that all peers share: one batch of similar requests, from noise to PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from PIL import Image
from pydantic_settings import BaseSettings, SettingsConfigDict
from torch import Tensor

from benchmarks.stream import Asked
from models.calibration import rules
from models.calibration.probes import stacked
from models.classifiers import load_steering
from models.denoisers import Conditioning, load_denoiser
from models.pack import open_pack
from models.precision import FLOAT32
from models.spec import SampleSpec

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}


class PeerSettings(BaseSettings):
    """A peer's settings, from the environment (`CYNOSURE_BENCH_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_BENCH_", frozen=True)

    pack: str = "fashion"
    device: str = "cpu"
    float32: bool = False
    graphs: bool = False


class PlainPipeline:
    """Draws a pack with the loop of diffusers' examples; networks have Cynosure's layers."""

    def __init__(self) -> None:
        settings = PeerSettings()
        self.pack, self.device = open_pack(settings.pack), torch.device(settings.device)
        precision = classifier_precision = FLOAT32
        if not settings.float32:
            precision = rules.precisions(self.device)[0]
            if self.device.type != "cpu":
                classifier_precision = rules.precisions(self.device, by_gradient=True)[0]
        self.denoiser = load_denoiser(self.pack, self.device, precision)
        by_python = partial(type(self.denoiser).forward, self.denoiser)
        self._forward = self.denoiser.forward if settings.graphs else by_python
        self.steering = load_steering(self.pack, self.device, classifier_precision)

    def scheduler(self, asked: Asked) -> Any:
        relevant = ("beta_schedule", "beta_start", "beta_end", "steps_offset")
        config = {name: value for name, value in self.pack.scheduler_config.items() if name in relevant}
        if asked.sampler == "dpmpp_2m":
            config["lambda_min_clipped"] = -5.1
        if asked.sampler in ("ddim", "ddpm"):
            config["clip_sample"] = not self.pack.has("vae")  # an autoencoder's latents exceed [-1, 1]
        scheduler = SCHEDULERS[asked.sampler](prediction_type=self.denoiser.prediction_type, **config)
        scheduler.set_timesteps(asked.steps, device=self.device)
        return scheduler

    def draw(self, alike: Sequence[Asked]) -> list[list[str]]:
        """Draw requests of the same mode, sampler and steps in one batch; returns each request's base64 PNGs."""
        first = alike[0]
        scheduler = self.scheduler(first)
        rows = [asked for asked in alike for _ in range(asked.count)]
        specs = [SampleSpec(pack=self.pack.name, label=asked.label, prompt=asked.prompt) for asked in rows]
        pairs = [self.denoiser.conditioning(spec) for spec in specs]
        conditional, unconditional = ([pair[which] for pair in pairs] for which in (0, 1))
        scales = torch.tensor([asked.scale or 0.0 for asked in rows], device=self.device)[:, None, None, None]
        generators = [torch.Generator().manual_seed(asked.seed) for asked in alike for _ in range(asked.count)]
        x = torch.stack([torch.randn(self.denoiser.latent_shape, generator=generator) for generator in generators])
        x = x.to(self.device) * scheduler.init_noise_sigma
        guided = first.mode == "classifier_free"
        conditioning = stacked([*conditional, *unconditional] if guided else conditional, self.device)
        condition = None
        if first.mode == "classifier" and self.steering is not None:
            condition = stacked([self.steering.condition(spec) for spec in specs], self.device)
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, timestep)
            output = self._predict(scaled, timestep, conditioning, scales, guided=guided)
            if condition is not None:
                output = self._steered(output, scaled, timestep, condition, scales, scheduler)
            x = scheduler.step(output, timestep, x).prev_sample
        pictures = self.denoiser.decode(x).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        encoded = iter([_png(picture) for picture in pictures.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()])
        return [[next(encoded) for _ in range(asked.count)] for asked in alike]

    def _predict(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, scales: Tensor, *, guided: bool
    ) -> Tensor:
        """The network's prediction; with classifier-free guidance (`guided`) `conditioning` has twice as many rows."""
        rows = torch.cat([x, x]) if guided else x
        output = self._forward(rows, timestep.float().expand(len(rows)), conditioning)
        output = output[:, : x.shape[1]]  # drops a learnt variance
        if not guided:
            return output
        conditional, unconditional = output.chunk(2)
        return unconditional + scales * (conditional - unconditional)

    def _steered(
        self, output: Tensor, x: Tensor, timestep: Tensor, condition: Conditioning, scales: Tensor, scheduler: Any
    ) -> Tensor:
        """Add the classifier's gradient to the prediction."""
        assert self.steering is not None
        alpha_bar = scheduler.alphas_cumprod[int(timestep)]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        gradient, _ = self.steering.gradient(x, timestep.float().expand(len(x)), condition)
        predicts_noise = self.denoiser.prediction_type == "epsilon"
        data = (x - sigma * output) / alpha if predicts_noise else alpha * x - sigma * output
        data = (data.clamp(-1, 1) + sigma**2 / alpha * scales * gradient).clamp(-1, 1)
        return (x - alpha * data) / sigma if predicts_noise else (alpha * x - data) / sigma


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()

"""The plain diffusers loop that all peers share: one batch of alike requests, from noise to PNG."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.stream import Asked
from models.classifiers import conditions, load_classifier, log_probability_gradient
from models.denoisers import Conditioning, load_denoiser
from models.engine import cached_calibration
from models.engine.calibrate import stacked
from models.loading import FLOAT32, open_pack
from models.spec import Term

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}


class PlainPipeline:
    """The bundled pack drawn by the loop of diffusers' examples, with networks loaded as Cynosure's are."""

    def __init__(self) -> None:
        pack, device = open_pack("fashion"), torch.device("cpu")
        precision = (
            FLOAT32 if "CYNOSURE_BENCH_FLOAT32" in os.environ else cached_calibration(pack, device).denoiser.precision
        )
        self.denoiser = load_denoiser(pack, device, precision)
        self.classifier = load_classifier(pack, device)
        self.betas = pack.scheduler_config["beta_schedule"]
        self.shape = self.denoiser.latent_shape
        self.num_labels = len(pack.labels)
        self.null_label = int(pack.index["null_label"])

    def scheduler(self, asked: Asked) -> Any:
        extra = {"lambda_min_clipped": -5.1} if asked.sampler == "dpmpp_2m" else {}
        scheduler = SCHEDULERS[asked.sampler](beta_schedule=self.betas, prediction_type="v_prediction", **extra)
        scheduler.set_timesteps(asked.steps)
        return scheduler

    def draw(self, alike: Sequence[Asked]) -> list[list[str]]:
        """Base64 PNGs of each request; all must have the same mode, sampler and steps."""
        first = alike[0]
        scheduler = self.scheduler(first)
        rows = [asked for asked in alike for _ in range(asked.count)]
        labels = torch.tensor([asked.label for asked in rows])
        scales = torch.tensor([asked.scale or 0.0 for asked in rows])[:, None, None, None]
        generators = [torch.Generator().manual_seed(asked.seed) for asked in alike for _ in range(asked.count)]
        x = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])
        x = x * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, timestep)
            output = self._predict(first.mode, seen, timestep, labels, scales, scheduler)
            x = scheduler.step(output, timestep, x).prev_sample
        pictures = functional.pixel_shuffle(x, 2)[:, 0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).numpy()
        encoded = iter([_png(picture) for picture in pictures])
        return [[next(encoded) for _ in range(asked.count)] for asked in alike]

    def _predict(
        self, mode: str, x: Tensor, timestep: Tensor, labels: Tensor, scales: Tensor, scheduler: Any
    ) -> Tensor:
        timesteps = timestep.expand(len(x)).float()
        if mode == "classifier_free":
            told = torch.cat([labels, torch.full_like(labels, self.null_label)])
            both = self.denoiser.forward(torch.cat([x, x]), torch.cat([timesteps, timesteps]), {"labels": told})
            conditional, unconditional = both.chunk(2)
            return unconditional + scales * (conditional - unconditional)
        output = self.denoiser.forward(x, timesteps, {"labels": labels})
        if mode == "none":
            return output
        assert self.classifier is not None
        alpha_bar = scheduler.alphas_cumprod[int(timestep)]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        gradient, _ = log_probability_gradient(self.classifier, x, timesteps, self._steered_to(labels))
        data = (alpha * x - sigma * output).clamp(-1, 1) + sigma**2 / alpha * scales * gradient
        return (alpha * x - data.clamp(-1, 1)) / sigma

    def _steered_to(self, labels: Tensor) -> Conditioning:
        rows = [conditions([Term(1.0, (int(label),))], self.num_labels) for label in labels]
        return stacked(rows, torch.device("cpu"))


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()

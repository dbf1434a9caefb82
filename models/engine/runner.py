"""One evaluation for a batch of samples: the tensors of the engine, without its policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import guidance
from models.classifiers import NoiseAwareClassifier, log_probability_gradient
from models.denoisers import Denoiser
from models.engine.schedule import Sample
from models.noise import draw_noise
from models.samplers import CoefficientTable, advance, compile_table
from models.samplers.table import NUM_COLUMNS
from models.spec import SampleSpec

MIN_BATCH, MAX_BATCH = 4, 48
"""Batch sizes between which a UNet2DModel row is bitwise the same on a CPU in float32 whatever shares the batch;
smaller batches are padded up, larger ones cut (tests/science/test_engine.py holds it)."""


class Runner:
    """State and networks of one pack on one device.

    A sample's state is its row of (NUM_COLUMNS, C, H, W): the latents and predictions its sampler looks back on.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: NoiseAwareClassifier | None,
        scheduler_config: dict[str, Any],
        *,
        capacity: int,
        device: torch.device,
    ) -> None:
        self.denoiser = denoiser
        self.classifier = classifier
        self.scheduler_config = scheduler_config
        self.device = device
        self.max_batch = MAX_BATCH
        self.state = torch.zeros(capacity, NUM_COLUMNS, *denoiser.latent_shape, device=device)
        self._free = list(range(capacity))

    def table(self, spec: SampleSpec) -> CoefficientTable:
        return compile_table(
            spec.sampler,
            self.scheduler_config,
            steps=spec.steps,
            eta=spec.eta,
            prediction_type=self.denoiser.prediction_type,
        )

    def start(self, sample: Sample) -> None:
        """Give the sample a slot with its initial noise."""
        spec = sample.spec
        sample.slot = self._free.pop()
        noise = draw_noise(spec.seed, spec.image_index, 0, self.denoiser.latent_shape)
        self.state[sample.slot].zero_()
        self.state[sample.slot, 0] = noise.to(self.device) * self.table(spec).initial_scale

    def release(self, sample: Sample) -> None:
        if sample.slot is not None:
            self._free.append(sample.slot)
            sample.slot = None

    def latent(self, samples: Sequence[Sample]) -> Tensor:
        return self.state[[sample.slot for sample in samples], 0]

    def tick(self, samples: Sequence[Sample]) -> Tensor:
        """Advance every sample by one evaluation; returns the guided data predictions (R,C,H,W).

        Nothing is written before everything is computed, so a tick that raised can be tried again.
        """
        slots = [sample.slot for sample in samples]
        tables = [self.table(sample.spec) for sample in samples]
        state = self.state[slots]  # (R,K,C,H,W)

        def column(name: str) -> Tensor:
            values = [getattr(table, name)[s.position] for table, s in zip(tables, samples, strict=True)]
            return torch.tensor(np.array(values), dtype=torch.float32, device=self.device)

        x = state[:, 0]
        seen = x * column("input_scale")[:, None, None, None]
        timesteps, alpha, sigma = column("timestep"), column("alpha"), column("sigma")
        data = self._guided_data(samples, x, seen, timesteps, column)
        data = self._with_classifier(samples, data, seen, timesteps, alpha, sigma)
        weights = np.stack([table.weights[s.position] for table, s in zip(tables, samples, strict=True)])
        noise = torch.zeros_like(x)
        for row, (table, sample) in enumerate(zip(tables, samples, strict=True)):
            if table.adds_noise(sample.position):
                spec, draw = sample.spec, sample.position + 1
                noise[row] = draw_noise(spec.seed, spec.image_index, draw, self.denoiser.latent_shape)
        moved = advance(state, data, noise, torch.from_numpy(weights).to(self.device, torch.float32))
        self.state[slots] = moved
        return data

    def _guided_data(
        self, samples: Sequence[Sample], x: Tensor, seen: Tensor, timesteps: Tensor, column: Any
    ) -> Tensor:
        """Classifier-free guidance, rescale and range: (R,C,H,W)."""
        index: list[int] = []  # of each network row, its sample
        labels: list[int] = []
        for row, sample in enumerate(samples):
            for conditional in sample.spec.guidance.rows(active=sample.guided_now):
                label = sample.spec.label if conditional else None
                index.append(row)
                labels.append(-1 if label is None else label)
        output = self._in_batches(
            self.denoiser.forward, seen[index], timesteps[index], torch.tensor(labels, device=self.device)
        )
        p, q = column("data_from_latent")[index], column("data_from_output")[index]
        predictions = p[:, None, None, None] * x[index] + q[:, None, None, None] * output
        first = [index.index(row) for row in range(len(samples))]
        data = predictions[first]
        for row, sample in enumerate(samples):
            chosen = sample.spec.guidance
            if index.count(row) == 2:
                conditional, unconditional = predictions[first[row]], predictions[first[row] + 1]
                scale = torch.tensor([chosen.free_scale], device=self.device)
                data[row] = guidance.classifier_free(conditional[None], unconditional[None], scale)[0]
                if chosen.rescale:
                    data[row] = guidance.rescaled(data[row], conditional, chosen.rescale)
        return self._limited(samples, data)

    def _with_classifier(
        self, samples: Sequence[Sample], data: Tensor, seen: Tensor, timesteps: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        rows = [row for row, s in enumerate(samples) if s.spec.guidance.wants_classifier(active=s.guided_now)]
        if not rows:
            return data
        if self.classifier is None:
            raise ValueError("this pack has no classifier")
        classifier = self.classifier
        labels = torch.tensor([samples[row].spec.label for row in rows], device=self.device)
        gradient = self._in_batches(
            lambda x, t, y: log_probability_gradient(classifier, x, t, y), seen[rows], timesteps[rows], labels
        )
        scale = torch.tensor([samples[row].spec.guidance.classifier_scale for row in rows], device=self.device)
        data[rows] = guidance.with_classifier(data[rows], gradient, alpha[rows], sigma[rows], scale)
        return self._limited(samples, data)

    def _limited(self, samples: Sequence[Sample], data: Tensor) -> Tensor:
        clip = torch.tensor([sample.spec.clip for sample in samples], device=self.device)
        return guidance.limit_rows(data, clip, [sample.spec.dynamic_threshold for sample in samples])

    def _in_batches(self, network: Any, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """`network` over all rows, in batches inside the bitwise class."""
        parts: list[Tensor] = []
        for start in range(0, len(x), self.max_batch):
            batch = [tensor[start : start + self.max_batch] for tensor in (x, timesteps, labels)]
            count = len(batch[0])
            if count < MIN_BATCH:
                batch = [tensor.repeat(MIN_BATCH, *[1] * (tensor.dim() - 1))[:MIN_BATCH] for tensor in batch]
            parts.append(network(*batch)[:count])
        return torch.cat(parts)

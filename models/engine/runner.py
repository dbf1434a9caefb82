"""One evaluation for a batch of samples: the tensors of the engine, without its policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import guidance
from models.classifiers import NoiseAwareClassifier, log_probability_gradient
from models.denoisers import Denoiser
from models.engine.calibrate import Calibration, Network
from models.engine.schedule import Sample
from models.noise import draw_noise
from models.samplers import CoefficientTable, advance, compile_table
from models.samplers.table import NUM_COLUMNS
from models.spec import SampleSpec


class Runner:
    """State and networks of one pack on one device.

    A sample's state is (NUM_COLUMNS, C, H, W): the latents and predictions its sampler looks back on.

    Attributes:
        denoiser_rows, classifier_rows: evaluations done since the start, padding not counted.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: NoiseAwareClassifier | None,
        calibration: Calibration,
        scheduler_config: dict[str, Any],
        *,
        device: torch.device,
    ) -> None:
        self.denoiser = denoiser
        self.classifier = classifier
        self.calibration = calibration
        self.scheduler_config = scheduler_config
        self.device = device
        self.max_batch = calibration.denoiser.sizes[-1]
        self.denoiser_rows = 0
        self.classifier_rows = 0

    def table(self, spec: SampleSpec) -> CoefficientTable:
        return compile_table(
            spec.sampler,
            self.scheduler_config,
            steps=spec.steps,
            eta=spec.eta,
            prediction_type=self.denoiser.prediction_type,
        )

    def start(self, sample: Sample) -> None:
        """Give the sample its initial noise."""
        spec = sample.spec
        noise = draw_noise(spec.seed, spec.image_index, 0, self.denoiser.latent_shape)
        sample.state = torch.zeros(NUM_COLUMNS, *self.denoiser.latent_shape, device=self.device)
        sample.state[0] = noise.to(self.device) * self.table(spec).initial_scale

    def latent(self, samples: Sequence[Sample]) -> Tensor:
        return torch.stack([sample.state[0] for sample in samples])

    def tick(self, samples: Sequence[Sample]) -> Tensor:
        """Advance every sample by one evaluation; returns the guided data predictions (R,C,H,W).

        Nothing is written before everything is computed, so a tick that raised can be tried again.
        """
        tables = [self.table(sample.spec) for sample in samples]
        state = torch.stack([sample.state for sample in samples])  # (R,K,C,H,W)

        def column(name: str) -> Tensor:
            values = [getattr(table, name)[s.position] for table, s in zip(tables, samples, strict=True)]
            return torch.tensor(values, dtype=torch.float32, device=self.device)

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
        for sample, row in zip(samples, moved, strict=True):
            sample.state = row.clone()  # a view would keep the whole batch alive while the sample pauses
        return data

    def _guided_data(
        self, samples: Sequence[Sample], x: Tensor, seen: Tensor, timesteps: Tensor, column: Callable[[str], Tensor]
    ) -> Tensor:
        """Classifier-free guidance, rescale and range: (R,C,H,W)."""
        index: list[int] = []  # of each network row, its sample
        labels: list[int] = []
        first: list[int] = []  # of each sample, its first network row
        pairs: list[int] = []  # samples that have two: conditional, then unconditional
        for row, sample in enumerate(samples):
            first.append(len(index))
            wanted = sample.spec.guidance.rows(active=sample.guided_now)
            for is_conditional in wanted:
                label = sample.spec.label if is_conditional else None
                index.append(row)
                labels.append(-1 if label is None else label)
            if len(wanted) == 2:
                pairs.append(row)
        self.denoiser_rows += len(index)
        output = self._in_batches(
            self.denoiser.forward,
            self.calibration.denoiser.sizes,
            (seen[index], timesteps[index], torch.tensor(labels, device=self.device)),
        )
        p, q = column("data_from_latent")[index], column("data_from_output")[index]
        predictions = p[:, None, None, None] * x[index] + q[:, None, None, None] * output
        data = predictions[first]
        if pairs:
            conditional = data[pairs]
            unconditional = predictions[[first[row] + 1 for row in pairs]]
            scale = torch.tensor([samples[row].spec.guidance.free_scale for row in pairs], device=self.device)
            data[pairs] = guidance.classifier_free(conditional, unconditional, scale)
            for row, plain in zip(pairs, conditional, strict=True):
                if share := samples[row].spec.guidance.rescale:
                    data[row] = guidance.rescaled(data[row], plain, share)
        return self._limited(samples, data)

    def _with_classifier(
        self, samples: Sequence[Sample], data: Tensor, seen: Tensor, timesteps: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        rows = [row for row, s in enumerate(samples) if s.spec.guidance.wants_classifier(active=s.guided_now)]
        if not rows:
            return data
        classifier, calibration = self.classifier, self.calibration.classifier
        if classifier is None or calibration is None:
            raise ValueError("this pack has no classifier")
        self.classifier_rows += len(rows)
        labels = torch.tensor([samples[row].spec.label for row in rows], device=self.device)
        gradient = self._in_batches(
            lambda x, t, y: log_probability_gradient(classifier, x, t, y),
            calibration.sizes,
            (seen[rows], timesteps[rows], labels),
        )
        scale = torch.tensor([samples[row].spec.guidance.classifier_scale for row in rows], device=self.device)
        data[rows] = guidance.with_classifier(data[rows], gradient, alpha[rows], sigma[rows], scale)
        return self._limited(samples, data)

    def _limited(self, samples: Sequence[Sample], data: Tensor) -> Tensor:
        clip = torch.tensor([sample.spec.clip for sample in samples], device=self.device)
        return guidance.limit_rows(data, clip, [sample.spec.dynamic_threshold for sample in samples])

    def _in_batches(self, network: Network, sizes: Sequence[int], inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """`network` over all rows, in batches padded to sizes whose rows agree bitwise."""
        allowed = [size for size in sizes if size <= self.max_batch] or [sizes[0]]
        parts: list[Tensor] = []
        for start in range(0, len(inputs[0]), allowed[-1]):
            x, timesteps, labels = (tensor[start : start + allowed[-1]] for tensor in inputs)
            count = len(x)
            padding = next(size for size in allowed if size >= count) - count
            if padding:
                x, timesteps, labels = (
                    torch.cat([tensor, tensor[:1].expand(padding, *tensor.shape[1:])])
                    for tensor in (x, timesteps, labels)
                )
            parts.append(network(x, timesteps, labels)[:count])
        return torch.cat(parts)

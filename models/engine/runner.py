"""One evaluation for a batch of samples: the tensors of the engine, without its policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import guidance
from models.classifiers import NoiseAwareClassifier, log_probability_gradient
from models.denoisers import Denoiser
from models.engine.calibrate import Calibration, Network, NetworkCalibration
from models.engine.lanes import Lanes
from models.engine.schedule import Sample
from models.noise import draw_noise
from models.samplers import CoefficientTable, advance, compile_table
from models.samplers.table import NUM_COLUMNS
from models.spec import SampleSpec


@dataclass
class _Rows:
    """Rows that one network evaluates in a tick."""

    network: Network
    calibration: NetworkCalibration
    inputs: tuple[Tensor, Tensor, Tensor]

    def batches(self, *, lanes: int, limit: int) -> Iterator[Callable[[], Tensor]]:
        """Calls that evaluate them, in batches padded to sizes whose rows agree bitwise."""
        start = 0
        for count in self.calibration.batches(len(self.inputs[0]), lanes=lanes, limit=limit):
            yield partial(self._padded, start, count)
            start += count

    def _padded(self, start: int, count: int) -> Tensor:
        x, timesteps, labels = (tensor[start : start + count] for tensor in self.inputs)
        padding = next(size for size in self.calibration.sizes if size >= count) - count
        if padding:
            x, timesteps, labels = (
                torch.cat([tensor, tensor[:1].expand(padding, *tensor.shape[1:])]) for tensor in (x, timesteps, labels)
            )
        return self.network(x, timesteps, labels)[:count]


@dataclass
class _Places:
    """Where the samples' predictions stand among the denoiser's rows.

    Attributes:
        sample: of each row, its sample.
        first: of each sample, its first row.
        pairs: samples that have two rows: conditional, then unconditional.
    """

    sample: list[int]
    first: list[int]
    pairs: list[int]


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
        self.lanes = Lanes(calibration.layout)
        self.max_batch = calibration.denoiser.sizes[-1]
        self.denoiser_rows = 0
        self.classifier_rows = 0

    def warm_up(self) -> None:
        """Have compiled kernels made now, and not while someone waits."""
        for size in self.calibration.denoiser.sizes if self.calibration.denoiser.precision.compiled else ():
            x = torch.zeros(size, *self.denoiser.latent_shape, device=self.device)
            labels = torch.full((size,), -1, device=self.device)
            self.lanes.run([partial(self.denoiser.forward, x, x.new_zeros(size), labels)])

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
        wanting = [row for row, one in enumerate(samples) if one.wants_classifier_now]
        rows, places = self._denoiser_rows(samples, seen, timesteps)
        outputs = self._evaluate([rows, *self._classifier_rows(samples, wanting, seen, timesteps)])
        p, q = (column(name)[places.sample][:, None, None, None] for name in ("data_from_latent", "data_from_output"))
        data = self._guided(samples, places, p * x[places.sample] + q * outputs[0])
        if wanting:
            scale = torch.tensor([samples[row].spec.guidance.classifier_scale for row in wanting], device=self.device)
            data[wanting] = guidance.with_classifier(data[wanting], outputs[1], alpha[wanting], sigma[wanting], scale)
            data = self._limited(samples, data)
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

    def _denoiser_rows(self, samples: Sequence[Sample], seen: Tensor, timesteps: Tensor) -> tuple[_Rows, _Places]:
        places = _Places([], [], [])
        labels: list[int] = []
        for number, sample in enumerate(samples):
            places.first.append(len(labels))
            wanted = sample.spec.guidance.rows(active=sample.guided_now)
            for is_conditional in wanted:
                label = sample.spec.label if is_conditional else None
                places.sample.append(number)
                labels.append(-1 if label is None else label)
            if len(wanted) == 2:
                places.pairs.append(number)
        self.denoiser_rows += len(labels)
        inputs = seen[places.sample], timesteps[places.sample], torch.tensor(labels, device=self.device)
        return _Rows(self.denoiser.forward, self.calibration.denoiser, inputs), places

    def _classifier_rows(
        self, samples: Sequence[Sample], wanting: list[int], seen: Tensor, timesteps: Tensor
    ) -> Iterator[_Rows]:
        if not wanting:
            return
        if self.classifier is None or self.calibration.classifier is None:
            raise ValueError("this pack has no classifier")
        self.classifier_rows += len(wanting)
        labels = torch.tensor([samples[number].spec.label for number in wanting], device=self.device)
        gradient = partial(log_probability_gradient, self.classifier)
        yield _Rows(gradient, self.calibration.classifier, (seen[wanting], timesteps[wanting], labels))

    def _evaluate(self, work: Sequence[_Rows]) -> list[Tensor]:
        """Each one's rows, all evaluated side by side."""
        lanes = self.lanes.layout.lanes
        batches = [list(rows.batches(lanes=lanes, limit=self.max_batch)) for rows in work]
        outputs = iter(self.lanes.run([batch for of_network in batches for batch in of_network]))
        return [torch.cat([next(outputs) for _ in of_network]) for of_network in batches]

    def _guided(self, samples: Sequence[Sample], places: _Places, predictions: Tensor) -> Tensor:
        """Classifier-free guidance, rescale and range: (R,C,H,W)."""
        data = predictions[places.first]
        if places.pairs:
            conditional = data[places.pairs]
            unconditional = predictions[[places.first[number] + 1 for number in places.pairs]]
            scale = torch.tensor([samples[row].spec.guidance.free_scale for row in places.pairs], device=self.device)
            data[places.pairs] = guidance.classifier_free(conditional, unconditional, scale)
            for row, plain in zip(places.pairs, conditional, strict=True):
                if share := samples[row].spec.guidance.rescale:
                    data[row] = guidance.rescaled(data[row], plain, share)
        return self._limited(samples, data)

    def _limited(self, samples: Sequence[Sample], data: Tensor) -> Tensor:
        clip = torch.tensor([sample.spec.clip for sample in samples], device=self.device)
        return guidance.limit_rows(data, clip, [sample.spec.dynamic_threshold for sample in samples])

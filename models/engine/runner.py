"""One evaluation for a batch of samples: the tensors of the engine, without its policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import guidance
from models.calibration.probes import Network, only, stacked
from models.calibration.result import Calibration, NetworkCalibration
from models.classifiers import Steering
from models.denoisers import Conditioning, Denoiser
from models.engine.packing import packed
from models.engine.schedule import Sample
from models.lanes import Lanes, Runs
from models.noise import draw_noise
from models.profiles import PROFILES, StrengthRule, fitted, to_uint8
from models.samplers import CFG_PLUS_PLUS_SAMPLERS, CoefficientTable, advance, compile_table
from models.samplers.table import LATENT, NUM_COLUMNS
from models.spec import InvalidSpec, Pixels, SampleSpec

CUDA_WARM_UPS = 3  # graphs are recorded at the second call


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a sample's networks are told, and what it starts from.

    Attributes:
        conditional, unconditional: of the denoiser's rows; the unconditional one is the guide's where there is one.
        condition: what the classifier steers to.
        init: latent (C,H,W) to start from.
        mask: (C or 1,H,W), 1 where `init` is redrawn.
    """

    conditional: Conditioning
    unconditional: Conditioning
    condition: Conditioning | None = None
    init: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class _Rows:
    """Rows that one network evaluates in a tick."""

    network: Network
    calibration: NetworkCalibration
    x: Tensor
    timesteps: Tensor
    told: Conditioning

    def calls(self, batches: Sequence[int]) -> Iterator[Callable[[], tuple[Tensor, ...]]]:
        """Calls that evaluate them, so many rows each, padded to sizes whose rows agree bitwise."""
        start = 0
        for count in batches:
            yield partial(self._padded, start, count)
            start += count

    def _padded(self, start: int, count: int) -> tuple[Tensor, ...]:
        padding = self.calibration.padded(count) - count

        def part(tensor: Tensor) -> Tensor:
            own = tensor[start : start + count]
            return torch.cat([own, own[:1].expand(padding, *own.shape[1:])]) if padding else own

        told = {name: part(tensor) for name, tensor in self.told.items()}
        return tuple(output[:count] for output in self.network(part(self.x), part(self.timesteps), told))


@dataclass
class _Places:
    """The denoiser rows of a tick: of each, its sample, what it is told, and whose network it is.

    Attributes:
        sample: of each row, its sample.
        told: of each row, its conditioning.
        guide: of each row, the pack whose network takes it, or `None` for the runner's own.
        first: of each sample, its first row.
        pairs: samples that have two rows: conditional, then unconditional.
    """

    sample: list[int] = field(default_factory=list)
    told: list[Conditioning] = field(default_factory=list)
    guide: list[str | None] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Places:
        places = cls()
        for number, sample in enumerate(samples):
            steered = sample.spec.guidance
            places.first.append(len(places.sample))
            wanted = steered.rows(active=sample.guided_now)
            for is_conditional in wanted:
                places.sample.append(number)
                places.told.append(sample.inputs.conditional if is_conditional else sample.inputs.unconditional)
                places.guide.append(None if is_conditional else steered.guide_pack)
            if len(wanted) == 2:
                places.pairs.append(number)
        return places


class Runner:
    """State and networks of one pack on one device.

    `siblings` are the runners of all packs on the device, for guidance by a second one.

    A sample's state is (NUM_COLUMNS, C, H, W): the latents and predictions its sampler looks back on.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steering: Steering | None,
        calibration: Calibration,
        scheduler_config: dict[str, Any],
        *,
        device: torch.device,
        siblings: Mapping[str, Runner],
    ) -> None:
        self.denoiser = denoiser
        self.steering = steering
        self.calibration = calibration
        self.scheduler_config = scheduler_config
        self.device = device
        self.siblings = siblings
        self.lanes = Lanes(calibration.layout)
        self.max_batch = calibration.denoiser.sizes[-1]

    def warm_up(self) -> None:
        """Have kernels made or chosen, and graphs recorded, now: not while someone waits, nor on two lanes at once.

        Of kernels that oneDNN made on two threads at once, some round otherwise.
        """
        denoiser, classifier = self.calibration.denoiser, self.calibration.classifier
        if self._is_cold(denoiser):
            spec = SampleSpec(pack="", label=0, prompt="", init_image=Pixels.of(np.zeros((1, 1, 3), np.uint8)))
            self._warm(only(self.denoiser.forward), denoiser.sizes, self.denoiser.conditioning(spec)[0])
            latent = torch.zeros(1, *self.denoiser.latent_shape, device=self.device)
            self.lanes.run([lambda: self.denoiser.encode(self.denoiser.decode(latent))])
        if self.steering is not None and classifier is not None and self._is_cold(classifier):
            self._warm(self.steering.gradient, classifier.sizes, self.steering.examples()[0])

    def _is_cold(self, network: NetworkCalibration) -> bool:
        """Whether its first call takes much longer than others, or may be made on two lanes at once."""
        return self.device.type != "cpu" or network.precision.compiled or self.lanes.count > 1

    def _warm(self, network: Network, sizes: Sequence[int], told: Conditioning) -> None:
        for size in sizes:
            x = torch.zeros(size, *self.denoiser.latent_shape, device=self.device)
            batch = (x, x.new_zeros(size), stacked([told] * size, self.device))
            for _ in range(CUDA_WARM_UPS if self.device.type == "cuda" else 1):
                self.lanes.run([partial(network, *batch)])

    def table(self, spec: SampleSpec, *, begin: int | None = None) -> CoefficientTable:
        """The sampler of `spec`, from where it begins."""
        profile = PROFILES[spec.profile]
        respacing = spec.respacing
        if spec.sampler == "ddpm" and self.denoiser.learns_variance and respacing is None:
            respacing = str(spec.steps)
        if spec.sampler in ("ddpm", "ddim") and profile.respaces and respacing is None:
            respacing = str(spec.steps)
        overrides = {} if respacing else dict(profile.samplers.get(spec.sampler, {}))
        if spec.spacing is not None:
            overrides.pop("timestep_spacing", None)
        return compile_table(
            spec.sampler,
            self.scheduler_config,
            steps=spec.steps,
            eta=spec.eta,
            spacing=spec.spacing,
            sigmas=spec.sigmas,
            respacing=respacing,
            begin=self._begin(spec) if begin is None else begin,
            overrides=overrides,
            prediction_type=self.denoiser.prediction_type,
        )

    def _starts_from_picture(self, spec: SampleSpec) -> bool:
        return spec.init_image is not None and self.denoiser.low_res_size is None

    def _begin(self, spec: SampleSpec) -> int:
        """Steps left out at the noisy end."""
        if not self._starts_from_picture(spec):
            return 0
        kept = int(spec.steps * spec.strength)
        if kept < 1:
            raise InvalidSpec(
                f"strength {spec.strength:g} of {spec.steps} steps is less than one step; "
                f"at least {1 / spec.steps:.3g} is needed"
            )
        return spec.steps - min(kept, spec.steps)

    def prepare(self, spec: SampleSpec) -> Inputs:
        """What the sample's networks are told. Called off the threads that run ticks, so those don't wait for it.

        Raises:
            InvalidSpec: the spec can't be drawn by this pack.
        """
        steered = spec.guidance
        conditional, unconditional = self.denoiser.conditioning(spec)
        if steered.guide_pack is not None:
            unconditional = self._guide(steered.guide_pack).denoiser.conditioning(spec)[0]
        elif not self.denoiser.has_null and not all(steered.rows(active=active) == (True,) for active in (True, False)):
            raise InvalidSpec("this model can't draw without its label; name a second one to guide by")
        if steered.plus_plus and spec.sampler not in CFG_PLUS_PLUS_SAMPLERS:
            raise InvalidSpec(f"CFG++ is for {', '.join(CFG_PLUS_PLUS_SAMPLERS)}; the sampler here is '{spec.sampler}'")
        condition = None
        if steered.classifier_scale:
            if self.steering is None:
                raise InvalidSpec("the pack has no classifier to guide by")
            condition = self.steering.condition(spec)
        return Inputs(
            conditional=conditional,
            unconditional=unconditional,
            condition=condition,
            **(self._start_and_mask(spec) if self._starts_from_picture(spec) else {}),
        )

    def _guide(self, name: str) -> Runner:
        guide = self.siblings.get(name)
        if guide is None:
            raise InvalidSpec(f"no model '{name}' is loaded here to guide by; loaded: {', '.join(self.siblings)}")
        mine, its = self.denoiser, guide.denoiser
        if (mine.latent_shape, mine.prediction_type) != (its.latent_shape, its.prediction_type):
            raise InvalidSpec(f"model '{name}' can't guide this one: other latents, or another prediction")
        return guide

    def _start_and_mask(self, spec: SampleSpec) -> dict[str, Tensor]:
        assert spec.init_image is not None
        nothing = torch.zeros(1, *self.denoiser.latent_shape, device=self.device)
        channels = 1 if self.denoiser.decode(nothing).shape[1] == 1 else 3
        start = fitted(spec.init_image.array(), self.denoiser.picture_size, channels) / 127.5 - 1
        found = {"init": self.denoiser.encode(start[None].to(self.device))[0]}
        if spec.mask is not None:
            mask = fitted(spec.mask.array(), self.denoiser.picture_size, 1) / 255
            found["mask"] = self.denoiser.encode_mask((mask > 0.5).float()[None].to(self.device))[0]
        return found

    def start(self, sample: Sample) -> None:
        """Give the sample its initial noise, mixed with the picture it starts from."""
        spec, inputs, table = sample.spec, sample.inputs, self.table(sample.spec)
        noise = self._noise(spec, 0).to(self.device)
        sample.state = torch.zeros(NUM_COLUMNS, *self.denoiser.latent_shape, device=self.device)
        if inputs.init is None or (inputs.mask is not None and spec.strength == 1.0):
            sample.state[0] = noise * table.initial_scale
            return
        kept, added = table.level(0)
        if PROFILES[spec.profile].strength is StrengthRule.SD and (begin := self._begin(spec)):
            kept, added = self.table(spec, begin=begin - 1).level(0)
        sample.state[0] = kept * inputs.init + added * noise

    def _noise(self, spec: SampleSpec, draw: int) -> Tensor:
        """(C,H,W), on the CPU."""
        return draw_noise(spec.seed, spec.image_index, draw, self.denoiser.latent_shape)

    def _step_noise(self, samples: Sequence[Sample], tables: Sequence[CoefficientTable]) -> Tensor:
        """What the samplers add in the step, (R,C,H,W) of unit variance; zeros where one adds none."""
        noise = torch.zeros(len(samples), *self.denoiser.latent_shape)
        for row, (table, sample) in enumerate(zip(tables, samples, strict=True)):
            if table.adds_noise(sample.position):
                noise[row] = self._noise(sample.spec, sample.position + 1)
        return noise.to(self.device)

    def pictures(
        self, samples: Sequence[Sample], latents: Tensor, lanes: Runs
    ) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        """Latents (R,C,H,W) as pictures (height,width,channels); each alone, so that none depends on the others."""
        decoded = lanes.run([partial(self.denoiser.decode, latent[None]) for latent in latents])
        return [
            to_uint8(picture, PROFILES[sample.spec.profile].rounding)[0].cpu().numpy()
            for sample, picture in zip(samples, decoded, strict=True)
        ]

    def latent(self, samples: Sequence[Sample]) -> Tensor:
        return torch.stack([sample.state[0] for sample in samples])

    def tick(self, samples: Sequence[Sample], lanes: Runs) -> tuple[Tensor, list[bool]]:
        """Advance every sample by one evaluation.

        Nothing is written before everything is computed, so a tick that raised can be tried again.

        Returns:
            The guided data predictions (R,C,H,W), and of every sample whether its latent is finite still.
        """
        tables = [self.table(sample.spec) for sample in samples]
        profiles = [PROFILES[sample.spec.profile] for sample in samples]
        before = torch.stack([sample.state for sample in samples])  # (R,K,C,H,W)

        def column(name: str) -> Tensor:
            values = [getattr(table, name)[s.position] for table, s in zip(tables, samples, strict=True)]
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        x = before[:, 0]
        seen = x * column("input_scale")[:, None, None, None]
        timesteps, alpha, sigma = column("timestep"), column("alpha"), column("sigma")
        wanting = [row for row, one in enumerate(samples) if one.wants_classifier_now]
        places = _Places.of(samples)
        p, q = (column(name)[places.sample][:, None, None, None] for name in ("data_from_latent", "data_from_output"))
        output, gradient, score = self._evaluate(samples, places, wanting, seen, timesteps, lanes)
        noise = self._step_noise(samples, tables)  # while a GPU evaluates
        channels = x.shape[1]
        predictions = p * x[places.sample] + q * output[:, :channels]
        plain = predictions[places.first]
        data, unguided = self._classifier_free(samples, places, predictions)
        beyond = data.abs()  # how far D lies out of range before anything limits it
        data = self._limited(samples, data, [profile.clips_before for profile in profiles])
        shift = torch.zeros_like(x)
        variances = self._variances(samples, tables, output[places.first, channels:])
        for row in places.pairs:
            if samples[row].spec.guidance.plus_plus:
                table, position = tables[row], samples[row].position
                onto_noise = table.weights[position, 0, LATENT] * table.level(position)[0]
                shift[row] += float(onto_noise) * (data[row] - unguided[row])
        if wanting:
            scale = torch.tensor([samples[row].spec.guidance.classifier_scale for row in wanting], device=self.device)
            at_mean = [profiles[row].classifier_at_mean and row in variances for row in wanting]
            term = guidance.classifier_term(gradient, alpha[wanting], sigma[wanting], scale)
            for number, row in enumerate(wanting):
                if at_mean[number]:
                    shift[row] += variances[row] * scale[number] * gradient[number]
                else:
                    data[row] += term[number]
        beyond = torch.maximum(beyond, data.abs())
        data = self._limited(samples, data, [profile.clips_after for profile in profiles])
        weights = np.stack([table.weights[s.position] for table, s in zip(tables, samples, strict=True)])
        for row, variance in variances.items():
            if tables[row].adds_noise(samples[row].position):
                noise[row] *= variance.sqrt()
        moved = advance(before, data, noise, torch.from_numpy(weights).to(self.device, torch.float32))
        moved[:, 0] += shift
        self._keep_unmasked(samples, tables, moved)
        are_finite = torch.isfinite(moved[:, 0]).flatten(1).all(1).tolist()
        states = [row.clone() for row in moved]  # a view would keep the whole batch alive while the sample pauses
        if any(sample.spec.telemetry for sample in samples):
            self._trace(samples, places, wanting, plain, beyond, unguided, gradient, score, timesteps)
        for sample, state in zip(samples, states, strict=True):
            sample.state = state
        return data, are_finite

    def _evaluate(
        self,
        samples: Sequence[Sample],
        places: _Places,
        wanting: list[int],
        seen: Tensor,
        timesteps: Tensor,
        lanes: Runs,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All networks: the denoisers' outputs, the classifier's gradients and scores."""
        work: list[_Rows] = []
        groups: dict[str | None, list[int]] = {}
        for row, guide in enumerate(places.guide):
            groups.setdefault(guide, []).append(row)
        for guide, rows in groups.items():
            runner = self if guide is None else self._guide(guide)
            told = stacked([places.told[row] for row in rows], self.device)
            index = [places.sample[row] for row in rows]
            network = only(runner.denoiser.forward)
            work.append(_Rows(network, runner.calibration.denoiser, seen[index], timesteps[index], told))
        if wanting:
            if self.steering is None or self.calibration.classifier is None:
                raise ValueError("this pack has no classifier")
            told = stacked([samples[row].inputs.condition for row in wanting], self.device)
            work.append(
                _Rows(self.steering.gradient, self.calibration.classifier, seen[wanting], timesteps[wanting], told)
            )
        plan = packed([(rows.calibration, len(rows.x)) for rows in work], lanes=lanes.count, limit=self.max_batch)
        calls = [call for rows, batches in zip(work, plan, strict=True) for call in rows.calls(batches)]
        outputs = iter(lanes.run(calls))
        done = [[torch.cat(parts) for parts in zip(*(next(outputs) for _ in batches), strict=True)] for batches in plan]
        gradient, score = done.pop() if wanting else (seen[:0], seen[:0, 0, 0, 0])
        if len(done) == 1:
            return done[0][0], gradient, score
        width = max(found.shape[1] for [found] in done)
        merged = seen.new_zeros(len(places.sample), width, *seen.shape[2:])
        for rows, [found] in zip(groups.values(), done, strict=True):
            merged[rows, : found.shape[1]] = found
        return merged, gradient, score

    def _classifier_free(
        self, samples: Sequence[Sample], places: _Places, predictions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """D after classifier-free guidance and rescale, and the unguided D: both (R,C,H,W)."""
        data = predictions[places.first]
        unguided = data.clone()
        if places.pairs:
            conditional = data[places.pairs]
            unguided[places.pairs] = predictions[[places.first[number] + 1 for number in places.pairs]]
            scale = torch.tensor([samples[row].spec.guidance.free_scale for row in places.pairs], device=self.device)
            data[places.pairs] = guidance.classifier_free(conditional, unguided[places.pairs], scale)
            for row, plain in zip(places.pairs, conditional, strict=True):
                if share := samples[row].spec.guidance.rescale:
                    data[row] = guidance.rescaled(data[row], plain, share)
        return data, unguided

    def _variances(
        self, samples: Sequence[Sample], tables: Sequence[CoefficientTable], learned: Tensor
    ) -> dict[int, Tensor]:
        """Variance of the step, (C,H,W), of the rows whose sampler leaves it to the network or the classifier."""
        found: dict[int, Tensor] = {}
        for row, (table, sample) in enumerate(zip(tables, samples, strict=True)):
            if table.log_variance is None:
                continue
            least, greatest = (float(value) for value in table.log_variance[sample.position])
            if self.denoiser.learns_variance:
                share = (learned[row] + 1) / 2
                found[row] = (share * greatest + (1 - share) * least).exp()
            else:  # ADM's FIXED_LARGE
                fixed = least if sample.position == len(table) - 1 else greatest
                found[row] = torch.full_like(sample.state[0], fixed).exp()
        return found

    def _keep_unmasked(self, samples: Sequence[Sample], tables: Sequence[CoefficientTable], moved: Tensor) -> None:
        """Outside its mask a picture follows the one it started from, at the noise level it has now."""
        if self.denoiser.sees_mask:
            return
        for row, (table, sample) in enumerate(zip(tables, samples, strict=True)):
            init, mask = sample.inputs.init, sample.inputs.mask
            if mask is not None:
                kept, added = table.level(sample.position + 1)
                noise = self._noise(sample.spec, 0).to(self.device)
                moved[row, 0] = mask * moved[row, 0] + (1 - mask) * (kept * init + added * noise)

    def _trace(
        self,
        samples: Sequence[Sample],
        places: _Places,
        wanting: list[int],
        plain: Tensor,
        beyond: Tensor,
        unguided: Tensor,
        gradient: Tensor,
        score: Tensor,
        timesteps: Tensor,
    ) -> None:
        """Note what guidance did in this evaluation."""
        pulled = (plain - unguided).flatten(1).norm(dim=1).tolist()
        clipped = (beyond > 1).float().flatten(1).mean(1).tolist()
        pushed = gradient.flatten(1).norm(dim=1).tolist()
        scores = score.tolist()
        at = timesteps.tolist()
        for row, sample in enumerate(samples):
            noted: dict[str, float] = {"timestep": at[row], "clipped": clipped[row]}
            if row in places.pairs:
                noted["conditional_minus_unconditional"] = pulled[row]
            if row in wanting and self.steering is not None:
                noted[self.steering.score_name] = scores[wanting.index(row)]
                noted["gradient_norm"] = pushed[wanting.index(row)]
            sample.trace.append(noted)

    def _limited(self, samples: Sequence[Sample], data: Tensor, here: Sequence[bool]) -> Tensor:
        specs = [sample.spec for sample in samples]
        clip = torch.tensor([spec.clip and now for spec, now in zip(specs, here, strict=True)], device=self.device)
        quantiles = [spec.dynamic_threshold if now else None for spec, now in zip(specs, here, strict=True)]
        return guidance.limit_rows(data, clip, quantiles)

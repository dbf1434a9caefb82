"""`cynosure train finetune`: continues a pack's denoiser on a user's pictures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from models.command_line import Fit
from models.denoisers import Conditioning, Denoiser, load_denoiser
from models.pack import InvalidPack, Pack, open_pack
from models.spec import LongPrompt, SampleSpec
from models.training.data import AS_THEY_ARE, Augmentation, LabelledImages
from models.training.diffusion import Schedule, as_latents, noised, prediction_loss
from models.training.loop import in_half, save_half, train
from models.training.own.cards import about, table
from models.training.own.checks import check_captions
from models.training.own.pictures import Pictures, read_pictures
from models.training.own.presets import run_of
from models.training.own.recipe import texts_of
from models.training.own.runs import HeldOut, augmentation_of, check_augmentation, checkpoint_activations, said
from models.training.own.spaces import Space, encoded, labels_of_pack, space_of
from models.training.own.target import claim, refer

KIND = "finetune"
ENCODED = 64  # prompts at once
Rows = tuple[Conditioning, Conditioning]
"""What a conditional and an unconditional row are told."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRun:
    """The options of `cynosure train finetune`; see `models.command_line.train_finetune`."""

    pack: str
    data: Path
    out: Path
    min_snr: float
    label_dropout: float
    ema: float
    steps: int
    batch: int
    rate: float
    accumulate: int
    eval_every: int | None
    flip: bool
    shift: bool
    colour: float
    fit: Fit
    seed: int
    gpus: int
    gradient_checkpointing: bool
    compile: bool
    force: bool

    def settings(self, pictures: Pictures, pack: Pack) -> Mapping[str, Any]:
        """What a resumed run must not change, by option."""
        names = "min_snr label_dropout flip shift colour fit"
        own = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names.split()}
        return {**own, "--pack": str(pack.folder.resolve()), "--data (digest of its pictures)": pictures.digest}


@dataclass(kw_only=True)
class FinetuneTask:
    """The loss of any family's denoiser, conditioned as its adapter does it.

    Attributes:
        adapter: of the family, around `network`.
        network: the denoiser.
        component: its name in the pack.
        schedule: the pack's noise levels.
        pixel_unshuffle: factor by which H and W of pictures fold into channels.
        rows: what is told of a picture, by its label.
        dropout: probability of training a picture with its unconditional row.
        min_snr: γ of `prediction_loss`.
        augmentation: of the pictures.
    """

    adapter: Denoiser
    network: Any
    component: str
    schedule: Schedule
    pixel_unshuffle: int
    rows: Sequence[Rows]
    dropout: float
    min_snr: float | None
    augmentation: Augmentation = AS_THEY_ARE

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Error of the network's output, mean over batch and numbers; the variance that it may learn is not trained."""
        images = self.augmentation(batch.images, generator)
        mixed = noised(as_latents(images, self.pixel_unshuffle), self.schedule, generator)
        dropped = torch.rand(len(batch), generator=generator, device=generator.device) < self.dropout
        told = [self.rows[row][int(drop)] for row, drop in zip(batch.labels.tolist(), dropped.tolist(), strict=True)]
        conditioning = {name: torch.stack([one[name] for one in told]).to(mixed.x_t.device) for name in told[0]}
        forward = inspect.unwrap(type(self.adapter).forward)  # without the inference mode that it is served in
        with in_half(mixed.x_t.device):
            output = forward(self.adapter, mixed.x_t, mixed.timesteps, conditioning)
        kept = output[:, : mixed.x_0.shape[1]]
        return prediction_loss(kept, mixed, self.schedule.prediction_type, self.min_snr)

    def save(self, folder: Path) -> None:
        """Write the denoiser with weights in half precision."""
        save_half(self.network, folder / self.component)


def run(options: FinetuneRun, command: str) -> None:
    """Continue a pack's denoiser; `command` is how it was called, for the model card.

    Raises:
        InvalidPack: the pack can't be read or is of another family, or its classes are others.
        InvalidPictures: the pictures can't be read, or have no captions where they are needed.
        NotLinear: the pack's noise levels can't be known.
    """
    pack = open_pack(options.pack)
    space = space_of(pack)
    check_augmentation(options, is_latent=space.is_latent)
    schedule = Schedule.of(pack.scheduler_config)
    state, cache = PartialState(), options.out / "training"
    with state.main_process_first():
        claim(options.out, KIND, force=options.force and state.is_main_process)
        pictures = read_pictures(options.data, space.picture, fit=options.fit, cache=cache)
    if state.is_main_process:
        said(pictures.report())
    adapter = _adapter(pack, space, state.device)
    rows, told = _rows(pack, adapter, pictures)
    trained, held_out = pictures.split_rows()
    with state.main_process_first():
        data, tested = (
            encoded(pictures.only(part), told[part], pack, space, flip=flip, cache=cache, device=state.device)
            for part, flip in ((trained, options.flip), (held_out, False))
        )
    task = FinetuneTask(
        adapter=adapter,
        network=adapter.network,
        component=space.network,
        schedule=schedule,
        pixel_unshuffle=space.pixel_unshuffle,
        rows=rows,
        dropout=options.label_dropout if adapter.has_null else 0.0,
        min_snr=options.min_snr or None,
        augmentation=AS_THEY_ARE if space.is_latent else augmentation_of(options),
    )
    if options.gradient_checkpointing:
        checkpoint_activations(task.network)
    held_out_loss = HeldOut(task, tested, options.batch)
    first = held_out_loss(state.device)["held_out_loss"]
    _train(task, data, options, options.settings(pictures, pack), held_out_loss)
    if state.is_main_process:
        refer(options.out, pack, options.pack, without=(space.network,))
        losses = {"loss on held-out pictures before": f"{first:.4f}", "after": f"{held_out_loss.last:.4f}"}
        _describe(options, pack, pictures, command, losses)


def _train(
    task: FinetuneTask, data: LabelledImages, options: FinetuneRun, settings: Mapping[str, Any], measure: HeldOut
) -> None:
    config = run_of(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        ema=options.ema,
        seed=options.seed,
        accumulate=options.accumulate,
        every=options.eval_every,
    )
    train(
        task,
        data,
        config,
        options.out,
        name="diffusion",
        compile_network=options.compile,
        settings=settings,
        measure=measure,
    )


def _adapter(pack: Pack, space: Space, device: torch.device) -> Any:
    """The family's adapter around a denoiser that can be trained.

    Raises:
        InvalidPack: it takes a picture as input.
    """
    adapter: Any = load_denoiser(pack, device)
    if adapter.sees_mask or adapter.low_res_size is not None:
        raise InvalidPack(f"'{pack.name}' takes a picture as input; such packs are not fine-tuned")
    kind = type(adapter.network)
    adapter.network = kind.from_pretrained(
        pack.component(space.network), torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False
    ).to(device)
    return adapter


def _rows(pack: Pack, adapter: Denoiser, pictures: Pictures) -> tuple[list[Rows], Tensor]:
    """What is told of pictures, once for those of whom the same is told, and which of these each picture has (N,).

    Raises:
        InvalidPack: the pictures' classes are not the pack's.
        InvalidPictures: the pack takes prompts and there are no captions.
    """
    if adapter.takes_prompt:
        check_captions(pictures)
    labels: list[int | None] = [None] * len(pictures)
    prompts: list[str | None] = [None] * len(pictures)
    if adapter.has_classes and (pictures.names or not adapter.takes_prompt):
        labels = list(labels_of_pack(pictures, pack, pack.labels).tolist())
    if adapter.takes_prompt:
        prompts = list(texts_of(pictures))
    options = adapter.prompt_options.long_prompts
    reading = LongPrompt.TRUNCATE if LongPrompt.TRUNCATE in options else None
    pairs = list(zip(labels, prompts, strict=True))
    rows = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
    specs = [SampleSpec(pack=pack.name, label=label, prompt=prompt, long_prompt=reading) for label, prompt in rows]
    told: list[Rows] = []
    for start in range(0, len(specs), ENCODED):
        adapter.encode_prompts(specs[start : start + ENCODED])
        for spec in specs[start : start + ENCODED]:
            conditional, unconditional = adapter.conditioning(spec)
            told.append((_kept(conditional), _kept(unconditional)))
    return told, torch.tensor([rows[pair] for pair in pairs])


def _kept(conditioning: Conditioning) -> Conditioning:
    """A copy that gradients may pass by: what was computed for serving is in inference mode."""
    return {name: value.clone() for name, value in conditioning.items()}


def _describe(options: FinetuneRun, pack: Pack, pictures: Pictures, command: str, figures: Mapping[str, str]) -> None:
    """Write the index and the card."""
    index = {**pack.index, "cynosure": {**pack.defaults, "title": f"{pack.name}, on {options.data.resolve().name}"}}
    (options.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    card = [
        "---",
        f"license: {pack.defaults.get('license', 'other')}",
        "tags: [diffusion]",
        "---",
        "",
        f"# {options.out.resolve().name}",
        "",
        f"`{pack.name}`, whose denoiser was trained on. Its other components are in `{pack.folder}`: `components.json` "
        f"has their digests. Serve it with `cynosure up --models {options.out}`.",
        "",
        *about(pictures),
        "",
        "## Training",
        "",
        f"    {command}",
        "",
        *table(figures),
        "",
    ]
    (options.out / "README.md").write_text("\n".join(card))

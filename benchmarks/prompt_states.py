"""`python -m benchmarks.prompt_states`: compare prompts as one vector with token states through cross-attention.

Two small denoisers are trained on the emoji pack's pictures for `--steps` each, and evaluated as the pack is. `--only`
selects one of them, so that the faster one can be trained for as long as the other.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from models.denoisers.prompted import told
from models.evaluation.prompts import Question, Reference, found, questions
from models.networks.sentences import SentenceEncoder, encoder_folder, pooled
from models.training.captions import captions_of, held_out_pairs, held_out_prompts, trained_pairs
from models.training.diffusion import Schedule, as_latents, noised, prediction_loss
from models.training.emoji import STYLES, draw_pictures, fetch_packages, read_concepts
from models.training.emoji_recipe import EMOJI, ENCODER, UNET

TOKENS = 16  # per prompt; the longest caption has fewer
DROPOUT = 0.1
FREE_SCALE = 2.5
POOLED: Mapping[str, Any] = {**UNET, "block_out_channels": (64, 96, 192)}
BY_TOKENS: Mapping[str, Any] = {
    **POOLED,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {"vector": POOLED, "tokens": BY_TOKENS}


@dataclass
class Texts:
    """Texts, encoded for both variants.

    Attributes:
        vectors: (T, size), of unit length.
        states: (T, TOKENS, size).
        mask: (T, TOKENS), 1 where there is a token.
    """

    vectors: Tensor
    states: Tensor
    mask: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], encoder: SentenceEncoder) -> Texts:
        parts = [encoder.states(texts[start : start + 256]) for start in range(0, len(texts), 256)]
        states = torch.cat([functional.pad(states, (0, 0, 0, TOKENS))[:, :TOKENS] for states, _ in parts])
        mask = torch.cat([functional.pad(mask, (0, TOKENS))[:, :TOKENS] for _, mask in parts])
        return cls(torch.cat([pooled(*part) for part in parts]), states * mask[..., None], mask)

    def __getitem__(self, rows: Tensor) -> Texts:
        return Texts(self.vectors[rows], self.states[rows], self.mask[rows])

    def without(self, dropped: Tensor) -> Texts:
        """Drop the texts where `dropped` (T,) is true: a zero vector, and one empty token."""
        mask = self.mask.masked_fill(dropped[:, None], 0.0)
        mask[dropped, 0] = 1.0
        return Texts(
            self.vectors.masked_fill(dropped[:, None], 0.0), self.states.masked_fill(dropped[:, None, None], 0.0), mask
        )


@dataclass
class Variant:
    """A denoiser with one way of conditioning on the prompt."""

    config: Mapping[str, Any]
    network: UNet2DConditionModel = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.network = UNet2DConditionModel(**self.config).to(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, timesteps: Tensor, texts: Texts, styles: Tensor) -> Tensor:
        by_tokens = self.config is BY_TOKENS
        pooled = torch.zeros_like(texts.vectors) if by_tokens else texts.vectors
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(
                x,
                timesteps,
                encoder_hidden_states=texts.states if by_tokens else None,
                encoder_attention_mask=texts.mask if by_tokens else None,
                class_labels=told(pooled, styles),
            )
        return output.sample.float()


def learn(variant: Variant, pictures: Tensor, captions: Sequence[Texts], *, steps: int, batch: int) -> float:
    """Train on `uint8` pictures (concepts, styles, 3, H, W) except held-out pairs; returns the final mean loss."""
    schedule = Schedule.of_scheduler(EMOJI.scheduler())
    trained = torch.tensor(trained_pairs(len(pictures)))
    optimizer = torch.optim.AdamW(variant.network.parameters(), lr=6e-4, betas=(0.9, 0.99), fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-4, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(0)
    variant.network.train()
    losses = []
    for _ in range(steps):
        chosen = trained[torch.randint(len(trained), (batch,), generator=generator)]
        drawn = [
            captions[row][torch.randint(len(captions[row].mask), (1,), generator=generator)] for row in chosen[:, 0]
        ]
        texts = Texts(*(torch.cat([getattr(text, name) for text in drawn]) for name in ("vectors", "states", "mask")))
        texts = texts.without(torch.rand(batch, generator=generator) < DROPOUT)
        styles = functional.one_hot(chosen[:, 1], len(STYLES)).float()
        styles = styles.masked_fill((torch.rand(batch, generator=generator) < DROPOUT)[:, None], 0.0)
        mixed = noised(as_latents(pictures[chosen[:, 0], chosen[:, 1]], EMOJI.pixel_unshuffle), schedule, generator)
        output = variant(mixed.x_t, mixed.timesteps, texts, styles)
        loss = prediction_loss(output, mixed, schedule.prediction_type, None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates.step()
        losses.append(loss.item())
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


@torch.inference_mode()
def draw(variant: Variant, asked: Sequence[Question], encoder: SentenceEncoder) -> Tensor:
    """Draw one `uint8` picture (N,3,H,W) per question: 25 steps of DDIM with classifier-free guidance."""
    variant.network.eval()
    scheduler = DDIMScheduler.from_config(EMOJI.scheduler().config, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    texts = Texts.of([question.prompt for question in asked], encoder)
    empty = texts.without(torch.ones(len(asked), dtype=torch.bool))
    styles = functional.one_hot(torch.tensor([question.style for question in asked]), len(STYLES)).float()
    shape = (len(asked), UNET["in_channels"], UNET["sample_size"], UNET["sample_size"])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps:
        at = timestep.expand(len(asked))
        conditional, unconditional = variant(x, at, texts, styles), variant(x, at, empty, torch.zeros_like(styles))
        x = scheduler.step(unconditional + FREE_SCALE * (conditional - unconditional), timestep, x).prev_sample
    pictures = functional.pixel_shuffle(x, EMOJI.pixel_unshuffle)
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=tuple(VARIANTS))
    parser.add_argument("--data", type=Path, default=EMOJI.data_folder)
    arguments = parser.parse_args()
    fetch_packages(arguments.data)
    concepts = read_concepts(arguments.data)
    pictures = draw_pictures(concepts, arguments.data)
    encoder = SentenceEncoder(encoder_folder(ENCODER), torch.device("cpu"))
    common = Counter(word for concept in concepts for word in set(concept.keywords))
    captions = [Texts.of(captions_of(concept, common)[:4], encoder) for concept in concepts]
    reference = Reference(
        pictures=pictures,
        names=tuple(concept.name for concept in concepts),
        held_out=tuple(held_out_pairs(len(concepts))),
        other_words=held_out_prompts(),
        style_recognised=0.0,
    )
    by_kind = questions(reference, count=126)
    flat = [question for kind in by_kind.values() for question in kind]
    kinds = " ".join(f"{kind:>12}" for kind in by_kind)
    print(f"{'prompt as':<10} {'M parameters':>12} {'s/step':>7} {'loss':>7} {kinds}")
    for name in arguments.only:
        variant, started = Variant(VARIANTS[name]), time.perf_counter()
        loss = learn(variant, pictures, captions, steps=arguments.steps, batch=arguments.batch)
        step_s = (time.perf_counter() - started) / arguments.steps
        pictures_by_kind = draw(variant, flat, encoder).split([len(kind) for kind in by_kind.values()])
        shares = [found(reference, *pair) for pair in zip(pictures_by_kind, by_kind.values(), strict=True)]
        millions = sum(parameter.numel() for parameter in variant.network.parameters()) / 1e6
        columns = " ".join(f"{share:>12.1%}" for share in shares)
        print(f"{name:<10} {millions:>12.1f} {step_s:>7.3f} {loss:>7.4f} {columns}")


if __name__ == "__main__":
    main()

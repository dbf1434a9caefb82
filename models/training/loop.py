"""The training loop that every network here shares: it knows steps, not what is learned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from models.training.data import LabelledImages


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast one network learns.

    Attributes:
        steps: optimiser steps in all.
        batch_size: pictures a step.
        learning_rate: AdamW's peak rate.
        warmup_steps: linear rise from zero.
        decay_fraction: last share of the steps, in which the rate falls linearly to zero. Before it the rate
            is constant, so a run can be lengthened without changing what it has done so far.
        ema_decay: ceiling of the weights' moving average.
        seed: of the weights, the order of pictures and the noise.
        log_every, checkpoint_every: in steps.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    decay_fraction: float
    weight_decay: float
    ema_decay: float
    seed: int
    log_every: int = 50
    checkpoint_every: int = 500

    def rate_factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (warm-up, constant, linear decay), in 0..1."""
        decay_steps = max(1, round(self.steps * self.decay_fraction))
        return max(0.0, min((step + 1) / max(1, self.warmup_steps), 1.0, (self.steps - step) / decay_steps))


def save_half(network: ModelMixin, folder: Path) -> None:
    """Write a network in diffusers' layout, its weights in half precision; the network itself stays as it is."""
    half: Any = type(network).from_config(network.config)
    half.load_state_dict(network.state_dict())
    half.half().save_pretrained(folder)


class Task(Protocol):
    """What is learned: a network and its loss."""

    @property
    def network(self) -> nn.Module: ...

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Mean loss of one batch; every random draw comes from `generator`."""

    def save(self, folder: Path) -> None:
        """Write the network with the weights it holds now (the loop swaps in the averaged ones)."""


def train(
    task: Task,
    data: LabelledImages,
    config: LoopConfig,
    folder: Path,
    *,
    name: str,
    compile_network: bool = False,
    on_checkpoint: Callable[[int], None] = lambda step: None,
) -> None:
    """Train `task` to `config.steps`, going on from the checkpoint in `folder` where there is one.

    Writes to `folder/training/`: `{name}.checkpoint.pt` (weights, optimiser, averages, step, random state) and
    `{name}.loss.jsonl`. At each checkpoint the averaged weights are saved through `task.save(folder)` and
    `on_checkpoint(step)` is called while they are in place.
    """
    run_folder = folder / "training"
    run_folder.mkdir(parents=True, exist_ok=True)
    network = task.network
    if compile_network:
        network.compile()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    rates = LambdaLR(optimizer, config.rate_factor)
    averages = EMAModel(network.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    generator = torch.Generator().manual_seed(config.seed)
    checkpoint_path = run_folder / f"{name}.checkpoint.pt"
    step = 0
    if checkpoint_path.exists():
        checkpoint = torch.load(checkpoint_path, weights_only=True)
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        averages.load_state_dict(checkpoint["averages"])
        generator.set_state(checkpoint["generator"])
        step = checkpoint["step"]
        # The rates are a function of the step alone: rebuilt, not restored, so `steps` may have grown since.
        rates = LambdaLR(optimizer, config.rate_factor, last_epoch=step - 1)
        optimizer.param_groups[0]["lr"] = config.learning_rate * config.rate_factor(step)

    def checkpoint_now() -> None:
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "averages": averages.state_dict(),
            "generator": generator.get_state(),
            "step": step,
        }
        partial = checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, checkpoint_path)  # a kill while writing leaves the checkpoint before it
        averages.store(network.parameters())
        averages.copy_to(network.parameters())
        network.eval()
        task.save(folder)
        on_checkpoint(step)
        network.train()
        averages.restore(network.parameters())

    network.train()
    running: list[float] = []
    progress = tqdm(total=config.steps, initial=step, desc=name, unit="step", smoothing=0.05)
    with (run_folder / f"{name}.loss.jsonl").open("a") as log, progress:
        batches = data.batches(config.batch_size, seed=config.seed, first_step=step)
        while step < config.steps:
            loss = task.loss(next(batches), generator)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rates.step()
            averages.step(network.parameters())
            step += 1
            progress.update()
            running.append(loss.item())
            if step % config.log_every == 0 or step == config.steps:
                mean = sum(running) / len(running)
                progress.set_postfix(loss=f"{mean:.4f}")
                log.write(json.dumps({"step": step, "loss": mean, "learning_rate": rates.get_last_lr()[0]}) + "\n")
                log.flush()
                running.clear()
            if step % config.checkpoint_every == 0 or step == config.steps:
                checkpoint_now()

"""The training loop shared by all networks, independent of the task."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Hyperparameters of one training run.

    Attributes:
        steps: total optimiser steps.
        batch_size: pictures per step.
        learning_rate: AdamW's peak rate.
        warmup_steps: steps in which the rate rises linearly from zero.
        decay_fraction: final share of the steps in which the rate falls linearly to zero. The rate is constant before,
            so a run can be extended without changing its earlier steps.
        ema_decay: maximum decay of the weights' moving average.
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
    """Write a network in diffusers' layout with weights in half precision, without changing the network."""
    half: Any = type(network).from_config(network.config)
    half.load_state_dict(network.state_dict())
    half.half().save_pretrained(folder)


class Task(Protocol):
    """A network and its loss."""

    @property
    def network(self) -> nn.Module: ...

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Mean loss of one batch; every random draw comes from `generator`."""

    def save(self, folder: Path) -> None:
        """Write the network with its current weights; the loop swaps in the averaged ones first."""


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
    """Train `task` to `config.steps`, resuming from the checkpoint in `folder` if there is one.

    Writes to `folder/training/`: `{name}.checkpoint.pt` (weights, optimiser, averages, step, random state) and
    `{name}.loss.jsonl`. At each checkpoint the averaged weights are saved by `task.save(folder)`, and
    `on_checkpoint(step)` is called while they are in use.
    """
    run_folder = folder / "training"
    run_folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, config, run_folder / f"{name}.checkpoint.pt", compile_network=compile_network)
    running: list[float] = []
    progress = tqdm(total=config.steps, initial=run.step, desc=name, unit="step", smoothing=0.05)
    with (run_folder / f"{name}.loss.jsonl").open("a") as log, progress:
        for batch in data.batches(config.batch_size, seed=config.seed, first_step=run.step):
            if run.step >= config.steps:
                return
            running.append(run.learn(batch))
            progress.update()
            is_last = run.step == config.steps
            if run.step % config.log_every == 0 or is_last:
                mean = sum(running) / len(running)
                progress.set_postfix(loss=f"{mean:.4f}")
                log.write(json.dumps({"step": run.step, "loss": mean, "learning_rate": run.learning_rate}) + "\n")
                log.flush()
                running.clear()
            if run.step % config.checkpoint_every == 0 or is_last:
                run.write_checkpoint()
                with run.averaged():
                    task.save(folder)
                    on_checkpoint(run.step)


class _Run:
    """The state of a training run, restored from its checkpoint if there is one."""

    def __init__(self, task: Task, config: LoopConfig, checkpoint: Path, *, compile_network: bool) -> None:
        self._task = task
        self._network = task.network
        self._checkpoint = checkpoint
        if compile_network:
            self._network.compile()
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._rates = LambdaLR(self._optimizer, config.rate_factor)
        self._averages = EMAModel(self._network.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
        self._generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        if checkpoint.exists():
            self._restore(config)
        self._network.train()

    @property
    def learning_rate(self) -> float:
        return float(self._rates.get_last_lr()[0])

    def learn(self, batch: LabelledImages) -> float:
        """Take one optimiser step; returns the loss before it."""
        loss = self._task.loss(batch, self._generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._rates.step()
        self._averages.step(self._network.parameters())
        self.step += 1
        return loss.item()

    def write_checkpoint(self) -> None:
        state = {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "averages": self._averages.state_dict(),
            "generator": self._generator.get_state(),
            "step": self.step,
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self._checkpoint)  # if killed while writing, the previous checkpoint remains

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights, for inference, inside this context."""
        self._averages.store(self._network.parameters())
        self._averages.copy_to(self._network.parameters())
        self._network.eval()
        yield
        self._network.train()
        self._averages.restore(self._network.parameters())

    def _restore(self, config: LoopConfig) -> None:
        checkpoint = torch.load(self._checkpoint, weights_only=True)
        self._network.load_state_dict(checkpoint["network"])
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._averages.load_state_dict(checkpoint["averages"])
        self._generator.set_state(checkpoint["generator"])
        self.step = checkpoint["step"]
        # Rates depend only on the step: they are recomputed, not restored, because `steps` may have been raised.
        self._rates = LambdaLR(self._optimizer, config.rate_factor, last_epoch=self.step - 1)
        self._optimizer.param_groups[0]["lr"] = config.learning_rate * config.rate_factor(self.step)

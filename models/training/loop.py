"""The training loop shared by all networks, independent of the task."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from models.calibration.machine import multiplies_bfloat16
from models.training.checkpoints import check_space, read_checkpoint, write_checkpoint
from models.training.data import LabelledImages

_MAY_CHANGE = ("steps", "log_every", "checkpoint_every")
"""Settings that another start of a run may have otherwise."""
_OPTIONS = {"batch_size": "--batch", "learning_rate": "--rate", "ema_decay": "--ema"}
"""Options of settings that have another name."""
_COPIES = 4  # of each weight in a checkpoint: its value, AdamW's two moments, its average


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Hyperparameters of one training run.

    Attributes:
        steps: total optimiser steps.
        batch_size: pictures per step, of all processes together.
        learning_rate: AdamW's peak rate.
        warmup_steps: steps in which the rate rises linearly from zero.
        decay_fraction: final share of the steps in which the rate falls linearly to zero. The rate is constant before,
            so a run can be extended without changing its earlier steps.
        ema_decay: maximum decay of the weights' moving average.
        seed: of the weights, the order of pictures and the noise.
        accumulate: parts that a process splits its share of a batch into, to save memory.
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
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 500

    def fixed(self) -> dict[str, Any]:
        """What a resumed run must not change, by option."""
        kept = {key: value for key, value in asdict(self).items() if key not in _MAY_CHANGE}
        return {_OPTIONS.get(key, f"--{key}"): value for key, value in kept.items()}

    def rate_factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (warm-up, constant, linear decay), in 0..1."""
        decay_steps = max(1, round(self.steps * self.decay_fraction))
        return max(0.0, min((step + 1) / max(1, self.warmup_steps), 1.0, (self.steps - step) / decay_steps))


@contextmanager
def in_half(device: torch.device) -> Iterator[None]:
    """Multiply in bfloat16 inside this context, on devices with instructions for it.

    On CPUs attention is computed by its definition: the gradient of torch's fused kernel takes five times as long in
    bfloat16 as in float32 (`python -m benchmarks.trainer`).
    """
    on_cpu = device.type == "cpu"
    enabled = multiplies_bfloat16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    attention = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), attention:
        yield


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
        """Mean loss of one batch, on the generator's device; every random draw comes from `generator`."""

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
    settings: Mapping[str, Any] | None = None,
    measure: Callable[[torch.device], Mapping[str, float]] = lambda device: {},
    on_checkpoint: Callable[[int], None] = lambda step: None,
) -> None:
    """Train `task` to `config.steps`, resuming from the checkpoint in `folder` if there is one.

    Writes to `folder/training/`: `{name}.checkpoint.pt`, `{name}.loss.jsonl`, and `tensorboard/` if it is installed. At
    each checkpoint the averaged weights are saved by `task.save(folder)`, what `measure(device)` returns is logged, and
    `on_checkpoint(step)` is called while they are in use. The processes of `accelerate launch` share each batch.
    `settings` are all others that a resumed run must not change, by option.

    Raises:
        OtherRun: the checkpoint is of a run with other settings.
        NoSpace: the disk is full.
        Interrupted: SIGINT came; the state is saved.
    """
    run_folder = folder / "training"
    run_folder.mkdir(parents=True, exist_ok=True)
    own = {**config.fixed(), **(settings or {})}
    run = _Run(task, config, run_folder / f"{name}.checkpoint.pt", own, compile_network=compile_network)
    running: list[float] = []
    with _Log(run_folder, name, run.state) as log, _bar(run, config, name) as progress, stop_requested() as stop:

        def keep() -> None:
            with run.averaged():
                log.write(run.step, **measure(run.state.device))
                if run.state.is_main_process:
                    task.save(folder)
                    on_checkpoint(run.step)
            run.state.wait_for_everyone()

        if run.step >= config.steps:  # it may have been killed before the weights were saved
            return keep()
        for batch in data.batches(config.batch_size, seed=config.seed, first_step=run.step):
            loss, stopping = run.learn(batch, stop)
            running.append(loss)
            progress.update(config.batch_size)
            is_last = run.step == config.steps
            if run.step % config.log_every == 0 or is_last:
                mean = sum(running) / len(running)
                progress.set_postfix(loss=f"{mean:.4f}")
                log.write(run.step, loss=mean, learning_rate=run.learning_rate)
                running.clear()
            if run.step % config.checkpoint_every == 0 or is_last or stopping:
                run.write_checkpoint()
                if stopping and not is_last:
                    raise Interrupted(f"stopped at step {run.step} of {config.steps}")
                keep()
            if is_last:
                return None
    return None


def _bar(run: _Run, config: LoopConfig, name: str) -> Any:
    """Progress in pictures, with their rate and the time left."""
    return tqdm(
        total=config.steps * config.batch_size,
        initial=run.step * config.batch_size,
        desc=name,
        unit="pictures",
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else 60,  # seconds; a log file needs no more
        disable=not run.state.is_main_process,
    )


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that the first SIGINT sets; the second one interrupts at once."""
    stop = threading.Event()

    def request(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Log:
    """Losses and measures by step, as lines of JSON and for TensorBoard."""

    def __init__(self, folder: Path, name: str, state: PartialState) -> None:
        self._is_main = state.is_main_process
        self._file = (folder / f"{name}.loss.jsonl").open("a") if self._is_main else None
        self._board: Any = None
        if self._is_main and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard" / name)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (self._file, self._board):
            if writer is not None:
                writer.close()

    def write(self, step: int, **values: float) -> None:
        if self._file is None or not values:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)


class _Run:
    """The state of a training run, restored from its checkpoint if there is one."""

    def __init__(
        self, task: Task, config: LoopConfig, checkpoint: Path, settings: Mapping[str, Any], *, compile_network: bool
    ) -> None:
        self.state = PartialState()
        self._task = task
        self._network = task.network.to(self.state.device)
        if self.state.device.type == "cuda":
            self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._checkpoint = checkpoint
        self._settings = json.loads(json.dumps(settings, default=str))
        self._accumulate = config.accumulate
        trained = [weight for weight in self._network.parameters() if weight.requires_grad]
        check_space(checkpoint, sum(weight.numel() for weight in trained) * 4 * _COPIES)
        if compile_network:
            self._network.compile()
        self._optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self._rates = LambdaLR(self._optimizer, config.rate_factor)
        self._averages = EMAModel(self._network.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
        self._generator = torch.Generator(self.state.device).manual_seed(config.seed + 1000 * self.state.process_index)
        self.step = 0
        if checkpoint.exists():
            self._restore(config)
        self._network.train()

    @property
    def learning_rate(self) -> float:
        return float(self._rates.get_last_lr()[0])

    def learn(self, batch: LabelledImages, stop: threading.Event) -> tuple[float, bool]:
        """Take one optimiser step; returns the loss before it, and whether any process is to stop."""
        share = batch[self.state.process_index :: self.state.num_processes]
        size = -(-len(share) // self._accumulate)
        loss = torch.zeros((), device=self.state.device)
        for start in range(0, len(share), size):
            part = share[start : start + size]
            part_loss = self._task.loss(part.to(self.state.device), self._generator) * (len(part) / len(share))
            part_loss.backward()
            loss += part_loss.detach()
        loss, stopping = self._shared(loss, stop.is_set())
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._rates.step()
        self._averages.step(self._network.parameters())
        self.step += 1
        return loss.item(), stopping

    def _shared(self, loss: Tensor, stopping: bool) -> tuple[Tensor, bool]:
        """Average gradients and loss over the processes; one that is stopping stops all, after the same step."""
        if self.state.num_processes == 1:
            return loss, stopping
        gradients = [weight.grad for weight in self._network.parameters() if weight.grad is not None]
        flat = [gradient.flatten() for gradient in gradients] + [loss[None], loss.new_tensor([float(stopping)])]
        mean: Tensor = reduce(torch.cat(flat), "mean")
        for gradient, part in zip(gradients, mean.split([part.numel() for part in flat]), strict=False):
            gradient.copy_(part.view_as(gradient))
        return mean[-2], bool(mean[-1] > 0)

    def write_checkpoint(self) -> None:
        """Save the run's state, from the first process.

        Raises:
            NoSpace: the disk is full; the checkpoint before remains.
        """
        if not self.state.is_main_process:
            return
        state = {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "averages": self._averages.state_dict(),
            "generator": self._generator.get_state(),
            "step": self.step,
            "settings": self._settings,
        }
        write_checkpoint(self._checkpoint, state, self.step)

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
        checkpoint = read_checkpoint(self._checkpoint, self._settings, self.state.device)
        self._network.load_state_dict(checkpoint["network"])
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._averages.load_state_dict(checkpoint["averages"])
        if self.state.process_index == 0:
            self._generator.set_state(checkpoint["generator"].cpu())
        else:
            self._generator.manual_seed(config.seed + 1000 * self.state.process_index + checkpoint["step"])
        self.step = checkpoint["step"]
        # Rates depend only on the step: they are recomputed, not restored, because `steps` may have been raised.
        self._rates = LambdaLR(self._optimizer, config.rate_factor, last_epoch=self.step - 1)
        self._optimizer.param_groups[0]["lr"] = config.learning_rate * config.rate_factor(self.step)

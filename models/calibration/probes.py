"""Batches to measure networks with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.denoisers import Conditioning, Denoiser, latent_shape_of
from models.pack import Pack
from models.spec import LongPrompt, Pixels, SampleSpec

CPU_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
CUDA_SIZES = (*CPU_SIZES, 64, 96, 128, 192, 256)
FEW_SIZES = CPU_SIZES[: CPU_SIZES.index(16) + 1]  # of encoders and decoders: more prompts or pictures rarely wait

Network = Callable[[Tensor, Tensor, Conditioning], tuple[Tensor, ...]]
"""(x (B,C,H,W), timesteps (B,), conditioning) → ((B,C,H,W), …), all with the batch axis first."""
Batch = tuple[Tensor, Tensor, Conditioning]
Shape = tuple[torch.Size, ...]


def only(network: Callable[[Tensor, Tensor, Conditioning], Tensor]) -> Network:
    """Adapt a network with one output to `Network`. The output is copied, because CUDA graphs reuse its memory."""
    return lambda x, timesteps, conditioning: (network(x, timesteps, conditioning).clone(),)


def example_conditionings(
    denoiser: Denoiser, pack: Pack, size: tuple[int, int] | None = None
) -> Sequence[Conditioning]:
    """Some distinct conditionings of denoiser rows, of one shape, for pictures of `size` (height, width)."""
    height, width = size or denoiser.picture_size
    start = Pixels.of(np.zeros((height, width, 3), np.uint8))
    prompts = ("a cat", "two red apples on a table", "")
    labels = [number % len(pack.labels) if pack.labels else None for number in range(len(prompts))]
    shared = SampleSpec(pack=pack.name, init_image=start, height=height, width=width, long_prompt=LongPrompt.TRUNCATE)
    return [
        denoiser.conditioning(replace(shared, label=label, prompt=prompt))[0]
        for label, prompt in zip(labels, prompts, strict=True)
    ]


def stacked(rows: Sequence[Conditioning], device: torch.device) -> Conditioning:
    """Stack rows' conditioning into a batch's."""
    return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


def shape_of(row: Conditioning) -> Shape:
    """The shapes of a row's conditioning; rows that differ in it can't be stacked."""
    return tuple(tensor.shape for tensor in row.values())


def _arrangements(size: int, rows: int) -> Iterator[dict[int, int]]:
    """Yield the numbers of fixed rows by position, until each of them has been at every position of a batch.

    The other positions are left to random neighbours.
    """
    shifts = range(rows + 1)
    for shift in (*shifts, *shifts) if size == 1 else shifts:  # so that every row is observed at least twice
        numbers = {position: (position + shift) % (rows + 1) for position in range(size)}
        yield {position: number for position, number in numbers.items() if number < rows}


class TensorProbes:
    """Batches of any size for a network whose only input is a tensor: fixed rows to observe, among random neighbours.

    Args:
        draw: a random row.
        device: where the network runs.
    """

    sizes = FEW_SIZES

    def __init__(self, draw: Callable[[torch.Generator], Tensor], device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(0)
        self._draw = draw
        self.rows = [draw(self._generator) for _ in range(3)]

    def batch(self, size: int) -> tuple[Tensor]:
        """A batch of random rows."""
        return (torch.stack([self._draw(self._generator) for _ in range(size)]).to(self.device),)

    def arranged(self, size: int) -> Iterator[tuple[dict[int, int], tuple[Tensor]]]:
        """As `Probes.arranged`."""
        for numbers in _arrangements(size, len(self.rows)):
            [batch] = self.batch(size)
            for position, number in numbers.items():
                batch[position] = self.rows[number]
            yield numbers, (batch,)


class Probes:
    """Batches of any size: fixed rows to observe, among random neighbours."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_timesteps: int,
        device: torch.device,
        conditionings: Sequence[Conditioning],
    ) -> None:
        self.device = device
        self.sizes = CUDA_SIZES if device.type == "cuda" else CPU_SIZES
        self._generator = torch.Generator().manual_seed(0)
        self.shape = shape
        self._conditionings = conditionings
        self._num_timesteps = num_timesteps
        self.rows = [
            (torch.randn(self.shape, generator=self._generator), round(share * (num_timesteps - 1)), index)
            for index, share in enumerate((0.02, 0.5, 0.98))
        ]

    @classmethod
    def of(cls, denoiser: Denoiser, pack: Pack, device: torch.device, size: tuple[int, int] | None = None) -> Probes:
        """Rows of a denoiser for pictures of `size` (height, width), by default the pack's own."""
        height, width = size or denoiser.picture_size
        shape = latent_shape_of(denoiser, SampleSpec(pack=pack.name, height=height, width=width))
        return cls(shape, pack.num_train_timesteps, device, example_conditionings(denoiser, pack, size))

    def with_conditionings(self, conditionings: Sequence[Conditioning]) -> Probes:
        """Probes of the same shape with other conditionings, for another network."""
        return Probes(self.shape, self._num_timesteps, self.device, conditionings)

    def batch(self, size: int) -> Batch:
        """A batch of random rows."""
        x, timesteps, chosen = self._batch(size)
        return x.to(self.device), timesteps.to(self.device), self._stacked(chosen)

    def arranged(self, size: int) -> Iterator[tuple[dict[int, int], Batch]]:
        """Yield (fixed row's number by position, batch), until every fixed row has been at every position.

        The other positions hold random neighbours.
        """
        for numbers in _arrangements(size, len(self.rows)):
            x, timesteps, chosen = self._batch(size)
            for position, number in numbers.items():
                row, timestep, index = self.rows[number]
                x[position], timesteps[position], chosen[position] = row, timestep, index % len(self._conditionings)
            yield numbers, (x.to(self.device), timesteps.to(self.device), self._stacked(chosen))

    def _stacked(self, chosen: Sequence[int]) -> Conditioning:
        return stacked([self._conditionings[index] for index in chosen], self.device)

    def _batch(self, size: int) -> tuple[Tensor, Tensor, list[int]]:
        """Random latents and timesteps, and the index of each row's conditioning."""
        x = torch.randn(size, *self.shape, generator=self._generator)
        timesteps = torch.randint(self._num_timesteps, (size,), generator=self._generator).float()
        return x, timesteps, torch.randint(len(self._conditionings), (size,), generator=self._generator).tolist()

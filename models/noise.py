"""Seeded noise: the same numbers for the same picture, on every device and in every batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw_noise(seed: int, image_index: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, `float32`, on the CPU.

    Philox is counter-based (Salmon et al. 2011): each draw is computed from its own key alone, so there is no
    generator state to keep, and a trajectory can be resumed or forked anywhere.

    Args:
        seed: 0..2⁶³−1.
        image_index: index of the picture in its job.
        draw: 0 is the initial noise; evaluation i adds draw i + 1.
        shape: (C, H, W).
    """
    bits = np.random.Philox(key=np.array([seed, image_index], dtype=np.uint64), counter=[0, 0, 0, draw])
    return torch.from_numpy(np.random.Generator(bits).standard_normal(shape, dtype=np.float32))

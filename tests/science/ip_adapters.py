"""IP-Adapters with random weights and small image encoders, in the layout that they are published in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

Kind = Literal["plain", "plus", "full-face"]
READ, EMBEDDED, SIDE, TOKENS = 48, 24, 16, 4


def write_ip_adapter(pack: Path, unet: UNet2DConditionModel, kind: Kind = "plain") -> Path:
    """Put an IP-Adapter and its encoder into a pack's folder; returns the adapter's file."""
    folder = pack / "ip_adapter"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(30)
        config = CLIPVisionConfig(
            hidden_size=READ,
            intermediate_size=2 * READ,
            projection_dim=EMBEDDED,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=4,
        )
        encoder = CLIPVisionModelWithProjection(config)
        for parameter in encoder.parameters():
            parameter.data.normal_(std=0.2)  # those of a fresh one hardly tell pictures apart
        encoder.save_pretrained(pack / "image_encoder")
    path = folder / f"ip-adapter-{kind}.safetensors"
    save_file(ip_adapter(unet, kind), path)
    return path


def ip_adapter(unet: UNet2DConditionModel, kind: Kind = "plain") -> dict[str, Tensor]:
    """Tensors of an IP-Adapter for the UNet, which can be seen."""
    dice, width = torch.Generator().manual_seed(31), unet.config.cross_attention_dim

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice) * (2.0 / shape[-1] ** 0.5)

    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, Tensor]]:
        yield f"image_proj.{name}.weight", drawn(out, into)

    def biased(name: str, out: int, into: int) -> Iterator[tuple[str, Tensor]]:
        yield from linear(name, out, into)
        yield f"image_proj.{name}.bias", drawn(out)

    def norm(name: str, over: int) -> Iterator[tuple[str, Tensor]]:
        yield f"image_proj.{name}.weight", 1 + drawn(over) / 10
        yield f"image_proj.{name}.bias", drawn(over) / 10

    def resampler(inner: int = 32, heads: int = 128) -> Iterator[tuple[str, Tensor]]:
        yield "image_proj.latents", drawn(1, TOKENS, inner)
        yield from biased("proj_in", inner, READ)
        yield from biased("proj_out", width, inner)
        yield from norm("norm_out", width)
        for number in range(4):
            attention, feed = f"layers.{number}.0", f"layers.{number}.1"
            yield from norm(f"{attention}.norm1", inner)
            yield from norm(f"{attention}.norm2", inner)
            yield from linear(f"{attention}.to_q", heads, inner)
            yield from linear(f"{attention}.to_kv", 2 * heads, inner)
            yield from linear(f"{attention}.to_out", inner, heads)
            yield from norm(f"{feed}.0", inner)
            yield from linear(f"{feed}.1", 4 * inner, inner)
            yield from linear(f"{feed}.3", inner, 4 * inner)

    projections = {
        "plain": lambda: (*biased("proj", 4 * width, EMBEDDED), *norm("norm", width)),
        "plus": resampler,
        "full-face": lambda: (*biased("proj.0", READ, READ), *biased("proj.2", width, READ), *norm("proj.3", width)),
    }
    crossing = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    layers = {
        f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight": drawn(unet.get_submodule(name).inner_dim, width)
        for number, name in enumerate(crossing)
        for part in "kv"
    }
    return dict(projections[kind]()) | layers

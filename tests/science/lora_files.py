"""Writes LoRAs with random weights for tiny pipelines, in each of the layouts that people have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Pairs = dict[str, tuple[Tensor, Tensor]]
"""The matrices down and up, by a layer's path."""
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.2")
TEXT = (".q_proj", ".v_proj", ".out_proj", ".fc1")
STRENGTH = 1.0
ALPHA = 3.0


def pairs_for(network: nn.Module, ends: Iterable[str], *, rank: int = 4, seed: int = 0) -> Pairs:
    """Random matrices for the layers whose paths end so, large enough to be seen."""
    dice = torch.Generator().manual_seed(seed)
    found: Pairs = {}
    for path, layer in network.named_modules():
        if path.endswith(tuple(ends)) and getattr(layer, "weight", None) is not None:
            out, *into = layer.weight.shape
            down = torch.randn(rank, *into, generator=dice) / torch.tensor(into).prod() ** 0.5
            up = torch.randn(out, rank, *[1] * (len(into) - 1), generator=dice) * STRENGTH / rank**0.5
            found[path] = down, up
    assert found
    return found


def in_diffusers_names(parts: Mapping[str, Pairs]) -> dict[str, Tensor]:
    """As diffusers' own training scripts save them."""
    return {
        f"{network}.{path}.lora_{letter}.weight": matrix
        for network, pairs in parts.items()
        for path, pair in pairs.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }


def diffusers_file(path: Path, parts: Mapping[str, Pairs]) -> None:
    save_file(in_diffusers_names(parts), path)


def diffusers_file_with_alphas(path: Path, parts: Mapping[str, Pairs]) -> None:
    """With the configuration that diffusers' scripts put into the metadata."""
    tensors = in_diffusers_names(parts)
    config: dict[str, Any] = {}
    for network, pairs in parts.items():
        rank = len(next(iter(pairs.values()))[0])
        own = {"r": rank, "lora_alpha": ALPHA, "target_modules": sorted(pairs), "use_rslora": False, "bias": "none"}
        config |= {f"{network}.{key}": value for key, value in own.items()}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})


def old_diffusers_file(path: Path, parts: Mapping[str, Pairs]) -> None:
    """With attention's layers in the processor, as before peft."""
    tensors: dict[str, Tensor] = {}
    for network, pairs in parts.items():
        for layer, (down, up) in pairs.items():
            name = f"{layer}.lora"
            if network == "unet" and ".attn" in layer:
                block, _, kind = layer.removesuffix(".0").rpartition(".")
                name = f"{block}.processor.{kind}_lora"
            if network != "unet":
                name = f"{layer}.lora_linear_layer"
            tensors |= {f"{network}.{name}.down.weight": down, f"{network}.{name}.up.weight": up}
    save_file(tensors, path)


def peft_folder(path: Path, parts: Mapping[str, Pairs]) -> None:
    """As peft saves an adapter of one network: a folder, named as the file would be without its suffix."""
    [pairs] = parts.values()
    folder = path.with_suffix("")
    folder.mkdir()
    tensors = {f"base_model.model.{name.partition('.')[2]}": one for name, one in in_diffusers_names(parts).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": len(next(iter(pairs.values()))[0]), "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def kohya_file(path: Path, parts: Mapping[str, Pairs], **metadata: str) -> None:
    """As kohya's scripts save it, and LyCORIS its LoCon."""
    several = "text_encoder_2" in parts
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if several else "lora_te", "text_encoder_2": "lora_te2"}
    tensors: dict[str, Tensor] = {}
    for network, pairs in parts.items():
        for layer, (down, up) in pairs.items():
            is_projection = network == "text_encoder" and not layer.startswith("text_model.")
            name = f"text_model.{layer}" if is_projection else layer
            name = f"{prefixes[network]}_{name.replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path, metadata or None)


def magnitudes_for(network: nn.Module, pairs: Pairs) -> dict[str, Tensor]:
    """Lengths (out,) that DoRA learnt for the weights of these layers, others than they have."""
    lengths = {path: network.get_submodule(path).weight.detach().flatten(1).norm(dim=1) for path in pairs}
    return {path: one * torch.linspace(0.7, 1.4, len(one)) for path, one in lengths.items()}


def dora_file(path: Path, pairs: Pairs, magnitudes: Mapping[str, Tensor], *, kohya: bool) -> None:
    """DoRA for a UNet, as diffusers' scripts or as LyCORIS save it."""
    diffusers_file(path, {"unet": pairs}) if not kohya else kohya_file(path, {"unet": pairs})
    tensors = load_file(path)
    for layer, lengths in magnitudes.items():
        is_linear = pairs[layer][0].dim() == 2
        if kohya:
            tensors[f"lora_unet_{layer.replace('.', '_')}.dora_scale"] = lengths.view(
                -1, *[1] * (1 if is_linear else 3)
            )
        else:
            tensors[f"unet.{layer}.lora_magnitude_vector"] = lengths if is_linear else lengths.view(1, -1, 1, 1)
    save_file(tensors, path)


def kohya_flux_file(path: Path, parts: Mapping[str, Pairs]) -> None:
    """Kohya's names of Flux' layers, whose query, key and value are one layer."""
    [pairs] = [parts["transformer"]]
    tensors: dict[str, Tensor] = {}

    def add(name: str, down: Tensor, up: Tensor) -> None:
        name = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down.contiguous(), up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)

    for layer, (down, up) in pairs.items():
        if layer.endswith("attn.to_q") and not layer.startswith("single"):
            block = layer.partition(".attn")[0]
            ups = [pairs[f"{block}.attn.to_{kind}"][1] for kind in "qkv"]
            add(f"{block.replace('transformer_blocks', 'double_blocks')}.img_attn.qkv", down, torch.cat(ups))
        elif layer.endswith("attn.to_out.0"):
            block = layer.partition(".attn")[0].replace("transformer_blocks", "double_blocks")
            add(f"{block}.img_attn.proj", down, up)
    save_file(tensors, path)


Writer = Callable[[Path, Mapping[str, Pairs]], None]

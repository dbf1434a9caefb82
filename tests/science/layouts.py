"""Writes single files in the published layouts: diffusers' converters, run backwards.

A converter is run on tensors whose elements are numbers; where a number arrives is where that element comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.loaders import single_file_utils as published
from torch import Tensor
from torch.overrides import TorchFunctionMode

State = dict[str, Tensor]
PARTS = ("weight", "bias")
RESNET = ("in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3", "emb_layers.1", "skip_connection")
VAE_RESNET = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
VAE_ATTENTION = ("norm", "q", "k", "v", "proj_out")
PROBE_ROWS = 42  # halves, thirds and sevenths are whole numbers of rows


def backwards(
    convert: Callable[[State], State],
    names: Iterable[str],
    state: Mapping[str, Tensor],
    rows: Callable[[str], int] = lambda name: PROBE_ROWS,
) -> State:
    """The tensors of `state` by the names and in the shapes that `convert` reads."""
    probes = {name: torch.full((rows(name), 1), float(number)) for number, name in enumerate(names)}
    known = list(probes)
    sources: dict[str, list[str]] = {}
    for target, found in convert(dict(probes)).items():
        if target in state:
            sources.setdefault(known[int(found.flatten()[0])], []).append(target)
    assert {target for targets in sources.values() for target in targets} == state.keys()
    numbers, start = {}, 0
    for name, targets in sources.items():
        first = state[targets[0]]
        shape = (sum(len(state[target]) for target in targets), *first.shape[1:])
        if name.endswith("text_projection"):
            shape = tuple(first.T.shape)
        size = int(torch.tensor(shape).prod())
        numbers[name] = torch.arange(start, start + size, dtype=torch.float64).reshape(shape)
        start += size
    elements = torch.full((start,), torch.nan, dtype=torch.float64)
    for target, places in convert(dict(numbers)).items():
        elements[places.flatten().long()] = state[target].double().flatten()
    assert not elements.isnan().any()
    dtype = next(iter(state.values())).dtype
    return {name: elements[places.flatten().long()].reshape(places.shape).to(dtype) for name, places in numbers.items()}


class Recorded(dict[str, Tensor]):
    """A checkpoint that has whatever is asked of it, and records what is popped."""

    def __missing__(self, name: str) -> Tensor:
        return torch.zeros(PROBE_ROWS, 1)

    def pop(self, name: str, *default: Any) -> Tensor:
        return super().pop(name) if name in self else self.setdefault(f"popped {name}", torch.zeros(PROBE_ROWS, 1))


def popped(convert: Callable[[State], State], hints: Iterable[str]) -> list[str]:
    """The names that a converter reads, which looks at some names to count layers."""
    record = Recorded({name: torch.zeros(PROBE_ROWS, 1) for name in hints})
    with narrow():
        convert(record)
    return [name.removeprefix("popped ") for name in record if name.startswith("popped ")]


class narrow(TorchFunctionMode):  # used as a function
    """Scales the widths by which Flux's converter splits, which are the published network's, to those of a tensor."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.split and isinstance(args[1], tuple):
            share = len(args[0]) / sum(args[1])
            args = (args[0], [int(width * share) for width in args[1]], *args[2:])
        return function(*args, **(kwargs or {}))


def unet(network: Any) -> State:
    prefix, config, state = published.LDM_UNET_KEY, network.config, network.state_dict()
    deep = len(config.block_out_channels) * (config.layers_per_block + 1)
    within = {match[1] for name in state if (match := re.search(r"attentions\.\d+\.(.*)", name))}
    names = [*published.DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"].values()]
    names += published.DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"].values()
    for part in PARTS:
        for block in range(1, deep + 1):
            names += [f"input_blocks.{block}.0.{layer}.{part}" for layer in RESNET]
            names.append(f"input_blocks.{block}.0.op.{part}")
        for block in range(deep):
            attends = config.up_block_types[block // (config.layers_per_block + 1)].startswith("CrossAttn")
            names += [f"output_blocks.{block}.0.{layer}.{part}" for layer in RESNET]
            names.append(f"output_blocks.{block}.{2 if attends else 1}.conv.{part}")
        names += [f"middle_block.{block}.{layer}.{part}" for block in (0, 2) for layer in RESNET]
    for rest in within:
        names += [f"input_blocks.{block}.1.{rest}" for block in range(1, deep)]
        names += [f"output_blocks.{block}.1.{rest}" for block in range(deep)]
        names.append(f"middle_block.1.{rest}")
    return backwards(
        lambda tensors: published.convert_ldm_unet_checkpoint(tensors, config), [prefix + name for name in names], state
    )


def vae(network: Any, prefix: str = "first_stage_model.") -> State:
    config, state = network.config, network.state_dict()
    names = [*published.DIFFUSERS_TO_LDM_MAPPING["vae"].values()]
    for part in PARTS:
        for half, direction, move in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
            for level in range(len(config.block_out_channels)):
                names += [
                    f"{half}.{direction}.{level}.block.{block}.{layer}.{part}"
                    for block in range(config.layers_per_block + 1)
                    for layer in VAE_RESNET
                ]
                names.append(f"{half}.{direction}.{level}.{move}.conv.{part}")
            names += [f"{half}.mid.block_{block}.{layer}.{part}" for block in (1, 2) for layer in VAE_RESNET]
            names += [f"{half}.mid.attn_1.{layer}.{part}" for layer in VAE_ATTENTION]
    found = backwards(
        lambda tensors: published.convert_ldm_vae_checkpoint(tensors, config), [prefix + name for name in names], state
    )
    is_convolution = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight$")
    return {name: tensor[..., None, None] if is_convolution.search(name) else tensor for name, tensor in found.items()}


def clip(network: Any, prefix: str) -> State:
    """The layout of transformers."""
    names = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
    return {
        prefix + (name if name == "text_projection.weight" else f"text_model.{name}"): tensor
        for name, tensor in names.items()
    }


def open_clip(network: Any, prefix: str) -> State:
    width = network.config.hidden_size
    names = [*published.DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values()]
    for layer in range(network.config.num_hidden_layers):
        block = f"transformer.resblocks.{layer}"
        names += [f"{block}.{name}.{part}" for name in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for part in PARTS]
        names += [f"{block}.attn.{name}" for name in ("in_proj_weight", "in_proj_bias")]
        names += [f"{block}.attn.out_proj.{part}" for part in PARTS]
    names = [prefix + name for name in names]
    state = {
        name if name == "text_projection.weight" else f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in network.state_dict().items()
    }
    return backwards(
        lambda tensors: published.convert_open_clip_checkpoint(network, tensors, prefix),
        names,
        state,
        rows=lambda name: width if name.endswith("text_projection") else 3 * width,
    )


def sd3(network: Any) -> State:
    convert, config = published.convert_sd3_transformer_checkpoint_to_diffusers, network.config
    hints = [f"joint_blocks.{config.num_layers - 1}.hint"]
    hints += [f"joint_blocks.{layer}.attn2.hint" for layer in config.dual_attention_layers]
    names = popped(convert, [*hints, *(["ln_q hint"] if config.qk_norm else [])])
    return backwards(convert, names, network.state_dict())


def flux(network: Any) -> State:
    convert, config = published.convert_flux_transformer_checkpoint_to_diffusers, network.config
    hints = [f"double_blocks.{config.num_layers - 1}.hint", f"single_blocks.{config.num_single_layers - 1}.hint"]
    names = popped(convert, [*hints, *(["guidance hint"] if config.guidance_embeds else [])])
    with narrow():
        return backwards(convert, names, network.state_dict())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}

"""The layouts that LoRA files come in, read by diffusers' converters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import Tensor, nn

from models.adapters.controls import ControlFamily
from models.adapters.errors import InvalidLora
from models.adapters.files import LoraFile

State = dict[str, Tensor]
_PEFT = "base_model.model."
_MAGNITUDE = ".lora_magnitude_vector"
_KOHYA = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": _MAGNITUDE.removeprefix("."),
    "alpha": "",
}
"""The names of peft for kohya's; α is folded into the upper matrix before."""


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """What a pack has that LoRAs can change, and ControlNets can steer.

    Attributes:
        family: what LoRAs for it are said to be for.
        loader: diffusers' loader of the family's LoRAs.
        networks: by the names that diffusers has for them; the denoiser first.
        controls: how ControlNets steer its denoiser; `None` if they can't.
    """

    family: str
    loader: Any
    networks: Mapping[str, nn.Module]
    controls: ControlFamily | None = None

    @property
    def denoiser(self) -> str:
        """The name of the denoiser."""
        return next(iter(self.networks))


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a LoRA does to one layer at scale 1.

    Attributes:
        layer: the layer.
        down: (r,in) or (r,in,kernel,kernel).
        up: float32 (out,r).
        magnitude: float32 (out,), the lengths of the changed weights, if it is DoRA.
    """

    layer: nn.Module
    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None


_BY_NAME = (
    ("Flux", ("flux",)),
    ("Stable Diffusion 3", ("sd3", "stable-diffusion-3", "stable-diffusion-v3")),
    ("Stable Diffusion XL", ("sdxl", "stable-diffusion-xl")),
    ("Stable Diffusion 2", ("sd_v2", "stable-diffusion-v2", "stable-diffusion-2")),
    ("Stable Diffusion 1", ("sd_v1", "stable-diffusion-v1", "stable-diffusion-1")),
    ("Prompted pixels", ("prompted-pixels",)),
)
_BY_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Families by the width of the states that cross-attention reads."""


def family_of(file: LoraFile) -> str | None:
    """The family that a LoRA is for, as its metadata or else its layers tell; `None` if they don't."""
    said = " ".join(file.metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")).lower()
    for family, words in _BY_NAME:
        if any(word in said for word in words):
            return family
    layers = "\n".join(file.tensors)
    if re.search(r"single_transformer_blocks|double_blocks|single_blocks", layers):
        return "Flux"
    if re.search(r"joint_blocks|transformer\.transformer_blocks|add_k_proj", layers):
        return "Stable Diffusion 3"
    for name, tensor in file.tensors.items():
        if re.search(r"attn2[._](processor[._])?to_k.*(lora_A|down)\.", name):
            return _BY_WIDTH.get(tensor.shape[1])
    return None


def changes_of(file: LoraFile, base: AdapterBase) -> list[Change]:
    """What the LoRA does to the layers of a pack.

    Raises:
        InvalidLora: it is for another family, or not all of it can be put to use.
    """
    family = family_of(file)
    if family not in (None, base.family):
        raise InvalidLora(f"it is for {family}, and the model is {base.family}")
    by_network = _converted(file, base)
    unknown = [name for name, state in by_network.items() if name not in base.networks and state]
    if unknown and unknown != [""]:
        raise InvalidLora(f"it changes a {unknown[0]}, which the model ({base.family}) does not have")
    found, missing = list[Change](), list[str]()
    for name, network in base.networks.items():
        scale = _scales(file, name)
        for path, down, up, magnitude in _parts(by_network.get(name, {})):
            layer = _layer(network, path)
            if layer is None:
                missing.append(f"{name}.{path}")
            else:
                up = up.float() * scale(path, len(down))
                found.append(_change(layer, f"{name}.{path}", down, up, magnitude))
    if not found:
        raise InvalidLora(f"it is for another model than {base.family}: none of its layers is in it")
    if missing or unknown:
        first = missing[0] if missing else next(iter(by_network[""]))
        more = len(missing) + len(by_network.get("", ())) - 1
        raise InvalidLora(f"the model ({base.family}) has no {first}{f' (and {more} more)' if more > 0 else ''}")
    if sum(change.magnitude is not None for change in found) != file.magnitudes:
        raise InvalidLora(f"it is DoRA in a layout whose magnitudes diffusers does not read for {base.family}")
    return found


def _converted(file: LoraFile, base: AdapterBase) -> dict[str, State]:
    """The tensors in peft's names, by the network that they belong to; under "" those that belong to none."""
    state = _with_alphas_folded(_prefixed(file, base))
    state = _named_as_in_the_networks(state, base) or state
    config = {"unet_config": base.networks["unet"].config} if "unet" in base.networks else {}
    try:
        converted = base.loader.lora_state_dict(state, **config)
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidLora(f"diffusers can't read it as a LoRA for {base.family}: {reason}") from error
    tensors = converted[0] if isinstance(converted, tuple) else converted
    by_network: dict[str, State] = {}
    for name, tensor in tensors.items():
        network, _, rest = name.partition(".")
        is_known = network in base.networks or network.startswith("text_encoder")
        by_network.setdefault(network if is_known else "", {})[rest if is_known else name] = tensor
    return {
        name: _in_peft_names(state, is_denoiser=name == base.denoiser) if name else state
        for name, state in by_network.items()
    }


def _prefixed(file: LoraFile, base: AdapterBase) -> State:
    """The tensors, with the denoiser's name before those that are not said to be of any network: peft's."""
    state = {name.removeprefix(_PEFT): tensor for name, tensor in file.tensors.items()}
    known = re.compile(r"(unet|transformer|text_encoder(_[23])?|diffusion_model|double_blocks|single_blocks)\.|lora_")
    if any(map(known.match, state)):
        return state
    return {f"{base.denoiser}.{name}": tensor for name, tensor in state.items()}


def _with_alphas_folded(state: State) -> State:
    """The tensors with α/r of each layer in its upper matrix, for layouts that have an α beside it."""
    folded = dict(state)
    for name, alpha in state.items():
        layer = name.removesuffix(".alpha")
        for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up")):
            lower, upper = f"{layer}.{down}.weight", f"{layer}.{up}.weight"
            if layer != name and lower in state and upper in state:
                rank = len(state[lower])
                folded[upper] = state[upper].float() * (float(alpha) / rank)
                folded[name] = alpha.new_tensor(float(rank)).float()
    return folded


def _named_as_in_the_networks(state: State, base: AdapterBase) -> State | None:
    """Tensors in kohya's names, if all of them are diffusers' or transformers' paths with underscores.

    Only a network's own paths say where an underscore was a dot.
    """
    prefixes = {
        "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",), base.denoiser: ("lora_unet",)
    }  # fmt: skip
    layers = {
        f"{prefix}_{path.replace('.', '_')}": f"{name}.{path}"
        for name, network in base.networks.items()
        for own, _ in network.named_modules()
        for path in ({own, f"text_model.{own}"} if name != base.denoiser else {own})
        for prefix in prefixes.get(name, ())
    }
    named: State = {}
    for name, tensor in state.items():
        layer, _, kind = name.partition(".")
        if layer not in layers or kind not in _KOHYA:
            return None
        if part := _KOHYA[kind]:
            named[f"{layers[layer]}.{part}"] = tensor
    return named


def _in_peft_names(state: State, *, is_denoiser: bool) -> State:
    if not is_denoiser:
        return dict(convert_state_dict_to_peft(convert_state_dict_to_diffusers(state)))
    if any("lora_A" in name for name in state):
        return state
    return dict(convert_unet_state_dict_to_peft(state))


def _parts(state: State) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """The layers' paths, with the two matrices of each, and its magnitudes if it is DoRA.

    Raises:
        InvalidLora: one of them lacks its other.
    """
    for name, down in state.items():
        path, is_down, _ = name.partition(".lora_A.")
        if not is_down:
            if _MAGNITUDE in name:
                continue
            if ".lora_B." not in name:
                raise InvalidLora(f"it has a {name}, which is no part of a LoRA")
            if name.replace(".lora_B.", ".lora_A.") not in state:
                raise InvalidLora(f"its {name} has no lower matrix")
            continue
        up = state.get(name.replace(".lora_A.", ".lora_B."))
        if up is None:
            raise InvalidLora(f"its {name} has no upper matrix")
        magnitudes = (state.get(f"{path}{_MAGNITUDE}{end}") for end in ("", ".weight"))
        yield path, down, up, next((one for one in magnitudes if one is not None), None)


def _scales(file: LoraFile, network: str) -> Callable[[str, int], float]:
    """α/r by a layer's path and r, as the configuration in the file says it; 1 without one.

    Raises:
        InvalidLora: the configuration is that of something else than LoRA or DoRA.
    """
    config = _config(file, network)
    for field, plain in (("use_dora", file.magnitudes > 0), ("bias", "none"), ("lora_bias", False)):
        if config.get(field, plain) not in (plain, None):
            raise InvalidLora(f"its configuration has {field} {config[field]}, which is not supported")
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}

    def scale(path: str, rank: int) -> float:
        if alpha is None:
            return 1.0
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)
        own = float(alpha if key is None else patterns[key])
        return own / (sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def _config(file: LoraFile, network: str) -> dict[str, Any]:
    """Peft's configuration for one network, from the file's metadata or from beside the file."""
    try:
        if LORA_ADAPTER_METADATA_KEY in file.metadata:
            packed = json.loads(file.metadata[LORA_ADAPTER_METADATA_KEY])
            prefix = f"{network}."
            return {key.removeprefix(prefix): value for key, value in packed.items() if key.startswith(prefix)}
        return dict(json.loads(file.metadata.get("adapter_config", "{}")))
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidLora(f"its configuration is not valid JSON: {error}") from error


def _layer(network: nn.Module, path: str) -> nn.Module | None:
    for tried in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            return network.get_submodule(tried)
        except AttributeError:
            continue
    return None


def _change(layer: Any, name: str, down: Tensor, up: Tensor, magnitude: Tensor | None) -> Change:
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() not in (2, 4) or isinstance(layer, nn.Embedding):
        raise InvalidLora(f"it changes {name}, which is neither linear nor a convolution")
    if getattr(layer, "groups", 1) != 1:
        raise InvalidLora(f"it changes {name}, a convolution in groups, which is not supported")
    expected = (len(down), *weight.shape[1:])
    flat = up.reshape(up.shape[0], -1)
    if tuple(down.shape) != expected or tuple(flat.shape) != (weight.shape[0], len(down)):
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise InvalidLora(f"its matrices for {name} are {shapes}, and the layer's weights {tuple(weight.shape)}")
    if magnitude is None:
        return Change(layer=layer, down=down, up=flat)
    if magnitude.numel() != len(flat):
        raise InvalidLora(
            f"its magnitudes for {name} are {tuple(magnitude.shape)}, and the layer has {len(flat)} outputs"
        )
    return Change(layer=layer, down=down, up=flat, magnitude=magnitude.float().flatten())

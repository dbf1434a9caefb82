"""Families of models that come as single files: how their components are named in the file, and what it predicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    LDM_UNET_KEY,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from models.importing.errors import Unfit
from models.importing.single_files.file import SingleFile, under

Weights = dict[str, Tensor]
Convert = Callable[[Weights, Any], Weights]
"""Takes a component's tensors without their prefix, and its network for the configuration; gives diffusers' names."""

DENOISER = "model.diffusion_model."
CONV_IN = "input_blocks.0.0.weight"
PLAIN_CHANNELS, INPAINTING_CHANNELS = 4, 9


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A component in a single file.

    Attributes:
        network: its class.
        prefixes: of its tensors' names; the first that the file has.
        convert: to diffusers' names.
        optional: whether models are served without it.
    """

    network: type
    prefixes: tuple[str, ...]
    convert: Convert
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models with the same components.

    Attributes:
        name: for messages.
        base: diffusers' name for its usual type, which has a repository with configuration and tokenizers.
        layouts: by component.
        flows: whether it is trained on straight paths, so that there is only one prediction type.
    """

    name: str
    base: str
    layouts: Mapping[str, Layout] = field(repr=False)
    flows: bool = False


def _by_diffusers(prefix: str = "") -> Convert:
    """The converter that `from_single_file` of the network's class uses, for names that begin with `prefix`."""

    def convert(tensors: Weights, network: Any) -> Weights:
        entry = SINGLE_FILE_LOADABLE_CLASSES[type(network).__name__]
        named = {prefix + name: tensor for name, tensor in tensors.items()}
        converted: Weights = entry["checkpoint_mapping_fn"](checkpoint=named, config=network.config)
        return converted

    return convert


def _as_named(tensors: Weights, network: Any) -> Weights:
    return tensors


def _with_identity(tensors: Weights, network: Any) -> Weights:
    """Stable Diffusion 3 reads CLIP-L's pooled vector without its projection; diffusers does so by a unit matrix."""
    width = network.config.hidden_size
    return {**tensors, "text_projection.weight": torch.eye(width, dtype=next(iter(tensors.values())).dtype)}


def _open_clip(prefix: str) -> Convert:
    """OpenCLIP's layout; the prefix says to diffusers which layers are not read."""

    def convert(tensors: Weights, network: Any) -> Weights:
        named = {prefix + name: tensor for name, tensor in tensors.items()}
        converted: Weights = convert_open_clip_checkpoint(network, named, prefix=prefix)
        return converted

    return convert


_VAE = Layout(network=AutoencoderKL, prefixes=("first_stage_model.", "vae."), convert=_by_diffusers())
_UNET = Layout(network=UNet2DConditionModel, prefixes=(DENOISER, ""), convert=_by_diffusers(LDM_UNET_KEY))
_OPEN_CLIP_2, _OPEN_CLIP_XL = "cond_stage_model.model.", "conditioner.embedders.1.model."
_CLIP_L, _CLIP_G, _T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))

_FLUX = {
    "transformer": Layout(network=FluxTransformer2DModel, prefixes=(DENOISER, ""), convert=_by_diffusers()),
    "vae": _VAE,
    "text_encoder": Layout(network=CLIPTextModel, prefixes=(_CLIP_L,), convert=_as_named),
    "text_encoder_2": Layout(network=T5EncoderModel, prefixes=(_T5,), convert=_as_named),
}
SD1 = Family(
    name="Stable Diffusion 1",
    base="v1",
    layouts={
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": Layout(network=CLIPTextModel, prefixes=("cond_stage_model.transformer.",), convert=_as_named),
    },
)
SD2 = Family(
    name="Stable Diffusion 2",
    base="v2",
    layouts={
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": Layout(network=CLIPTextModel, prefixes=(_OPEN_CLIP_2,), convert=_open_clip(_OPEN_CLIP_2)),
    },
)
XL = Family(
    name="Stable Diffusion XL",
    base="xl_base",
    layouts={
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": Layout(
            network=CLIPTextModel, prefixes=("conditioner.embedders.0.transformer.",), convert=_as_named
        ),
        "text_encoder_2": Layout(
            network=CLIPTextModelWithProjection, prefixes=(_OPEN_CLIP_XL,), convert=_open_clip(_OPEN_CLIP_XL)
        ),
    },
)
SD3 = Family(
    name="Stable Diffusion 3",
    base="sd3",
    flows=True,
    layouts={
        "transformer": Layout(network=SD3Transformer2DModel, prefixes=(DENOISER, ""), convert=_by_diffusers()),
        "vae": _VAE,
        "text_encoder": Layout(network=CLIPTextModelWithProjection, prefixes=(_CLIP_L,), convert=_with_identity),
        "text_encoder_2": Layout(network=CLIPTextModelWithProjection, prefixes=(_CLIP_G,), convert=_as_named),
        "text_encoder_3": Layout(network=T5EncoderModel, prefixes=(_T5,), convert=_as_named, optional=True),
    },
)
FLUX_DEV = Family(name="Flux.1 with a guidance input, as dev", base="flux-dev", layouts=_FLUX, flows=True)
FLUX_SCHNELL = Family(
    name="Flux.1 without a guidance input, as schnell", base="flux-schnell", layouts=_FLUX, flows=True
)
_SERVED = {"v1", "v2", "xl_base", "inpainting", "inpainting_v2", "xl_inpaint", "sd3", "sd35_large", "sd35_medium"}
_SERVED |= {"flux-dev", "flux-schnell"}

_OTHER_KINDS: Mapping[str, str] = {
    r"lora[_.]|\.(lora|lokr|hada|oft)_|\.dora_scale$": "is a LoRA, a change to a checkpoint and not one; import the "
    "checkpoint that it was made for",
    r"^control_model\.|controlnet|input_hint_block|zero_convs": "is a ControlNet, which steers a checkpoint and is "
    "not one",
    r"scaled_fp8|scale_weight|weight_scale|comfy_quant|absmax|quant_state": "is quantized, with scales of its own; "
    "import the float16, bfloat16 or plain float8 file of the same model",
    r"^(image_proj|ip_adapter)\.": "is an IP-Adapter, which steers a checkpoint and is not one",
    r"^(emb_params|string_to_param.*|clip_[lg]|\*)$": "is an embedding (textual inversion), which adds words to a "
    "checkpoint and is not one",
}
"""By a pattern of a tensor's name: files that are no checkpoint, whatever else they hold."""
_LONE: Mapping[str, str] = {
    r"^(down_blocks|up_blocks|(single_)?transformer_blocks|time_text_embed)\.": "is a denoiser in diffusers' layout; "
    "put it into the folder of its pipeline and serve that",
    r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(down|up|mid|down_blocks|up_blocks|mid_block)\b": "is a lone "
    "autoencoder (VAE); import a checkpoint with a denoiser",
    r"^(text_model|text_encoders|cond_stage_model|conditioner|token_embedding|encoder\.block|shared)\b": "is a lone "
    "text encoder; import a checkpoint with a denoiser",
}
"""The same, for files without a denoiser."""


def family_of(file: SingleFile) -> Family:
    """Find a file's family by its tensors' names and shapes.

    Raises:
        Unfit: it holds no checkpoint, or one of a family that is not served.
    """
    _refuse(file, _OTHER_KINDS)
    inner = under(file.tensors, DENOISER) or file.tensors
    kind = _diffusers_type(file)
    if kind is not None and kind not in _SERVED:
        raise Unfit(f"{file.path} is of type {kind}, which is not served; served: {_names()}")
    if "joint_blocks.0.context_block.attn.qkv.weight" in inner:
        return SD3
    if "double_blocks.0.img_attn.qkv.weight" in inner:
        return FLUX_DEV if "guidance_in.in_layer.weight" in inner else FLUX_SCHNELL
    if CONV_IN not in inner:
        _refuse(file, _LONE)
        raise Unfit(f"{file.path} holds no denoiser of a known family; served: {_names()}")
    _check_inputs(file, inner[CONV_IN].shape[1])
    if "label_emb.0.0.weight" in inner:
        if under(file.tensors, "conditioner.embedders.0.model."):
            raise Unfit(
                f"{file.path} is the refiner of Stable Diffusion XL, which is not served; import the base model"
            )
        return XL
    projection = next((tensor for name, tensor in inner.items() if name.endswith(".proj_in.weight")), None)
    return SD2 if projection is not None and projection.ndim == 2 else SD1  # 1 projects by 1×1 convolutions


def usual_base(file: SingleFile, family: Family) -> str:
    """The repository on the hub that diffusers takes for a file's type."""
    kind = _diffusers_type(file)
    known = kind if kind in _SERVED - {SD1.base} else family.base
    return str(DIFFUSERS_DEFAULT_PIPELINE_PATHS[known]["pretrained_model_name_or_path"])


def _names() -> str:
    return ", ".join([*(family.name for family in (SD1, SD2, XL, SD3)), "Flux.1"])


def _refuse(file: SingleFile, kinds: Mapping[str, str]) -> None:
    for pattern, text in kinds.items():
        if any(re.search(pattern, name) for name in file.tensors):
            raise Unfit(f"{file.path} {text}")


def _diffusers_type(file: SingleFile) -> str | None:
    """What diffusers takes the file for; it says v1 if it does not know."""
    try:
        return str(infer_diffusers_model_type(file.tensors))
    except (KeyError, ValueError, UnboundLocalError):
        return None


def _check_inputs(file: SingleFile, channels: int) -> None:
    if channels not in (PLAIN_CHANNELS, INPAINTING_CHANNELS):
        raise Unfit(
            f"{file.path} has a UNet of {channels} input channels (upscaling, depth and editing models have such); "
            f"served: {PLAIN_CHANNELS}, and {INPAINTING_CHANNELS} for inpainting"
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network predicts.

    Attributes:
        kind: diffusers' name.
        because: how it is known.
        ends_in_noise: whether its schedule ends in pure noise (zero terminal SNR, Lin et al. 2023).
    """

    kind: str
    because: str
    ends_in_noise: bool = False


def prediction_of(file: SingleFile, family: Family, scheduler: Mapping[str, Any], base: str) -> Prediction:
    """Find what a file's network predicts: by a mark in the file, else by its base's scheduler.

    Raises:
        Unfit: it has marks of a noise schedule that is not served.
    """
    if family.flows:
        return Prediction(kind="flow", because="as all of its family")
    if edm := next((name for name in file.tensors if name.startswith("edm_")), None):
        raise Unfit(f"{file.path} has EDM's noise levels (its tensor {edm}), which are not served")
    ends_in_noise = "ztsnr" in file.tensors
    if "v_pred" in file.tensors:
        return Prediction(kind="v_prediction", because="its tensor v_pred", ends_in_noise=ends_in_noise)
    said = file.metadata.get("modelspec.prediction_type")
    if said in ("v", "epsilon"):
        kind = "v_prediction" if said == "v" else said
        return Prediction(kind=kind, because="its modelspec.prediction_type", ends_in_noise=ends_in_noise)
    kind = str(scheduler.get("prediction_type", "epsilon"))
    return Prediction(kind=kind, because=f"the scheduler of {base}", ends_in_noise=ends_in_noise)

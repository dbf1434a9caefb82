"""A pack's IP-Adapter (Ye et al. 2023) with its image encoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from models.adapters.errors import InvalidImagePrompts
from models.adapters.images.attention import make_attentive
from models.adapters.images.file import IpAdapterFile, read_ip_adapter
from models.adapters.rows import KeyValue, RowImage
from models.configs.text_encoders import CLIP_VISION
from models.lanes import first_call
from models.memory import load_shared
from models.pack import InvalidPack, Pack
from models.precision import Precision
from models.spec import ImagePrompt, Pixels
from models.weights import turn

MOST_IN_A_ROW = 4
MOST_KEPT = 16  # pictures whose keys and values stay in memory, besides those that pictures in progress need
_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor")


class ImagePrompts:
    """Makes of pictures what the UNet's cross-attentions look at. For one thread: the one that prepares.

    A picture is fitted as the pack's `feature_extractor` says, or else as CLIP's pictures are: its shorter side to
    what the encoder reads, and the square in its middle.

    Args:
        pack: the folder.
        unet: its UNet.
        device: of the UNet.
        precision: of the UNet, which says in which format the encoder runs.

    Attributes:
        kind: "plain", "plus" or "full-face".
        digest: SHA-256 of the adapter's file.

    Raises:
        InvalidPack: the adapter, the encoder or the feature extractor can't be used, or they don't fit each other or
            the UNet.
    """

    def __init__(self, pack: Pack, unet: UNet2DConditionModel, device: torch.device, precision: Precision) -> None:
        file = read_ip_adapter(pack)
        self.kind, self.digest = file.kind, file.digest
        self._device, self._dtype = device, unet.dtype
        self._encoder: Any = load_shared(
            CLIPVisionModelWithProjection,
            pack,
            "image_encoder",
            device,
            precision.of_autoencoder,
            keys=CLIP_VISION,
            may_be_null=True,
        )
        config: Any = self._encoder.config
        width = config.projection_dim if self.kind == "plain" else config.hidden_size
        if file.read_width != width:
            raise InvalidPack(
                f"{file.name} reads {file.read_width} numbers, and {pack.component('image_encoder')} gives {width}: it "
                "was trained with another encoder"
            )
        self._processor = _processor(pack, config.image_size)
        self._projection, self._layers = _converted(file, unet, device)
        self._called: set[str] = set()
        self._is_ready = False
        self._seen = functools.lru_cache(maxsize=MOST_KEPT)(self._look_at)

    def of(self, prompts: Sequence[ImagePrompt]) -> tuple[RowImage, ...]:
        """What rows with these prompts look at; nothing for those of scale 0.

        Raises:
            InvalidImagePrompts: there are too many.
        """
        if len(prompts) > MOST_IN_A_ROW:
            raise InvalidImagePrompts(
                f"image_prompts: {len(prompts)} are given; at most {MOST_IN_A_ROW} prompt a picture"
            )
        wanted = [prompt for prompt in prompts if prompt.scale]
        if wanted and not self._is_ready:
            for attention, _, _ in self._layers:
                make_attentive(attention.to_q, attention.to_out[0])
            self._is_ready = True
        return tuple(
            RowImage(scale=prompt.scale, seen=self._seen(prompt.image), blank=self._blank) for prompt in wanted
        )

    def _look_at(self, picture: Pixels) -> Mapping[nn.Module, KeyValue]:
        pixels = self._processor(Image.fromarray(picture.array()), return_tensors="pt").pixel_values
        return self._keys_and_values(self._encoded(pixels))

    @functools.cached_property
    def _blank(self) -> Mapping[nn.Module, KeyValue]:
        """What unconditional rows look at, as in diffusers: an embedding of zeros, or that of a picture of zeros."""
        side = self._encoder.config.image_size
        encoded = self._encoded(torch.zeros(1, 3, side, side))
        return self._keys_and_values(torch.zeros_like(encoded) if self.kind == "plain" else encoded)

    @torch.inference_mode()
    def _encoded(self, pixels: Tensor) -> Tensor:
        """Of pixels (1,3,side,side), the embedding (1,width), or for other kinds than plain states (1,tokens,width)."""
        with first_call(self._called, self.kind), turn(self._encoder):
            is_plain, given = self.kind == "plain", pixels.to(self._device, self._encoder.dtype)
            output = self._encoder(given, output_hidden_states=not is_plain)
        encoded: Tensor = output.image_embeds if is_plain else output.hidden_states[-2]
        return encoded

    @torch.inference_mode()
    def _keys_and_values(self, encoded: Tensor) -> Mapping[nn.Module, KeyValue]:
        [tokens] = self._projection(encoded.to(self._dtype))
        return {
            attention.to_out[0]: (_by_head(key(tokens), attention.heads), _by_head(value(tokens), attention.heads))
            for attention, key, value in self._layers
        }


def _by_head(states: Tensor, heads: int) -> Tensor:
    """(tokens,width) → (heads,tokens,width per head)."""
    return states.view(len(states), heads, -1).transpose(0, 1).contiguous()


def _processor(pack: Pack, side: int) -> Any:
    """What fits pictures for an encoder that reads squares of `side` pixels."""
    if not pack.has("feature_extractor"):
        return CLIPImageProcessorPil(size=side, crop_size=side)
    folder, declared = pack.component("feature_extractor"), pack.declared_class("feature_extractor")
    if declared not in _PROCESSORS:
        raise InvalidPack(f"{folder} is of class {declared}; an IP-Adapter is served with {_PROCESSORS[0]}")
    try:
        processor: Any = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidPack(f"{folder} can't be loaded as {_PROCESSORS[0]}: {reason[:300]}") from error
    height, width = processor(Image.new("RGB", (2 * side, side)), return_tensors="pt").pixel_values.shape[-2:]
    if (height, width) != (side, side):
        raise InvalidPack(f"{folder} makes pictures of {width}×{height}, and the image_encoder reads {side}×{side}")
    return processor


def _converted(
    file: IpAdapterFile, unet: UNet2DConditionModel, device: torch.device
) -> tuple[nn.Module, list[tuple[Any, nn.Module, nn.Module]]]:
    """What makes tokens, and the UNet's cross-attentions, each with what makes keys and values of tokens for it."""
    crossing = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    expected = {f"{2 * number + 1}.to_{part}_ip.weight" for number in range(len(crossing)) for part in "kv"}
    if different := sorted(expected ^ file.layers.keys()):
        raise InvalidPack(f"{file.name} is for another UNet: {different[0]} is only in one of the two")
    how: Any = {"low_cpu_mem_usage": False}
    try:
        processors: Any = unet._convert_ip_adapter_attn_to_diffusers([file.state], **how)
        projection: nn.Module = unet._convert_ip_adapter_image_proj_to_diffusers(file.state["image_proj"], **how)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidPack(
            f"{file.name} does not fit the UNet of {unet.config.cross_attention_dim} numbers a token: {reason[:300]}"
        ) from error

    def ready(module: nn.Module) -> nn.Module:
        return module.to(device, unet.dtype).eval().requires_grad_(False)

    layers = []
    for name in crossing:
        key, value = processors[name].to_k_ip[0], processors[name].to_v_ip[0]
        layers.append((unet.get_submodule(name.removesuffix(".processor")), ready(key), ready(value)))
    return ready(projection), layers

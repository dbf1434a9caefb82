"""ADM's UNet on pixels, super-resolution included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.adapters import AdapterBase, Adapters, ImagePrompts
from models.configs import every_key
from models.denoisers.base import BatchedEncoder, Conditioning, Sizes
from models.loading import load_component
from models.networks import AdmUNet
from models.networks.tokens import Readings
from models.pack import Pack
from models.precision import Precision
from models.spec import InvalidSpec, PromptOptions, SampleSpec


class AdmDenoiser:
    """Class-conditional ADM networks have no null class: unconditional rows need a second pack (`guide_pack`)."""

    takes_prompt = False
    prompt_options = PromptOptions()
    sees_mask = False
    takes_size_conditioning = False
    patch = 1
    default_scale = 3.0
    encoders: Sequence[BatchedEncoder] = ()
    has_autoencoder = False
    adapter_base: AdapterBase | None = None
    adapters: Adapters | None = None
    image_prompts: ImagePrompts | None = None
    has_deep_blocks = False

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_component(AdmUNet, pack, "unet", device, precision, keys=every_key(AdmUNet))
        config = self.network.config
        self.prediction_type = str(pack.scheduler_config["prediction_type"])
        self.latent_shape = (config.in_channels, config.image_size, config.image_size)
        self.picture_size = (config.image_size, config.image_size)
        self.sizes = Sizes.only(*self.picture_size)
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.has_classes = config.num_classes is not None
        self.has_null = not self.has_classes
        self.learns_variance = bool(config.learn_sigma)
        self.low_res_size: int | None = config.low_res_size

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        conditioning: dict[str, Tensor] = {}
        if self.has_classes:
            if spec.class_index is None:
                raise InvalidSpec("this model needs a label")
            conditioning["labels"] = torch.tensor(spec.class_index)
        if self.low_res_size is not None:
            if spec.init_image is None:
                raise InvalidSpec("this model enlarges a picture: it needs an init_image")
            picture = torch.from_numpy(spec.init_image.array().copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            conditioning["low_res"] = functional.interpolate(picture, (self.low_res_size,) * 2, mode="area")[0]
        return conditioning, conditioning

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.network.dtype
        low_res = conditioning["low_res"].to(dtype) if "low_res" in conditioning else None
        return self.network(x.to(dtype), timesteps, conditioning.get("labels"), low_res).float()

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        pass

    def readings(self, spec: SampleSpec) -> Readings:
        return {}

    def decode(self, x: Tensor) -> Tensor:
        return x

    def encode(self, pictures: Tensor) -> Tensor:
        return pictures

    def encode_mask(self, mask: Tensor) -> Tensor:
        return mask

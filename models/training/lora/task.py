"""The loss of a LoRA, for every family that takes prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from models.denoisers import Conditioning, Denoiser, load_denoiser
from models.pack import InvalidPack, Pack
from models.samplers import FLOW_PREDICTION
from models.spec import SampleSpec
from models.training.data import LabelledImages, to_unit_range
from models.training.diffusion import spread_timesteps

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ARCHITECTURES = {
    "Stable Diffusion 1": "stable-diffusion-v1",
    "Stable Diffusion 2": "stable-diffusion-v2",
    "Stable Diffusion XL": "stable-diffusion-xl-v1-base",
    "Stable Diffusion 3": "stable-diffusion-3",
    "Flux": "flux-1",
    "Prompted pixels": "cynosure-prompted-pixels",
}
"""The families' names in the metadata of files, by the modelspec standard."""
_NAME = "default"


class LoraTask:
    """Predict what the pack's network predicts, of noised pictures and their captions, by changing few weights of it.

    Args:
        pack: the model.
        captions: of the pictures, by label.
        rank: of every layer's product.
        layers: which layers: those of attention, or all that are linear or convolutions.
        caption_dropout: probability of training a picture without its caption.
        about: metadata of the file.

    Raises:
        InvalidPack: the pack takes no LoRAs, or has no such layers.
    """

    def __init__(
        self,
        pack: Pack,
        captions: Sequence[str],
        *,
        rank: int,
        layers: str,
        caption_dropout: float,
        about: dict[str, str],
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # in the extra [train]

        self._pack = pack
        self._dropout = caption_dropout
        adapter: Any = load_denoiser(pack, torch.device("cpu"))
        base = adapter.adapter_base
        if base is None:
            raise InvalidPack(f"'{pack.name}' ({pack.family}) takes no LoRAs")
        self._base = base
        self._about = {"format": "pt", "modelspec.architecture": f"{ARCHITECTURES[base.family]}/lora", **about}
        network: Any = (
            type(adapter.network)
            .from_pretrained(pack.component(base.denoiser), use_safetensors=True, local_files_only=True)
            .float()
        )
        adapter.network = self._whole = network.requires_grad_(False)  # its layers can be trained
        self._denoiser: Any = adapter
        chosen = [name for name, layer in network.named_modules() if _is_chosen(name, layer, layers)]
        if not chosen:
            raise InvalidPack(f"'{pack.name}' has no layers of attention: train all, with --layers all")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen), network, _NAME)
        self.network = nn.ModuleList(
            getattr(layer, part)[_NAME]
            for layer in network.modules()
            if hasattr(layer, "lora_A")
            for part in ("lora_A", "lora_B")
        )
        self._told = [self._conditioning(caption) for caption in (*captions, None)]
        self._predict = inspect.unwrap(type(self._denoiser).forward)  # with gradients
        self._noising = DDPMScheduler.from_config(pack.scheduler_config)

    @property
    def denoiser(self) -> Denoiser:
        """What says which size the pictures have."""
        denoiser: Denoiser = self._denoiser
        return denoiser

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's output, over batch and latents."""
        encoded = self._denoiser.encode(to_unit_range(batch.images)).clone()  # usable with gradients
        noise = torch.randn(encoded.shape, generator=generator)
        timesteps = spread_timesteps(len(batch), self._pack.num_train_timesteps, generator)
        dropped = torch.rand(len(batch), generator=generator) < self._dropout
        told = torch.where(dropped, len(self._told) - 1, batch.labels).tolist()
        rows = [self._told[number] for number in told]
        conditioning = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        x_t, target = self._noised(encoded, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            output = self._predict(self._denoiser, x_t, timesteps.float(), conditioning)
        return functional.mse_loss(output.float()[:, : target.shape[1]], target)

    def save(self, folder: Path) -> None:
        """Write the LoRA in diffusers' layout, in half precision, as the folder's name with `.safetensors`."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self._whole, adapter_name=_NAME)
        tensors = {f"{self._base.denoiser}.{name}": value.half().contiguous() for name, value in state.items()}
        target = folder.with_name(f"{folder.name}.safetensors")
        partial = target.with_suffix(".partial")
        partial.write_bytes(save(tensors, self._about))
        partial.replace(target)

    def _noised(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents, and what the network is to predict of them."""
        kind = self._denoiser.prediction_type
        if kind == FLOW_PREDICTION:
            share = (timesteps / self._pack.num_train_timesteps).view(-1, *[1] * (x.dim() - 1))
            return (1 - share) * x + share * noise, noise - x
        targets = {"epsilon": noise, "sample": x, "v_prediction": self._noising.get_velocity(x, noise, timesteps)}
        return self._noising.add_noise(x, noise, timesteps), targets[kind]

    def _conditioning(self, caption: str | None) -> Conditioning:
        row = self._denoiser.conditioning(SampleSpec(pack=self._pack.name, prompt=caption))[0]
        return {name: tensor.clone() for name, tensor in row.items()}


def _is_chosen(name: str, layer: nn.Module, layers: str) -> bool:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return False
    return layers == "all" or name.endswith(tuple(f".{end}" for end in ATTENTION))

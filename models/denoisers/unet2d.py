"""`diffusers.UNet2DModel` on pixels."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor

from models.configs.networks import UNET_2D
from models.denoisers.base import Conditioning
from models.denoisers.pixels import FoldedPixels
from models.loading import load_component
from models.pack import InvalidPack, Pack
from models.precision import Precision
from models.spec import SampleSpec


class UNet2DDenoiser(FoldedPixels):
    """Class `null_label` of the pack, if set, means "no label"."""

    takes_prompt = False
    sees_mask = False
    low_res_size: int | None = None
    learns_variance = False

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_component(UNet2DModel, pack, "unet", device, precision, keys=UNET_2D)
        config = self.network.config
        super().__init__(config.in_channels, config.sample_size, int(pack.index.get("pixel_unshuffle", 1)))
        self.prediction_type = str(pack.scheduler_config["prediction_type"])
        self.null_label: int | None = pack.index.get("null_label")
        classes, named = int(config.num_class_embeds or 0), len(pack.labels)
        self.has_classes = classes > 0
        self.has_null = self.null_label is not None or not self.has_classes
        if self.has_classes:
            fits = 0 < named <= classes and 0 <= (self.null_label or 0) < classes
        else:
            fits = self.null_label is None and (named == 0 or pack.has_classifier)
        if not fits:
            raise InvalidPack(
                f"{pack.folder}: num_class_embeds is {classes} in unet/config.json, but model_index.json names {named} "
                f"classes by id2label and has null_label {self.null_label}"
            )
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        null = 0 if self.null_label is None else self.null_label
        label = null if spec.class_index is None else spec.class_index
        return {"labels": torch.tensor(label)}, {"labels": torch.tensor(null)}

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        labels = conditioning["labels"] if self.has_classes else None
        return self.network(x.to(self.network.dtype), timesteps, class_labels=labels).sample.float()

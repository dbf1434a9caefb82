"""The folder that a single file takes from what it does not hold: configuration, tokenizers, missing components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from models.configs import check_index
from models.importing.errors import Unfit
from models.importing.single_files.families import FLUX_DEV, FLUX_SCHNELL, SD1, SD2, SD3, XL, Family, Weights
from models.loading import weight_files
from models.pack import HUB_ID, Pack, downloaded, open_pack, read_object

_CONFIGURATION = ("*.json", "*.txt", "*.model")
_VARIANTS = ("*.fp16*", "*.bf16*", "*.non_ema*")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A pipeline's folder in diffusers' layout, on disk or on the hub.

    Attributes:
        name: as it was given.
        pack: its configuration.
        family: which models it is for.
    """

    name: str
    pack: Pack
    family: Family

    def config(self, component: str) -> dict[str, Any]:
        return read_object(self.pack.component(component) / "config.json")

    def weights(self, component: str) -> Weights:
        """A component's tensors, mapped from its files; from the hub they are downloaded now.

        Raises:
            InvalidPack: it has none as safetensors.
        """
        if on_hub := HUB_ID.fullmatch(self.name):
            downloaded(on_hub["repository"], on_hub["revision"], (f"{component}/*.safetensors",), _VARIANTS)
        return {
            name: tensor
            for path in weight_files(self.pack.component(component))
            for name, tensor in load_file(path).items()
        }


def open_base(name: str) -> Base:
    """Open a base by folder, or by `owner/name@COMMIT` on the hub, of which only configuration is downloaded.

    Raises:
        InvalidPack: it is no pipeline that is served.
        Unfit: it is of no family that comes as single files.
    """
    on_hub = None if Path(name).expanduser().is_dir() else HUB_ID.fullmatch(name)
    pack = open_pack(str(downloaded(on_hub["repository"], on_hub["revision"], _CONFIGURATION)) if on_hub else name)
    check_index(pack)
    return Base(name=name, pack=pack, family=_family(pack))


def _family(pack: Pack) -> Family:
    pipeline = str(pack.index["_class_name"])
    config: Mapping[str, Any] = {}
    for component in ("unet", "transformer"):
        if pack.has(component):
            config = read_object(pack.component(component) / "config.json")
    if pipeline.startswith("StableDiffusionXL"):
        return XL
    if pipeline.startswith("StableDiffusion3"):
        return SD3
    if pipeline.startswith("Flux"):
        return FLUX_DEV if config.get("guidance_embeds") else FLUX_SCHNELL
    if pipeline.startswith(("StableDiffusion", "LatentConsistency")):
        return SD2 if config.get("use_linear_projection") else SD1
    raise Unfit(f"{pack.folder} is a {pipeline}, whose models do not come as single files")

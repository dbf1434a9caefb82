"""What the networks of a pack see of a picture: its pixels, folded or not, or an autoencoder's latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.configs.networks import AUTOENCODER
from models.denoisers.latent import Autoencoder
from models.pack import PROMPTED_PIXELS, InvalidPack, Pack, component_digest, read_object
from models.precision import FLOAT32
from models.training.data import LabelledImages, to_unit_range
from models.training.own.pictures import Pictures

_PIXELS = {"UNet2DModel": "unet", PROMPTED_PIXELS: "unet", "AdmUNet": "unet"}
_LATENTS = {
    "UNet2DConditionModel": "unet",
    "DiTTransformer2DModel": "transformer",
    "Transformer2DModel": "transformer",
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """The latents of a pack.

    Attributes:
        network: the component that denoises.
        channels, side: of the latents (channels, side, side).
        picture: side of the pack's pictures, in pixels.
        colours: channels of the pack's pictures.
        pixel_unshuffle: by which pixels fold into channels; 1 for an autoencoder's latents.
        is_latent: whether an autoencoder makes them.
    """

    network: str
    channels: int
    side: int
    picture: int
    colours: int
    pixel_unshuffle: int
    is_latent: bool


def space_of(pack: Pack) -> Space:
    """The latents of a pack, as its configuration files say.

    Raises:
        InvalidPack: of a family that this can't be told of, or it does not say.
    """
    if pack.family in _PIXELS:
        component, is_latent = _PIXELS[pack.family], False
    elif pack.family in _LATENTS:
        component, is_latent = _LATENTS[pack.family], True
    else:
        known = ", ".join((*_PIXELS, *_LATENTS))
        raise InvalidPack(f"'{pack.name}' has a {pack.family}; classifiers and fine-tuning are for: {known}")
    file = pack.component(component) / "config.json"
    config = read_object(file)
    side, channels = config.get("sample_size", config.get("image_size")), config.get("in_channels")
    if not isinstance(side, int) or not isinstance(channels, int):
        raise InvalidPack(f"{file} has no sample_size and in_channels, the side and channels of what it denoises")
    fold, picture = int(pack.index.get("pixel_unshuffle", 1)), side
    if is_latent:
        vae = read_object(pack.component("vae") / "config.json")
        channels = int(vae.get("latent_channels", channels))
        picture = side * 2 ** (len(vae.get("block_out_channels", [0])) - 1)
    return Space(
        network=component,
        channels=channels,
        side=side,
        picture=picture if is_latent else side * fold,
        colours=3 if is_latent else channels // fold**2,
        pixel_unshuffle=fold,
        is_latent=is_latent,
    )


def coloured(pictures: Tensor, colours: int) -> Tensor:
    """Pictures (N,C,H,W) with as many channels as the pack's."""
    if pictures.shape[1] == colours:
        return pictures
    if colours == 1:
        return pictures.float().mean(1, keepdim=True).round().to(torch.uint8)
    return pictures.expand(-1, colours, -1, -1)


def encoded(
    pictures: Pictures, labels: Tensor, pack: Pack, space: Space, *, flip: bool, cache: Path, device: torch.device
) -> LabelledImages:
    """The pictures as the pack's networks see them: pixels as they are, or latents, encoded once and cached.

    With `flip`, latents of the mirrored pictures are added, because latents can't be mirrored.

    Args:
        pictures: of the pack's size.
        labels: their classes (N,), by the pack's order.
        pack: the pack.
        space: its latents.
        flip: whether to mirror latents.
        cache: folder for latents.
        device: where the autoencoder runs.
    """
    images = coloured(pictures.images, space.colours)
    if not space.is_latent:
        return LabelledImages(images, labels)
    if flip:
        images = torch.cat([images, images.flip(3)])
        labels = labels.repeat(2)
    key = [component_digest(pack.component("vae")), pictures.digest, flip]
    path = cache / f"latents-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        _encode(images, pack, path, device)
    return LabelledImages(torch.from_numpy(np.load(path)), labels)


def _encode(images: Tensor, pack: Pack, path: Path, device: torch.device) -> None:
    autoencoder = Autoencoder(pack, device, FLOAT32, AUTOENCODER)
    latents = [
        autoencoder.encode(to_unit_range(picture[None].to(device))).cpu()
        for picture in tqdm(images, desc="encoding", unit="pictures", delay=1, disable=None)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.save(file, torch.cat(latents).numpy())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def labels_of_pack(pictures: Pictures, pack: Pack, names: Sequence[str]) -> Tensor:
    """The pictures' classes (N,) as indices of `names`.

    Raises:
        InvalidPack: a class that the pack does not have.
    """
    if not names:
        raise InvalidPack(
            f"'{pack.name}' does not name its classes: add id2label to {pack.folder / 'model_index.json'}"
        )
    if unknown := sorted(set(pictures.names) - set(names)):
        known = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
        raise InvalidPack(
            f"the pictures' classes don't match those of '{pack.name}': it has no '{unknown[0]}', but {known}. Name "
            "the folders after the pack's classes"
        )
    order = torch.tensor([names.index(name) for name in pictures.names])
    return order[pictures.labels]

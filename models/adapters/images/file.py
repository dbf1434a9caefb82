"""Reads the file of an IP-Adapter: safetensors only, and whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from models.loading import PICKLED
from models.pack import InvalidPack, Pack

Kind = Literal["plain", "plus", "full-face"]
_PROJECTION, _LAYERS = "image_proj.", "ip_adapter."


@dataclass(frozen=True, kw_only=True)
class IpAdapterFile:
    """An IP-Adapter as it was in its file.

    Attributes:
        name: of the file, for messages.
        kind: what it makes tokens of: "plain" of the encoder's embedding, "plus" and "full-face" of the states before
            its last layer.
        digest: SHA-256 of the file.
        projection: the tensors that make the tokens, by name.
        layers: keys and values of the UNet's cross-attentions, as `1.to_k_ip.weight`, `1.to_v_ip.weight`, `3.to_k…`.
    """

    name: str
    kind: Kind
    digest: str
    projection: Mapping[str, Tensor]
    layers: Mapping[str, Tensor]

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """The tensors as diffusers' converters take them."""
        return {"image_proj": dict(self.projection), "ip_adapter": dict(self.layers)}

    @property
    def read_width(self) -> int:
        """Width of what it reads of the encoder."""
        name = {"plain": "proj.weight", "plus": "proj_in.weight", "full-face": "proj.0.weight"}[self.kind]
        return self.projection[name].shape[1]


def read_ip_adapter(pack: Pack) -> IpAdapterFile:
    """Read the one file in a pack's folder `ip_adapter`.

    Raises:
        InvalidPack: there is none or more than one; it can't be read, holds no IP-Adapter, one of another kind, or
            numbers that are not finite.
    """
    folder = pack.component("ip_adapter")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise InvalidPack(f"{folder} holds several IP-Adapters ({', '.join(file.name for file in files)}); keep one")
    if not files:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        reason = f"has {', '.join(pickled)}, which can run code and is not read: get it" if pickled else "is empty: put"
        raise InvalidPack(f"{folder} {reason} as .safetensors there")
    [path] = files
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidPack(f"{path} can't be read as safetensors: {reason[:200]}") from error
    for name, tensor in tensors.items():
        if not name.startswith((_PROJECTION, _LAYERS)):
            raise InvalidPack(f"{path} is no IP-Adapter: it holds {name}")
        if not torch.isfinite(tensor.float()).all():
            raise InvalidPack(f"{path}: its {name} has numbers that are NaN or infinite")
    projection, layers = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (_PROJECTION, _LAYERS)
    )
    if (kind := _kind(projection, layers)) is None:
        raise InvalidPack(
            f"{path} is an IP-Adapter FaceID, or of another kind that is not served; plain, Plus and full-face ones are"
        )
    digest = hashlib.sha256(content).hexdigest()
    return IpAdapterFile(name=str(path), kind=kind, digest=digest, projection=projection, layers=layers)


def _kind(projection: Mapping[str, Tensor], layers: Mapping[str, Tensor]) -> Kind | None:
    """The kind, as diffusers' converters tell it; `None` for those that read faces or are unknown."""
    if any("_lora." in name for name in layers):  # FaceID's
        return None
    if "proj.weight" in projection:
        return "plain"
    if "proj.3.weight" in projection and "proj.0.weight" in projection:
        return "full-face"
    return "plus" if {"latents", "proj_in.weight"} <= projection.keys() else None

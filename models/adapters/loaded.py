"""The LoRAs that a pack has in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from models.adapters.errors import InvalidLora, InvalidLoras
from models.adapters.files import LoraFile
from models.adapters.folder import LoraFolder, Stamp
from models.adapters.layers import dense_weight, down_layer, make_adaptable
from models.adapters.layouts import AdapterBase, Change, changes_of
from models.adapters.rows import LowRank, RowExtras
from models.spec import Lora

MOST_BYTES = 1024**3
"""Of a pack's LoRAs that are kept in memory, besides those that pictures in progress need."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """One LoRA on the device.

    Attributes:
        digest: of its file.
        changes: by layer, down in its number format and the rest in float32, at scale 1.
        reads: whether it changes a text encoder.
        bytes: what it takes.
    """

    digest: str
    changes: Mapping[nn.Module, Change]
    reads: bool
    bytes: int


class Adapters:
    """The LoRAs of one pack, loaded when a picture needs them. For one thread: the one that prepares.

    Args:
        base: what of the pack they change.
        folder: where they are.
        device: of the pack.
    """

    def __init__(self, base: AdapterBase, folder: LoraFolder, device: torch.device) -> None:
        self.base = base
        self.folder = folder
        self._device = device
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._seen: dict[str, tuple[Stamp, str]] = {}
        self._in_use: WeakValueDictionary[tuple[tuple[str, float], ...], RowExtras] = WeakValueDictionary()

    def of(self, loras: Sequence[Lora]) -> RowExtras | None:
        """What rows with these LoRAs have for themselves; `None` if that is nothing, at scale 0.

        Raises:
            InvalidLoras: one is not there, can't be used, is for another family, or is not the file that was asked for.
        """
        wanted = [(self._get(lora), lora.scale) for lora in loras if lora.scale]
        if not wanted:
            return None
        key = tuple((loaded.digest, scale) for loaded, scale in wanted)
        extras = self._in_use.get(key)
        if extras is None:
            extras = self._in_use[key] = RowExtras(adapters=self._joined(wanted))
        return extras

    def reading(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """The same with the digests of their files, or none of them if they leave the text encoders as they are.

        Raises:
            InvalidLoras: as `of`.
        """
        found = [(lora, self._get(lora)) for lora in loras if lora.scale]
        reads = any(loaded.reads for _, loaded in found)
        return tuple(replace(lora, digest=loaded.digest) for lora, loaded in found) if reads else ()

    def _joined(self, wanted: Sequence[tuple[_Loaded, float]]) -> dict[nn.Module, LowRank]:
        """The sum of several products as one product of the sum of their ranks."""
        joined: dict[nn.Module, LowRank] = {}
        for layer in dict.fromkeys(layer for loaded, _ in wanted for layer in loaded.changes):
            own = [(loaded.changes[layer], scale) for loaded, scale in wanted if layer in loaded.changes]
            down = torch.cat([change.down for change, _ in own]) if len(own) > 1 else own[0][0].down
            up, factor = _one_after_the_other(own)
            gain = None if factor is None else (factor - 1).to(down.dtype)
            joined[layer] = LowRank(down_layer(layer, down), up.to(down.dtype), gain)
        return joined

    def _get(self, lora: Lora) -> _Loaded:
        if lora.digest is None or lora.digest not in self._loaded:
            digest = self._read(lora.name)
            if lora.digest not in (None, digest):
                raise InvalidLoras(
                    f"loras: the file of '{lora.name}' is another than was asked for ({digest[:12]}…, not "
                    f"{str(lora.digest)[:12]}…): it was replaced since; ask again"
                )
        else:
            digest = lora.digest
        self._loaded.move_to_end(digest)
        return self._loaded[digest]

    def _read(self, name: str) -> str:
        """Load a LoRA, unless the file is one that is loaded; returns its digest."""
        stamp = self.folder.stamp(name)
        seen, digest = self._seen.get(name, ((), ""))
        if seen == stamp and digest in self._loaded:
            return digest
        try:
            file = self.folder.read(name)
            if file.digest not in self._loaded:
                self._keep(self._put(file))
        except InvalidLora as error:
            raise InvalidLoras(f"loras: '{name}' can't be used: {error}") from error
        self._seen[name] = stamp, file.digest
        return file.digest

    def _put(self, file: LoraFile) -> _Loaded:
        changes = changes_of(file, self.base)
        denoiser = set(self.base.networks[self.base.denoiser].modules())
        put: dict[nn.Module, Change] = {}
        for change in changes:
            weight: Tensor = change.layer.weight  # type: ignore[assignment]
            put[change.layer] = replace(
                change,
                down=change.down.to(self._device, weight.dtype).clone(),
                up=change.up.to(self._device),
                magnitude=None if change.magnitude is None else change.magnitude.to(self._device),
            )
            make_adaptable(change.layer)
        return _Loaded(
            digest=file.digest,
            changes=put,
            reads=any(change.layer not in denoiser for change in changes),
            bytes=sum(change.down.nbytes + change.up.nbytes for change in put.values()),
        )

    def _keep(self, loaded: _Loaded) -> None:
        self._loaded[loaded.digest] = loaded
        while len(self._loaded) > 1 and sum(each.bytes for each in self._loaded.values()) > MOST_BYTES:
            self._loaded.popitem(last=False)


def _one_after_the_other(changes: Sequence[tuple[Change, float]]) -> tuple[Tensor, Tensor | None]:
    """The upper matrix of changes at their scales, and the factor (out,) of the layer's own weights, if there is one.

    DoRA (Liu et al. 2024) gives W + ΔW the lengths m that it learnt, output by output: m·(W + ΔW)/|W + ΔW|. What comes
    before it is multiplied, too, as in peft.
    """
    ups, total = list[Tensor](), None
    for change, scale in changes:
        ups.append(change.up * scale)
        if change.magnitude is not None:
            weight = dense_weight(change.layer).flatten(1).to(change.up.device)
            factor = change.magnitude / (weight + ups[-1] @ change.down.float().flatten(1)).norm(dim=1)
            ups = [up * factor[:, None] for up in ups]
            total = factor if total is None else total * factor
    return torch.cat(ups, dim=1), total

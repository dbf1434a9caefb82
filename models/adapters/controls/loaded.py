"""The ControlNets that a pack has in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.adapters.controls.family import ControlFamily, Encode
from models.adapters.controls.folder import ControlFolder, ListedControl
from models.adapters.controls.network import ControlNetwork, RowControl
from models.adapters.controls.preprocessing import PREPROCESSORS, preprocessed
from models.adapters.errors import InvalidControl, InvalidControls
from models.loading import load_network
from models.pack import InvalidPack
from models.precision import Precision
from models.spec import Control, Pixels
from models.weights import offload

MOST_KEPT = 3  # networks in memory besides those that pictures in progress need; each takes a third of the model
MOST_IN_A_ROW = 3


class Controls:
    """The ControlNets of one pack, loaded when a picture needs them. For one thread: the one that prepares.

    Args:
        family: the pack's.
        folder: where they are.
        device: of the pack.
        precision: of the pack's denoiser.
        encode: its autoencoder.
    """

    def __init__(
        self, family: ControlFamily, folder: ControlFolder, device: torch.device, precision: Precision, encode: Encode
    ) -> None:
        self._family = family
        self._folder = folder
        self._device = device
        self._precision = precision
        self._encode = encode
        self._loaded: OrderedDict[str, ControlNetwork] = OrderedDict()
        self.listed: tuple[ListedControl, ...] = folder.listed(family)

    def of(
        self, controls: Sequence[Control], fit: Callable[[Pixels], Tensor], conditional: Mapping[str, Tensor]
    ) -> tuple[RowControl, ...]:
        """What steers rows with these controls.

        Args:
            controls: what was asked for.
            fit: makes a picture (3,H,W), 0..255, of the size that is drawn.
            conditional: conditioning of the conditional row.

        Raises:
            InvalidControls: one is not there, can't be used, is for another family, or has other files than asked for.
        """
        if len(controls) > MOST_IN_A_ROW:
            raise InvalidControls(f"controls: {len(controls)} are given; at most {MOST_IN_A_ROW} steer a picture")
        found = []
        for control in controls:
            if control.scale:
                network, picture = self._get(control), self._seen(control, fit(control.image))
                condition = self._family.condition(network.network, picture, conditional, self._encode)
                found.append(RowControl(control=control, network=network, condition=condition))
        return tuple(found)

    def _seen(self, control: Control, picture: Tensor) -> Tensor:
        if control.preprocess not in (None, *PREPROCESSORS):
            known = ", ".join(PREPROCESSORS)
            raise InvalidControls(f"controls: there is no preprocessor '{control.preprocess}'; known: {known}")
        pixels = picture.permute(1, 2, 0).numpy().astype(np.uint8)
        seen = torch.from_numpy(preprocessed(pixels, control.preprocess).copy()).permute(2, 0, 1)
        return (seen.float() / 255).contiguous().to(self._device)

    def _get(self, control: Control) -> ControlNetwork:
        name = control.model
        try:
            folder, digest = self._folder.found(name)
            fault = next((one.fault for one in self.listed if one.name == name), None)
            if fault is not None:
                raise InvalidControl(fault)
            if control.digest not in (None, digest):
                raise InvalidControl(f"it is another than was asked for ({digest[:12]}…, not {control.digest[:12]}…)")
            if name not in self._loaded:
                self._loaded[name] = self._load(name, folder)
        except (InvalidControl, InvalidPack) as error:
            raise InvalidControls(f"controls: '{name}' can't be used: {error}") from error
        self._loaded.move_to_end(name)
        while len(self._loaded) > MOST_KEPT:
            self._loaded.popitem(last=False)
        return self._loaded[name]

    def _load(self, name: str, folder: Any) -> ControlNetwork:
        family, where = self._family, (self._device, self._precision)
        network = load_network(family.network_class, folder, *where, keys=family.keys, aside=True)
        family.complete(network, self._device)
        if self._precision.offloaded:
            offload(network, self._device)
        return ControlNetwork(name, family, network)

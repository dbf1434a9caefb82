"""Text encoders and autoencoders, of which many packs have the same: each is in memory once."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from models.configs import Keys
from models.loading import Network, check_declared, load_network, weight_files, with_float32_mode
from models.pack import Pack
from models.precision import Precision
from models.weights import offload

_LOADING = Lock()
_loaded: WeakValueDictionary[tuple[object, ...], nn.Module] = WeakValueDictionary()
"""By class, content, device and format; a network goes with the last pack that uses it."""


def load_shared(
    network: type[Network],
    pack: Pack,
    component: str,
    device: torch.device,
    precision: Precision,
    *,
    keys: Keys,
    may_be_null: bool = False,
) -> Network:
    """Load a component as `load_component` does, or return it if a pack in use has one of the same content.

    `may_be_null` is as for `check_declared`.

    Its float32 products on CUDA do not use TF32. It must not be changed, and its calls must hold its `turn`.

    Raises:
        InvalidPack: as for `load_component`.
    """
    check_declared(network, pack, component, may_be_null=may_be_null)
    folder = pack.component(component)
    with _LOADING:
        key = (network, _content(folder), str(device), precision)
        found: Any = _loaded.get(key)
        if found is None:
            found = load_network(network, folder, device, precision, keys=keys)
            with_float32_mode(found, device, forward=precision)
            if precision.offloaded:
                offload(found, device)
            _loaded[key] = found
    shared: Network = found
    return shared


def is_in_use(folder: Path, device: torch.device, precision: Precision) -> bool:
    """Whether a pack in use has shared the component in this folder."""
    if not _loaded:
        return False
    found = (_content(folder), str(device), precision)
    return any(key[1:] == found for key in list(_loaded))


def _content(folder: Path) -> str:
    """Digest of a component's configuration and weights, wherever it lies."""
    config = folder / "config.json"
    files = [config, *weight_files(folder)] if config.is_file() else []  # without one, loading refuses it
    return _digest(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files that have not changed since, by their times and sizes; gigabytes take seconds."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

"""How much memory a pack's weights need, and how much a device has: known before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from models.loading import weight_files
from models.memory.sharing import is_in_use
from models.pack import InvalidPack, Pack, read_object
from models.precision import FLOAT32, Precision

ROLES = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "text_encoder": "text encoders",
    "text_encoder_2": "text encoders",
    "text_encoder_3": "text encoders",
    "vae": "autoencoder",
    "classifier": "classifier",
    "classifier_text_encoder": "classifier",
}
"""What the components of a pack with weights are for."""
_SMALLER = "bfloat16"
_GROUP = Path("/sys/fs/cgroup")
_SYSTEM = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of one role.

    Attributes:
        parameters: how many numbers.
        bytes: what they take in the number format that they run in.
    """

    parameters: int
    bytes: int


def weights_of(pack: Pack, denoiser: Precision, classifier: Precision, *, missing_on: str = "") -> dict[str, Weights]:
    """The pack's weights by role, as its files' headers say; a file that can't be read counts as nothing.

    Args:
        pack: the pack.
        denoiser: number format of its denoiser, which also says that of its encoders.
        classifier: number format of its classifier.
        missing_on: leave out what a pack on this device has in memory already.
    """
    found: dict[str, Weights] = {}
    for component, role in ROLES.items():
        folder = pack.component(component)
        if not pack.has(component):
            continue
        precision = classifier if role == "classifier" else denoiser
        if component == "vae":
            precision = autoencoder_precision(pack, precision)
        elif "text_encoder" in component:
            precision = precision.of_encoders
        if missing_on and is_in_use(folder, torch.device(missing_on), precision):
            continue
        before = found.get(role, Weights(parameters=0, bytes=0))
        count = _parameters(folder)
        size = count * getattr(torch, precision.dtype).itemsize
        found[role] = Weights(parameters=before.parameters + count, bytes=before.bytes + size)
    return found


def autoencoder_precision(pack: Pack, precision: Precision) -> Precision:
    """The autoencoder's format: that of encoders, but float32 for one that overflows in float16, as XL's does."""
    if precision.encoders == "float16":
        config = read_object(pack.component("vae") / "config.json")
        if config.get("force_upcast", True):
            return FLOAT32
    return precision.of_encoders


def _parameters(folder: Path) -> int:
    try:
        return sum(map(_parameters_in, weight_files(folder)))
    except (InvalidPack, SafetensorError, OSError):  # refused by name when it is loaded
        return 0


def _parameters_in(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def check_fits(pack: Pack, device: torch.device, denoiser: Precision, classifier: Precision) -> None:
    """Refuse a pack whose weights the device has no memory for, before they are read.

    Batches need memory beyond that; how much is measured while the pack is served.

    Raises:
        InvalidPack: the message says what is needed, what there is, and what would make it fit.
    """
    there = available(device)
    if there is None:
        return
    needed = weights_of(pack, denoiser, classifier, missing_on=str(device))
    total = _total(needed)
    if total <= there:
        return
    parts = ", ".join(f"{role} {_shown(weights.bytes)}" for role, weights in needed.items())
    remedies = ["serve fewer models on it"]
    small = replace(denoiser, dtype=_SMALLER, encoders=_SMALLER)
    smaller = _total(weights_of(pack, small, replace(classifier, dtype=_SMALLER), missing_on=str(device)))
    if smaller <= there and smaller < total:
        remedies.append(
            f"set CYNOSURE_WORKER_PRECISION and CYNOSURE_WORKER_ENCODER_PRECISION to {_SMALLER} ({_shown(smaller)})"
        )
    raise InvalidPack(
        f"'{pack.name}' needs {_shown(total)} for its weights ({parts}), and {device} has {_shown(there)} left; "
        f"{' or '.join(remedies)}"
    )


def available(device: torch.device) -> int | None:
    """Bytes that are free on the device, `None` if unknown.

    On a CPU the lesser of what the system has available and what the process's control group has left.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    return min((free for free in (_left_of_system(), _left_of_group()) if free is not None), default=None)


def _left_of_system() -> int | None:
    try:
        lines = dict(line.split(":") for line in _SYSTEM.read_text().splitlines())
    except OSError:  # not Linux
        return None
    return int(lines["MemAvailable"].split()[0]) * 1024


def _left_of_group() -> int | None:
    try:
        limit, used = ((_GROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        statistics = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except OSError:  # no group, or one without a limit
        return None
    return None if limit == "max" else int(limit) - int(used) + int(statistics["inactive_file"])


def _total(weights: Mapping[str, Weights]) -> int:
    return sum(each.bytes for each in weights.values())


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"

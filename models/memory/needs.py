"""How much memory a pack's weights need, and how much a device has: known before any weights are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from models.loading import weight_files
from models.memory.sharing import is_in_use
from models.pack import InvalidPack, Pack, read_object
from models.precision import FLOAT32, Precision
from models.weights import LAYERS_AT_ONCE, int8_bytes, is_multiplied, is_quantized, multiplied_bytes

ROLES = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "vae": "autoencoder",
    "text_encoder": "text encoders",
    "text_encoder_2": "text encoders",
    "text_encoder_3": "text encoders",
    "image_encoder": "image prompts",
    "ip_adapter": "image prompts",
    "classifier": "classifier",
    "classifier_text_encoder": "classifier",
}
"""What the components of a pack with weights are for, in the order in which they are read."""
_SMALLER = "bfloat16"
_CPU = torch.device("cpu")
_GROUP = Path("/sys/fs/cgroup")
_SYSTEM = Path("/proc/meminfo")
_REMEDIES: Mapping[str, Mapping[str, Any]] = {
    f"set CYNOSURE_WORKER_PRECISION and CYNOSURE_WORKER_ENCODER_PRECISION to {_SMALLER}": {
        "dtype": _SMALLER,
        "encoders": _SMALLER,
    },
    "use --quantize int8": {"int8": True},
    "use --offload": {"offloaded": True},
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of one role.

    Attributes:
        parameters: how many numbers.
        bytes: what they take on the device, in the number format that they run in.
    """

    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class _Component:
    """Weights of one component.

    Attributes:
        role: what it is for.
        parameters: how many numbers.
        read_bytes: what they take while they are read.
        kept_bytes: what they take when they have been.
        layer_bytes: what those of its largest layer take.
        is_offloaded: whether only some layers' are on the device at once.
    """

    role: str
    parameters: int
    read_bytes: int
    kept_bytes: int
    layer_bytes: int
    is_offloaded: bool

    @property
    def device_bytes(self) -> int:
        """What is on the device at once."""
        return min(self.kept_bytes, LAYERS_AT_ONCE * self.layer_bytes) if self.is_offloaded else self.kept_bytes


def weights_of(pack: Pack, denoiser: Precision, classifier: Precision) -> dict[str, Weights]:
    """The pack's weights by role, as its files' headers say; a file that can't be read counts as nothing.

    Args:
        pack: the pack.
        denoiser: number format of its denoiser, which also says that of its encoders.
        classifier: number format of its classifier.
    """
    return _by_role(_components(pack, denoiser, classifier))


def _by_role(components: Sequence[_Component]) -> dict[str, Weights]:
    return {
        role: Weights(
            parameters=sum(each.parameters for each in components if each.role == role),
            bytes=sum(each.device_bytes for each in components if each.role == role),
        )
        for role in dict.fromkeys(each.role for each in components)
    }


def _components(
    pack: Pack, denoiser: Precision, classifier: Precision, missing_on: torch.device | None = None
) -> list[_Component]:
    """The pack's components with weights, except for those that a pack on the device `missing_on` shares with it."""
    found = []
    for component, role in ROLES.items():
        folder = pack.component(component)
        takes_images = pack.has_ip_adapter and not denoiser.compiled
        if not (takes_images if role == "image prompts" else pack.has(component)):
            continue
        precision = classifier if role == "classifier" else denoiser
        if component == "vae":
            precision = autoencoder_precision(pack, precision)
        elif component == "image_encoder":
            precision = precision.of_autoencoder
        elif component == "ip_adapter":
            precision = replace(precision, int8=False, int8_products=False, offloaded=False)
        elif "text_encoder" in component:
            precision = precision.of_encoders
        if missing_on is None or not is_in_use(folder, missing_on, precision):
            found.append(_component(role, _shapes(folder), precision))
    return found


def _component(role: str, shapes: Mapping[str, Sequence[int]], precision: Precision) -> _Component:
    itemsize = getattr(torch, precision.dtype).itemsize
    layers: dict[str, int] = defaultdict(int)
    for name, shape in shapes.items():
        if precision.int8 and is_quantized(name, shape):
            size = int8_bytes(shape)
        elif precision.int8_products and is_multiplied(name, shape):
            size = multiplied_bytes(shape)
        else:
            size = itemsize * prod(shape)
        layers[name.rpartition(".")[0]] += size
    parameters = sum(map(prod, shapes.values()))
    return _Component(
        role=role,
        parameters=parameters,
        read_bytes=itemsize * parameters,
        kept_bytes=sum(layers.values()),
        layer_bytes=max(layers.values(), default=0),
        is_offloaded=precision.offloaded,
    )


def autoencoder_precision(pack: Pack, precision: Precision) -> Precision:
    """The autoencoder's format: that of encoders, but float32 for one that overflows in float16, as XL's does."""
    if precision.encoders == "float16":
        config = read_object(pack.component("vae") / "config.json")
        if config.get("force_upcast", True):
            return replace(precision.of_autoencoder, dtype=FLOAT32.dtype)
    return precision.of_autoencoder


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of a component's parameters by name."""
    try:
        files = sorted(folder.glob("*.safetensors")) if folder.name == "ip_adapter" else weight_files(folder)
        return {name: shape for path in files for name, shape in _shapes_in(path)}
    except (InvalidPack, SafetensorError, OSError):  # refused by name when it is loaded
        return {}


def _shapes_in(path: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(path, "pt") as file:
        yield from ((name, file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def check_fits(pack: Pack, device: torch.device, denoiser: Precision, classifier: Precision) -> None:
    """Refuse a pack whose weights the device, or the host that they are offloaded to, has no memory for.

    They are not read yet. Batches need memory beyond that; how much is measured while the pack is served.

    Raises:
        InvalidPack: the message says what is needed, what there is, and what would make it fit.
    """
    components = _components(pack, denoiser, classifier, device)
    lacking = [place for place, need in _needs(components, device).items() if not _has(place, need)]
    if not lacking:
        return
    place = lacking[0]
    total, there = _needs(components, device)[place], available(place)
    assert there is not None
    if place != device:
        components = [replace(each, is_offloaded=False) for each in components if each.is_offloaded]
    kept = sum(each.device_bytes for each in components)
    parts = ", ".join(f"{role} {_shown(weights.bytes)}" for role, weights in _by_role(components).items())
    remedies = ["serve fewer models on it", *_remedies(pack, device, denoiser, classifier, place)]
    raise InvalidPack(
        f"'{pack.name}' needs {_shown(total)} for its weights{' while they are read' if total > kept else ''} "
        f"({parts}), and {place} has {_shown(there)} left; {' or '.join(remedies)}"
    )


def _needs(components: Sequence[_Component], device: torch.device) -> dict[torch.device, int]:
    """Bytes that weights need on the device, and on the CPU if they wait there."""
    if device.type == "cpu":
        return {device: _reading(components)}
    on_device = {device: sum(each.device_bytes for each in components)}
    waiting = [each for each in components if each.is_offloaded]
    return on_device | {_CPU: _reading(waiting)} if waiting else on_device


def _reading(components: Sequence[_Component]) -> int:
    """The most that components take on a CPU, from the first that is read to the last that is kept."""
    kept = [0, *accumulate(each.kept_bytes for each in components)]
    return max([kept[-1], *(before + each.read_bytes for before, each in zip(kept, components, strict=False))])


def _has(place: torch.device, need: int) -> bool:
    there = available(place)
    return there is None or need <= there


def _remedies(
    pack: Pack, device: torch.device, denoiser: Precision, classifier: Precision, place: torch.device
) -> Iterator[str]:
    """What makes it fit, with what it then needs of `place`: each change that does so alone, or the fewest together."""
    open_to = [
        name
        for name, change in _REMEDIES.items()
        if replace(denoiser, **change) != denoiser and (device.type == "cuda" or "offloaded" not in change)
    ]
    for count in range(1, len(open_to) + 1):
        fitting = []
        for names in combinations(open_to, count):
            changed = replace(denoiser, **{key: value for name in names for key, value in _REMEDIES[name].items()})
            of_classifier = replace(classifier, dtype=changed.dtype) if changed.dtype != denoiser.dtype else classifier
            needs = _needs(_components(pack, changed, of_classifier, device), device)
            if all(_has(place, need) for place, need in needs.items()):
                fitting.append(f"{' and '.join(names)} ({_shown(needs[place])})")
        if fitting:
            yield from fitting
            return


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


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"

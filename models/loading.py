"""A pack on disk: which folder holds what, and how its networks are read: safetensors only, never code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakMethod

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from models.cpu_layers import strided_as_in_a_batch, sums_in_one_order, with_cpu_layers

PROMPTED_PIXELS = "PromptedPixelPipeline"
PACKS_FOLDER = Path(__file__).parent / "packs"
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/(?P<name>[\w.-]+))@(?P<revision>[0-9a-f]{40})")
"""A repository of the model hub at one commit: a branch would change under a server, and its pictures with it."""
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # no pickle, no code


Network = TypeVar("Network", bound=nn.Module)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class InvalidPack(ValueError):
    """The folder is no usable pack; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a network runs: number format, memory layout, kernels; what goes in and comes out is float32.

    Attributes:
        dtype: name of a torch dtype.
        tf32: whether CUDA multiplies float32 with TF32's 10 bits of mantissa instead of 23.
        channels_last: whether convolutions see (N, H, W, C) in memory; on a CPU oneDNN chooses.
        compiled: whether `torch.compile` has made kernels for each batch size, on CUDA with graphs.
    """

    dtype: str = "float32"
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        extras = {"TF32": self.tf32, "channels last": self.channels_last, "compiled": self.compiled}
        return ", ".join([self.dtype, *(name for name, is_on in extras.items() if is_on)])

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


FLOAT32 = Precision()
_MULTIPLYING = RLock()
LATENT_PATCH = 2  # side of the patch of latents that is one token of Flux


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A model folder in diffusers' layout.

    Attributes:
        name: what requests call it.
        folder: holds `model_index.json` and one sub-folder a component.
        index: the parsed `model_index.json`.
        scheduler_config: the parsed scheduler configuration: noise schedule and prediction type.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    scheduler_config: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index (`id2label`, as in DiT's pipelines)."""
        names: dict[str, str] = self.index.get("id2label", {})
        return tuple(names[str(index)] for index in range(len(names)))

    @property
    def family(self) -> str:
        """Class of the network that denoises, as `model_index.json` names it; "nothing" where it names none.

        Of prompted pixels it is the pipeline's: the network's class is Stable Diffusion's too.
        """
        if self.index.get("_class_name") == PROMPTED_PIXELS:
            return PROMPTED_PIXELS
        component = self.index.get("unet") or self.index.get("transformer") or [None, None]
        return str(component[1] or "nothing")

    def has(self, component: str) -> bool:
        """Whether the index names such a component; pipelines list those they do without as [null, null]."""
        return bool((self.index.get(component) or [None])[0])

    @property
    def has_classifier(self) -> bool:
        return self.has("classifier")

    @property
    def num_train_timesteps(self) -> int:
        return int(self.scheduler_config["num_train_timesteps"])

    @property
    def defaults(self) -> dict[str, Any]:
        """Serving defaults chosen for this pack: sampler, steps, guidance_scale, classifier_scale."""
        defaults: dict[str, Any] = self.index.get("cynosure", {})
        return defaults

    @property
    def latent_size(self) -> int:
        """Side of the latents, for families whose network is the same for every size; an even number."""
        return int(self.defaults.get("latent_size", 128))

    def component(self, name: str) -> Path:
        return self.folder / name

    def digest(self) -> str:
        """SHA-256 over the names and contents of everything the pictures depend on."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            beside = path.relative_to(self.folder).parts[0] in {"training", "judge"}
            if path.is_file() and path.suffix in {".json", ".safetensors"} and not beside:
                digest.update(str(path.relative_to(self.folder)).encode() + b"\0")
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _downloaded(repository: str, revision: str) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidPack(f"{repository} at {revision[:10]} can't be had from the hub: {error}") from error


def _sized(config: dict[str, Any], latent_size: int) -> dict[str, Any]:
    """A scheduler's configuration with the shift that pictures of one size have.

    Flux noises large pictures more (Esser et al. 2024, section 5.3.2): μ, the logarithm of the shift, rises linearly
    with the number of tokens.
    """
    if not config.get("use_dynamic_shifting"):
        return config
    least, most = config["base_image_seq_len"], config["max_image_seq_len"]
    share = ((latent_size // LATENT_PATCH) ** 2 - least) / (most - least)
    mu = config["base_shift"] + share * (config["max_shift"] - config["base_shift"])
    return config | {"shift": math.exp(mu)}


def open_pack(name_or_folder: str) -> Pack:
    """Find a bundled pack by name, any folder by its path, or a hub's repository as `owner/name@COMMIT`.

    Raises:
        InvalidPack: no such pack, or a folder without `model_index.json` or scheduler.
    """
    bundled = PACKS_FOLDER / name_or_folder
    folder = bundled if bundled.is_dir() else Path(name_or_folder)
    on_hub = None if folder.is_dir() else HUB_ID.fullmatch(name_or_folder)
    if on_hub:
        folder = _downloaded(on_hub["repository"], on_hub["revision"])
    if not (folder / "model_index.json").is_file():
        known = sorted(path.parent.name for path in PACKS_FOLDER.glob("*/model_index.json"))
        raise InvalidPack(
            f"'{name_or_folder}' is neither a bundled pack ({', '.join(known) or 'none'}) "
            "nor a folder with a model_index.json, nor owner/name@COMMIT on the hub (40 hex digits)"
        )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        raise InvalidPack(f"{folder} has no scheduler/scheduler_config.json")
    pack = Pack(
        name=on_hub["name"] if on_hub else folder.resolve().name,
        folder=folder,
        index=json.loads((folder / "model_index.json").read_text()),
        scheduler_config=json.loads(scheduler.read_text()),
    )
    return replace(pack, scheduler_config=_sized(pack.scheduler_config, pack.latent_size))


def load_network(network: type[Network], folder: Path, device: torch.device, precision: Precision = FLOAT32) -> Network:
    """A pack's network on `device`, for inference, with frozen parameters."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # the same bytes for the same request
    if device.type == "cpu" and not sums_in_one_order():
        warnings.warn(
            "MKL's order of summation is not fixed here, so pictures may differ in their last bits from those of other "
            "processes. Import models before torch's first product, and leave MKL_CBWR alone or set it to AUTO,STRICT "
            f"(now: {os.environ.get('MKL_CBWR')}).",
            stacklevel=2,
        )
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights that are there in no time
    loaded: Any = network.from_pretrained(  # type: ignore[attr-defined]  # of diffusers and of transformers alike
        folder,
        torch_dtype=precision.torch_dtype,
        use_safetensors=True,
        local_files_only=True,
        **({"low_cpu_mem_usage": False} if issubclass(network, ModelMixin) else {}),  # it needs the accelerate package
    )
    loaded = loaded.to(device, memory_format=precision.memory_format).eval().requires_grad_(False)
    for module in loaded.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(_restrided)
    if precision.compiled:
        options = {"triton.cudagraphs": True} if device.type == "cuda" else {"freezing": True}
        loaded.compile(dynamic=False, options=options)
    elif device.type == "cpu":
        with_cpu_layers(loaded)
    ready: Network = loaded
    return ready


def settle_products(adapter: object, device: torch.device, **precisions: Precision) -> None:
    """Have CUDA multiply float32, during the methods of these names, as their precision says.

    torch has one setting for all threads, and TF32 in convolutions where nobody settles it: such calls go one by one.
    Methods of other number formats multiply no float32, and are left alone.
    """
    for name, precision in precisions.items():
        if device.type == "cuda" and precision.dtype == FLOAT32.dtype:
            setattr(adapter, name, _multiplying(precision, getattr(adapter, name)))


def _multiplying(precision: Precision, method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    unbound = WeakMethod(method)  # its object will hold what is returned here: it would hold itself, weights and all
    settings: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]

    def alone(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        bound = unbound()
        assert bound is not None, "whoever calls it has the object"
        with _MULTIPLYING:
            before = [setting.fp32_precision for setting in settings]
            for setting in settings:
                setting.fp32_precision = "tf32" if precision.tf32 else "ieee"
            try:
                return bound(*args, **kwargs)
            finally:
                for setting, restored in zip(settings, before, strict=True):
                    setting.fp32_precision = restored

    return alone


def _restrided(attention: Attention, arguments: Any, output: Any) -> Any:
    """The output, where it is one feature map alone: with the strides that a larger batch would have."""
    if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1:
        return strided_as_in_a_batch(output)
    return None

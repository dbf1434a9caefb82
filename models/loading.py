"""Loads a pack's networks: safetensors only, never code."""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakMethod

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from models.configs import Keys, check_keys, defaults
from models.cpu_layers import strided_as_in_a_batch, sums_in_one_order, with_cpu_layers
from models.lanes import is_of_the_device
from models.pack import InvalidPack, Pack, read_object
from models.precision import FLOAT32, Precision
from models.weights import offload, quantize, with_int8_products

Network = TypeVar("Network", bound=nn.Module)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_MULTIPLYING = RLock()


class InvalidDevice(ValueError):
    """There is no such device; the message names it and says which there are."""


def device_named(name: str) -> torch.device:
    """The torch device of that name, which has been used once, so that it is known to work.

    Raises:
        InvalidDevice: this machine, or this build of torch, does not have it.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    reason = f"torch {torch.__version__} has: {', '.join(there)}"
    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise InvalidDevice(f"there is no device '{name}' here; {reason}")
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # also of a type that torch was built without
        if is_of_the_device(error):
            raise
        text = str(error).partition("\n")[0]
        raise InvalidDevice(f"device '{name}' can't be used; {reason} ({text[:200]})") from error
    return device


@contextmanager
def opening(pack: Pack) -> Iterator[None]:
    """Name the pack and its folder in any error that is met while its files are put to use.

    Raises:
        InvalidPack: instead of every error but those of the device.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InvalidPack) or is_of_the_device(error):
            raise
        reason = " ".join(str(error).split())
        raise InvalidPack(
            f"pack '{pack.name}' in {pack.folder} can't be served; check its JSON files: "
            f"{type(error).__name__}: {reason[:300]}"
        ) from error


def load_component(
    network: type[Network],
    pack: Pack,
    component: str,
    device: torch.device,
    precision: Precision = FLOAT32,
    *,
    keys: Keys,
    also: Collection[str] = (),
) -> Network:
    """Load a pack's component as `load_network` does, if it is what `model_index.json` says it is.

    Args:
        network: the class that loads it.
        pack: the folder.
        component: name of its sub-folder.
        device: where to.
        precision: number format.
        keys: what its config.json may hold.
        also: older names of the class.

    Raises:
        InvalidPack: the component is of another class, has other keys, or does not hold exactly the network's weights.
    """
    check_declared(network, pack, component, also)
    loaded = load_network(network, pack.component(component), device, precision, keys=keys, also=also)
    if precision.offloaded:
        offload(loaded, device)
    return loaded


def check_declared(
    network: type[nn.Module], pack: Pack, component: str, also: Collection[str] = (), *, may_be_null: bool = False
) -> None:
    """Check that a pack's component is what `model_index.json` says it is.

    Raises:
        InvalidPack: it is of another class, or null, unless it may be: where a folder was put beside the others later.
    """
    declared = pack.declared_class(component)
    if component in pack.index and declared is None and not may_be_null:
        raise InvalidPack(f"{pack.folder / 'model_index.json'}: {component} is null; served: {network.__name__}")
    if declared not in (None, network.__name__, *also):
        raise InvalidPack(
            f"pack '{pack.name}': its {component} is of class {declared}; a pack with a {pack.family} is "
            f"served with {network.__name__}"
        )


def load_network(
    network: type[Network],
    folder: Path,
    device: torch.device,
    precision: Precision = FLOAT32,
    *,
    keys: Keys,
    also: Collection[str] = (),
    aside: bool = False,
) -> Network:
    """Load a network onto `device`, for inference, with frozen parameters; one to be offloaded stays on the CPU.

    `aside` is for loading while other threads compute: the weights are read as float32 and converted then, because
    diffusers and transformers read other formats under a default dtype, which is one for all threads.

    Raises:
        InvalidPack: naming the folder: it can't be read, holds another class or other keys, or not exactly the
            network's weights.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # the same bytes for the same request
    if device.type == "cpu" and not sums_in_one_order():
        warnings.warn(
            "MKL's order of summation is not fixed in this process, so pictures may differ in their last bits from "
            "those of other processes. Import models before torch's first product, and leave MKL_CBWR unset or set it "
            f"to AUTO,STRICT (now: {os.environ.get('MKL_CBWR')}).",
            stacklevel=2,
        )
    _check_config(network, folder, keys, also)
    loaded = _read(network, folder, FLOAT32 if aside else precision)
    dtype = getattr(torch, precision.dtype)
    if aside or (isinstance(loaded, ModelMixin) and loaded.dtype != dtype):  # files of Stable Diffusion 3 in float32
        loaded = loaded.to(dtype)
    if precision.int8:
        quantize(loaded)  # before it is moved: the device need not have room for it as it was
    memory_format = torch.channels_last if precision.channels_last else torch.contiguous_format
    place = torch.device("cpu") if precision.offloaded else device
    loaded = loaded.to(place, memory_format=memory_format).eval().requires_grad_(False)
    for module in loaded.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(_restrided)
    if precision.compiled:
        options = {"triton.cudagraphs": True} if device.type == "cuda" else {"freezing": True}
        loaded.compile(dynamic=False, options=options)
    elif device.type == "cpu":
        with_cpu_layers(with_int8_products(loaded) if precision.int8_products else loaded)
    ready: Network = loaded
    return ready


def _check_config(network: type[Network], folder: Path, keys: Keys, also: Collection[str]) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise InvalidPack(f"{folder} has no config.json")
    config = read_object(path)
    written_as = config.get("_class_name", network.__name__)
    if written_as not in (network.__name__, *also):
        raise InvalidPack(f"{path} is of class {written_as}; it can't be loaded as {network.__name__}")
    check_keys(config, keys, path, defaults(network))


def _read(network: type[Network], folder: Path, precision: Precision) -> Any:
    """The network with the weights in the folder, on the CPU."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # weights load too fast for one
    for library in (transformers_logging, diffusers_logging):
        library.set_verbosity_error()  # what they warn of is in the report
    try:
        loaded, report = network.from_pretrained(  # type: ignore[attr-defined]  # diffusers and transformers have it
            folder,
            torch_dtype=getattr(torch, precision.dtype),
            use_safetensors=True,
            local_files_only=True,
            variant=_variant(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, by name
            **({"low_cpu_mem_usage": False} if issubclass(network, ModelMixin) else {}),  # True needs accelerate
        )
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        if isinstance(error, InvalidPack) or is_of_the_device(error):
            raise
        reason = " ".join(str(error).split())
        raise InvalidPack(
            f"{folder} can't be loaded as {network.__name__}; save it again, or download it again: {reason[:300]}"
        ) from error
    for kind, text in _REFUSED.items():
        if keys := sorted(key if isinstance(key, str) else key[0] for key in report[kind]):
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InvalidPack(f"{folder}: its weights {text} {network.__name__} ({keys[0]}{more})")
    return loaded


_REFUSED = {
    "missing_keys": "lack a part of the",
    "mismatched_keys": "have other shapes than its",
    "unexpected_keys": "have more than the",
}
"""What a loading report must not have, since transformers and diffusers fill it with random numbers or leave it out."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
"""Ends of names of pickled weights."""
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<old>[\w-]+))?\.safetensors"
)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a component's weights, one or its shards.

    Raises:
        InvalidPack: there are no weights as safetensors, or several variants to choose from.
    """
    variant = _variant(folder)
    return sorted(folder / name for name, other in _variants(folder).items() if other == variant)


def _variants(folder: Path) -> dict[str, str | None]:
    """The variant of each file of weights in a folder, by its name; `None`: the weights without a variant."""
    matches = [match for path in folder.glob("*.safetensors") if (match := _WEIGHTS.fullmatch(path.name))]
    return {match.string: match["variant"] or match["old"] for match in matches}


def _variant(folder: Path) -> str | None:
    """The variant of a folder's weights, such as "fp16", if it has no others.

    Raises:
        InvalidPack: there are no weights as safetensors, or several variants to choose from.
    """
    variants = set(_variants(folder).values())
    if not variants:
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)
        if not pickled:
            raise InvalidPack(f"{folder} has no weights as .safetensors")
        raise InvalidPack(
            f"{folder} has {', '.join(pickled)} and no .safetensors: pickles can run code and are not read; "
            f"convert the folder and serve the copy: {_conversion_command(folder.parent)}"
        )
    if None in variants:
        return None
    if len(variants) > 1:
        raise InvalidPack(
            f"{folder} has weights in several variants ({', '.join(sorted(map(str, variants)))}); keep one of them"
        )
    return variants.pop()


def _conversion_command(pipeline: Path) -> str:
    """The shell command that copies a pipeline's folder with its weights as safetensors, running no code in them."""
    code = (
        "import sys; from diffusers import DiffusionPipeline; "
        "DiffusionPipeline.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    return shlex.join([sys.executable, "-c", code, str(pipeline), f"{pipeline}-safetensors"])


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer.

    Raises:
        InvalidPack: the folder holds none.
    """
    if not folder.is_dir():
        raise InvalidPack(f"{folder} is not there: prompts need its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidPack(f"{folder} holds no tokenizer that can be loaded: {reason[:300]}") from error


def token_limit(tokenizer: Any, network: Any, folder: Path) -> int:
    """The number of tokens that prompts are padded to: the tokenizer's limit.

    Raises:
        InvalidPack: it is more than the text encoder's positions.
    """
    limit, positions = tokenizer.model_max_length, network.config.max_position_embeddings
    if limit > positions:
        raise InvalidPack(
            f"{folder / 'tokenizer_config.json'}: model_max_length is {limit:.15g}; its text encoder has {positions} "
            "positions (max_position_embeddings)"
        )
    return int(limit)


def with_float32_mode(adapter: object, device: torch.device, **precisions: Precision) -> None:
    """Wrap methods of `adapter`, by name, so that on CUDA their float32 products use the requested TF32 or IEEE mode.

    torch has one setting for all threads, and uses TF32 in convolutions by default: wrapped calls run one at a time.
    Methods in other number formats multiply no float32 numbers and are not wrapped.
    """
    for name, precision in precisions.items():
        if device.type == "cuda" and precision.dtype == FLOAT32.dtype:
            setattr(adapter, name, _multiplying(precision, getattr(adapter, name)))


def _multiplying(precision: Precision, method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    unbound = WeakMethod(method)  # the object will hold the wrapper: a strong reference would be a cycle with weights
    settings: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]

    def alone(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        bound = unbound()
        assert bound is not None, "the caller holds the object"
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
    """For a batch of one feature map, restore the strides that a larger batch would have."""
    if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1:
        return strided_as_in_a_batch(output)
    return None

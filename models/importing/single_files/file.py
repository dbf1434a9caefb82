"""Opens a single file of weights; other kinds of files are refused with the remedy."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.importing.errors import Unfit
from models.loading import PICKLED

_LENGTH = 8  # bytes at the start of a safetensors file, before the JSON of its header
_STARTS = {
    b"<": "is a web page: the download was refused; download it again, logged in or with a token",
    b"version https://git-lfs": "is a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"GGUF": "is a GGUF file, whose weights are quantized; import the float16 or bfloat16 file of the same model",
}
_CONVERSION = """import sys, torch, zipfile
from safetensors.torch import save_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
Other = type("Other", (), {"__init__": lambda *_: None, "__setstate__": lambda *_: None})
others = get_unsafe_globals_in_checkpoint(sys.argv[1]) if zipfile.is_zipfile(sys.argv[1]) else []
safe_globals([(Other, name) for name in others]).__enter__()
weights = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
weights = weights.get("state_dict", weights)
save_file({name: value.clone() for name, value in weights.items() if torch.is_tensor(value)}, sys.argv[2])"""
"""Objects beside the weights, such as a trainer's callbacks, are read as objects of a class that does nothing."""


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """A file of weights.

    Attributes:
        path: where it is.
        tensors: its tensors by name, mapped from the file: their bytes are read when they are used.
        metadata: the texts in its header.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def _conversion_command(path: Path) -> str:
    """The shell command that converts a pickled checkpoint to safetensors, running no code that is in it."""
    code = "; ".join(_CONVERSION.splitlines())
    return shlex.join([sys.executable, "-c", code, str(path), str(path.with_suffix(".safetensors"))])


def open_file(path: Path) -> SingleFile:
    """Open a file in the format of safetensors.

    Raises:
        Unfit: it is of another format, or incomplete.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise Unfit(f"{path} can't be read: {error.strerror}") from error
    if start[_LENGTH : _LENGTH + 1] != b"{":
        _refuse_another_format(path, start)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise Unfit(
            f"{path} is no complete safetensors file ({' '.join(str(error).split())[:200]}); download it again"
        ) from error
    return SingleFile(path=path, tensors=tensors, metadata=metadata)


def _refuse_another_format(path: Path, start: bytes) -> None:
    if start.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in PICKLED:
        raise Unfit(f"{path} is a pickle, which can run code, and is not read; convert it: {_conversion_command(path)}")
    for beginning, text in _STARTS.items():
        if start.lstrip().startswith(beginning):
            raise Unfit(f"{path} {text}")


def under(tensors: Mapping[str, Tensor], prefix: str, others: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, and with none of `others`, by the rest of their names."""
    elsewhere = tuple(others)
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(elsewhere)
    }

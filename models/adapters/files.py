"""Reads LoRA files: safetensors only, and whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from models.adapters.errors import InvalidLora
from models.loading import PICKLED

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What peft and diffusers call the file in a folder."""
PEFT_CONFIG = "adapter_config.json"
MOST_BYTES = 4 * 1024**3
MOST_TRIGGERS = 12
_REFUSED = {
    "LoKr": re.compile(r"lokr_"),
    "LoHa": re.compile(r"hada_"),
    "OFT": re.compile(r"\boft_|\.oft_"),
    "IA3": re.compile(r"ia3_|\.on_input"),
    "a LoCon in Tucker form (lora_mid)": re.compile(r"lora_mid"),
    "a LoRA with changed biases": re.compile(r"lora_(B|up)\.bias|\.diff_b$"),
    "a set of full differences, not of low rank": re.compile(r"\.diff$"),
    "a textual inversion": re.compile(r"^(emb_params|string_to_param|clip_l|clip_g)$"),
}
"""Kinds of adapters that are not low-rank products, by what the names of their tensors hold."""
_IS_MAGNITUDE = re.compile(r"\.dora_scale$|\.lora_magnitude_vector(\.weight)?$")
_IS_LORA = re.compile(r"lora[_.](A|B|a|b|up|down)\b|_lora\.|lora_linear_layer|\.alpha$|lora_(A|B)\.weight")


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA as it was in its file.

    Attributes:
        name: under which it is asked for.
        digest: SHA-256 of the file; of both files if it is a folder of peft's.
        tensors: by name.
        metadata: of the file, with peft's configuration as `adapter_config`.
    """

    name: str
    digest: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def rank(self) -> int:
        """The greatest rank of its products."""
        down = [tensor for name, tensor in self.tensors.items() if re.search(r"lora[_.]?(A|a|down)\b|\.down\.", name)]
        return max((len(tensor) for tensor in down), default=0)

    @property
    def magnitudes(self) -> int:
        """Number of layers whose weights get another length, as in DoRA."""
        return sum(bool(_IS_MAGNITUDE.search(name)) for name in self.tensors)

    @property
    def triggers(self) -> tuple[str, ...]:
        """Words that it was trained to answer to, by its metadata."""
        if phrase := self.metadata.get("modelspec.trigger_phrase", ""):
            return tuple(word.strip() for word in phrase.split(",") if word.strip())[:MOST_TRIGGERS]
        counted: Counter[str] = Counter()
        for tags in _object(self.metadata.get("ss_tag_frequency")).values():
            if isinstance(tags, dict):
                counted.update({str(tag).strip(): count for tag, count in tags.items() if isinstance(count, int)})
        return tuple(tag for tag, _ in counted.most_common(MOST_TRIGGERS) if tag)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a LoRA consists of, that with the weights first; none if the path holds no LoRA."""
    if not path.is_dir():
        return (path,) if path.suffix in (".safetensors", *PICKLED) else ()
    weights = [path / name for name in FILES if (path / name).is_file()]
    config = path / PEFT_CONFIG
    return (*weights[:1], *([config] if weights and config.is_file() else []))


def read_lora(name: str, path: Path) -> LoraFile:
    """Read a LoRA's file, or the folder that peft or diffusers saved it in.

    Raises:
        InvalidLora: it can't be read, is no LoRA or one of another kind, or has numbers that are not finite.
    """
    files = files_of(path)
    if not files or not files[0].is_file():
        raise InvalidLora("there is no such file")
    if files[0].suffix in PICKLED:
        raise InvalidLora("it is a pickle, which can run code and is not read: convert it to .safetensors")
    if files[0].stat().st_size > MOST_BYTES:
        raise InvalidLora(f"it has more than {MOST_BYTES // 1024**3} GiB")
    try:
        contents = [file.read_bytes() for file in files]
        tensors, metadata = load(contents[0]), _metadata(contents[0])
    except OSError as error:
        raise InvalidLora(f"it can't be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidLora(f"it can't be read as safetensors: {' '.join(str(error).split())[:200]}") from error
    if len(contents) > 1:
        metadata = {**metadata, "adapter_config": contents[1].decode(errors="replace")}
    _check(tensors)
    digest = hashlib.sha256(contents[0])
    for content in contents[1:]:
        digest.update(content)
    return LoraFile(name=name, digest=digest.hexdigest(), tensors=tensors, metadata=metadata)


def _check(tensors: Mapping[str, Tensor]) -> None:
    for kind, pattern in _REFUSED.items():
        if found := next(filter(pattern.search, tensors), None):
            raise InvalidLora(f"it is {kind}, which is not supported ({found}); LoRA, DoRA and LoCon are")
    if not tensors or not any(map(_IS_LORA.search, tensors)):
        raise InvalidLora(f"it holds no LoRA ({next(iter(tensors), 'no tensor at all')})")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InvalidLora(f"its {name} is {str(tensor.dtype).removeprefix('torch.')}; floating point is needed")
        if name.endswith(".dora_scale") and tensor.dim() > 1 and len(tensor) == 1:
            raise InvalidLora(f"it is DoRA by inputs, which is not supported ({name}); DoRA by outputs is")
        if not torch.isfinite(tensor.float()).all():
            raise InvalidLora(f"its {name} has numbers that are NaN or infinite")


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    found = _object(content[8 : 8 + length].decode()).get("__metadata__", {})
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

"""Writes the folder of a single file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from models.importing.errors import Unfit
from models.importing.single_files.base import Base
from models.importing.single_files.components import Component

SHARD = "5GB"
"""Most bytes of a file of weights, as on the hub."""


def check_target(out: Path) -> None:
    """Check that a folder can be written.

    Raises:
        Unfit: it exists and is not empty, or is a file.
    """
    if out.is_dir() and any(out.iterdir()):
        raise Unfit(f"{out} exists and is not empty; name a folder that does not exist yet")
    if out.exists() and not out.is_dir():
        raise Unfit(f"{out} is a file; name a folder that does not exist yet")


def write_folder(
    out: Path, base: Base, components: Sequence[Component], index: dict[str, Any], scheduler: dict[str, Any]
) -> None:
    """Write a folder, all of it or nothing.

    Args:
        out: where; a folder beside it has the files until they are complete.
        base: tokenizers are copied from it.
        components: what holds weights.
        index: contents of model_index.json.
        scheduler: contents of scheduler_config.json.

    Raises:
        Unfit: there is no room on the disk, or it can't be written.
    """
    unfinished = out.absolute().with_name(f".{out.absolute().name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        _check_room(unfinished, sum(component.bytes for component in components))
        _write_json(unfinished / "model_index.json", index)
        _write_json(unfinished / "scheduler" / "scheduler_config.json", scheduler)
        for name in index:
            if name.startswith("tokenizer") and base.pack.has(name):
                shutil.copytree(base.pack.component(name), unfinished / name)
        with _progress(sum(component.bytes for component in components)) as progress:
            for component in components:
                _write_component(unfinished / component.name, component, progress)
        unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise Unfit(f"{out} can't be written: {_reason(error)}; nothing is left of it") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    is_full = f"os error {errno.ENOSPC}" in text or getattr(error, "errno", None) == errno.ENOSPC
    return "the disk is full" if is_full else text


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Unfit(f"{folder.parent} has {free / 1e9:.1f} GB free, and the folder needs {size / 1e9:.1f} GB")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_component(folder: Path, component: Component, progress: Callable[[str, int], None]) -> None:
    _write_json(folder / "config.json", component.config)
    stem = "model" if component.of_transformers else "diffusion_pytorch_model"
    split = split_state_dict_into_shards_factory(
        component.weights,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=SHARD,
    )
    for file, names in split.filename_to_tensors.items():
        tensors: dict[str, Tensor] = {name: component.weights[name].contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors writes for its user alone
        progress(component.name, sum(tensor.nbytes for tensor in tensors.values()))
    if split.is_sharded:
        places = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / f"{stem}.safetensors.index.json", places)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of bytes on standard error, if it is a terminal; advanced by a component's name and a number of bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("writing", total=total)
        yield lambda name, size: bar.update(task, description=name, advance=size)

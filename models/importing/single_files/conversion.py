"""From a single file to a folder: what is in it, what comes from its base, and what the folder says."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from models.importing.errors import Unfit
from models.importing.single_files.base import Base, open_base
from models.importing.single_files.components import Component, component
from models.importing.single_files.families import (
    CONV_IN,
    DENOISER,
    INPAINTING_CHANNELS,
    Family,
    Prediction,
    family_of,
    prediction_of,
    usual_base,
)
from models.importing.single_files.file import SingleFile, open_file
from models.importing.single_files.folder import check_target, write_folder
from models.pack import read_object

_OF_THE_BASE = ("title", "license")  # what a base's "cynosure" says of itself


def import_file(path: Path, out: Path, base_name: str | None, say: Callable[[str], None]) -> None:
    """Write the folder of a single file.

    Args:
        path: the file.
        out: the folder to write; it must not exist, or be empty.
        base_name: a folder in diffusers' layout, or `owner/name@COMMIT`, of the same family.
        say: is told what is found, a line at a time.

    Raises:
        Unfit: the file, its base or the folder is not as it must be.
        InvalidPack: the base can't be opened.
    """
    check_target(out)
    file = open_file(path)
    family = family_of(file)
    if base_name is None:
        raise Unfit(
            f"{path} is a {family.name}, and has neither configuration nor tokenizer; name a folder that has them: "
            f"--base {usual_base(file, family)}@COMMIT (40 hex digits, from the page of its commits), or a copy on disk"
        )
    base = open_base(base_name)
    if base.family is not family:
        raise Unfit(
            f"{path} is a {family.name}, and the base {base_name} is a {base.family.name}; a base that fits: "
            f"{usual_base(file, family)}"
        )
    scheduler = read_object(base.pack.component("scheduler") / "scheduler_config.json")
    prediction = prediction_of(file, family, scheduler, base_name)
    scheduler = _scheduler(scheduler, prediction, file, base)
    made = {name: component(file, name, base) for name in family.layouts}
    components = [one for one in made.values() if one is not None]
    for line in _findings(file, family, prediction, made):
        say(line)
    write_folder(out, base, components, _index(file, base, made), scheduler)


def _scheduler(scheduler: dict[str, Any], prediction: Prediction, file: SingleFile, base: Base) -> dict[str, Any]:
    """The base's scheduler with what the file says of itself.

    Raises:
        Unfit: the scheduler's class can't end in pure noise, and the file's schedule does.
    """
    if base.family.flows:
        return scheduler
    said: dict[str, Any] = {"prediction_type": prediction.kind}
    if prediction.ends_in_noise:
        name = str(base.pack.scheduler_config["_class_name"])
        known = inspect.signature(getattr(diffusers, name, object).__init__).parameters
        if not {"rescale_betas_zero_snr", "timestep_spacing"} <= known.keys():
            raise Unfit(
                f"{file.path} was trained with zero terminal SNR (its tensor ztsnr), and the {name} of {base.name} has "
                "no such schedule; choose a base with EulerDiscreteScheduler or DDIMScheduler"
            )
        said |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler | said


def _index(file: SingleFile, base: Base, made: Mapping[str, Component | None]) -> dict[str, Any]:
    """The base's `model_index.json` without components that are not written."""
    index = dict(base.pack.index)
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        suffix = re.sub(r"^\D+", "", name)
        encoder = f"text_encoder_{suffix}" if suffix else "text_encoder"
        is_written = made.get(encoder if name.startswith("tokenizer") else name) is not None or name == "scheduler"
        index[name] = value if is_written else [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    if "cynosure" in index:
        index["cynosure"] = {key: value for key, value in index["cynosure"].items() if key not in _OF_THE_BASE}
    unet = made.get("unet")
    if unet is not None and unet.config["in_channels"] != base.config("unet").get("in_channels", 4):
        stem = re.match(r"StableDiffusion(XL)?", index["_class_name"])
        kind = "InpaintPipeline" if unet.config["in_channels"] == INPAINTING_CHANNELS else "Pipeline"
        index["_class_name"] = (stem[0] if stem else "StableDiffusion") + kind
    return index


def _findings(
    file: SingleFile, family: Family, prediction: Prediction, made: Mapping[str, Component | None]
) -> Sequence[str]:
    inpaints = any(
        name.endswith(CONV_IN) and tensor.shape[1] == INPAINTING_CHANNELS for name, tensor in file.tensors.items()
    )
    lines = [f"family: {family.name}{', for inpainting' if inpaints else ''}"]
    noise = ", zero terminal SNR (its tensor ztsnr)" if prediction.ends_in_noise else ""
    lines.append(f"predicts: {prediction.kind} ({prediction.because}){noise}")
    for name, one in made.items():
        if one is None:
            lines.append(f"{name}: in neither, and left out")
        else:
            lines.append(f"{name}: {' and '.join(one.dtypes)}, {one.bytes / 1e6:,.1f} MB, from {one.source}")
    if unread := _unread(file, family):
        lines.append(f"not read: {unread}")
    return lines


def _unread(file: SingleFile, family: Family) -> str:
    """The parts of a file that belong to no component, with the number of their tensors."""
    read = tuple(prefix for layout in family.layouts.values() for prefix in layout.prefixes)
    if not any(name.startswith(DENOISER) for name in file.tensors):
        return ""  # all that is not another component's is the denoiser's
    counts = Counter(name.partition(".")[0] for name in file.tensors if not name.startswith(tuple(filter(None, read))))
    return ", ".join(f"{head} ({count} tensors)" if count > 1 else head for head, count in sorted(counts.items()))

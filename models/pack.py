"""A pack on disk: a model folder in diffusers' layout, bundled, at any path, or from the hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

PROMPTED_PIXELS = "PromptedPixelPipeline"
PACKS_FOLDER = Path(__file__).parent / "packs"
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/(?P<name>[\w.-]+))@(?P<revision>[0-9a-f]{40})")
"""A repository of the model hub at one commit. Branches are not accepted: they move, and the pictures would change."""
A_FILE = "a file, and folders are served: make one of it with `cynosure import FILE.safetensors OUT`"
REFERENCES = "components.json"
"""File of a folder that takes components from another pack: `pack`, that pack's folder (from this one) or its name, and
`sha256`, the digests of the components by name."""
_NOT_DRAWN_WITH = frozenset({"training", "judge"})
LATENT_PATCH = 2  # side of the patch of latents that forms one token in Flux
_SCHEDULER_DEFAULTS = {"num_train_timesteps": 1000, "prediction_type": "epsilon"}  # those of diffusers' schedulers
_PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
_DISTILLED_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_DISTILLED = ("LCMScheduler", "TCDScheduler")  # their defaults are Stable Diffusion's betas
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # no pickle, no code


class InvalidPack(ValueError):
    """The folder is not a usable pack; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A model folder in diffusers' layout.

    Attributes:
        name: its name in requests.
        folder: holds `model_index.json` and one sub-folder per component.
        index: the parsed `model_index.json`.
        taken: components of another pack that this one uses: their folders and digests, by name.
        scheduler_config: the scheduler's configuration: noise schedule, prediction type and sampling, and as
            `_class_name` and `_pipeline` the classes that the index names for scheduler and pipeline.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    scheduler_config: dict[str, Any]
    taken: Mapping[str, tuple[Path, str]] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index (`id2label`, as in DiT's pipelines)."""
        names: dict[str, str] = self.index.get("id2label", {})
        return tuple(names[str(index)] for index in range(len(names)))

    @property
    def family(self) -> str:
        """Class of the denoising network in `model_index.json`, or "nothing" if it names none.

        For prompted pixels it is the pipeline's class, because Stable Diffusion has the same network class.
        """
        if self.index.get("_class_name") == PROMPTED_PIXELS:
            return PROMPTED_PIXELS
        return self.declared_class("unet") or self.declared_class("transformer") or "nothing"

    def has(self, component: str) -> bool:
        """Whether the index names this component; pipelines list absent ones as [null, null]."""
        return self.declared_class(component) is not None

    def declared_class(self, component: str) -> str | None:
        """The class of a component, as the index names it; `None` if the index does not name the component.

        Raises:
            InvalidPack: the entry is not what pipelines write.
        """
        match self.index.get(component):
            case None:
                return None
            case [_, str() | None as declared]:
                return declared
            case other:
                file = self.folder / "model_index.json"
                raise InvalidPack(f"{file}: {component} must be a library and a class, not {json.dumps(other)}")

    @property
    def has_classifier(self) -> bool:
        return self.has("classifier")

    @property
    def has_encoders(self) -> bool:
        """Whether it has an autoencoder or text encoders."""
        return any(self.has(name) for name in ("vae", "text_encoder", "classifier_text_encoder"))

    @property
    def has_ip_adapter(self) -> bool:
        """Whether it has a folder `ip_adapter`, by which Stable Diffusion can be prompted with pictures."""
        return self.family == "UNet2DConditionModel" and self.component("ip_adapter").is_dir()

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
        """Side of the latents of the pack's own size, an even number, for families whose network names none."""
        return int(self.defaults.get("latent_size", 128))

    def component(self, name: str) -> Path:
        """The folder, or the file, of a component."""
        return self.taken[name][0] if name in self.taken else self.folder / name

    def digest(self) -> str:
        """SHA-256 over the names and contents of all files that the pictures depend on.

        Raises:
            InvalidPack: a component of another pack is not what it was.
        """
        digest = hashlib.sha256()
        for name, (place, was) in sorted(self.taken.items()):
            if name in _NOT_DRAWN_WITH:
                continue
            if component_digest(place) != was:
                raise InvalidPack(
                    f"{place} is not what it was when {self.folder / REFERENCES} was written: its digest is not "
                    f"{was[:12]}…; put back what it was, or train '{self.name}' again"
                )
            digest.update(f"{name}\0{was}".encode())
        for path in sorted(self.folder.rglob("*")):
            is_unused = path.relative_to(self.folder).parts[0] in {*_NOT_DRAWN_WITH, REFERENCES}
            if path.is_file() and path.suffix in {".json", ".safetensors"} and not is_unused:
                digest.update(str(path.relative_to(self.folder)).encode() + b"\0")
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def component_digest(place: Path) -> str:
    """SHA-256 over the names and contents of a component's files.

    Raises:
        InvalidPack: it is not there.
    """
    digest = hashlib.sha256()
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    if not files:
        raise InvalidPack(f"{place} is not there, and another pack uses it")
    for path in files:
        digest.update(path.relative_to(place.parent).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _taken(folder: Path) -> dict[str, tuple[Path, str]]:
    """The components that a folder takes from another pack.

    Raises:
        InvalidPack: its file of references is not valid, or the other pack is not there.
    """
    file = folder / REFERENCES
    if not file.is_file():
        return {}
    content = read_object(file)
    source, digests = content.get("pack"), content.get("sha256")
    if not isinstance(source, str) or not isinstance(digests, dict) or not all(_is_name(name) for name in digests):
        raise InvalidPack(f'{file} must hold "pack", a folder or name, and "sha256", digests by component')
    beside = folder / source
    place = beside if beside.is_dir() else _found(source)[1]
    if not place.is_dir():
        raise InvalidPack(f"{file}: its pack '{source}' is not there; put it back, or correct its place")
    further = _taken(place)
    return {name: (further[name][0] if name in further else place / name, str(digests[name])) for name in digests}


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..")


def downloaded(
    repository: str, revision: str, files: Collection[str] = _HUB_FILES, but_not: Collection[str] = ()
) -> Path:
    """Download files of a repository on the hub, by patterns, unless they are in the hub's cache; returns its folder.

    Raises:
        InvalidPack: the hub does not answer, or has no such repository or commit.
    """
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(files), ignore_patterns=list(but_not))
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InvalidPack(f"{repository} at {revision[:10]} can't be downloaded from the hub: {reason}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; a byte order mark before it is skipped.

    Raises:
        InvalidPack: it is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidPack(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidPack(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidPack(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _scheduler_config(pack: Pack, config: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration, with its defaults, and the classes of the scheduler and of the folder's pipeline."""
    declared = pack.declared_class("scheduler")
    named = {"_class_name": declared or config.get("_class_name"), "_pipeline": pack.index.get("_class_name")}
    defaults = _SCHEDULER_DEFAULTS | (_DISTILLED_BETAS if named["_class_name"] in _DISTILLED else {})
    return defaults | config | named


def open_packs(wanted: Sequence[str | Pack]) -> list[Pack]:
    """Open packs that are served together, each as `open_pack` does, unless it is open.

    Raises:
        InvalidPack: one of them can't be opened, or two have the same name.
    """
    packs: dict[str, Pack] = {}
    for one in wanted:
        pack = one if isinstance(one, Pack) else open_pack(one)
        if (other := packs.setdefault(pack.name, pack)) is not pack:
            raise InvalidPack(
                f"two packs are called '{pack.name}': {other.folder} and {pack.folder}; to serve both, give one of "
                f"them another name: other-name={one.rpartition('=')[2] if isinstance(one, str) else one.folder}"
            )
    return list(packs.values())


def open_pack(name_or_folder: str) -> Pack:
    """Open a bundled pack by name, a folder by path, or a repository on the hub by `owner/name@COMMIT`.

    The pack has the name of its folder, or the one that is put before it: `NAME=FOLDER`. A folder that has a `=` in its
    own name must be written with a slash before that: `./a=b`.

    Raises:
        InvalidPack: no such pack, or its index or scheduler can't be read; the message names the file.
    """
    name, equals, rest = name_or_folder.partition("=")
    if not equals or os.sep in name:
        return _opened(name_or_folder)
    if not name or not rest:
        raise InvalidPack(f"'{name_or_folder}' must have a name before the '=' and a pack after it: NAME=FOLDER")
    return replace(_opened(rest), name=name)


def _opened(name_or_folder: str) -> Pack:
    try:
        return _read(name_or_folder, *_found(name_or_folder))
    except (OSError, RuntimeError) as error:  # no permission, or a ~ without a home folder
        raise InvalidPack(f"'{name_or_folder}' can't be opened: {error}") from error


def _found(name_or_folder: str) -> tuple[str, Path]:
    """The name and the folder of a pack."""
    is_path = name_or_folder.startswith((".", "~")) or os.sep in name_or_folder
    bundled = PACKS_FOLDER / name_or_folder
    folder = bundled if not is_path and bundled.is_dir() else Path(name_or_folder).expanduser()
    on_hub = None if folder.is_dir() else HUB_ID.fullmatch(name_or_folder)
    if on_hub:
        return on_hub["name"], downloaded(on_hub["repository"], on_hub["revision"])
    return Path(os.path.abspath(folder)).name, folder  # as it was typed: links stay links


def _read(name_or_folder: str, name: str, folder: Path) -> Pack:
    if not (folder / "model_index.json").is_file():
        if folder.is_file():
            raise InvalidPack(f"'{name_or_folder}' is {A_FILE}")
        known = sorted(path.parent.name for path in PACKS_FOLDER.glob("*/model_index.json"))
        raise InvalidPack(
            f"'{name_or_folder}' is neither a bundled pack ({', '.join(known) or 'none'}) "
            "nor a folder with a model_index.json, nor owner/name@COMMIT on the hub (40 hex digits)"
        )
    taken = _taken(folder)
    scheduler = (taken["scheduler"][0] if "scheduler" in taken else folder / "scheduler") / "scheduler_config.json"
    if not scheduler.is_file():
        raise InvalidPack(f"{folder} has no scheduler/scheduler_config.json")
    pack = Pack(
        name=name, folder=folder, index=read_object(folder / "model_index.json"), scheduler_config={}, taken=taken
    )
    pack = replace(pack, scheduler_config=_scheduler_config(pack, read_object(scheduler)))
    if not isinstance(pack.defaults, dict):
        raise InvalidPack(f"{folder / 'model_index.json'}: cynosure must be a JSON object, with the pack's defaults")
    steps = pack.scheduler_config["num_train_timesteps"]
    if not isinstance(steps, int) or steps < 1:
        raise InvalidPack(f"{scheduler}: num_train_timesteps must be a positive whole number, not {json.dumps(steps)}")
    prediction = pack.scheduler_config["prediction_type"]
    if prediction not in _PREDICTIONS:
        raise InvalidPack(f"{scheduler}: prediction_type must be one of {_PREDICTIONS}, not {json.dumps(prediction)}")
    labels = pack.index.get("id2label", {})
    if not isinstance(labels, dict) or set(labels) != {str(index) for index in range(len(labels))}:
        raise InvalidPack(f"{folder / 'model_index.json'}: id2label must name the classes 0 to N-1, without a gap")
    return pack

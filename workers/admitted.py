"""Which packs may be loaded on request while the worker serves."""

from __future__ import annotations

import os
from pathlib import Path

from cynosure.hints import nearest, sentence
from models.pack import A_FILE, HUB_ID, PACKS_FOLDER, InvalidPack, Pack, open_pack


def open_admitted(name: str, wanted: str, *, root: Path | None, from_hub: bool) -> Pack:
    """Open a bundled pack, a folder in `root`, or, if `from_hub`, a repository on the hub, under this name.

    Links are followed before a folder is compared with the root.

    Raises:
        InvalidPack: it is none of these, or can't be opened.
    """
    if os.sep not in wanted and (PACKS_FOLDER / wanted / "model_index.json").is_file():
        return open_pack(f"{name}={PACKS_FOLDER / wanted}")
    if HUB_ID.fullmatch(wanted) and not (root is not None and (root / wanted).is_dir()):
        if not from_hub:
            raise InvalidPack(f"'{wanted}' is on the hub, which is only asked if CYNOSURE_MODELS_HUB is set")
        return open_pack(f"{name}={wanted}")
    if root is None:
        raise InvalidPack(
            f"'{wanted}' is no bundled model ({', '.join(_packs_in(PACKS_FOLDER))}), and folders are loaded only from "
            "CYNOSURE_MODELS_ROOT, which is not set"
        )
    try:
        folder, place = (root / wanted).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a null byte
        raise InvalidPack(f"'{wanted}' can't be opened: {error}") from error
    if folder == place or not folder.is_relative_to(place):
        raise InvalidPack(f"'{wanted}' is outside CYNOSURE_MODELS_ROOT ({root})")
    if folder.is_file():
        raise InvalidPack(f"'{wanted}' is {A_FILE}")
    if not folder.is_dir():
        known = [*_packs_in(PACKS_FOLDER), *_packs_in(place)]
        hint = sentence(nearest(wanted, known))
        raise InvalidPack(f"no '{wanted}' here. {hint}There are: {', '.join(known)}")
    if not (folder / "model_index.json").is_file():
        raise InvalidPack(f"'{wanted}' is no model folder: it has no model_index.json")
    return open_pack(f"{name}={folder}")


def _packs_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/model_index.json"))

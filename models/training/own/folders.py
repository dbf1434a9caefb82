"""Finds the pictures of a folder, with their classes and captions, in the layouts of 🤗 datasets' imagefolder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

METADATA, CAPTIONS = "metadata.jsonl", "captions.txt"
_LABELS, _TEXTS = ("label", "class"), ("text", "caption", "prompt")


class InvalidPictures(ValueError):
    """The pictures can't be trained on; the message names what is wrong with them."""


@dataclass(frozen=True)
class Found:
    """A picture's file, with its class and its caption, if it has them."""

    path: Path
    label: str | None
    caption: str | None


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, in the order of their names.

    Attributes:
        pictures: the files.
        passed_over: number of other files, which are neither pictures nor about them.
    """

    pictures: tuple[Found, ...]
    passed_over: int


def pictures_in(folder: Path) -> Listing:
    """Find the pictures of a folder.

    A picture's class is the folder below `folder` that it lies in, or its `label` in a metadata.jsonl; its caption is
    its `text` there, its line in a captions.txt beside it (`NAME<tab>CAPTION` or `NAME,CAPTION`), or NAME.txt.

    Raises:
        InvalidPictures: there is no such folder, no picture in it, or a file about pictures can't be read.
    """
    if not folder.is_dir():
        raise InvalidPictures(f"--data {folder} is not a folder")
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    pictures = [path for path in files if path.suffix.lower() in extensions]
    about = {path for path in files if path.name in (METADATA, CAPTIONS)}
    captions = {path.with_suffix(".txt") for path in pictures} & set(files)
    if not pictures:
        others = sorted({path.suffix.lower() for path in files if path.suffix})
        more = f"; it has {', '.join(others[:6])} files, which are not read as pictures" if others else ""
        raise InvalidPictures(f"{folder} has no pictures{more}: put them in a folder for each class")
    metadata = {path: entry for file in sorted(about) for path, entry in _entries(file)}
    if missing := sorted(path for path in metadata if path not in set(files)):
        raise InvalidPictures(f"{missing[0]} is named by {METADATA} or {CAPTIONS}, and there is no such file")
    found = []
    for path in pictures:
        label, caption = metadata.get(path, (None, None))
        parts = path.relative_to(folder).parts
        beside = path.with_suffix(".txt")
        if caption is None and beside in captions:
            caption = _text(beside).strip()
        found.append(Found(path, label or (parts[0] if len(parts) > 1 else None), caption or None))
    return Listing(tuple(found), len(files) - len(pictures) - len(about) - len(captions))


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPictures(f"{path} can't be read as text: {error}") from error


def _entries(file: Path) -> Iterator[tuple[Path, tuple[str | None, str | None]]]:
    """(file, (class, caption)) of each line of a metadata.jsonl or captions.txt."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        if file.name == METADATA:
            try:
                entry = json.loads(line)
                name = entry["file_name"]
            except (ValueError, KeyError, TypeError):
                raise InvalidPictures(f'{file}:{number} must be a JSON object with a "file_name"') from None
            label, caption = (next((entry[key] for key in keys if key in entry), None) for keys in (_LABELS, _TEXTS))
            yield file.parent / str(name), (None if label is None else str(label), caption and str(caption))
        else:
            name, separator, caption = line.partition("\t" if "\t" in line else ",")
            if not separator:
                raise InvalidPictures(f"{file}:{number} must be a file's name, a tab or comma, and its caption")
            if number == 1 and (name, caption.strip()) == ("image", "caption"):  # the head of Flickr8k's file
                continue
            yield file.parent / name.strip(), (None, caption.strip())

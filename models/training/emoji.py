"""The emoji pack's pictures, drawn from three open sets on the npm registry, with captions from open metadata."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from models.training.data import MissingData, save_whole

STYLES = ("noto", "fluent", "twemoji")
PICTURE_SIDE = 32
_MARGIN = 1  # white, so that a shift by one pixel cuts nothing off
_CONCEPTS = Path(__file__).with_name("emoji_concepts.txt")
_SETS = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
_NAMES = "unicode-emoji-json@0.9.0"
_KEYWORDS = "emojilib@4.0.3"


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing to draw.

    Attributes:
        emoji: the character.
        name: its Unicode name.
        words: everyday words for it, from `emoji_concepts.txt`.
        keywords: emojilib's keywords, unfiltered.
    """

    emoji: str
    name: str
    words: tuple[str, ...]
    keywords: tuple[str, ...]


def fetch_packages(folder: Path, *, also: Sequence[str] = ()) -> None:
    """Fetch missing packages, and those named in `also`, with `npm pack` and unpack them in `folder`.

    Raises:
        MissingData: npm is not installed or can't reach its registry, or the folder holds something else.
    """
    if (foreign := next(_not_ours(folder, also), None)) is not None:
        raise MissingData(
            f"{folder} is no cache: it holds '{foreign.name}', and the emoji sets would be downloaded beside it. "
            "Choose an empty folder with --cache, or leave it out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for package in (*_SETS.values(), _NAMES, _KEYWORDS, *also):
        target = _unpacked(folder, package)
        if target.is_dir():
            continue
        npm = shutil.which("npm")
        if npm is None:
            raise MissingData("The emoji sets come as npm packages, and npm is not installed (apt-get install npm).")
        packed = subprocess.run(
            [npm, "pack", package, "--json", "--pack-destination", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if packed.returncode:
            raise MissingData(f"npm could not fetch {package}: {packed.stderr.strip()}")
        archive = folder / json.loads(packed.stdout)[0]["filename"].replace("@", "").replace("/", "-")
        partial = target.with_name(f"{target.name}.partial")
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        (partial / "package").rename(target)
        partial.rmdir()
        archive.unlink()


def drawn_set(package: str, emoji: Sequence[str], folder: Path) -> dict[str, np.ndarray]:
    """Draw those of some emoji that a fetched set has, `uint8` (3,32,32) each, by emoji."""
    bodies = _read_set(_unpacked(folder, package))
    return {character: _rasterised(*bodies[character]) for character in emoji if character in bodies}


def _not_ours(folder: Path, also: Sequence[str] = ()) -> Iterator[Path]:
    """What a folder holds besides the packages, or further Iconify sets, and what was made from them."""
    packages = tuple(_unpacked(folder, package).name for package in (*_SETS.values(), _NAMES, _KEYWORDS, *also))
    packages = (*packages, "iconify-json-")
    made = re.compile(r"(pictures|captions)-[0-9a-f]+\.(safetensors|partial)")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if not path.name.startswith(packages) and not made.fullmatch(path.name):
            yield path


def read_concepts(folder: Path) -> list[Concept]:
    """Read the concepts, in the order of `emoji_concepts.txt`, from the packages in `folder`."""
    metadata = _Metadata.of(folder)
    by_name = {str(data["name"]): emoji for emoji, data in metadata.names.items()}
    concepts = []
    for line in _CONCEPTS.read_text().splitlines():
        if not line.startswith("#"):
            name, _, words = line.partition(":")
            concepts.append(metadata.concept(by_name[name.strip()], [word.strip() for word in words.split(",")]))
    return concepts


def other_concepts(concepts: Sequence[Concept], folder: Path) -> list[Concept]:
    """All emoji that every set has, except flags and `concepts`: more examples of each style."""
    metadata = _Metadata.of(folder)
    drawn = {concept.emoji for concept in concepts}
    sets = [_read_set(_unpacked(folder, package)) for package in _SETS.values()]
    return [
        metadata.concept(emoji)
        for emoji, data in metadata.names.items()
        if emoji not in drawn and data["group"] != "Flags" and all(emoji in emoji_set for emoji_set in sets)
    ]


@dataclass(frozen=True)
class _Metadata:
    names: Mapping[str, Any]
    keywords: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, folder: Path) -> _Metadata:
        return cls(
            names=json.loads((_unpacked(folder, _NAMES) / "data-by-emoji.json").read_text()),
            keywords=json.loads((_unpacked(folder, _KEYWORDS) / "dist" / "emoji-en-US.json").read_text()),
        )

    def concept(self, emoji: str, words: Sequence[str] = ()) -> Concept:
        return Concept(
            emoji=emoji,
            name=str(self.names[emoji]["name"]),
            words=tuple(filter(None, words)),
            keywords=tuple(keyword.replace("_", " ") for keyword in self.keywords.get(emoji, [])),
        )


def draw_pictures(concepts: Sequence[Concept], folder: Path) -> Tensor:
    """Draw each concept in every style on white, `uint8` (concepts, styles, 3, 32, 32); cached in `folder`.

    Raises:
        MissingData: CairoSVG is not installed.
    """
    emoji = [concept.emoji for concept in concepts]
    key = json.dumps([_SETS, PICTURE_SIDE, _MARGIN, emoji])
    cached = folder / f"pictures-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if not cached.exists():
        sets = [_read_set(_unpacked(folder, _SETS[style])) for style in STYLES]
        pictures = np.stack([[_rasterised(*emoji_set[character]) for emoji_set in sets] for character in emoji])
        save_whole({"pictures": torch.from_numpy(pictures)}, cached)
    return load_file(cached)["pictures"]


def _unpacked(folder: Path, package: str) -> Path:
    return folder / package.lstrip("@").replace("/", "-").replace("@", "-")


def _read_set(folder: Path) -> Mapping[str, tuple[str, int]]:
    """SVG bodies with the side of their square, by emoji, both with and without variation selector 16."""
    icons: dict[str, Any] = json.loads((folder / "icons.json").read_text())
    characters: dict[str, str] = json.loads((folder / "chars.json").read_text())
    side = int(icons["width"])
    bodies: dict[str, tuple[str, int]] = {}
    for codes, name in characters.items():
        icon = icons["icons"].get(icons["aliases"].get(name, {}).get("parent", name))
        if icon is not None and int(icon.get("width", side)) == side:
            emoji = "".join(chr(int(code, 16)) for code in codes.split("-"))
            for spelling in (emoji, emoji + "\ufe0f", emoji.replace("\ufe0f", "")):
                bodies.setdefault(spelling, (icon["body"], side))
    return bodies


def _rasterised(body: str, side: int) -> np.ndarray:
    """`uint8` (3,32,32), drawn at four times the size and averaged, because CairoSVG draws small sizes coarsely."""
    try:
        from cairosvg import svg2png  # in the extra [train]; needs the system's libcairo
    except (ImportError, OSError) as error:
        raise MissingData(
            "Drawing SVG needs CairoSVG (pip install 'cynosure[train]') and libcairo "
            f"(apt-get install libcairo2): {error}"
        ) from error
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} viewBox="0 0 {side} {side}">{body}</svg>'
    inner = PICTURE_SIDE - 2 * _MARGIN
    png = svg2png(bytestring=svg.encode(), output_width=4 * inner, output_height=4 * inner, background_color="white")
    small = Image.open(io.BytesIO(png)).convert("RGB").resize((inner, inner), Image.Resampling.BOX)
    return np.pad(np.asarray(small).transpose(2, 0, 1), ((0, 0), (_MARGIN,) * 2, (_MARGIN,) * 2), constant_values=255)

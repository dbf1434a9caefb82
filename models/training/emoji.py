"""The emoji pack's pictures: drawn from three open sets that the npm registry has, and told by open metadata."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
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
_MARGIN = 1  # white, so that a shift by a pixel loses nothing
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
        words: everyday words for it, from the list beside this module.
        keywords: emojilib's, as they come.
    """

    emoji: str
    name: str
    words: tuple[str, ...]
    keywords: tuple[str, ...]


def fetch_packages(folder: Path) -> None:
    """Have every package unpacked in `folder`, by `npm pack` for those that are not there.

    Raises:
        MissingData: npm is not installed, or can't reach its registry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in (*_SETS.values(), _NAMES, _KEYWORDS):
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
        partial = target.with_suffix(".partial")
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        (partial / "package").rename(target)
        partial.rmdir()
        archive.unlink()


def read_concepts(folder: Path) -> list[Concept]:
    """What is drawn, in the order of `emoji_concepts.txt`, from packages that `fetch_packages` has put in `folder`."""
    about = _About.of(folder)
    by_name = {str(data["name"]): emoji for emoji, data in about.names.items()}
    concepts = []
    for line in _CONCEPTS.read_text().splitlines():
        if not line.startswith("#"):
            name, _, words = line.partition(":")
            concepts.append(about.concept(by_name[name.strip()], [word.strip() for word in words.split(",")]))
    return concepts


def other_concepts(concepts: Sequence[Concept], folder: Path) -> list[Concept]:
    """Every emoji that all sets have, but for flags and for `concepts`: more of each style to learn from."""
    about = _About.of(folder)
    drawn = {concept.emoji for concept in concepts}
    sets = [_read_set(_unpacked(folder, package)) for package in _SETS.values()]
    return [
        about.concept(emoji)
        for emoji, data in about.names.items()
        if emoji not in drawn and data["group"] != "Flags" and all(emoji in one for one in sets)
    ]


@dataclass(frozen=True)
class _About:
    names: Mapping[str, Any]
    keywords: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, folder: Path) -> _About:
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
    """Each in every style on white, `uint8` (concepts, styles, 3, 32, 32); drawn once, then read back.

    Raises:
        MissingData: CairoSVG is not installed.
    """
    emoji = [concept.emoji for concept in concepts]
    what = json.dumps([_SETS, PICTURE_SIDE, _MARGIN, emoji])
    drawn = folder / f"pictures-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
    if not drawn.exists():
        sets = [_read_set(_unpacked(folder, _SETS[style])) for style in STYLES]
        pictures = np.stack([[_rasterised(*one[character]) for one in sets] for character in emoji])
        save_whole({"pictures": torch.from_numpy(pictures)}, drawn)
    return load_file(drawn)["pictures"]


def _unpacked(folder: Path, package: str) -> Path:
    return folder / package.lstrip("@").replace("/", "-").replace("@", "-")


def _read_set(folder: Path) -> Mapping[str, tuple[str, int]]:
    """SVG bodies with the side of their square, by emoji; ‘️’ (variation selector 16) or not is the same."""
    icons: dict[str, Any] = json.loads((folder / "icons.json").read_text())
    characters: dict[str, str] = json.loads((folder / "chars.json").read_text())
    side = int(icons["width"])
    found: dict[str, tuple[str, int]] = {}
    for codes, name in characters.items():
        icon = icons["icons"].get(icons["aliases"].get(name, {}).get("parent", name))
        if icon is not None and int(icon.get("width", side)) == side:
            emoji = "".join(chr(int(code, 16)) for code in codes.split("-"))
            for spelling in (emoji, emoji + "\ufe0f", emoji.replace("\ufe0f", "")):
                found.setdefault(spelling, (icon["body"], side))
    return found


def _rasterised(body: str, side: int) -> np.ndarray:
    """`uint8` (3,32,32), drawn at four times the size and averaged down: CairoSVG's own small drawing is coarse."""
    try:
        from cairosvg import svg2png  # of the extra [train], and it needs the system's libcairo
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

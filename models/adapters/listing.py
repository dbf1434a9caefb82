"""What LoRAs are there, and which packs can use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.adapters.errors import InvalidLora, InvalidLoras
from models.adapters.files import LoraFile
from models.adapters.folder import LoraFolder, Stamp
from models.adapters.layouts import AdapterBase, changes_of, family_of


@dataclass(frozen=True, kw_only=True)
class ListedLora:
    """A LoRA in the folder, as one pack sees it.

    Attributes:
        name: under which it is asked for.
        digest: SHA-256 of its file; empty if it can't be read.
        family: of the models that it is for, as far as that is known.
        rank: the greatest of its products.
        triggers: words that it was trained to answer to.
        fault: why the pack can't use it; `None` if it can.
    """

    name: str
    digest: str = ""
    family: str | None = None
    rank: int = 0
    triggers: tuple[str, ...] = ()
    fault: str | None = None


class LoraListing:
    """Reads each file once, and again only if it was replaced. For one thread; reading is slow.

    Args:
        folder: the LoRAs.
    """

    def __init__(self, folder: LoraFolder) -> None:
        self._folder = folder
        self._known: dict[tuple[str, Stamp, int], ListedLora] = {}

    def look(self, bases: Mapping[str, AdapterBase]) -> dict[str, tuple[ListedLora, ...]]:
        """The LoRAs by name, for each pack by name, whose bases these are."""
        known: dict[tuple[str, Stamp, int], ListedLora] = {}
        found: dict[str, list[ListedLora]] = {pack: [] for pack in bases}
        for name, (_, stamp) in self._folder.listed().items():
            missing = [base for base in bases.values() if (name, stamp, id(base)) not in self._known]
            if missing:
                self._known |= {(name, stamp, id(base)): one for base, one in self._read(name, missing)}
            for pack, base in bases.items():
                key = name, stamp, id(base)
                known[key] = self._known[key]
                found[pack].append(known[key])
        self._known = known
        return {pack: tuple(loras) for pack, loras in found.items()}

    def _read(self, name: str, bases: list[AdapterBase]) -> list[tuple[AdapterBase, ListedLora]]:
        try:
            file = self._folder.read(name)
        except (InvalidLora, InvalidLoras) as error:
            return [(base, ListedLora(name=name, fault=str(error))) for base in bases]
        return [(base, _listed(file, base)) for base in bases]


def _listed(file: LoraFile, base: AdapterBase) -> ListedLora:
    fault, family = None, family_of(file)
    try:
        changes_of(file, base)
    except InvalidLora as error:
        fault = str(error)
    return ListedLora(
        name=file.name,
        digest=file.digest,
        family=family or (base.family if fault is None else None),
        rank=file.rank,
        triggers=file.triggers,
        fault=fault,
    )

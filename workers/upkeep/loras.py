"""Telling gateways which LoRAs there are, while files come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cynosure.contract import LoraOnCard
from models.adapters import AdapterBase, ListedLora, LoraFolder, LoraListing
from models.lanes import set_thread_count
from workers.background import BackgroundThread

LOOK_S = 1.0


class LoraWatch(BackgroundThread):
    """Looks into the folder of LoRAs, and publishes the cards anew when something in it has changed.

    Args:
        folder: the LoRAs.
        bases: what LoRAs can change, of each loaded model that takes them.
        show: called with the LoRAs for each model.
        publish: publishes the cards.
    """

    def __init__(
        self,
        folder: Path,
        bases: Callable[[], Mapping[str, AdapterBase]],
        *,
        show: Callable[[Mapping[str, tuple[LoraOnCard, ...]]], None],
        publish: Callable[[], None],
    ) -> None:
        super().__init__("loras", every_s=LOOK_S)
        self._listing = LoraListing(LoraFolder(folder))
        self._bases = bases
        self._show = show
        self._publish = publish
        self._shown: dict[str, tuple[ListedLora, ...]] = {}

    def look(self) -> bool:
        """Read what is new in the folder; whether anything has changed."""
        set_thread_count(1)  # the cores are the engine's
        found = self._listing.look(self._bases())
        has_changed, self._shown = found != self._shown, found
        if has_changed:
            self._show({model: tuple(map(_on_card, loras)) for model, loras in found.items()})
        return has_changed

    def _turn(self) -> None:
        if self.look():
            self._publish()


def _on_card(lora: ListedLora) -> LoraOnCard:
    return LoraOnCard(
        name=lora.name,
        digest=lora.digest,
        family=lora.family,
        rank=lora.rank,
        trigger_words=lora.triggers,
        fault=lora.fault,
    )

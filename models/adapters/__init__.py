"""LoRAs, ControlNets and IP-Adapters: read from files, and applied to single rows of a batch."""

from models.adapters.controls import (
    ControlFamily,
    ControlFolder,
    ControlNetwork,
    Controls,
    FluxControls,
    ListedControl,
    RowControl,
    SD3Controls,
    UNetControls,
    called_with,
    residuals,
    tokens_of,
)
from models.adapters.errors import InvalidControl, InvalidControls, InvalidImagePrompts, InvalidLora, InvalidLoras
from models.adapters.files import LoraFile, read_lora
from models.adapters.folder import AdapterFolders, LoraFolder
from models.adapters.images import ImagePrompts
from models.adapters.layouts import AdapterBase, changes_of, family_of
from models.adapters.listing import ListedLora, LoraListing
from models.adapters.loaded import Adapters
from models.adapters.rows import LowRank, RowExtras, RowImage, controls_in_batch, given, rows_in_batch

__all__ = [
    "AdapterBase",
    "AdapterFolders",
    "Adapters",
    "ControlFamily",
    "ControlFolder",
    "ControlNetwork",
    "Controls",
    "FluxControls",
    "ImagePrompts",
    "InvalidControl",
    "InvalidControls",
    "InvalidImagePrompts",
    "InvalidLora",
    "InvalidLoras",
    "ListedControl",
    "ListedLora",
    "LoraFile",
    "LoraFolder",
    "LoraListing",
    "LowRank",
    "RowControl",
    "RowExtras",
    "RowImage",
    "SD3Controls",
    "UNetControls",
    "called_with",
    "changes_of",
    "controls_in_batch",
    "family_of",
    "given",
    "read_lora",
    "residuals",
    "rows_in_batch",
    "tokens_of",
]

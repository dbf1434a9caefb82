"""ControlNets: read from folders of diffusers, and run for single rows of a batch."""

from models.adapters.controls.family import ControlFamily
from models.adapters.controls.flux import FluxControls, called_with, tokens_of
from models.adapters.controls.folder import ControlFolder, ListedControl
from models.adapters.controls.loaded import Controls
from models.adapters.controls.network import ControlNetwork, RowControl, residuals
from models.adapters.controls.preprocessing import PREPROCESSORS, preprocessed
from models.adapters.controls.stable_diffusion_3 import SD3Controls
from models.adapters.controls.unet import UNetControls

__all__ = [
    "PREPROCESSORS",
    "ControlFamily",
    "ControlFolder",
    "ControlNetwork",
    "Controls",
    "FluxControls",
    "ListedControl",
    "RowControl",
    "SD3Controls",
    "UNetControls",
    "called_with",
    "preprocessed",
    "residuals",
    "tokens_of",
]

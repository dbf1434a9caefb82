"""Samplers as tables of coefficients, compiled from diffusers' schedulers and applied by one update."""

from models.samplers.compile import PROBED_STEPS, compile_table, max_steps
from models.samplers.folder import check_schedule, folder_limits, folder_sampler
from models.samplers.kinds import (
    CFG_PLUS_PLUS_SAMPLERS,
    FLOW_PREDICTION,
    SAMPLERS,
    NotLinear,
    UnknownSampler,
)
from models.samplers.levels import shifted
from models.samplers.respacing import InvalidRespacing, respaced
from models.samplers.schedulers import options
from models.samplers.table import CoefficientTable
from models.samplers.update import advance

__all__ = [
    "CFG_PLUS_PLUS_SAMPLERS",
    "FLOW_PREDICTION",
    "PROBED_STEPS",
    "SAMPLERS",
    "CoefficientTable",
    "InvalidRespacing",
    "NotLinear",
    "UnknownSampler",
    "advance",
    "check_schedule",
    "compile_table",
    "folder_limits",
    "folder_sampler",
    "max_steps",
    "options",
    "respaced",
    "shifted",
]

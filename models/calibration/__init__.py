"""How a pack runs on a device: rules decide everything that changes bits; the rest is measured."""

from models.calibration.cache import Calibrations, FileCalibrations, calibration_key
from models.calibration.measure import calibrated, measuring, measuring_control
from models.calibration.networks import Networks, load_networks
from models.calibration.result import BatchSize, Calibration, NetworkCalibration, fixed_calibration

__all__ = [
    "BatchSize",
    "Calibration",
    "Calibrations",
    "FileCalibrations",
    "NetworkCalibration",
    "Networks",
    "calibrated",
    "calibration_key",
    "fixed_calibration",
    "load_networks",
    "measuring",
    "measuring_control",
]

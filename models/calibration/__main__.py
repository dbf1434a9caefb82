"""`python -m models.calibration PACK`: measure a pack on this device and print the result."""

from __future__ import annotations

import argparse
import sys

from models.calibration.measure import calibrated
from models.calibration.networks import PRECISIONS
from models.calibration.report import report
from models.loading import InvalidDevice, device_named
from models.pack import InvalidPack, open_pack


def main() -> None:
    """Print how a pack runs on this device: number format, time per row by batch size, bitwise class, row budget."""
    parser = argparse.ArgumentParser(prog="cynosure calibrate", description=main.__doc__)
    parser.add_argument("pack", nargs="?", default="fashion", help="name of a bundled pack, or a folder")
    parser.add_argument("--device", default="cpu", help="torch device, such as cpu or cuda:0")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="number format (default: by rule)")
    parser.add_argument("--again", action="store_true", help="measure even if a result is cached")
    parser.add_argument("--compile", action="store_true", help="compile the kernels with torch.compile (takes minutes)")
    arguments = parser.parse_args()
    try:
        device = device_named(arguments.device)
        pack = open_pack(arguments.pack)
        calibration = calibrated(
            pack, device, precision=arguments.precision, compiled=arguments.compile, again=arguments.again
        )
    except (InvalidPack, InvalidDevice) as error:
        sys.exit(f"cynosure calibrate: {error}")
    print("\n".join(report(pack, device, calibration)))


if __name__ == "__main__":
    main()

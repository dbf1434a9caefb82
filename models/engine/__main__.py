"""`python -m models.engine PACK`: measure a pack on this device and print what was found."""

from __future__ import annotations

import argparse
import sys

import torch

from models.engine.calibrate import cache_folder, cached_calibration
from models.engine.calibration import NetworkCalibration
from models.loading import InvalidPack, open_pack


def print_network(name: str, found: NetworkCalibration) -> None:
    """A line a precision, a line a batch size."""
    print(f"\n{name}: {found.precision}")
    for precision, row_ms in found.tried.items():
        print(f"  {precision:<30} {row_ms:>8.3f} ms a row in a batch of 16")
    print(f"  {'rows':>6} {'ms a row':>9} {'rows/s':>8}  bits")
    for size in found.measured:
        mark = "*" if size.rows in found.sizes else " "
        print(f"  {size.rows:>6} {size.row_ms:>9.3f} {1000 / size.row_ms:>8.0f} {mark} {size.bits}")
    print(f"  batches are padded to: {', '.join(map(str, found.sizes))}; knee at {found.knee}")
    print(f"  the same bits in any company: {'yes' if found.is_bitwise else 'no'}")


def main() -> None:
    """Print how a pack runs on this device: number format, time a row by batch size, bitwise class, row budget."""
    parser = argparse.ArgumentParser(prog="cynosure calibrate", description=main.__doc__)
    parser.add_argument("pack", nargs="?", default="fashion", help="name of a bundled pack, or a folder")
    parser.add_argument("--device", default="cpu", help="torch device, such as cpu or cuda:0")
    parser.add_argument("--again", action="store_true", help="measure even where a result is cached")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too (minutes)")
    arguments = parser.parse_args()
    try:
        pack = open_pack(arguments.pack)
    except InvalidPack as error:
        sys.exit(f"cynosure calibrate: {error}")
    found = cached_calibration(pack, torch.device(arguments.device), compiling=arguments.compile, again=arguments.again)
    print(f"{pack.name} on {found.device}, torch {torch.__version__}")
    for layout, row_ms in found.layouts.items():
        print(f"  {'*' if layout == str(found.layout) else ' '} {layout:<22} {row_ms:>8.3f} ms a row in batches of 16")
    print_network("denoiser", found.denoiser)
    if found.classifier is not None:
        print_network("classifier", found.classifier)
    print(f"\nkept in {cache_folder() / found.key}.json")


if __name__ == "__main__":
    main()

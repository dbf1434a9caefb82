"""`python -m models.parity`: compare this machine's results with the reference systems'."""

from __future__ import annotations

import argparse
import sys

import torch

from models.calibration import calibrated
from models.calibration.report import report
from models.pack import open_pack
from models.parity.cases import cases


def main() -> None:
    """Print a pack's calibration and the differences from the reference systems; exit with 1 if one is too large."""
    parser = argparse.ArgumentParser(prog="cynosure selftest", description=main.__doc__)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/parity.md")
    as_table = parser.parse_args().markdown
    if not as_table:
        pack, device = open_pack("fashion"), torch.device("cpu")
        print(*report(pack, device, calibrated(pack, device)), "", sep="\n", flush=True)
    else:
        print("| what | reference | largest difference | allowed |\n|---|---|---|---|")
    failed = 0
    for case in cases():
        error = case.measure()
        fits = error <= case.tolerance
        failed += not fits
        if as_table:
            print(f"| {case.name} | {case.reference} | {error:.1e} | {case.tolerance:.0e} |")
        else:
            print(f"{'ok  ' if fits else 'FAIL'}  {error:8.1e}  ({case.tolerance:.0e})  {case.reference}: {case.name}")
    if failed:
        sys.exit(f"{failed} results differ by more than is allowed")


if __name__ == "__main__":
    main()

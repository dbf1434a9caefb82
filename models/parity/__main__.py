"""`python -m models.parity`: compare this machine's results with the reference systems'."""

from __future__ import annotations

import gc
import sys
from functools import wraps

import torch
import typer

from models import command_line
from models.calibration import calibrated
from models.calibration.report import report
from models.pack import open_pack
from models.parity.cases import cases

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.selftest)
def _main(markdown: bool) -> None:
    if not markdown:
        pack, device = open_pack("fashion"), torch.device("cpu")
        print(*report(pack, device, calibrated(pack, device)), "", sep="\n", flush=True)
    else:
        print("| what | reference | largest difference | allowed |\n|---|---|---|---|")
    failed = 0
    for case in cases():
        error = case.measure()
        fits = error <= case.tolerance
        failed += not fits
        if markdown:
            print(f"| {case.name} | {case.reference} | {error:.1e} | {case.tolerance:.0e} |")
        else:
            print(f"{'ok  ' if fits else 'FAIL'}  {error:8.1e}  ({case.tolerance:.0e})  {case.reference}: {case.name}")
    if failed:
        sys.exit(f"{failed} results differ by more than is allowed")


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure selftest")

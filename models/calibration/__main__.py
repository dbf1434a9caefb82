"""`python -m models.calibration PACK`: measure a pack on this device and print the result."""

from __future__ import annotations

import gc
import sys
from functools import wraps

import typer

from models import command_line
from models.calibration.measure import calibrated
from models.calibration.report import report
from models.loading import InvalidDevice, device_named
from models.pack import InvalidPack, open_pack

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.calibrate)
def _main(
    pack: str,
    device: str,
    precision: command_line.Precision,
    encoder_precision: command_line.EncoderPrecision,
    quantize: command_line.Quantize | None,
    offload: bool,
    again: bool,
    compile: bool,
) -> None:
    try:
        on = device_named(device)
        opened = open_pack(pack)
        calibration = calibrated(
            opened,
            on,
            precision=precision,
            encoder_precision=encoder_precision,
            quantize=quantize,
            offloaded=offload,
            compiled=compile,
            again=again,
        )
    except (InvalidPack, InvalidDevice) as error:
        sys.exit(f"cynosure calibrate: {error}")
    print("\n".join(report(opened, on, calibration)))


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure calibrate")

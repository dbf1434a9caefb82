"""`python -m workers`: run a worker, or refuse in one line what can't be served."""

from __future__ import annotations

import argparse
import signal
import sys

from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings, log_to, read_settings, refusing, warn_of_unknown_variables
from models.pack import InvalidPack, open_packs
from workers.settings import WorkerSettings


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cynosure worker", description=main.__doc__)
    parser.add_argument(
        "--models", help="packs to load, separated by commas: names, folders, owner/name@COMMIT, or NAME= before one"
    )
    parser.add_argument("--device", help="torch device, such as cpu or cuda:0")
    parser.add_argument(
        "--precision", help="number format of the networks, such as float32; by default chosen for the device"
    )
    parser.add_argument("--check", action="store_true", help="only check the settings and find the packs")
    return parser.parse_args()


def main() -> None:
    """Run one worker in the foreground. SIGTERM drains it; jobs unfinished after the grace period are handed back."""
    given = {name: value for name, value in vars(_parse()).items() if value is not None}
    is_check = given.pop("check")
    log_to(sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it serves, Ctrl-C ends it without a traceback
    with refusing("cynosure worker", InvalidSettings, InvalidPack):
        settings, store_settings = read_settings(WorkerSettings, **given), read_settings(StoreSettings)
        packs = open_packs(settings.packs)
    warn_of_unknown_variables(WorkerSettings, StoreSettings)
    if is_check:
        return
    from workers.serving import serve  # imports torch, which takes seconds: whatever is wrong was refused before

    serve(settings, store_settings, packs)


if __name__ == "__main__":
    main()

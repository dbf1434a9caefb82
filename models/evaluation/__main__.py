"""`python -m models.evaluation PACK`: measure how well a pack follows its requests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.evaluation import classes, prompts
from models.pack import PROMPTED_PIXELS, InvalidPack, open_pack


def main() -> None:
    """Measure a pack with a judge trained on clean pictures."""
    parser = argparse.ArgumentParser(prog="cynosure evaluate", description=main.__doc__)
    parser.add_argument("pack", nargs="?", default="fashion")
    parser.add_argument("--count", type=int, help="pictures per setting (500), or prompts of known names (126)")
    parser.add_argument("--only", default="", help="only settings whose name contains this")
    parser.add_argument("--sheets", type=Path, help="write contact sheets of a prompted pack's pictures to this folder")
    arguments = parser.parse_args()
    try:
        pack = open_pack(arguments.pack)
    except InvalidPack as error:
        sys.exit(f"cynosure evaluate: {error}")
    if pack.family != PROMPTED_PIXELS:
        if arguments.sheets:
            parser.error(f"argument --sheets: '{pack.name}' draws classes; use `cynosure demo` for a sheet of those")
        lines = classes.measured(pack, count=arguments.count or 500, only=arguments.only)
    elif arguments.sheets:
        return prompts.save_sheets(pack, arguments.sheets)
    else:
        lines = prompts.measured(pack, count=arguments.count or 126, only=arguments.only)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""`python -m models.importing`: convert published ADM checkpoints to a pack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.importing.adm import PRESETS, Unfit, import_adm


def main() -> None:
    """Convert a published ADM checkpoint, and its classifier, to a pack that `cynosure up --models OUT` serves."""
    parser = argparse.ArgumentParser(prog="cynosure import-adm", description=main.__doc__)
    parser.add_argument("diffusion", type=Path, help="the diffusion model's .pt")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--classifier", type=Path, help="the noise-aware classifier's .pt")
    parser.add_argument("--preset", required=True, choices=PRESETS, help="the checkpoint's published configuration")
    parser.add_argument("--labels", type=Path, help="file of class names, one per line; numbers by default")
    arguments = parser.parse_args()
    labels = arguments.labels.read_text().splitlines() if arguments.labels else None
    try:
        import_adm(
            arguments.diffusion,
            arguments.out,
            PRESETS[arguments.preset],
            classifier=arguments.classifier,
            labels=labels,
        )
    except Unfit as error:
        sys.exit(f"cynosure import-adm: {error}")
    print(f"wrote {arguments.out}; serve it with: cynosure up --models {arguments.out}")


if __name__ == "__main__":
    main()

"""`python -m models.parity`: compare this machine's results with the reference systems'."""

from __future__ import annotations

import argparse
import sys

from models.parity.cases import cases


def main() -> None:
    """Print how far this machine's results are from those of the reference systems; exit 1 where one is too far."""
    parser = argparse.ArgumentParser(prog="cynosure selftest", description=main.__doc__)
    parser.add_argument("--markdown", action="store_true", help="as the table of docs/parity.md")
    as_table = parser.parse_args().markdown
    if as_table:
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
        sys.exit(f"{failed} differ by more than is allowed")


if __name__ == "__main__":
    main()

"""`python -m chaos`: run the scenarios and print their table."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from chaos.books import Result, table
from chaos.scenarios import SCENARIOS
from chaos.trial import Scale


def main() -> None:
    """Break a real Cynosure in every scenario, and compare the accepted jobs with the results."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=main.__doc__)
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"one of {', '.join(SCENARIOS)}; all by default"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of jobs and faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of the posted jobs and the times of the faults")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - SCENARIOS.keys():
        parser.error(f"no scenario {', '.join(sorted(unknown))}; known: {', '.join(SCENARIOS)}")
    # Exit through the context managers, so that all processes are stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    results: list[Result] = []
    for name in arguments.scenarios or SCENARIOS:
        started = time.monotonic()
        result = SCENARIOS[name](Scale(factor=arguments.scale, seed=arguments.seed))
        results.append(result)
        verdict = "skipped" if result.skipped else "holds" if result.holds else "BROKEN"
        print(f"{result.name}: {verdict} in {time.monotonic() - started:.0f} s. {result.note}", file=sys.stderr)
        for fault in result.faults[:20]:
            print(f"  {fault}", file=sys.stderr)
    print(table(results))
    sys.exit(not all(result.holds for result in results))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.queueing`: what each order of ticks does to the mixed stream's answers, by simulation."""

from __future__ import annotations

import argparse

import torch

from benchmarks.load import Measured
from benchmarks.queueing.costs import MEASURED, Costs
from benchmarks.queueing.policies import POLICIES
from benchmarks.queueing.simulation import OneEach, Ticks
from benchmarks.stream import mixed_stream
from models.calibration import calibrated
from models.pack import open_pack

PEER = "a task each"


def simulated(name: str, costs: Costs, *, clients: int, seconds: float, seed: int) -> Measured:
    """A window of the mixed stream with one of `POLICIES`, or with the peer."""
    stream = mixed_stream(open_pack("fashion"), seed=seed)
    if name == PEER:
        return OneEach(costs, stream, clients).measured(name, seconds=seconds)
    return Ticks(costs, stream, clients, POLICIES[name](costs)).measured(name, seconds=seconds)


def means(name: str, costs: Costs, *, clients: int, seconds: float, streams: int) -> tuple[float, ...]:
    """(pictures/s, p50 s, p95 s, p99 s), each the mean over several streams."""
    windows = [
        simulated(name, costs, clients=clients, seconds=seconds, seed=1000 * number + clients)
        for number in range(streams)
    ]
    rows = [(window.pictures_per_s, *map(window.quantile, (0.5, 0.95, 0.99))) for window in windows]
    return tuple(sum(column) / streams for column in zip(*rows, strict=True))


def main() -> None:
    """Print pictures per second and quantiles of the latencies, by number of clients and policy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queueing", description=main.__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=600.0, help="simulated, of each stream (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=2, help="different ones (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*POLICIES, PEER], default=[*POLICIES, PEER])
    parser.add_argument(
        "--machine",
        choices=[*MEASURED, "this"],
        default="A",
        help="class of docs/performance.md (default: %(default)s)",
    )
    arguments = parser.parse_args()
    here = arguments.machine == "this"
    costs = Costs.of(calibrated(open_pack("fashion"), torch.device("cpu"))) if here else MEASURED[arguments.machine]
    print(f"ticks of up to {costs.knee} rows, and of at least {costs.least}")
    print(f"{'clients':>7}  {'policy':28}{'pictures/s':>11}{'p50 s':>8}{'p95 s':>8}{'p99 s':>8}")
    for clients in arguments.clients:
        for name in arguments.only:
            found = means(name, costs, clients=clients, seconds=arguments.seconds, streams=arguments.streams)
            print(
                f"{clients:>7}  {name:28}{found[0]:>11.2f}" + "".join(f"{value:>8.2f}" for value in found[1:]),
                flush=True,
            )


if __name__ == "__main__":
    main()

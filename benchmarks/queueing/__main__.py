"""`python -m benchmarks.queueing`: what each order of ticks does to the mixed stream's answers, by simulation."""

from __future__ import annotations

import argparse
import itertools

import torch

from benchmarks.load import Measured
from benchmarks.queueing.costs import MEASURED, Costs
from benchmarks.queueing.policies import POLICIES
from benchmarks.queueing.simulation import AtRandom, Clients, Load, OneEach, Ticks
from benchmarks.stream import mixed_stream
from models.calibration import calibrated
from models.pack import open_pack

PEER = "a task each"


def half_load(costs: Costs) -> AtRandom:
    """Requests at random times, half as many as the networks alone could serve."""
    stream = mixed_stream(open_pack("fashion"), seed=7)
    return AtRandom(0.5 * costs.requests_per_s(itertools.islice(stream, 100)))


def simulated(name: str, costs: Costs, load: Load, *, seconds: float, seed: int) -> Measured:
    """A window of the mixed stream with one of `POLICIES`, or with the peer."""
    stream = mixed_stream(open_pack("fashion"), seed=seed)
    if name == PEER:
        return OneEach(costs, stream, load).measured(name, seconds=seconds)
    return Ticks(costs, stream, load, POLICIES[name](costs)).measured(name, seconds=seconds)


def means(name: str, costs: Costs, load: Load, *, seconds: float, streams: int) -> tuple[float, ...]:
    """(pictures/s, p50 s, p95 s, p99 s), each the mean over several streams."""
    first = load.number if isinstance(load, Clients) else 7
    windows = [simulated(name, costs, load, seconds=seconds, seed=1000 * number + first) for number in range(streams)]
    rows = [(window.pictures_per_s, *map(window.quantile, (0.5, 0.95, 0.99))) for window in windows]
    return tuple(sum(column) / streams for column in zip(*rows, strict=True))


def main() -> None:
    """Print pictures per second and quantiles of the latencies, by load and policy; last at half load, at random."""
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
    print(f"ticks of up to {costs.batching.knee} rows, and of at least {costs.batching.least}")
    print(f"{'load':16}{'policy':28}{'pictures/s':>11}{'p50 s':>8}{'p95 s':>8}{'p99 s':>8}")
    for load in (*map(Clients, arguments.clients), half_load(costs)):
        for name in arguments.only:
            found = means(name, costs, load, seconds=arguments.seconds, streams=arguments.streams)
            quantiles = "".join(f"{value:>8.2f}" for value in found[1:])
            print(f"{load!s:16}{name:28}{found[0]:>11.2f}{quantiles}", flush=True)


if __name__ == "__main__":
    main()

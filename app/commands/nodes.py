"""Memory nodes (NUMA): a worker whose cores and memory are on one node does not wait for the other's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def nodes_here(root: Path = NODES) -> Mapping[int, frozenset[int]]:
    """The CPUs that this process may use, by the number of their node; nodes without one are left out."""
    allowed = os.sched_getaffinity(0)
    found = {
        int(path.parent.name.removeprefix("node")): _cpus(path.read_text()) & allowed
        for path in root.glob("node[0-9]*/cpulist")
    }
    return {node: found[node] for node in sorted(found) if found[node]}


def nodes_for(workers: int, nodes: Mapping[int, frozenset[int]]) -> list[int | None]:
    """The node of each worker, in turn; `None` if it should use all of the machine.

    That is so for a single worker, and if the nodes differ in size: the number of threads changes the last bits of
    large models' pictures, so all workers of a machine must have the same.
    """
    if workers < 2 or len(nodes) < 2 or len({len(cpus) for cpus in nodes.values()}) > 1:
        return [None] * workers
    return list(islice(cycle(nodes), workers))


def _cpus(text: str) -> frozenset[int]:
    """The CPUs of a list as Linux writes it, such as `0-3,8`."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return frozenset(cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1))

"""Which worker draws on what: devices as NVIDIA's tool lists them, and memory nodes as Linux does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from app.commands import devices
from app.commands.children import Child
from app.commands.devices import CPU, Place, places_for
from app.commands.nodes import nodes_for, nodes_here
from harness.processes import clean_environment
from jobs.starting import InvalidSettings

ROOT = Path(__file__).resolve().parents[2]
TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa0000-0000-0000-0000-000000000000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb0000-0000-0000-0000-000000000000)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-cccc0000-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-dddd0000-0000-0000-0000-000000000000)
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a driver whose tool prints this listing, and a build of torch with or without CUDA."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "nodes_here", dict)

    def script(name: str, body: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def one(listing: str, *, code: int = 0, has_cuda: bool = True) -> None:
        script("nvidia-smi", f"cat <<'END'\n{listing}END\nexit {code}")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(sys, "executable", script("python", f"echo 2.13.0 {has_cuda}"))

    return one


def drawn_on(devices: str | None, workers: int | None = None) -> list[tuple[str, str]]:
    """Of each worker: what its device is called, and the only one that it sees."""
    places = places_for(devices, workers)
    assert {place.arguments for place in places} == {("--device", "cuda:0")}
    return [
        (place.variables["CYNOSURE_WORKER_DEVICE_NAME"], place.variables["CUDA_VISIBLE_DEVICES"]) for place in places
    ]


A, B = (("cuda:0", "GPU-aaaa0000-0000-0000-0000-000000000000"), ("cuda:1", "GPU-bbbb0000-0000-0000-0000-000000000000"))
PARTS = [
    (uuid, uuid) for uuid in ("MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d")
]
WHOLE = ("cuda:1", "GPU-dddd0000-0000-0000-0000-000000000000")


def test_every_gpu_has_a_worker_and_more_workers_share_them(install: Install) -> None:
    install(TWO)
    assert drawn_on(None) == drawn_on("auto") == drawn_on("cuda:0,cuda:1") == [A, B]
    assert drawn_on("auto", 1) == [A]
    assert drawn_on("cuda:1, cuda:0", 3) == [B, A, B]
    assert drawn_on(B[1]) == [B], "by its UUID"


def test_a_divided_gpu_is_used_by_its_parts(install: Install) -> None:
    install(DIVIDED)
    assert drawn_on("auto") == [*PARTS, WHOLE]
    assert drawn_on(PARTS[1][0]) == [PARTS[1]]
    with pytest.raises(
        InvalidSettings, match=r"no 'cuda:0' here. There is: cpu, MIG-c.* \(NVIDIA A100.* MIG 3g.20gb\)"
    ):
        places_for("cuda:0", None)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1,0", [("cuda:0", B[1]), ("cuda:1", A[1])]),
        ("GPU-bb", [("cuda:0", B[1])]),
        ("1,7,0", [("cuda:0", B[1])]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_that_cuda_would_not_see_are_left_alone(
    visible: str, found: list[tuple[str, str]], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if found:
        assert drawn_on("auto") == found
    else:
        assert places_for("auto", None) == [Place(("--device", CPU))]


def test_the_cpu_draws_where_nothing_else_can(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = Place(("--device", CPU))
    install(TWO, has_cuda=False)
    assert places_for("auto", None) == [on_cpu]
    with pytest.raises(InvalidSettings, match=r"--devices cuda:0: torch 2\.13\.0 is built without CUDA"):
        places_for("cuda:0", None)
    install("No devices were found\n", code=6)
    assert places_for("auto", 2) == [on_cpu] * 2
    install("NVIDIA-SMI has failed\n", code=9)
    with pytest.raises(InvalidSettings, match=r"NVIDIA-SMI has failed\. To draw on the CPU, choose --devices cpu"):
        places_for("auto", None)
    assert places_for("cpu", None) == [on_cpu], "it is not asked for"
    monkeypatch.setenv("CYNOSURE_WORKER_DEVICE", "xpu")
    assert places_for(None, 2) == [Place()] * 2, "workers read that themselves"
    assert places_for("cpu", 1) == [on_cpu], "the option wins"


@pytest.mark.parametrize(
    ("asked", "workers", "says"),
    [
        ("cuda:2", None, r"there is no 'cuda:2' here. There is: cpu, cuda:0 \(NVIDIA H100 80GB HBM3\), cuda:1"),
        ("cuda:0,gpu", None, "no 'gpu' here"),
        ("mps", None, "no 'mps' here"),
        ("", None, "no '' here"),
        ("MIG-1", None, "no 'MIG-1' here"),
        (f"cuda:0,{A[1]}", None, "names cuda:0 twice; --workers"),
        ("cpu,cuda:0", None, "choose one kind of device"),
        ("cuda:0,cuda:1", 1, "--workers 1 leaves some of --devices cuda:0,cuda:1 unused"),
    ],
)
def test_devices_that_can_not_be_used_are_refused(asked: str, workers: int | None, says: str, install: Install) -> None:
    install(TWO)
    with pytest.raises(InvalidSettings, match=says):
        places_for(asked, workers)


def nodes(root: Path, **lists: str) -> Path:
    """A made-up /sys/devices/system/node."""
    for name, cpus in {"power": "", **lists}.items():
        (root / name).mkdir()
        (root / name / "cpulist").write_text(f"{cpus}\n")
    return root


def test_workers_on_the_cpu_are_spread_over_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    found = nodes_here(nodes(tmp_path, node0="0-3,8-11", node1="4-7,12-15", node2="", node10="64-127"))
    assert found == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7, 12, 13, 14, 15}}
    assert [nodes_for(workers, found) for workers in (1, 2, 3)] == [[None], [0, 1], [0, 1, 0]]
    assert nodes_for(2, {0: frozenset({0, 1}), 1: frozenset({2})}) == [None, None], "else their bits would differ"
    assert nodes_for(2, {0: frozenset({0, 1})}) == [None, None]
    monkeypatch.setattr(devices, "nodes_here", lambda: found)
    first, second = places_for("cpu", 2)
    assert (first.cpus, second.cpus) == (found[0], found[1])
    assert second.variables == {"CYNOSURE_WORKER_DEVICE_NAME": "cpu, node 1"}


def test_a_worker_keeps_to_its_cpus_and_stays_away_once_it_is_drained(tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    (tmp_path / "pinned.py").write_text(f"import os; raise SystemExit(os.sched_getaffinity(0) != {{{one}}})")
    child = Child("pinned", environment=clean_environment(PYTHONPATH=str(tmp_path)), cpus={one}, may_end=True)
    child.tend()
    assert child.process is not None
    assert child.process.wait() == 0
    for _ in range(2):
        child.restart_at = 0.0
        child.tend()
        assert child.process is None


def test_in_compose_each_gpu_has_a_worker_that_prometheus_finds() -> None:
    whole, gpus = (
        yaml.safe_load((ROOT / f"docker-compose{name}.yml").read_text())["services"] for name in ("", ".gpu")
    )
    seen = []
    for name, service in gpus.items():
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        seen += device["device_ids"]
        assert service["environment"]["CYNOSURE_WORKER_DEVICE_NAME"] == f"cuda:{seen[-1]}"
        if name != "worker":
            assert service["extends"] == {"file": "docker-compose.yml", "service": "worker"}
            assert set(service["networks"]) == set(whole["worker"]["networks"])
            assert service["networks"]["monitoring"] == {"aliases": ["worker"]}
    assert seen == ["0", "1"]

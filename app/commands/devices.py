"""The devices of this machine, and what each worker of `cynosure up` draws on."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from app.commands.nodes import nodes_for, nodes_here
from jobs.starting import InvalidSettings

AUTO, CPU, MPS = "auto", "cpu", "mps"
VISIBLE = "CUDA_VISIBLE_DEVICES"
LIST_GPUS = ("nvidia-smi", "-L")
NO_GPUS = 6  # its exit code, says its manual
TIMEOUT_S = 60.0  # a driver that is not kept loaded takes seconds
_GPU = re.compile(r"GPU \d+: (?P<title>.+) \(UUID: (?P<uuid>[^)]+)\)")
_MIG = re.compile(r"\s+MIG (?P<title>\S+)\s+Device\s+\d+: \(UUID: (?P<uuid>[^)]+)\)")

log = logging.getLogger("up")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG).

    Attributes:
        uuid: its name for `CUDA_VISIBLE_DEVICES`.
        title: what it is.
        parts: the MIG devices that it is divided into; then it can't be used as a whole.
    """

    uuid: str
    title: str
    parts: tuple[Gpu, ...] = ()


Chosen = tuple[str, Gpu | None]
"""What a device is called, and the GPU that it is."""
ON_CPU: list[Chosen] = [(CPU, None)]


@dataclass(frozen=True)
class Place:
    """Where one worker draws.

    Attributes:
        arguments: options of the worker.
        variables: of its environment.
        cpus: those that it may run on; `None`: all.
    """

    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    cpus: Collection[int] | None = None


def places_for(devices: str | None, workers: int | None) -> list[Place]:
    """The place of each worker.

    Args:
        devices: `auto`, or names separated by commas; `None`: `CYNOSURE_WORKER_DEVICE`, or else `auto`.
        workers: their number, which are spread over the devices in turn; `None`: one for each.

    Raises:
        InvalidSettings: a device is not here, or can't be used with the others.
    """
    if devices is None and any(name.upper() == "CYNOSURE_WORKER_DEVICE" for name in os.environ):
        return [Place()] * (workers or 1)  # they read it themselves
    names = [name.strip() for name in (AUTO if devices is None else devices).split(",")]
    gpus = [] if set(names) == {CPU} else visible(gpus_here(), os.environ.get(VISIBLE))
    is_auto = names == [AUTO]
    chosen: Sequence[Chosen] = [*_by_name(gpus).items()] or ON_CPU if is_auto else _named(names, gpus)
    if not is_auto and workers is not None and workers < len(chosen):
        raise InvalidSettings(f"--workers {workers} leaves some of --devices {devices} unused: name fewer")
    if any(gpu for _, gpu in chosen) and (version := _torch_without_cuda()):
        if not is_auto:
            raise InvalidSettings(
                f"--devices {devices}: torch {version} is built without CUDA; install one that has it"
            )
        log.warning("there are GPUs, but torch %s is built without CUDA: the CPU draws", version)
        chosen = ON_CPU
    if len(titles := sorted({gpu.title for _, gpu in chosen if gpu is not None})) > 1:
        log.warning("the GPUs differ, and with them the last bits of pictures: %s", ", ".join(titles))
    count = workers or len(chosen)
    if chosen == ON_CPU:
        return _on_cpu(count)
    return [_on(name, gpu) for name, gpu in islice(cycle(chosen), count)]


def gpus_here() -> list[Gpu]:
    """The GPUs of which NVIDIA's driver knows, in its order; none without a driver.

    Raises:
        InvalidSettings: the driver does not work.
    """
    try:
        answer = subprocess.run(LIST_GPUS, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _broken(str(error)) from None
    if answer.returncode not in (os.EX_OK, NO_GPUS):
        raise _broken(" ".join((answer.stdout + answer.stderr).split()))
    return list(_parsed(answer.stdout))


def visible(gpus: Sequence[Gpu], wanted: str | None) -> list[Gpu]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` lets programs see, as CUDA reads it: up to the first that there is not."""
    if wanted is None:
        return list(gpus)
    found: list[Gpu] = []
    for name in (part.strip() for part in wanted.split(",")):
        number = int(name) if name.isdecimal() else len(gpus)
        all_ = [*gpus, *(part for gpu in gpus for part in gpu.parts)]
        match = gpus[number : number + 1] or [gpu for gpu in all_ if name and gpu.uuid.startswith(name)]
        if not match:
            break
        found.append(match[0])
    return found


def _broken(reason: str) -> InvalidSettings:
    return InvalidSettings(
        f"NVIDIA's driver is here, but `{' '.join(LIST_GPUS)}` fails: {reason[:200]}. To draw on the CPU, choose "
        "--devices cpu."
    )


def _parsed(listing: str) -> Iterator[Gpu]:
    gpu: Gpu | None = None
    for line in listing.splitlines():
        if found := _GPU.fullmatch(line):
            if gpu is not None:
                yield gpu
            gpu = Gpu(found["uuid"], found["title"])
        elif (found := _MIG.fullmatch(line)) and gpu is not None:
            gpu = Gpu(gpu.uuid, gpu.title, (*gpu.parts, Gpu(found["uuid"], f"{gpu.title} MIG {found['title']}")))
    if gpu is not None:
        yield gpu


def _by_name(gpus: Sequence[Gpu]) -> dict[str, Gpu]:
    """Those that a worker can draw on, by what they are called: as torch does, and MIG devices by their own names."""
    named: dict[str, Gpu] = {}
    for index, gpu in enumerate(gpus):
        is_mig = gpu.uuid.startswith("MIG-")
        named |= {part.uuid: part for part in gpu.parts} or {gpu.uuid if is_mig else f"cuda:{index}": gpu}
    return named


def _torch_without_cuda() -> str | None:
    """The version of torch, if it can't use NVIDIA's GPUs; asked in a process of its own, because it is large."""
    asked = [sys.executable, "-P", "-c", "import torch; print(torch.__version__, torch.backends.cuda.is_built())"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    if answer.returncode:
        raise InvalidSettings(f"can't load torch: {' '.join(answer.stderr.split())[-200:]}")
    version, is_built = answer.stdout.split()
    return None if is_built == "True" else version


def _named(names: Sequence[str], gpus: Sequence[Gpu]) -> list[Chosen]:
    here: dict[str, Gpu | None] = {CPU: None, **_by_name(gpus)}
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        here[MPS] = None
    by_uuid = {gpu.uuid: name for name, gpu in here.items() if gpu is not None}
    chosen = [by_uuid.get(name, name) for name in names]
    for name in chosen:
        if name not in here:
            there = ", ".join(f"{each} ({gpu.title})" if gpu else each for each, gpu in here.items())
            raise InvalidSettings(f"--devices: there is no '{name[:100]}' here. There is: {there}")
        if chosen.count(name) > 1:
            raise InvalidSettings(f"--devices names {name} twice; --workers has several workers share a device")
    if len({name if here[name] is None else "gpu" for name in chosen}) > 1:
        raise InvalidSettings(
            f"--devices {','.join(names)}: choose one kind of device, because it changes the last bits of pictures"
        )
    return [(name, here[name]) for name in chosen]


def _on(name: str, gpu: Gpu | None) -> Place:
    if gpu is None:
        return Place(("--device", name))
    variables = {VISIBLE: gpu.uuid, "CYNOSURE_WORKER_DEVICE_NAME": name}
    return Place(("--device", "cuda:0"), variables)  # the only one that it sees


def _on_cpu(workers: int) -> list[Place]:
    nodes = nodes_here()
    return [
        Place(("--device", CPU))
        if node is None
        else Place(("--device", CPU), {"CYNOSURE_WORKER_DEVICE_NAME": f"{CPU}, node {node}"}, nodes[node])
        for node in nodes_for(workers, nodes)
    ]

"""How much of a device's memory is in use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from models.memory.needs import available


def memory_of(device: torch.device) -> Mapping[str, int]:
    """Bytes of the device's memory by kind.

    On CUDA `allocated` are tensors, `reserved` what torch holds for them, and `free` and `total` the device's. On other
    devices `resident` is the process's memory, and on a CPU `free` is what it may still take. What can't be told
    is left out.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return {"allocated": allocated, "reserved": reserved, "free": free, "total": total}
    found = {"resident": _resident(), "free": available(device)}
    return {kind: size for kind, size in found.items() if size is not None}


def _resident() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")

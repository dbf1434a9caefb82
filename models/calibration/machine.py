"""The hardware and the libraries that results depend on, in words and as a key."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import diffusers
import torch

from models.lanes import CORES

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that limit the instructions of a CPU's libraries, or set the order of MKL's sums."""
WITH_BFLOAT16 = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10", "DEFAULT", "ALL")
"""Beginnings of the values of ONEDNN_MAX_CPU_ISA that leave oneDNN its bfloat16 instructions."""
SHOWN = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "neon", "sve", "bf16")


def device_name(device: torch.device) -> str:
    """The hardware, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {CORES} threads"


def instruction_sets(device: torch.device) -> str:
    """What the device computes with, in words: instruction sets of a CPU and their limits, or a GPU's capability."""
    if device.type == "cuda":
        return "compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    has = torch.cpu.get_capabilities()
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return ", ".join([platform.machine(), *(name for name in SHOWN if has.get(name)), *limits])


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has this CPU's bfloat16 instructions at its disposal; else it would imitate them, slowly."""
    limits = [os.environ.get(name, "DEFAULT").upper() for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    has = torch.cpu.get_capabilities()
    return all(limit.startswith(WITH_BFLOAT16) for limit in limits) and bool(
        has.get("avx512_bf16") or has.get("amx_bf16")
    )


def machine_key(device: torch.device) -> str:
    """Everything on a machine that affects a batch's time or bits: hardware, instruction sets, caches, libraries."""
    parts = [device_name(device), torch.__version__, diffusers.__version__]
    if device.type == "cuda":
        parts.append(instruction_sets(device))
    else:
        parts += [f"{name}={value}" for name, value in sorted(torch.cpu.get_capabilities().items())]
        parts += [f"{name}={os.environ.get(name)}" for name in LIMITS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

"""The hardware and libraries that results depend on, as text and as a cache key."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import diffusers
import torch

from models.lanes import CORES

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that limit the instructions CPU libraries may use, or fix the order of MKL's sums."""
WITH_BFLOAT16 = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10", "DEFAULT", "ALL")
"""Prefixes of the values of ONEDNN_MAX_CPU_ISA that allow bfloat16 instructions."""
SHOWN = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "neon", "sve", "bf16")


def device_name(device: torch.device) -> str:
    """Human-readable name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {CORES} threads"


def instruction_sets(device: torch.device) -> str:
    """Human-readable list of a CPU's instruction sets and the limits set on them, or a GPU's compute capability."""
    if device.type == "cuda":
        return "compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    capabilities = torch.cpu.get_capabilities()
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return ", ".join([platform.machine(), *(name for name in SHOWN if capabilities.get(name)), *limits])


def multiplies_bfloat16() -> bool:
    """Whether oneDNN may use native bfloat16 instructions on this CPU; otherwise it emulates them, slowly."""
    limits = [os.environ.get(name, "DEFAULT").upper() for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    capabilities = torch.cpu.get_capabilities()
    return all(limit.startswith(WITH_BFLOAT16) for limit in limits) and bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    )


def machine_key(device: torch.device) -> str:
    """Digest of everything on a machine that affects a batch's time or bits: hardware, instruction sets, libraries."""
    parts = [device_name(device), torch.__version__, diffusers.__version__]
    if device.type == "cuda":
        parts.append(instruction_sets(device))
    else:
        parts += [f"{name}={value}" for name, value in sorted(torch.cpu.get_capabilities().items())]
        parts += [f"{name}={os.environ.get(name)}" for name in LIMITS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

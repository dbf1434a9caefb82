"""What calibration promises about bits holds with every instruction set that this machine has, and with fewer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cynosure.programs import program
from harness.processes import clean_environment
from models.calibration import load_networks
from models.pack import open_pack

NEEDS = {
    "AVX2": "avx2",
    "AVX512_CORE": "avx512_bw",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_AMX": "amx_bf16",
}
"""What a CPU must have for each limit of oneDNN, by the names of `torch.cpu.get_capabilities`."""
HAS_BFLOAT16 = {"AVX512_CORE_BF16", "AVX512_CORE_AMX"}


def report(pack: Path, **limits: str) -> list[dict[str, object]]:
    """What the networks of a pack are found to do in a process with these limits."""
    child = subprocess.run(
        program("tests.science.same_bits", str(pack)),
        env=clean_environment(**limits),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    for name, value in limits.items():
        if name != "LD_PRELOAD":
            assert f"{name}={value}" in found["instruction_sets"], "a report from a stranger's machine says its limits"
    networks: list[dict[str, object]] = found["networks"]
    return networks


def assert_kept(networks: list[dict[str, object]]) -> None:
    for network in networks:
        assert network["is_bitwise"], network
        assert network["holds"], network
        assert network["sizes"][0] == 1, network  # type: ignore[index]


@pytest.mark.parametrize(
    ("isa", "aten"),
    [("AVX2", "default"), ("AVX2", "avx2"), ("AVX512_CORE", ""), ("AVX512_CORE_BF16", ""), ("AVX512_CORE_AMX", "")],
)
def test_rows_keep_their_bits_with_the_instructions_of_other_cpus(small_pack: Path, isa: str, aten: str) -> None:
    if not torch.cpu.get_capabilities().get(NEEDS[isa]):
        pytest.skip(f"this CPU has no {isa}")
    networks = report(small_pack, ONEDNN_MAX_CPU_ISA=isa, **({"ATEN_CPU_CAPABILITY": aten} if aten else {}))
    assert_kept(networks)
    formats = {str(network["precision"]) for network in networks}
    assert ("bfloat16" in formats) is (isa in HAS_BFLOAT16), "formats follow from the instructions by rule"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_rows_keep_their_bits_by_mkls_kernels_for_intel(small_pack: Path, tmp_path: Path, instructions: str) -> None:
    """MKL has kernels of its own for Intel's CPUs, which sum by the number of rows; other CPUs can run them, too."""
    if not torch.cpu.get_capabilities().get("avx512_f" if instructions == "AVX512" else "avx2"):
        pytest.skip(f"this CPU has no {instructions}")
    claims, library = tmp_path / "intel.c", tmp_path / "intel.so"
    claims.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(claims)], check=True)
    networks = report(
        small_pack, LD_PRELOAD=str(library), MKL_ENABLE_INSTRUCTIONS=instructions, ONEDNN_MAX_CPU_ISA="AVX2"
    )
    assert_kept(networks)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of torch has no MKL")
@pytest.mark.parametrize(
    ("first", "in_one_order"), [("import torch", True), ("import torch; torch.eye(9) @ torch.eye(9)", False)]
)
def test_a_process_that_multiplied_too_early_is_known(first: str, in_one_order: bool) -> None:
    environment = clean_environment()
    environment.pop("MKL_CBWR", None)  # as this process has it from `models`
    code = f"{first}; from models.cpu_layers import sums_in_one_order; print(sums_in_one_order())"
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert child.stdout == f"{in_one_order}\n", child.stderr


def test_a_pack_that_is_loaded_after_the_first_product_warns(small_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.loading.sums_in_one_order", lambda: False)
    with pytest.warns(UserWarning, match="Import models before torch's first product"):
        load_networks(open_pack(str(small_pack)), torch.device("cpu"))

"""Prompts that wait are encoded together, and finished latents decoded together, without changing a byte."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.processes import wait_until
from models.calibration import BatchSize, Calibration, NetworkCalibration, calibrated, fixed_calibration
from models.denoisers import load_denoiser
from models.denoisers.latent import LatentPictures
from models.denoisers.text import TextEncoder
from models.engine import Engine, Handle
from models.lanes import Layout
from models.pack import Pack, open_pack
from models.spec import Guidance, InvalidSpec, SampleSpec
from tests.science.test_families import SIDE, flux, saved, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

CPU = torch.device("cpu")
Calibrate = Callable[[Pack, Calibration], Calibration]
IN_FOURS = NetworkCalibration(measured=(BatchSize(rows=1, row_ms=1.0, bits=""), BatchSize(rows=4, row_ms=0.2, bits="")))
PROMPTS = ("a red cat", "two blue dogs on a hill", "", "a red cat " * 30, "green", "a (red:1.3) cat")


@pytest.mark.parametrize(
    ("build", "encoders"),
    [
        (stable_diffusion, 1),
        (stable_diffusion_xl, 2),
        (partial(stable_diffusion_3, t5=True), 3),
        (partial(flux, distilled=True, shifts=True), 2),
    ],
    ids=["1", "XL", "3", "flux"],
)
def test_prompts_that_are_encoded_together_are_those_that_are_encoded_alone(
    build: Callable[[], Any], encoders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved(build, tmp_path)
    if isinstance(build, partial) and build.func is flux:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"cynosure": {"latent_size": SIDE}}))
    alone, together = (load_denoiser(open_pack(str(folder)), CPU) for _ in range(2))
    takes_weights = alone.prompt_options.takes_weights
    specs = [SampleSpec(pack="pack", prompt=prompt, weighted=takes_weights) for prompt in PROMPTS]
    assert len(together.encoders) == encoders
    rows: list[int] = []
    output = TextEncoder.output

    def counted(encoder: TextEncoder, ids: Tensor) -> Any:
        rows.append(len(ids))
        return output(encoder, ids)

    monkeypatch.setattr(TextEncoder, "output", counted)
    for encoder in together.encoders:
        encoder.batching = IN_FOURS
    together.encode_prompts(specs)
    assert set(rows) == {4}
    rows.clear()
    ahead = [together.conditioning(spec) for spec in specs]
    assert len(rows) <= encoders * takes_weights, "only chunks of an empty prompt are encoded later"
    for spec, pair in zip(specs, ahead, strict=True):
        for mine, other in zip(pair, alone.conditioning(spec), strict=True):
            assert mine.keys() == other.keys()
            for name, tensor in mine.items():
                assert tensor.untyped_storage().nbytes() == tensor.nbytes, "it keeps no batch alive"
                torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(stable_diffusion_xl, tmp_path_factory.mktemp("batching"))[1]


@pytest.fixture(scope="module")
def in_two_lanes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibrate:
    """Batches as large as this machine's measurement allows, whatever their times, on two lanes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("kept")))
        measured = calibrated(open_pack(str(folder)), CPU, precision="float32")
        known = calibrated(open_pack(str(folder)), CPU, precision="float32")
    assert set(measured.encoders) == {"text_encoder", "text_encoder_2"}
    networks = {"decoder": measured.decoder, **measured.encoders}
    for name, network in networks.items():
        assert network.is_bitwise
        assert max(network.sizes) >= 4
        assert network.row_bytes > 0
        assert known.of(name) == network, "its times are taken over, and its bits are found again"
        sizes = [replace(size, row_ms=1 / size.rows) for size in network.measured]
        measured = measured.having(name, replace(network, measured=tuple(sizes)))
    return lambda pack, by_rule: replace(measured, layout=Layout(lanes=2, threads=1))


@pytest.mark.parametrize("has_memory", [True, False], ids=["", "no memory for the first batch"])
def test_prompts_that_wait_are_encoded_together_and_draw_the_same_bytes(
    folder: Path, in_two_lanes: Calibrate, monkeypatch: pytest.MonkeyPatch, has_memory: bool
) -> None:
    specs = [
        SampleSpec(
            pack="pack",
            prompt=f"{prompt} {number}" if prompt else "",
            negative_prompt="a dog" if number % 2 else None,
            weighted=True,
            steps=3,
            seed=number,
            guidance=Guidance(free_scale=3.0),
        )
        for number, prompt in enumerate((*PROMPTS, *PROMPTS[:2]))
    ]
    unreadable = replace(specs[0], prompt="a BREAK b")
    rows: list[int] = []
    output = TextEncoder.output

    def read(encoder: TextEncoder, ids: Tensor) -> Any:
        rows.append(len(ids))
        if len(rows) == 1 and not has_memory:
            raise torch.OutOfMemoryError("no memory for this batch")
        return output(encoder, ids)

    with Engine([str(folder)], precision="float32", calibrate=partial(fixed_calibration, rows=1)) as engine:
        alone = [engine.generate([spec])[0] for spec in specs]
    how: dict[str, Any] = {"precision": "float32", "calibrate": in_two_lanes, "cores": 2}
    with Engine([str(folder)], **how) as engine, ThreadPoolExecutor(len(specs) + 1) as clients:
        busy = threading.Event()
        engine._preparing.executor.submit(busy.wait)
        monkeypatch.setattr(TextEncoder, "output", read)
        refused = clients.submit(engine.submit, unreadable)
        handles = [clients.submit(engine.submit, spec) for spec in specs]
        wait_until(lambda: len(engine._preparing._waiting) == len(specs) + 1, seconds=30, what="all wait")
        busy.set()
        with pytest.raises(InvalidSpec, match="BREAK"):
            refused.result(60)
        together = [handle.result(60).result(60) for handle in handles]
    assert rows[0] >= len(specs)
    for spec, one, other in zip(specs, alone, together, strict=True):
        assert one.tobytes() == other.tobytes(), spec


def test_ticks_go_on_while_finished_pictures_are_decoded_together(
    folder: Path, in_two_lanes: Calibrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first decoding waits until another picture has moved and three more are done; those share a batch."""
    quick = [SampleSpec(pack="pack", prompt="a cat", steps=1, seed=seed, group=str(seed)) for seed in range(4)]
    long = SampleSpec(pack="pack", prompt="a cat", steps=500, group="long")
    decode, decoded = LatentPictures.decode, list[int]()
    with Engine([str(folder)], precision="float32", calibrate=partial(fixed_calibration, rows=1)) as engine:
        alone = [engine.generate([spec])[0] for spec in quick]
    with Engine([str(folder)], precision="float32", calibrate=in_two_lanes, cores=2) as engine:
        rest: list[Handle] = []

        def watched(denoiser: LatentPictures, x: Tensor) -> Tensor:
            decoded.append(len(x))
            if len(decoded) == 1:
                before = unfinished.evaluations_done
                rest.extend(engine.submit_all(quick[1:]))
                wait_until(lambda: unfinished.evaluations_done > before, seconds=60, what="the long one moves")
                wait_until(lambda: all(each.evaluations_done == 1 for each in rest), seconds=60, what="the rest moves")
            return decode(denoiser, x)

        monkeypatch.setattr(LatentPictures, "decode", watched)
        unfinished = engine.submit(long)
        together = [engine.submit(quick[0]).result(60), *(handle.result(60) for handle in rest)]
        unfinished.cancel()
    assert decoded[0] == 1
    assert decoded[1] >= 3, "padded or not"
    assert all(one.tobytes() == other.tobytes() for one, other in zip(alone, together, strict=True))

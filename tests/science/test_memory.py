"""Memory: number formats of encoders, weights that packs share, and pictures in tiles."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch

from models.calibration import load_networks
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.memory import check_fits, peak_of, weights_of
from models.memory.needs import available
from models.pack import InvalidPack, open_pack
from models.precision import FLOAT32, Precision
from models.spec import SampleSpec
from tests.science.test_families import autoencoder, stable_diffusion, stable_diffusion_xl

CPU, BFLOAT16 = torch.device("cpu"), Precision(dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "xl"
    stable_diffusion_xl().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("encoders", "force_upcast", "of_autoencoder"),
    [
        ("auto", True, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("float16", True, "float32"),
        ("float16", False, "float16"),
    ],
)
def test_encoders_run_in_a_format_of_their_own(
    folder: Path, tmp_path: Path, encoders: str, force_upcast: bool, of_autoencoder: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "vae/config.json").read_text()) | {"force_upcast": force_upcast}
    (copy / "vae/config.json").write_text(json.dumps(config))
    networks = load_networks(open_pack(str(copy)), CPU, precision="float32", encoder_precision=encoders)
    denoiser, of_text = networks.denoiser, "float32" if encoders == "auto" else encoders
    formats = [each.network.dtype for each in (*denoiser.encoders, denoiser.autoencoder)]
    assert [str(dtype) for dtype in formats] == [f"torch.{of_text}", f"torch.{of_text}", f"torch.{of_autoencoder}"]
    named = str(networks.by_rule.denoiser.precision)
    assert named == ("float32" if encoders == "auto" else f"float32, encoders {encoders}"), "it is part of drawn_by"
    conditioning, _ = denoiser.conditioning(SampleSpec(pack="copy", prompt="ab (cd:1.3)", weighted=True))
    assert conditioning["states"].dtype == formats[0]
    latents = torch.randn(1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    decoded, exact = denoiser.decode(latents), load_networks(open_pack(str(folder)), CPU).denoiser.decode(latents)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, exact, atol=0.05, rtol=0)
    assert denoiser.encode(decoded).dtype == torch.float32


def test_packs_with_the_same_encoders_share_their_weights(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = tmp_path / "other"
    pipeline = stable_diffusion()
    pipeline.vae.decoder.conv_out.bias.data += 1
    pipeline.save_pretrained(other)
    xl, again, different = (load_networks(open_pack(str(one)), CPU).denoiser for one in (folder, copy, other))

    def weights(network: torch.nn.Module) -> list[int]:
        return list(map(id, network.parameters()))

    first, *rest = (weights(each.autoencoder.network) for each in (xl, again, different))
    assert [first == one for one in rest] == [True, False]
    for mine, others in zip(xl.encoders, again.encoders, strict=True):
        assert weights(mine.network) == weights(others.network)
    assert set(weights(xl.network)).isdisjoint(weights(again.network)), "denoisers are each pack's own"
    gone = weakref.ref(xl.autoencoder.network)
    del xl, mine
    gc.collect()
    assert gone() is not None
    del again, others
    gc.collect()
    assert gone() is None


def test_large_pictures_are_encoded_and_decoded_in_tiles_as_diffusers_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = load_networks(open_pack(str(folder)), CPU).denoiser
    published = autoencoder()
    published.enable_tiling()
    latents = torch.randn(2, 4, 20, 12, generator=torch.Generator().manual_seed(1))
    whole = denoiser.decode(latents)
    monkeypatch.setattr("models.denoisers.latent.MAX_PIXELS_AT_ONCE", 40 * 24 - 1)
    tiled = denoiser.decode(latents)
    with torch.inference_mode():
        expected = published.decode(latents / published.config.scaling_factor).sample
        back = published.encode(expected).latent_dist.mode() * published.config.scaling_factor
    torch.testing.assert_close(tiled, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(denoiser.encode(expected), back, atol=1e-4, rtol=0)
    assert not torch.allclose(tiled, whole, atol=1e-3)
    assert torch.equal(denoiser.decode(latents[1:]), tiled[1:])


def test_what_a_device_has_no_memory_for_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = open_pack(str(folder))
    networks = load_networks(pack, CPU, precision="float32")
    denoiser = networks.denoiser
    needed = weights_of(pack, FLOAT32, FLOAT32)
    assert needed["denoiser"].parameters == denoiser.num_parameters
    loaded = sum(parameter.numel() for each in denoiser.encoders for parameter in each.network.parameters())
    assert needed["text encoders"].parameters == loaded
    assert needed["autoencoder"].bytes == 4 * needed["autoencoder"].parameters
    half = weights_of(pack, replace(BFLOAT16, encoders="bfloat16"), FLOAT32)
    assert [each.bytes * 2 for each in half.values()] == [each.bytes for each in needed.values()]
    monkeypatch.setattr("models.memory.needs.available", lambda device: needed["denoiser"].bytes)
    check_fits(pack, CPU, FLOAT32, FLOAT32)  # the others are in memory already
    monkeypatch.setattr("models.memory.needs.available", lambda device: needed["denoiser"].bytes - 1)
    with pytest.raises(InvalidPack, match=r"for its weights \(denoiser [\d.]+ MB\)"):
        check_fits(pack, CPU, FLOAT32, FLOAT32)

    del networks, denoiser
    gc.collect()
    total = sum(each.bytes for each in needed.values())
    monkeypatch.setattr("models.memory.needs.available", lambda device: total)
    load_networks(pack, CPU, precision="float32")
    gc.collect()
    monkeypatch.setattr("models.memory.needs.available", lambda device: total - 1)
    monkeypatch.setattr("models.loading._read", lambda *args: pytest.fail("weights were read"))
    message = r"'xl' needs .* MB for its weights \(denoiser .*, autoencoder .*\), and cpu has .* left; serve fewer"
    with pytest.raises(InvalidPack, match=message + r".* or set CYNOSURE_WORKER_PRECISION .* to bfloat16 \(.* MB\)"):
        load_networks(pack, CPU, precision="float32")
    monkeypatch.setattr("models.memory.needs.available", lambda device: 1)
    with pytest.raises(InvalidPack, match=r"serve fewer models on it$"):
        load_networks(pack, CPU, precision="float32")


def test_a_cpu_has_what_the_system_and_the_control_group_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.memory.needs._GROUP", tmp_path)
    monkeypatch.setattr("models.memory.needs._SYSTEM", tmp_path / "meminfo")
    assert available(CPU) is None
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  3000 kB\n")
    assert available(CPU) == 3_072_000
    for name, content in (("max", "5000\n"), ("current", "4000\n"), ("stat", "anon 1000\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert available(CPU) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert available(CPU) == 3_072_000


def test_the_memory_of_a_call_is_what_its_tensors_take_at_once() -> None:
    x = torch.zeros(1000)
    assert peak_of(lambda: x.view(10, 100)) == 0
    assert peak_of(lambda: x + 1) == 4000
    assert peak_of(lambda: x + 1 + 1 + 1) == 8000
    assert peak_of(lambda: [x + 1, x + 1, x + 1]) == 12000


def test_a_pack_that_leaves_gives_its_memory_back_to_the_system(small_pack: Path) -> None:
    resident = psutil.Process().memory_info

    def with_and_without_emoji(engine: Engine) -> tuple[int, int]:
        engine.add(open_pack("emoji"))
        engine.generate([SampleSpec(pack="emoji", prompt="a cat", seed=1, steps=2)])
        held = resident().rss
        engine.remove("emoji")
        return held, resident().rss

    with Engine([str(small_pack)], calibrate=fixed_calibration) as engine:
        with_and_without_emoji(engine)  # what libraries keep from their first use is theirs
        rounds = [with_and_without_emoji(engine) for _ in range(4)]
    weights = sum(each.bytes for each in weights_of(open_pack("emoji"), BFLOAT16, BFLOAT16).values())
    given_back = [held - after for held, after in rounds]
    grown = [after - before for (_, before), (_, after) in pairwise(rounds)]
    assert max(given_back) > weights / 2
    # The smallest: allocators keep some memory now and then, and a pack that stays would be there in every round.
    assert min(grown) < weights / 4

"""Memory: number formats of encoders, weights that packs share, and pictures in tiles."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from models.calibration import load_networks
from models.pack import open_pack
from models.spec import SampleSpec
from tests.science.test_families import autoencoder, stable_diffusion, stable_diffusion_xl

CPU = torch.device("cpu")


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

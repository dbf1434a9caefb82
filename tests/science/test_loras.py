"""LoRAs: what diffusers draws with them, one batch for rows with different ones, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.integrations.peft
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from models.adapters import AdapterBase, Adapters, InvalidLoras, LoraFolder, LoraListing, given, loaded
from models.calibration import fixed_calibration, probes
from models.denoisers import load_denoiser
from models.engine import Engine
from models.pack import open_pack
from models.spec import Guidance, Lora, SampleSpec, StepCache
from models.weights import products
from tests.science.lora_files import (
    ALPHA,
    ATTENTION,
    TEXT,
    Pairs,
    Writer,
    diffusers_file,
    diffusers_file_with_alphas,
    dora_file,
    in_diffusers_names,
    kohya_file,
    kohya_flux_file,
    magnitudes_for,
    old_diffusers_file,
    pairs_for,
    peft_folder,
)
from tests.science.test_families import (
    SCALE,
    SIDE,
    STEPS,
    differ_by_more_than_rounding,
    flux,
    noise_for,
    saved,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # a second adapter
CONVOLUTIONS = (".conv1", ".conv2", ".conv_shortcut", ".proj_in")
USED: Sequence[tuple[Lora, ...]] = (
    (),
    (Lora("ink", 0.0),),
    (Lora("ink", 0.5),),
    (Lora("ink", 1.0),),
    (Lora("ink", -1.0),),
    (Lora("ink", 1.0), Lora("red", 0.5)),
)


@pytest.fixture(autouse=True)
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers asks for a version of peft that is not released, and works with the latest."""
    monkeypatch.setattr(transformers.integrations.peft, "check_peft_version", lambda **_: None)


def drawn_with(pack: Path, folder: Path, used: Sequence[tuple[Lora, ...]], **what: Any) -> list[np.ndarray]:
    """One picture with each of these sets of LoRAs, all drawn together."""
    spec = SampleSpec(pack="pack", steps=STEPS, seed=7, clip=False, profile="diffusers", prompt="a red cat", **what)
    spec = replace(spec, guidance=Guidance(free_scale=SCALE))
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration, loras=folder) as engine:
        return engine.generate([replace(spec, loras=loras) for loras in used])


def drawn_by_diffusers(pipeline: Any, used: Sequence[tuple[Lora, ...]], **asked: Any) -> list[np.ndarray]:
    pictures = []
    for loras in used:
        if loras:
            pipeline.enable_lora()
            pipeline.set_adapters([lora.name for lora in loras], [lora.scale for lora in loras])
        else:
            pipeline.disable_lora()
        with torch.inference_mode():
            pictures.append(
                pipeline("a red cat", num_inference_steps=STEPS, height=16, width=16, output_type="np", **asked).images[
                    0
                ]
            )
    return pictures


def compare(mine: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    plain, zero, *others = mine
    assert (zero == plain).all()
    assert all(np.abs(other.astype(int) - plain).mean() > 1 for other in others)  # they can be seen
    for loras, picture, other in zip(USED[: len(mine)], mine, expected, strict=True):
        assert not differ_by_more_than_rounding(picture, other), loras


def write(layout: Writer, folder: Path, parts_of: Callable[[int], dict[str, Pairs]]) -> None:
    folder.mkdir()
    for seed, name in enumerate(("ink", "red")):
        layout(folder / f"{name}.safetensors", parts_of(seed))


def load_into(pipeline: Any, folder: Path) -> None:
    for name in ("ink", "red"):
        pipeline.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)


@pytest.mark.parametrize(
    ("layout", "ends", "reads"),
    [
        (diffusers_file, ATTENTION, True),
        (diffusers_file_with_alphas, ATTENTION, True),
        (old_diffusers_file, ATTENTION, True),
        (kohya_file, ATTENTION, True),
        (kohya_file, (*ATTENTION, *CONVOLUTIONS), False),
        (diffusers_file, CONVOLUTIONS, False),
        (peft_folder, ATTENTION, False),
    ],
    ids=["diffusers", "alphas", "old diffusers", "kohya", "LoCon", "convolutions", "peft"],
)
def test_stable_diffusion_draws_what_diffusers_draws(
    layout: Writer, ends: tuple[str, ...], reads: bool, tmp_path: Path
) -> None:
    pipeline, pack = saved(stable_diffusion, tmp_path)

    def parts(seed: int) -> dict[str, Pairs]:
        text = {"text_encoder": pairs_for(pipeline.text_encoder, TEXT, rank=2, seed=seed)}
        return {"unet": pairs_for(pipeline.unet, ends, seed=seed), **(text if reads else {})}

    write(layout, tmp_path / "loras", parts)
    if layout is peft_folder:
        for seed, name in enumerate(("ink", "red")):
            alpha = {path: (down, up * ALPHA / 4) for path, (down, up) in parts(seed)["unet"].items()}
            pipeline.load_lora_weights(in_diffusers_names({"unet": alpha}), adapter_name=name)
    else:
        load_into(pipeline, tmp_path / "loras")
    mine = drawn_with(pack, tmp_path / "loras", USED)
    compare(mine, drawn_by_diffusers(pipeline, USED, guidance_scale=SCALE, latents=noise_for(16, 16)))


def test_dora_draws_what_diffusers_draws(tmp_path: Path) -> None:
    pipeline, pack = saved(stable_diffusion, tmp_path)
    for seed, name in enumerate(("ink", "red")):
        pairs = pairs_for(pipeline.unet, (*ATTENTION, *CONVOLUTIONS), seed=seed)
        scaled = {path: (down, up * ALPHA / len(down)) for path, (down, up) in pairs.items()}
        magnitudes = magnitudes_for(pipeline.unet, pairs)
        for folder, kohya in (("diffusers", False), ("lycoris", True)):
            (tmp_path / folder).mkdir(exist_ok=True)
            file = tmp_path / folder / f"{name}.safetensors"
            dora_file(file, pairs if kohya else scaled, magnitudes, kohya=kohya)
        pipeline.load_lora_weights(tmp_path / "diffusers" / f"{name}.safetensors", adapter_name=name)
    # At scale 0 diffusers still changes the lengths of the weights; here it is as good as left out.
    used = [() if loras == USED[1] else loras for loras in USED]
    expected = drawn_by_diffusers(pipeline, used, guidance_scale=SCALE, latents=noise_for(16, 16))
    compare(drawn_with(pack, tmp_path / "diffusers", USED), expected)
    compare(drawn_with(pack, tmp_path / "lycoris", USED[:4]), expected[:4])  # which diffusers reads as plain LoRA


@pytest.mark.parametrize("layout", [diffusers_file, kohya_file], ids=["diffusers", "kohya"])
def test_xl_draws_what_diffusers_draws(layout: Writer, tmp_path: Path) -> None:
    pipeline, pack = saved(stable_diffusion_xl, tmp_path)

    def parts(seed: int) -> dict[str, Pairs]:
        return {
            "unet": pairs_for(pipeline.unet, (*ATTENTION, "add_embedding.linear_1"), seed=seed)
            if layout is diffusers_file
            else pairs_for(pipeline.unet, ATTENTION, seed=seed),
            "text_encoder": pairs_for(pipeline.text_encoder, TEXT, rank=2, seed=seed),
            "text_encoder_2": pairs_for(pipeline.text_encoder_2, TEXT, rank=2, seed=seed),
        }

    write(layout, tmp_path / "loras", parts)
    load_into(pipeline, tmp_path / "loras")
    mine = drawn_with(pack, tmp_path / "loras", USED)
    compare(mine, drawn_by_diffusers(pipeline, USED, guidance_scale=SCALE, latents=noise_for(16, 16)))


def test_stable_diffusion_3_draws_what_diffusers_draws(tmp_path: Path) -> None:
    pipeline, pack = saved(partial(stable_diffusion_3, t5=False), tmp_path)

    def parts(seed: int) -> dict[str, Pairs]:
        return {
            "transformer": pairs_for(pipeline.transformer, (*ATTENTION, ".add_k_proj", ".linear"), seed=seed),
            "text_encoder": pairs_for(pipeline.text_encoder, TEXT, rank=2, seed=seed),
            "text_encoder_2": pairs_for(pipeline.text_encoder_2, TEXT, rank=2, seed=seed),
        }

    write(diffusers_file, tmp_path / "loras", parts)
    load_into(pipeline, tmp_path / "loras")
    mine = drawn_with(pack, tmp_path / "loras", USED, sampler="flow_euler")
    compare(mine, drawn_by_diffusers(pipeline, USED, guidance_scale=SCALE, latents=noise_for(16, 16)))


@pytest.mark.parametrize("layout", [diffusers_file, kohya_flux_file], ids=["diffusers", "kohya"])
def test_flux_draws_what_diffusers_draws(layout: Writer, tmp_path: Path) -> None:
    pipeline, pack = saved(partial(flux, distilled=True, shifts=True), tmp_path)
    index = json.loads((pack / "model_index.json").read_text())
    (pack / "model_index.json").write_text(json.dumps(index | {"cynosure": {"latent_size": SIDE}}))

    def parts(seed: int) -> dict[str, Pairs]:
        text = {"text_encoder": pairs_for(pipeline.text_encoder, TEXT, rank=2, seed=seed)}
        transformer = pairs_for(pipeline.transformer, (*ATTENTION, ".proj_mlp"), seed=seed)
        return {"transformer": transformer, **(text if layout is diffusers_file else {})}

    write(layout, tmp_path / "loras", parts)
    load_into(pipeline, tmp_path / "loras")
    mine = drawn_with(pack, tmp_path / "loras", USED, sampler="flow_euler")
    latents = pipeline._pack_latents(noise_for(16, 16), 1, 4, 8, 8)
    expected = drawn_by_diffusers(pipeline, USED, true_cfg_scale=SCALE, negative_prompt="", latents=latents)
    compare(mine, expected)


@pytest.mark.parametrize("layout", [diffusers_file, kohya_file], ids=["diffusers", "kohya"])
def test_the_prompted_pixel_pack_predicts_what_diffusers_predicts(layout: Writer, tmp_path: Path) -> None:
    pack = open_pack("emoji")
    mine = load_denoiser(pack, torch.device("cpu"))
    ends = (".conv1", ".conv_shortcut", ".time_emb_proj", "class_embedding.linear_1", ".to_q")
    parts = {"unet": pairs_for(mine.network, ends, rank=2)}
    layout(tmp_path / "ink.safetensors", parts)
    assert mine.adapter_base is not None
    adapters = Adapters(mine.adapter_base, LoraFolder(tmp_path), torch.device("cpu"))
    told = [mine.conditioning(SampleSpec(pack="emoji", prompt=prompt))[0]["told"] for prompt in ("a cat", "a bus")]
    batch = torch.randn(2, *mine.latent_shape), torch.tensor([300.0, 700.0]), {"told": torch.stack(told)}
    with given([adapters.of([Lora("ink", 0.7)]), None]):
        changed = mine.forward(*batch)
    theirs = UNet2DConditionModel.from_pretrained(pack.component("unet"), torch_dtype=torch.float32)
    plain = theirs(*batch[:2], None, class_labels=batch[2]["told"]).sample
    scale = ALPHA / 2 if layout is kohya_file else 1.0
    scaled = {path: (down, up * scale) for path, (down, up) in parts["unet"].items()}
    theirs.load_lora_adapter(in_diffusers_names({"unet": scaled}), prefix="unet", adapter_name="ink")
    theirs.set_adapters(["ink"], [0.7])
    expected = theirs(*batch[:2], None, class_labels=batch[2]["told"]).sample
    torch.testing.assert_close(changed[0], expected[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(changed[1], plain[1], atol=1e-4, rtol=1e-3)
    assert (changed[0] - plain[0]).abs().mean() > 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int8 weights"])
def test_rows_have_the_same_bytes_alone_among_plain_rows_and_among_other_loras(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CPU_SIZES", (1, 2, 4, 8, 16))  # there are 12 rows
    monkeypatch.setattr(products, "NARROW", 4)
    pipeline, pack = saved(stable_diffusion, tmp_path)

    def parts(seed: int) -> dict[str, Pairs]:
        text = {"text_encoder": pairs_for(pipeline.text_encoder, TEXT, rank=2, seed=seed)}
        return {"unet": pairs_for(pipeline.unet, (*ATTENTION, *CONVOLUTIONS), rank=3 + seed, seed=seed), **text}

    write(kohya_file, tmp_path / "loras", parts)
    pairs = parts(2)["unet"]
    dora_file(tmp_path / "loras/dora.safetensors", pairs, magnitudes_for(pipeline.unet, pairs), kohya=True)
    dora, ink, red = Lora("dora"), Lora("ink", 0.5), Lora("red", -1.0)
    used = [(), (ink,), (dora,), (red,), (Lora("ink"), Lora("red", 0.5)), (ink,), (), (Lora("red"), dora, ink)]
    specs = [
        SampleSpec(
            pack="pack",
            prompt=f"{'abc'[number % 3]} cat",
            steps=3 + number % 2,
            seed=number,
            sampler=("ddim", "euler_ancestral")[number % 2],
            guidance=Guidance(free_scale=(None, 3.0)[number % 2]),
            loras=loras,
            cache=StepCache(2) if number in (1, 2, 5) else None,
        )
        for number, loras in enumerate(used)
    ]
    format_: dict[str, Any] = {"quantize": "int8"} if precision == "int8 weights" else {"precision": precision}
    how: dict[str, Any] = {**format_, "loras": tmp_path / "loras"}
    with Engine([str(pack)], **how) as engine:
        assert engine.wait_until_measured(timeout=120)
        together = engine.generate(specs)
        calibration = engine.packs["pack"].calibration
        assert max(calibration.denoiser.sizes) > 4
        alone = [engine.generate([spec])[0] for spec in specs]
        others = engine.generate(specs[3:5])
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]
    assert [picture.tobytes() for picture in others] == [picture.tobytes() for picture in alone[3:5]]
    assert len({picture.tobytes() for picture in together}) == len(specs)


def spoilt(tensors: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    name = next(iter(tensors))
    return {**tensors, name: torch.full_like(tensors[name], value)}


def test_files_that_can_not_be_used_are_refused_by_what_is_wrong(tmp_path: Path) -> None:
    pipeline, pack = saved(stable_diffusion, tmp_path)
    folder = tmp_path / "loras"
    folder.mkdir()
    pairs = {"unet": pairs_for(pipeline.unet, ATTENTION)}
    good, first = in_diffusers_names(pairs), next(iter(pairs["unet"]))
    xl = pairs_for(saved(stable_diffusion_xl, tmp_path / "xl")[0].unet, ATTENTION)
    kohya_file(folder / "xl.safetensors", {"unet": xl}, ss_base_model_version="sdxl_base_v1-0")
    diffusers_file(
        folder / "sd3.safetensors", {"transformer": {"transformer_blocks.0.attn.to_q": pairs["unet"][first]}}
    )
    files = {
        "ink": good,
        "nan": spoilt(good, float("nan")),
        "inf": spoilt(good, float("inf")),
        "integers": {name: tensor.int() for name, tensor in good.items()},
        "dora": {**good, f"unet.{first}.lora_magnitude_vector": torch.ones(31)},
        "by inputs": {**good, f"unet.{first}.dora_scale": torch.ones(1, 32)},
        "unread": {**good, f"unet.{first}.dora_scale": torch.ones(32, 1)},
        "lokr": {"lora_unet_x.lokr_w1": torch.ones(2, 2)},
        "loha": {"lora_unet_x.hada_w1_a": torch.ones(2, 2)},
        "half": {name: tensor for name, tensor in good.items() if not name.startswith(f"unet.{first}.lora_B")},
        "elsewhere": {**good, "unet.no.such.layer.lora_A.weight": torch.ones(2, 2)}
        | {"unet.no.such.layer.lora_B.weight": torch.ones(2, 2)},
        "wider": in_diffusers_names({"unet": {first: (torch.ones(2, 7), torch.ones(9, 2))}}),
        "weights": {"unet.conv_in.weight": torch.ones(2, 2)},
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "ink.safetensors").read_bytes()[:-9])
    (folder / "pickled.pt").write_bytes(b"\x80\x04.")
    faults = {
        "nan": "NaN or infinite",
        "inf": "NaN or infinite",
        "integers": "int32; floating point",
        "dora": "and the layer has 64 outputs",
        "by inputs": "DoRA by inputs",
        "unread": "magnitudes diffusers does not read",
        "lokr": "LoKr",
        "loha": "LoHa",
        "half": "no upper matrix",
        "elsewhere": "has no unet.no.such.layer",
        "wider": "the layer's weights",
        "weights": "holds no LoRA",
        "torn": "safetensors",
        "pickled": "is a pickle",
        "xl": "is for Stable Diffusion XL, and the model is Stable Diffusion 1",
        "sd3": "is for Stable Diffusion 3, and the model is Stable Diffusion 1",
        "inc": "did you mean 'ink'",
    }
    spec = SampleSpec(pack="pack", steps=2, prompt="a", guidance=Guidance())
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration, loras=folder) as engine:
        for name, fault in faults.items():
            with pytest.raises(InvalidLoras, match=fault):
                engine.submit(replace(spec, loras=(Lora(name),)))
        with pytest.raises(InvalidLoras, match="another than was asked for"):
            engine.submit(replace(spec, loras=(Lora("ink", 1.0, "0" * 64),)))
        base = engine.packs["pack"].denoiser.adapter_base
        assert base is not None
        listed = LoraListing(LoraFolder(folder)).look({"pack": base})["pack"]
        assert {one.name for one in listed} == faults.keys() - {"inc"} | {"ink"}
        for one in listed:
            assert (one.fault is None) if one.name == "ink" else faults[one.name] in (one.fault or ""), one
        before = engine.generate([replace(spec, loras=(Lora("ink"),))])[0]
        save_file({name: -one if "lora_A" in name else one for name, one in good.items()}, folder / "new")
        (folder / "new").replace(folder / "ink.safetensors")
        after = engine.generate([replace(spec, loras=(Lora("ink"),))])[0]
        kept = replace(spec, loras=(Lora("ink", 1.0, next(o.digest for o in listed if o.name == "ink")),))
        assert (engine.generate([kept])[0] == before).all(), "the file that was asked for is still in memory"
    assert (after != before).any()
    plain = Engine([str(pack)], precision="float32", calibrate=fixed_calibration)
    with plain, pytest.raises(InvalidLoras, match="no folder"):
        plain.submit(replace(spec, loras=(Lora("ink"),)))


def test_what_was_not_used_for_longest_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = saved(stable_diffusion, tmp_path)
    for seed, name in enumerate(("ink", "red", "old")):
        diffusers_file(tmp_path / f"{name}.safetensors", {"unet": pairs_for(pipeline.unet, ATTENTION, seed=seed)})
    base = AdapterBase(family="Stable Diffusion 1", loader=type(pipeline), networks={"unet": pipeline.unet})
    adapters, reads = Adapters(base, LoraFolder(tmp_path), torch.device("cpu")), list[str]()
    read = LoraFolder.read
    monkeypatch.setattr(LoraFolder, "read", lambda folder, name: reads.append(name) or read(folder, name))
    held = adapters.of([Lora("ink")])
    monkeypatch.setattr(loaded, "MOST_BYTES", 2 * next(iter(adapters._loaded.values())).bytes)
    for name in ("red", "ink", "old", "ink", "red"):
        adapters.of([Lora(name)])
    assert reads == ["ink", "red", "old", "red"]
    assert adapters.of([Lora("ink")]) is held, "what a row holds is not made again"

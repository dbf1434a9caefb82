"""The same request gives the same bytes: alone, in a crowd, among cancels, on two workers, across a restart.

Of the pack of any size, some rows have LoRAs, some ControlNets, and some image prompts.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from cynosure.client import Client
from cynosure.contract import GenerateRequest
from cynosure.metadata import encoded_picture
from cynosure.resolving import cells_of, resolve
from harness.processes import wait_until
from models.engine import Engine
from tests.acceptance.test_survival import Up
from tests.science.control_nets import write_control_nets
from tests.science.ip_adapters import write_ip_adapter
from tests.science.lora_files import ATTENTION, TEXT, diffusers_file, pairs_for
from tests.small_pack import write_small_xl
from workers.drawing.cards import card_of
from workers.drawing.pictures import png_of
from workers.drawing.specs import specs_of
from workers.upkeep.loras import LoraWatch

COUNT = 200


def png_of_noise(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


LORAS: list[list[dict[str, Any]]] = [
    [],
    [{"name": "ink", "scale": 0.8}],
    [{"name": "red", "scale": -1}],
    [{"name": "red"}, {"name": "ink", "scale": 0.5}],
]
PICTURES = [encoded_picture(png_of_noise(seed)) for seed in range(2)]
CONTROLS: list[list[dict[str, Any]]] = [
    [],
    [],
    [{"model": "edges", "image": PICTURES[0], "preprocess": "canny"}],
    [{"model": "depth", "image": PICTURES[1], "scale": 0.7, "end": 0.6}, {"model": "edges", "image": PICTURES[0]}],
]
IMAGE_PROMPTS: list[list[dict[str, Any]]] = [
    [],
    [],
    [{"image": PICTURES[0], "scale": 0.6}],
    [{"image": PICTURES[1]}, {"image": PICTURES[0], "scale": 0.4}],
]
CACHES: list[dict[str, Any] | None] = [None, None, {"every": 2}, {"every": 3, "until": 0.8}]
SIZES = [(64, 64), (48, 96), (96, 48)]
MODES: list[dict[str, Any]] = [
    {"guidance_mode": "none"},
    {"guidance_mode": "classifier_free", "guidance_scale": 3.0},
    {"guidance_mode": "classifier_free", "guidance_scale": 5.0, "guidance_rescale": 0.7},
    {"guidance_mode": "classifier_free", "guidance_scale": 4.0, "guidance_interval": (0.2, 0.8)},
    {"guidance_mode": "classifier", "guidance_scale": 5.0, "classifier_base": "unconditional"},
    {"guidance_mode": "combined", "guidance_scale": 2.0, "classifier_scale": 3.0},
]
"""Of the pack of one size, which has a classifier; the pack of any size is asked the first four."""


def mixed_requests(dice: random.Random) -> list[GenerateRequest]:
    samplers = ["ddim", "ddpm", "euler", "euler_ancestral", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "deis", "unipc"]

    def subject(index: int) -> dict[str, Any]:
        if index % 2:
            return {"model": "fashion", "class_label": dice.randrange(10), **MODES[index // 2 % 6]}
        width, height = dice.choice(SIZES)
        adapters = {
            "loras": dice.choice(LORAS),
            "controls": dice.choice(CONTROLS),
            "image_prompts": dice.choice(IMAGE_PROMPTS),
        }
        sized = {"prompt": dice.choice("abc"), "width": width, "height": height}
        return {"model": "xl", **sized, **adapters, **MODES[index // 2 % 4]}

    return [
        GenerateRequest.model_validate(
            {
                **of,
                "sampler": dice.choice(samplers),
                "steps": dice.randint(2, 6),
                "cache": dice.choice(CACHES) if not of.get("controls") else None,
                "num_images": dice.choice([1, 1, 1, 2]),
                "seed": index,
                "use_cache": False,
                "priority": dice.choice(["low", "normal", "high"]),
            }
        )
        for index, of in enumerate(map(subject, range(COUNT)))
    ]


def write_loras(xl: Path, folder: Path) -> Path:
    folder.mkdir()
    networks = {
        "unet": UNet2DConditionModel.from_pretrained(xl / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(xl / "text_encoder"),
    }
    for seed, name in enumerate(("ink", "red")):
        ends = {"unet": (*ATTENTION, ".conv1"), "text_encoder": TEXT}
        parts = {part: pairs_for(networks[part], ends[part], rank=2 + seed, seed=seed) for part in networks}
        diffusers_file(folder / f"{name}.safetensors", parts)
    return folder


def write_controls(xl: Path, folder: Path) -> Path:
    write_control_nets(folder, UNet2DConditionModel.from_pretrained(xl / "unet"), "edges", "depth", factor=8)
    return folder


def hashes_alone(requests: list[GenerateRequest], packs: list[str], loras: Path, controls: Path) -> list[list[str]]:
    """Each picture drawn by itself, in this process, with nothing beside it."""
    found = []
    with Engine(packs, loras=loras, controls=controls) as engine:
        cards = {name: card_of(loaded) for name, loaded in engine.packs.items()}
        bases = {"xl": engine.packs["xl"].denoiser.adapter_base}
        seen: dict[str, Any] = {}
        LoraWatch(loras, lambda: {k: v for k, v in bases.items() if v}, show=seen.update, publish=lambda: None).look()
        cards["xl"] = cards["xl"].model_copy(update={"loras": seen["xl"]})
        for asked in requests:
            card = cards[asked.model or ""]
            request = resolve(asked, card, seed=0)
            pictures = [engine.generate([spec])[0] for spec in specs_of("", request, card)]
            pngs = [png_of(picture, *cell, card) for picture, cell in zip(pictures, cells_of(request), strict=True)]
            found.append([hashlib.sha256(png).hexdigest() for png in pngs])
    return found


def test_two_hundred_mixed_requests_have_the_same_bytes_alone_and_in_a_crowd(small_pack: Path, tmp_path: Path) -> None:
    dice = random.Random(0)
    requests = mixed_requests(dice)
    packs = [str(small_pack), str(write_small_xl(tmp_path / "xl", side=64))]
    write_ip_adapter(tmp_path / "xl", UNet2DConditionModel.from_pretrained(tmp_path / "xl" / "unet"), "plus")
    loras = write_loras(tmp_path / "xl", tmp_path / "loras")
    controls = write_controls(tmp_path / "xl", tmp_path / "controls")
    expected = hashes_alone(requests, packs, loras, controls)
    order = dice.sample(range(COUNT), COUNT)
    with (
        Up(
            tmp_path / "data",
            "--workers",
            "2",
            "--loras",
            str(loras),
            "--controls",
            str(controls),
            models=",".join(packs),
            CYNOSURE_WORKER_DRAIN_S="0",
        ) as server,
        Client(server.url) as client,
    ):
        jobs: dict[int, str] = {}
        for index in order:
            jobs[index] = client.submit(requests[index]).id
            if dice.random() < 0.15:  # a neighbour that leaves in the middle
                client.cancel(client.submit(GenerateRequest(class_label=1, steps=400, num_images=2)).id)
            if index == order[COUNT // 2]:
                server.child("workers").terminate()
        found = [[image.sha256 for image in client.wait(jobs[index]).images] for index in range(COUNT)]
        shown = {lora.name: lora for lora in client.loras()}
        assert [(lora.models, lora.family) for lora in shown.values()] == [(("xl",), "Stable Diffusion XL")] * 2
        (loras / "ink.safetensors").replace(loras / "new.safetensors")  # files come, go and are replaced meanwhile
        shutil.copy(loras / "new.safetensors", loras / "red.safetensors")

        def is_shown_anew() -> bool:
            found = {lora.name: lora.digest for lora in client.loras()}
            return found == dict.fromkeys(("new", "red"), shown["ink"].digest)

        wait_until(is_shown_anew, seconds=60, what="the folder's changes are listed")
    differing = [requests[index] for index in range(COUNT) if found[index] != expected[index]]
    assert not differing

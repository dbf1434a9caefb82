"""The same request gives the same bytes: alone, in a crowd, among cancels, on two workers, across a restart."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from cynosure.client import Client
from cynosure.contract import GenerateRequest
from cynosure.resolving import cells_of, resolve
from models.engine import Engine
from tests.acceptance.test_survival import Up
from tests.small_pack import write_small_xl
from workers.drawing.cards import card_of
from workers.drawing.pictures import png_of
from workers.drawing.specs import specs_of

COUNT = 200
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
        return {"model": "xl", "prompt": dice.choice("abc"), "width": width, "height": height, **MODES[index // 2 % 4]}

    return [
        GenerateRequest.model_validate(
            {
                **subject(index),
                "sampler": dice.choice(samplers),
                "steps": dice.randint(2, 6),
                "num_images": dice.choice([1, 1, 1, 2]),
                "seed": index,
                "use_cache": False,
                "priority": dice.choice(["low", "normal", "high"]),
            }
        )
        for index in range(COUNT)
    ]


def hashes_alone(requests: list[GenerateRequest], packs: list[str]) -> list[list[str]]:
    """Each picture drawn by itself, in this process, with nothing beside it."""
    found = []
    with Engine(packs) as engine:
        cards = {name: card_of(loaded) for name, loaded in engine.packs.items()}
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
    expected = hashes_alone(requests, packs)
    order = dice.sample(range(COUNT), COUNT)
    with (
        Up(tmp_path / "data", "--workers", "2", models=",".join(packs), CYNOSURE_WORKER_DRAIN_S="0") as server,
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
    differing = [requests[index] for index in range(COUNT) if found[index] != expected[index]]
    assert not differing

"""What is measured of a pack of prompts, on things whose pictures leave no doubt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from models.classifiers import Judge
from models.evaluation import prompts
from models.evaluation.prompts import Reference, questions
from models.pack import open_pack
from models.training.judge import save_pictures

NAMES = ("red", "green", "blue", "grey")
HELD_OUT = ((0, 1), (3, 2))


def plain_pictures() -> Tensor:
    """(4,3,3,32,32): a thing is a colour, and its style how bright the colour is."""
    colours = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 200]])
    bright = torch.tensor([1.0, 0.9, 0.8])
    values = colours[:, None] * bright[None, :, None]
    return values[..., None, None].expand(4, 3, 3, 32, 32).to(torch.uint8).contiguous()


@pytest.fixture
def pack_folder(tmp_path: Path) -> Path:
    """A folder with a judge and its reference, and as much of a pack as reading them needs."""
    torch.manual_seed(0)
    judge = Judge(num_classes=3, in_channels=3)
    judge.save_pretrained(tmp_path / "judge")
    save_pictures(
        judge,
        plain_pictures(),
        names=NAMES,
        held_out=HELD_OUT,
        other_words={"crimson": ("red",), "sea": ("blue", "green")},
        folder=tmp_path,
    )
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"num_train_timesteps": 1000}')
    (tmp_path / "model_index.json").write_text('{"_class_name": "PromptedPixelPipeline"}')
    return tmp_path


def test_what_training_lacked_is_asked_apart(pack_folder: Path) -> None:
    reference = Reference.of(open_pack(str(pack_folder)))
    assert reference.names == NAMES
    assert 0 <= reference.style_recognised <= 1
    asked = questions(reference, count=5)
    assert len(asked["names"]) == 5
    assert not {(NAMES.index(one.prompt), one.style) for one in asked["names"]} & set(HELD_OUT)
    assert [(one.prompt, one.style) for one in asked["unseen pairs"]] == [("red", 1), ("grey", 2)]
    assert [(one.prompt, one.right) for one in asked["other words"]] == [
        ("crimson", ("red",)),
        ("sea", ("blue", "green")),
    ]
    every = questions(reference, count=100)["names"]
    assert Counter(one.prompt for one in every) == {"red": 2, "green": 3, "blue": 3, "grey": 2}


def test_the_nearest_real_picture_is_found_with_its_distance(pack_folder: Path) -> None:
    reference = Reference.of(open_pack(str(pack_folder)))
    pictures = plain_pictures().flatten(0, 1)
    rows, distances = reference.nearest(pictures[[4, 8]].add(5))
    assert rows.tolist() == [4, 8]
    assert distances.tolist() == pytest.approx([5.0, 5.0], abs=1e-3)
    assert reference.across_styles() == 1.0
    to_another = reference.apart()
    assert to_another[0] == pytest.approx(20 / 3**0.5, abs=1e-3)  # one channel of three differs, by a tenth of 200
    assert len(to_another) == 12


def test_a_sheet_has_every_picture_in_its_place() -> None:
    pictures = plain_pictures().flatten(0, 1)
    sheet = prompts._sheet(pictures, [f"thing {number}" for number in range(12)])
    side, caption = prompts._SIDE, prompts._CAPTION
    assert isinstance(sheet, Image.Image)
    assert sheet.size == (8 * (side + 8), 2 * (side + caption))
    assert sheet.getpixel((10, 10)) == (200, 0, 0)
    assert sheet.getpixel((3 * (side + 8) + 10, side + caption + 10)) == (160, 160, 160)

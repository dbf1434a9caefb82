"""Pictures that lie: refused by name, by their headers where they are too large, and never with another error."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest

from chaos.bombs import BOMBS, bomb, png
from cynosure.contract import MAX_PIXELS
from cynosure.errors import InvalidRequest
from cynosure.metadata import read
from cynosure.pictures import check_picture, opened, rgba


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_field_or_is_a_small_picture(name: str) -> None:
    with contextlib.suppress(InvalidRequest):
        picture = opened(bomb(name), "init_image")
        assert picture.width * picture.height <= MAX_PIXELS
        rgba(picture, "init_image")
    with contextlib.suppress(InvalidRequest):
        read(bomb(name))


def test_a_picture_is_measured_before_it_is_decoded() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    tracemalloc.start()
    try:
        for width, height in ((side, side), (60_000, 60_000), (MAX_PIXELS + 1, 1)):
            with pytest.raises(InvalidRequest, match=r"pixels|must be a base64") as refusal:
                check_picture(png(width, height).decode(), "init_image")
            assert refusal.value.field == "init_image"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000, "the peak, in bytes"
    finally:
        tracemalloc.stop()


def test_a_picture_that_is_cut_short_is_refused_when_it_is_decoded() -> None:
    with pytest.raises(InvalidRequest, match="cut short or damaged"):
        rgba(opened(png(64, 64).decode(), "mask_image"), "mask_image")

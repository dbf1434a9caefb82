"""Step caches in requests: read, refused, told by pictures, and apart from the cache of results."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from cynosure.cli.shared import cache_of
from cynosure.contract import Control, GenerateRequest, ModelCard
from cynosure.errors import InvalidRequest
from cynosure.metadata import again, encoded_picture, png_bytes
from cynosure.refusals import parsed
from cynosure.resolving import resolve, result_key
from models.spec import StepCache
from workers.drawing.specs import specs_of


@pytest.fixture
def deep(card: ModelCard) -> ModelCard:
    return card.model_copy(update={"takes_cache": True})


def asked(cache: dict[str, Any] | None, **more: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"class_label": 1, "seed": 3, "cache": cache, **more})


@pytest.mark.parametrize(
    ("cache", "field", "message"),
    [
        ({"every": 1}, "cache.every", "at least 2"),
        ({"every": 11}, "cache.every", "at most 10"),
        ({"every": 2.5}, "cache.every", "whole number"),
        ({"until": 0.5}, "cache.every", "is missing"),
        ({"every": 3, "until": 1.5}, "cache.until", "at most 1"),
        ({"every": 3, "from": 0.1}, "cache.from", "Known: every, until"),
        (3, "cache", "object"),
    ],
)
def test_what_is_no_step_cache_is_refused(cache: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        parsed(GenerateRequest, {"cache": cache})
    assert refused.value.field == field


def test_a_model_without_deep_blocks_refuses_it_and_so_do_controls(deep: ModelCard, card: ModelCard) -> None:
    with pytest.raises(InvalidRequest, match="can't draw with cache here; leave it out") as refused:
        resolve(asked({"every": 3}), card, seed=0)
    assert refused.value.field == "cache"
    with pytest.raises(InvalidRequest, match="can't be combined with controls") as refused:
        resolve(asked({"every": 3}).model_copy(update={"controls": (Control(model="edges"),)}), deep, seed=0)
    assert refused.value.field == "cache"


def test_results_are_kept_by_it_and_keys_without_it_are_as_before(deep: ModelCard) -> None:
    caches = [None, {"every": 3}, {"every": 2}, {"every": 3, "until": 0.8}]
    shown = [resolve(asked(cache), deep, seed=0).model_dump(mode="json") for cache in caches]
    assert len({result_key(request, deep.drawn_by) for request in shown}) == len(caches)
    assert "cache" not in shown[0]
    unused = resolve(asked(None, use_cache=False), deep, seed=0).model_dump(mode="json")
    assert result_key(unused, deep.drawn_by) == result_key(shown[0], deep.drawn_by)


def test_a_picture_tells_it_and_is_drawn_with_it_again(deep: ModelCard) -> None:
    request = resolve(asked({"every": 3, "until": 0.8}), deep, seed=0)
    png = encoded_picture(png_bytes(Image.new("L", (8, 8)), request, 0, deep))
    assert resolve(again(GenerateRequest(from_image=png))[0], deep, seed=9) == request
    assert [spec.cache for spec in specs_of("job", request, deep)] == [StepCache(3, 0.8)]
    assert [spec.cache for spec in specs_of("job", resolve(asked(None), deep, seed=0), deep)] == [None]


def test_the_command_line_takes_it_in_short() -> None:
    assert cache_of("3:0.8") == {"every": 3, "until": 0.8}
    assert cache_of("2") == {"every": 2}
    assert cache_of(None) is None
    for text in ("often", "3:", "2.5", ":0.8"):
        with pytest.raises(Exception, match=r"such as 3:0\.8"):
            cache_of(text)

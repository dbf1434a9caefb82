"""Knowledge that the contract and the science both need, and that neither can import from the other, agrees."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands import up
from cynosure import contract
from cynosure.cli import completion
from cynosure.errors import InvalidRequest
from cynosure.resolving import respacing as read_by_the_gateway
from cynosure.resolving.respacing import respaced_steps
from models import classifiers, command_line, spec
from models.calibration.networks import PRECISIONS
from models.importing.adm import PRESETS
from models.pack import PACKS_FOLDER, open_pack
from models.samplers import InvalidRespacing, respaced
from models.samplers import respacing as read_by_the_sampler
from models.samplers.schedulers import SAMPLERS
from models.training.recipes import RECIPES
from workers import __main__ as worker
from workers.settings import WorkerSettings

SECTIONS = st.lists(st.integers(0, 400), min_size=1, max_size=6).map(lambda counts: ",".join(map(str, counts)))
STRINGS = st.one_of(st.integers(0, 1200).map(str), st.integers(0, 1200).map(lambda count: f"ddim{count}"), SECTIONS)


@given(text=STRINGS, total=st.sampled_from([1000, 999, 400, 37]))
def test_both_readers_of_a_respacing_string_agree(text: str, total: int) -> None:
    try:
        timesteps = respaced(text, total)
    except InvalidRespacing:
        with pytest.raises(InvalidRequest):
            respaced_steps(text, total)
    else:
        assert respaced_steps(text, total) == len(timesteps)


@pytest.mark.parametrize("text", ["334,333,333", "fast27", "ddim25", "250"])
def test_respacings_that_are_valid_in_the_science_are_valid_at_the_gateway(text: str) -> None:
    assert respaced_steps(text, 1000) == len(respaced(text, 1000))


def test_what_is_written_down_twice_is_the_same() -> None:
    assert {unit.value for unit in contract.IntervalUnit} == {unit.value for unit in spec.IntervalUnit}
    assert read_by_the_gateway.FAST27 == read_by_the_sampler.FAST27
    assert contract.MAX_CONDITION_TERMS == classifiers.MAX_TERMS


def test_the_command_line_knows_what_there_is_without_torch_and_without_a_server() -> None:
    assert list(completion.SAMPLERS) == list(SAMPLERS)
    packs = [open_pack(path.parent.name) for path in PACKS_FOLDER.glob("*/model_index.json")]
    assert {pack.name: pack.labels for pack in packs} == completion.BUNDLED
    assert RECIPES.keys() <= command_line.TRAIN.keys()
    assert set(get_args(command_line.PresetName)) == PRESETS.keys()
    assert set(get_args(command_line.Precision)) == PRECISIONS.keys()
    precision = WorkerSettings.model_fields["precision"].annotation
    assert get_args(precision) == get_args(command_line.Precision) == get_args(worker.Precision)
    quantize = WorkerSettings.model_fields["quantize"].annotation
    for main in (command_line.calibrate, worker.main, up.main):
        assert get_type_hints(main)["quantize"] == quantize

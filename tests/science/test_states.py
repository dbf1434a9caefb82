"""The states of samples lie in rows of tensors that they share, and none sees another's."""

from __future__ import annotations

import weakref

import pytest
import torch

from models.samplers.states import FIRST_ROWS, Place, States
from models.samplers.table import DATA, LATENT

SHAPE = (2, 3, 4)
CPU = torch.device("cpu")


def filled(states: States, value: float) -> Place:
    place = states.new()
    states.write([place.row], {LATENT: torch.full((1, *SHAPE), float(value))})
    return place


def value(place: Place, column: int = LATENT) -> float:
    [found] = place.states.read([column], [place.row])[column].unique().tolist()
    return float(found)


def test_rows_keep_their_numbers_while_others_come_and_go() -> None:
    states = States(SHAPE, CPU)
    places = [filled(states, number) for number in range(5 * FIRST_ROWS)]
    assert len({place.row for place in places}) == len(places)
    del places[1::2]
    places += [filled(states, 1000 + number) for number in range(FIRST_ROWS)]
    assert [value(place) for place in places] == [
        *range(0, 5 * FIRST_ROWS, 2),
        *range(1000, 1000 + FIRST_ROWS),
    ]
    read = states.read([LATENT], [place.row for place in reversed(places)])[LATENT]
    assert read[:, 0, 0, 0].tolist() == [value(place) for place in reversed(places)]


def test_a_row_is_zero_for_its_next_sample_whatever_the_last_one_left() -> None:
    states = States(SHAPE, CPU)
    place = states.new()
    states.write([place.row], {column: torch.full((1, *SHAPE), torch.nan) for column in (LATENT, DATA + 1)})
    rows = {place.row}
    del place
    places = [states.new() for _ in range(FIRST_ROWS)]
    assert rows <= {place.row for place in places}
    assert {value(place, column) for place in places for column in (LATENT, DATA + 1)} == {0.0}


def test_a_copy_goes_its_own_way() -> None:
    states = States(SHAPE, CPU)
    trunk = filled(states, 1.0)
    states.write([trunk.row], {DATA + 1: torch.full((1, *SHAPE), 2.0)})
    fork = trunk.copied()
    states.write([trunk.row], {LATENT: torch.zeros(1, *SHAPE)})
    assert (value(fork), value(fork, DATA + 1), value(trunk)) == (1.0, 2.0, 0.0)


def test_memory_is_given_back_when_the_last_sample_is_gone() -> None:
    states = States(SHAPE, CPU)
    places = [filled(states, 1.0) for _ in range(10 * FIRST_ROWS)]
    held = weakref.ref(states)
    del states
    assert value(places[-1]) == 1.0
    places.clear()
    assert held() is None


def test_all_columns_are_written_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    states = States(SHAPE, CPU)
    place = filled(states, 1.0)

    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        states.write([place.row], dict.fromkeys((LATENT, DATA + 1), torch.ones(1, *SHAPE) * 2))
    assert value(place) == 1.0

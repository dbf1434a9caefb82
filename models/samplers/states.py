"""The states of samples between their evaluations, in tensors that all of them share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from models.batching import index
from models.samplers.update import State

FIRST_ROWS = 16


class Place:
    """A sample's row of `states`, which another may have once nothing refers to this any more."""

    def __init__(self, states: States, row: int) -> None:
        self.states = states
        self.row = row

    def copied(self) -> Place:
        """Another place with the same numbers."""
        return self.states.copy(self.row)

    def __del__(self) -> None:
        self.states.give_back(self.row)


class States:
    """States of samples whose latents have one shape: a tensor for each column, in which each sample has a row.

    A tick reads or writes a column of all its samples at once, where tensors of their own would be joined and copied
    one by one. Columns that a sample has never written hold numbers that are finite. The memory grows with the samples
    and goes with the last of them, as only their places hold this. Thread-safe, as long as each row is read and
    written by one thread at a time.

    Args:
        shape: (C, H, W) of a latent.
        device: where they are.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self._shape = shape
        self._device = device
        self._lock = threading.Lock()
        self._columns: State = {}
        self._rows = 0
        self._free: deque[int] = deque()  # rows come back from destructors, which must not wait for the lock

    def new(self) -> Place:
        """A sample's place, in which all columns are zero."""
        with self._lock:
            if not self._free:
                self._resize(max(FIRST_ROWS, 2 * self._rows))
            row = self._free.popleft()
            for column in self._columns.values():
                column[row].zero_()
        return Place(self, row)

    def read(self, columns: Iterable[int], rows: Sequence[int]) -> State:
        """Columns of some rows, (rows,C,H,W) each."""
        at = index(tuple(rows), self._device)
        with self._lock:
            return {column: self._column(column).index_select(0, at) for column in columns}

    def write(self, rows: Sequence[int], columns: Mapping[int, Tensor]) -> None:
        """Overwrite columns of some rows, (rows,C,H,W) each; all of them, or none if there is no memory for one."""
        at = index(tuple(rows), self._device)
        with self._lock:
            for column, values in [(self._column(number), values) for number, values in columns.items()]:
                column.index_copy_(0, at, values)

    def copy(self, row: int) -> Place:
        """Another place with the same numbers."""
        place = self.new()
        with self._lock:
            for column in self._columns.values():
                column[place.row] = column[row]
        return place

    def give_back(self, row: int) -> None:
        """Let another sample have the row."""
        self._free.append(row)

    def _resize(self, rows: int) -> None:
        added = (rows - self._rows, *self._shape)
        self._columns = {
            number: torch.cat([column, column.new_zeros(added)]) for number, column in self._columns.items()
        }
        self._free.extend(range(self._rows, rows))
        self._rows = rows

    def _column(self, column: int) -> Tensor:
        if column not in self._columns:
            self._columns[column] = torch.zeros(self._rows, *self._shape, device=self._device)
        return self._columns[column]

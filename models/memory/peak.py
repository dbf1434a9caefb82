"""Counts the memory that a call's tensors take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_of(call: Callable[[], object], *, compiled: bool = False) -> int:
    """The most bytes that tensors made by `call` hold at once; what was there before, such as weights, is not counted.

    Nor is memory that kernels take within one operator, nor what an allocator keeps. Set `compiled` if the call's
    networks are: they run uncompiled, and so take more. Only tensors made on the calling thread are counted.
    """
    uncompiled = torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # importing it takes seconds
    with uncompiled, _Peak() as peak:
        call()
    return peak.bytes


class _Peak(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = operator(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        self._living = {place: living for place, living in self._living.items() if not living[0].expired()}
        for storage in _storages(output):
            if storage._cdata not in given:
                self._living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.bytes = max(self.bytes, sum(size for _, size in self._living.values()))
        return output


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of a tree's tensors; oneDNN's weights have none."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_mkldnn]

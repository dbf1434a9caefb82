"""Networks and their gradients as graphs of operators, recorded once for each shape of a batch.

Between the operators of a small network Python takes as long as many of them compute, and holds the interpreter's lock,
for which the lanes then wait. A graph calls the same operators on the same inputs, so it changes no bit.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from models.lanes import SMALL, is_of_the_device
from models.passes.programs import Program
from models.passes.state import now, passing
from models.precision import Precision

log = logging.getLogger(__name__)

Method = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Any]
Key = tuple[Any, ...]
MOST = 32
"""Graphs that a network keeps; the one that was not used for longest goes first."""
_RECORDING = threading.Lock()  # one at a time: meanwhile the other lanes wait for Python


def may_be_recorded(device: torch.device, precision: Precision, num_parameters: int) -> bool:
    """Whether a network gains by graphs, and none of what it is made of would be lost in them."""
    is_plain = not (precision.compiled or precision.int8 or precision.offloaded)
    return device.type == "cpu" and is_plain and num_parameters <= SMALL


class Graphs:
    """A network's method, from the second call of a shape on as a graph.

    A graph has no branches, so one is used only if it has the method's bits on other numbers too.

    Args:
        method: of an object that will hold this one: a denoiser's `forward` or a steering network's `gradient`.
        is_plain: whether the rows of the batch that this thread evaluates are given nothing for themselves. Layers do
            other things for those that are, so no graph is recorded of them.
    """

    def __init__(self, method: Method, is_plain: Callable[[], bool] = lambda: True) -> None:
        self._method = WeakMethod(method)
        self._is_plain = is_plain
        self._graphs: OrderedDict[Key, Program | None] = OrderedDict()  # `None`: called once
        self._lock = threading.Lock()
        self._fails = False

    def __call__(self, x: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Any:
        method = self._method()
        assert method is not None, "the caller holds its object"
        is_watched = _get_current_dispatch_mode() is not None  # by what counts operators or memory, which graphs hide
        if self._fails or is_watched or not self._is_plain():
            return method(x, timesteps, conditioning)
        names, reused, keeps = sorted(conditioning), now.reused or (), now.kept is not None
        inputs = (x, timesteps, *(conditioning[name] for name in names), *reused)
        key = (keeps, *names, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs))
        graph = self._graph(key, _Pass(method, names, keeps), inputs)
        if graph is None:
            result = method(x, timesteps, conditioning)
            self._note(key, None)
            return result
        outputs = graph(inputs)
        if now.kept is not None:
            now.kept += outputs[1:]
            outputs = outputs[:1]
        return outputs if len(outputs) > 1 else outputs[0]

    def _graph(self, key: Key, run: _Pass, inputs: Sequence[Tensor]) -> Program | None:
        """The graph for a key, recorded if it is the second call; `None` if there is none."""
        with self._lock:
            if key not in self._graphs:
                return None
            self._graphs.move_to_end(key)
            graph = self._graphs[key]
        if graph is not None or not _RECORDING.acquire(blocking=False):
            return graph
        try:
            graph = _recorded(run, inputs)
        except RuntimeError as error:
            if is_of_the_device(error):
                raise
            log.warning("this network runs without graphs, more slowly: %s", str(error).strip().partition("\n")[0])
            self._fails = True
            return None
        finally:
            _RECORDING.release()
        self._note(key, graph)
        return graph

    def _note(self, key: Key, graph: Program | None) -> None:
        """Note that a call with this key is over, in which layers have packed their weights, and its graph."""
        with self._lock:
            self._graphs[key] = graph or self._graphs.get(key)
            while len(self._graphs) > MOST:
                self._graphs.popitem(last=False)


@dataclass(frozen=True)
class _Pass:
    """A call of the method as it is recorded: tensors in, tensors out.

    Attributes:
        method: runs the network.
        names: of the conditioning.
        keeps: whether what deep blocks find is put out as well.
    """

    method: Method
    names: Sequence[str]
    keeps: bool

    def __call__(self, x: Tensor, timesteps: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        conditioning = dict(zip(self.names, rest, strict=False))
        with passing(rest[len(self.names) :], keeps=self.keeps) as kept:
            result = self.method(x, timesteps, conditioning)
        return (*(result if isinstance(result, tuple) else (result,)), *kept)


def _recorded(run: _Pass, inputs: Sequence[Tensor]) -> Program:
    """A program of a pass with such inputs.

    Raises:
        RuntimeError: it can't be recorded, or the program computes something else.
    """
    graph = Program.of(run, inputs)
    others = [tensor / 2 if tensor.is_floating_point() else tensor for tensor in inputs]
    for found, expected in zip(graph(others), run(*others), strict=True):
        if not torch.equal(found, expected):
            raise RuntimeError("a graph of it computes something else")
    return graph

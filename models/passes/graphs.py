"""Networks as graphs of operators, recorded once for each shape of a batch and then run without Python.

Between the operators of a small network Python takes as long as many of them compute, and holds the interpreter's lock,
for which the lanes then wait. A graph calls the same operators on the same inputs, so it changes no bit.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from models.lanes import SMALL, is_of_the_device
from models.passes.state import now, passing
from models.precision import Precision

log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
Key = tuple[Any, ...]
MOST = 32
"""Graphs that a network keeps; the one that was not used for longest goes first."""
_RECORDING = threading.Lock()  # torch records one graph at a time
# What torch warns of are shapes as constants: each shape has its own graph.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]


def may_be_recorded(device: torch.device, precision: Precision, num_parameters: int) -> bool:
    """Whether a network gains by graphs, and none of what it is made of would be lost in them."""
    is_plain = not (precision.compiled or precision.int8 or precision.offloaded)
    return device.type == "cpu" and is_plain and num_parameters <= SMALL


class Graphs:
    """A denoiser's `forward`, from the second call of a shape on as a graph.

    Torch's trace of a call has no branches, so a graph is used only if it has the network's bits on other numbers too.

    Args:
        forward: a denoiser's method.
        network: what it runs; its weights don't change.
        is_plain: whether the rows of the batch that this thread evaluates are given nothing for themselves. Layers do
            other things for those that are, so no graph is recorded of them.
    """

    def __init__(self, forward: Forward, network: nn.Module, is_plain: Callable[[], bool]) -> None:
        self._forward = WeakMethod(forward)  # the denoiser will hold this object
        self._network = network
        self._is_plain = is_plain
        self._graphs: OrderedDict[Key, _Graph | None] = OrderedDict()  # `None`: called once
        self._lock = threading.Lock()
        self._fails = False

    def __call__(self, x: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        forward = self._forward()
        assert forward is not None, "the caller holds the denoiser"
        is_watched = _get_current_dispatch_mode() is not None  # by what counts operators or memory, which graphs hide
        if self._fails or is_watched or not self._is_plain():
            return forward(x, timesteps, conditioning)
        names, reused, keeps = sorted(conditioning), now.reused or (), now.kept is not None
        inputs = (x, timesteps, *(conditioning[name] for name in names), *reused)
        key = (keeps, *names, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs))
        graph = self._graph(key, _Pass(forward, names, keeps), inputs)
        if graph is None:
            output = forward(x, timesteps, conditioning)
            self._note(key, None)
            return output
        output, *kept = graph(inputs)
        if now.kept is not None:
            now.kept += kept
        return output

    def _graph(self, key: Key, run: _Pass, inputs: Sequence[Tensor]) -> _Graph | None:
        """The graph for a key, recorded if it is the second call; `None` if there is none."""
        with self._lock:
            if key not in self._graphs:
                return None
            self._graphs.move_to_end(key)
            graph = self._graphs[key]
        if graph is not None or not _RECORDING.acquire(blocking=False):
            return graph
        try:
            graph = _Graph.of(run, self._network, inputs)
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

    def _note(self, key: Key, graph: _Graph | None) -> None:
        """Note that a call with this key is over, in which layers have packed their weights, and its graph."""
        with self._lock:
            self._graphs[key] = graph or self._graphs.get(key)
            while len(self._graphs) > MOST:
                self._graphs.popitem(last=False)


@dataclass(frozen=True)
class _Pass:
    """A denoiser's pass as torch records it: tensors in, tensors out.

    Attributes:
        forward: runs the network.
        names: of the conditioning.
        keeps: whether what deep blocks find is put out as well.
    """

    forward: Forward
    names: Sequence[str]
    keeps: bool

    def __call__(self, x: Tensor, timesteps: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        conditioning = dict(zip(self.names, rest, strict=False))
        with passing(rest[len(self.names) :], keeps=self.keeps) as kept:
            output = self.forward(x, timesteps, conditioning)
        return (output, *kept)


@dataclass(frozen=True)
class _Graph:
    """A recorded pass. A graph has the network's weights as constants, except packed ones, which it can't hold."""

    function: Any
    packed: Sequence[Tensor]

    @classmethod
    def of(cls, run: _Pass, network: nn.Module, inputs: Sequence[Tensor]) -> _Graph:
        """Record a pass with such inputs.

        Raises:
            RuntimeError: it can't be recorded, or the graph computes something else.
        """
        packed = [parameter for parameter in network.parameters() if parameter.is_mkldnn]
        count = len(inputs)
        with torch.inference_mode():
            recorded, _ = torch._C._create_graph_by_tracing(
                lambda *given: run(*given[:count]), (*inputs, *packed), lambda _: "", False, False
            )
            torch._C._jit_pass_constant_pooling(recorded)  # type: ignore[attr-defined]
            torch._C._jit_pass_dce(recorded)
            function = torch._C._create_function_from_graph("recorded", recorded)
            graph = cls(function, packed)
            others = [tensor / 2 if tensor.is_floating_point() else tensor for tensor in inputs]
            for found, expected in zip(graph(others), run(*others), strict=True):
                if not torch.equal(found, expected):
                    raise RuntimeError("a graph of it computes something else")
        return graph

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # Optimized, it would first be run to find out how, and operators could become others.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs: tuple[Tensor, ...] = self.function(*inputs, *self.packed)
        return outputs

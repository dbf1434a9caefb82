"""Programs of operators: what a call computed, operator by operator, to be run without Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Program:
    """Operators on inputs of the shapes that they were recorded with.

    Attributes:
        function: takes the inputs, then the list of constants.
        constants: the tensors that operators took from elsewhere, such as weights.
    """

    function: Any
    constants: list[Tensor]

    @classmethod
    def of(cls, run: Run, inputs: Sequence[Tensor]) -> Program:
        """Run and record it.

        Operators are taken from beneath torch's automatic differentiation, so a gradient's are among them.

        Raises:
            RuntimeError: a graph can't hold one of the arguments.
        """
        with _Operators() as operators:
            outputs = run(*inputs)
        writer = _Writer(inputs)
        for call in operators.calls:
            writer.add(call)
        return cls(writer.function(outputs), writer.constants)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # Optimized, it would first be run to find out how, and operators could become others.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs: tuple[Tensor, ...] = self.function(*inputs, self.constants)
        return outputs


@dataclass(frozen=True)
class _Call:
    operator: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    results: Any


class _Operators(TorchDispatchMode):
    """Notes the operators that this thread calls. Their tensors live on with it, so none takes another's identity."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        self.calls.append(_Call(operator, args, kwargs or {}, results))
        return results


class _Schema:
    """What an operator takes and gives; cheaper to ask than torch's own.

    Attributes:
        name: without the overload, which follows from the types of the arguments.
        arguments: name, type, and default.
        returns: types.
    """

    def __init__(self, operator: Any) -> None:
        schema = operator._schema
        self.name: str = schema.name
        self.arguments = [(each.name, each.type, each.default_value) for each in schema.arguments]
        self.returns = [each.type for each in schema.returns]

    @staticmethod
    @cache
    def of(operator: Any) -> _Schema:
        return _Schema(operator)


class _Writer:
    """Writes calls down as a graph that torch's interpreter runs, a node for each."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._graph = torch._C.Graph()
        self._values = {id(tensor): self._graph.addInput() for tensor in inputs}
        self._literals: dict[str, Any] = {}
        self.constants: list[Tensor] = []
        given = self._graph.addInput()
        given.setType(torch._C.ListType(_TENSOR))
        self._unpacked = self._node("prim::ListUnpack", [given], [])

    def add(self, call: _Call) -> None:
        if call.operator is torch.ops.aten.detach.default:  # without gradients it does nothing
            self._values[id(call.results)] = self._tensor(call.args[0])
            return
        schema, kwargs = _Schema.of(call.operator), call.kwargs
        given = [self._value(value, kind) for value, (_, kind, _) in zip(call.args, schema.arguments, strict=False)]
        for name, kind, default in schema.arguments[len(given) :]:
            given.append(self._value(kwargs.get(name, default), kind))
        node = self._node(schema.name, given, schema.returns)
        results = call.results if isinstance(call.results, tuple) else (call.results,)
        for result, value in zip(results, node.outputs(), strict=False):  # an operator may return nothing
            if isinstance(result, list):
                parts = self._node("prim::ListUnpack", [value], [_TENSOR] * len(result)).outputs()
                self._values |= {id(each): part for each, part in zip(result, parts, strict=True)}
            else:
                self._values[id(result)] = value

    def function(self, outputs: Sequence[Tensor]) -> Any:
        """The whole graph, as a function of the inputs and the list of constants."""
        returned = [self._tensor(output) for output in outputs]
        kind = torch._C.TupleType([_TENSOR] * len(returned))
        self._graph.registerOutput(self._node("prim::TupleConstruct", returned, [kind]).output())
        return torch._C._create_function_from_graph("recorded", self._graph)

    def _node(self, kind: str, inputs: Sequence[Any], types: Sequence[Any]) -> Any:
        node = self._graph.insertNode(self._graph.create(kind, inputs, len(types)))
        for output, type_ in zip(node.outputs(), types, strict=True):
            output.setType(type_)
        return node

    def _tensor(self, tensor: Tensor) -> Any:
        if id(tensor) not in self._values:
            self.constants.append(tensor)
            self._values[id(tensor)] = self._unpacked.addOutput()
        return self._values[id(tensor)]

    def _value(self, value: Any, kind: Any) -> Any:
        """An argument of the type `kind`."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        is_list = isinstance(value, (list, tuple))
        if is_list and (not value or any(isinstance(item, Tensor) for item in value)):
            while not isinstance(kind, torch._C.ListType):  # but an optional one
                kind = kind.getElementType()
            items = [self._value(item, kind.getElementType()) for item in value]
            return self._node("prim::ListConstruct", items, [kind]).output()
        if isinstance(value, torch.memory_format):
            value = _MEMORY_FORMATS[value]
        if (text := repr(value)) not in self._literals:
            try:
                self._literals[text] = self._graph.insertConstant(value)  # type: ignore[attr-defined]
            except TypeError:
                raise RuntimeError(f"a graph can't hold {text}") from None
        return self._literals[text]


_TENSOR = torch._C.TensorType.get()
_MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}
"""The numbers that torch's interpreter knows them by (`c10::MemoryFormat`)."""

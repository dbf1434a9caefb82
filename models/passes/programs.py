"""Programs of operators: what a call computed, written down operator by operator, to be run without Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
            RuntimeError: torch's compiler of programs does not take an operator or one of its arguments.
        """
        with _Operators() as operators:
            outputs = run(*inputs)
        text = _Text(inputs)
        for call in operators.calls:
            text.add(call)
        source = text.program(outputs)
        return cls(torch.jit.CompilationUnit(source).recorded, text.constants)

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


class _Text:
    """A program's text, in the part of Python that `torch.jit` compiles."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._parameters = [f"input_{number}" for number in range(len(inputs))]
        self._names = {id(tensor): name for tensor, name in zip(inputs, self._parameters, strict=True)}
        self.constants: list[Tensor] = []
        self._lines: list[str] = []
        self._results = 0

    def add(self, call: _Call) -> None:
        if call.operator is torch.ops.aten.detach.default:  # without gradients it does nothing
            self._names[id(call.results)] = self._name(call.args[0])
            return
        schema = call.operator._schema
        types = {argument.name: argument.type.annotation_str for argument in schema.arguments}
        given = [self._literal(value, kind) for value, kind in zip(call.args, types.values(), strict=False)]
        given += [f"{name}={self._literal(value, types[name])}" for name, value in call.kwargs.items()]
        results = call.results if isinstance(call.results, (tuple, list)) else (call.results,)
        targets = ", ".join(self._new_name(result) for result in results)
        self._lines.append(f"{targets} = torch.ops.{schema.name.replace('::', '.')}({', '.join(given)})")

    def program(self, outputs: Sequence[Tensor]) -> str:
        """The whole text, of a function `recorded`."""
        returned = ", ".join(self._name(output) for output in outputs)  # one may be a constant, so they go first
        parameters = [f"{name}: Tensor" for name in self._parameters]
        head = f"def recorded({', '.join([*parameters, 'constants: List[Tensor]'])}):"
        unpacked = [f"{self._constant(number)} = constants[{number}]" for number in range(len(self.constants))]
        lines = [*unpacked, *self._lines, f"return ({returned},)"]
        return "\n    ".join([head, *lines]) + "\n"

    @staticmethod
    def _constant(number: int) -> str:
        return f"constant_{number}"

    def _name(self, tensor: Tensor) -> str:
        if id(tensor) not in self._names:
            self._names[id(tensor)] = self._constant(len(self.constants))
            self.constants.append(tensor)
        return self._names[id(tensor)]

    def _new_name(self, result: Any) -> str:
        if not isinstance(result, Tensor):  # a gradient that nobody asked for
            return "_"
        self._names[id(result)] = name = f"result_{self._results}"
        self._results += 1
        return name

    def _literal(self, value: Any, kind: str) -> str:
        """An argument; `kind` is its type in the operator's schema, which an empty list must be told."""
        match value:
            case Tensor():
                return self._name(value)
            case list() | tuple():
                takes_any = "Tensor" in kind or "number" in kind
                items = ", ".join(self._literal(item, "") for item in value)
                return f"[{items}]" if value or takes_any else f"torch.jit.annotate({kind}, [])"
            case torch.device():
                return f'torch.device("{value}")'
            case float() if not math.isfinite(value):
                return f'float("{value}")'
            case _:
                return repr(value)

"""GELU in the one form that the target fuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    dtype_of,
    input_of,
    of_type,
    only_consumer,
    producer,
    replace,
)
from vitdeploy.passes.base import GraphPass

_erf = np.vectorize(math.erf, otypes=[float])

_OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Erf": _erf,
    "Tanh": np.tanh,
}

_SAMPLES = np.linspace(-6.0, 6.0, 121)
_CURVES: dict[str, Array] = {
    "none": 0.5 * _SAMPLES * (1 + _erf(_SAMPLES / math.sqrt(2))),
    "tanh": 0.5 * _SAMPLES * (1 + np.tanh(math.sqrt(2 / math.pi) * (_SAMPLES + 0.044715 * _SAMPLES**3))),
}
_TOLERANCE = 1e-6  # constants are stored in FP32; the two curves differ by 5e-4

# Nodes between the input of a hand-written GELU and its curve (Erf or Tanh), and from there to its output.
_NODES_BEFORE, _NODES_BEHIND = 8, 5
_GELU_SINCE = 20


@dataclass(frozen=True)
class _Gelu:
    """The GELU of `x` that ends in `last`; `approximate` as in ONNX."""

    x: ir.Value
    last: ir.Node
    approximate: str


class GeluForm(GraphPass):
    """Every GELU as ONNX Gelu (opset 20), or as the decomposition that backends fuse, whichever the target asks for.

    A hand-written GELU is recognised by its values: the nodes between two tensors are evaluated on [-6, 6] and compared
    with the erf and the tanh curve, so the order and grouping of the operators do not matter.
    """

    name: ClassVar[str] = "gelu_form"

    def requires(self, model: ir.Model) -> None:
        """Gelu as one operator is of opset 20."""
        opset = model.graph.opset_imports.get("", 0)
        if self.target.gelu == "gelu" and opset < _GELU_SINCE:
            raise ir.passes.PreconditionError(f"Gelu is an operator from opset {_GELU_SINCE} on, this is {opset}")

    def ensures(self, model: ir.Model) -> None:
        """No operator where the target wants none."""
        left = [node for node in model.graph if node.op_type == "Gelu"]
        if self.target.gelu != "gelu" and left:
            raise ir.passes.PostconditionError(f"{left[0].name} is not in the form {self.target.gelu}")

    def rewrite(self, model: ir.Model) -> list[str]:
        """Restate what is not in the target's form yet."""
        changes = []
        for node in of_type(model.graph, "Gelu", "Erf", "Tanh"):
            gelu = _recognise(node)
            if gelu is None or self._is_in_form(gelu):
                continue
            if self.target.gelu == "gelu":
                out = Builder(model.graph, gelu.last).op("Gelu", [gelu.x], gelu.x.shape, approximate=gelu.approximate)
            else:
                out = decompose(model.graph, gelu.last, gelu.x, gelu.approximate)
            changes.append(f"{gelu.last.name}: GELU restated as {self.target.gelu}")
            replace(gelu.last, out)
        return changes

    def _is_in_form(self, gelu: _Gelu) -> bool:
        if self.target.gelu == "gelu" or gelu.last.op_type == "Gelu":
            return self.target.gelu == "gelu" and gelu.last.op_type == "Gelu"
        return _text(gelu.last.outputs[0], gelu.x) == _DECOMPOSED[gelu.approximate]


def decompose(graph: ir.Graph, anchor: ir.Node, x: ir.Value, approximate: str) -> ir.Value:
    """Insert in front of `anchor` the operators that ONNX Runtime, OpenVINO and TensorRT fuse into one GELU of `x`.

    none: x (1 + erf(x / sqrt 2)) 0.5, tanh: x 0.5 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), operators in that order.
    """
    add, shape = Builder(graph, anchor), x.shape

    def op(op_type: str, first: ir.Value, second: ir.Value | float, name: str = "") -> ir.Value:
        if not isinstance(second, ir.Value):
            second = add.constant(np.asarray(second, dtype=dtype_of(x).numpy()), f"gelu.{name}")
        return add.op(op_type, [first, second], shape)

    if approximate == "tanh":
        cubic = op("Mul", op("Pow", x, 3.0, "three"), 0.044715, "cubic")
        inner = op("Mul", op("Add", x, cubic), math.sqrt(2 / math.pi), "scale")
        curve = op("Add", add.op("Tanh", [inner], shape), 1.0, "one")
        return op("Mul", op("Mul", x, 0.5, "half"), curve)
    curve = op("Add", add.op("Erf", [op("Div", x, math.sqrt(2), "sqrt2")], shape), 1.0, "one")
    return op("Mul", op("Mul", x, curve), 0.5, "half")


_DECOMPOSED = {
    "none": "Mul(Mul(x, Add(Erf(Div(x, 1.41421)), 1)), 0.5)",
    "tanh": "Mul(Mul(x, 0.5), Add(Tanh(Mul(Add(x, Mul(Pow(x, 3), 0.044715)), 0.797885)), 1))",
}


def _text(value: ir.Value | None, x: ir.Value) -> str:
    """The expression of `value` in x."""
    number = constant(value)
    if value is x or number is not None:
        return "x" if number is None else f"{number.item():.6g}"
    node = producer(value)
    if node is None:
        return "?"
    return f"{node.op_type}({', '.join(_text(part, x) for part in node.inputs)})"


def _recognise(curve: ir.Node) -> _Gelu | None:
    """The GELU that `curve` is, or that stands around an Erf or Tanh."""
    if curve.op_type == "Gelu":
        return _Gelu(input_of(curve, 0), curve, attribute(curve, "approximate", "none"))
    inputs = _ancestors(curve)
    last: ir.Node | None = curve
    for _ in range(_NODES_BEHIND):
        last = only_consumer(last.outputs[0]) if last is not None else None
        if last is None or last.op_type not in _OPERATORS:
            return None
        for x in inputs:
            with np.errstate(all="ignore"):
                values = _evaluate(last.outputs[0], x)
            for approximate, expected in _CURVES.items():
                if values is not None and np.abs(values - expected).max() <= _TOLERANCE:
                    return _Gelu(x, last, approximate)
    return None


def _ancestors(curve: ir.Node) -> list[ir.Value]:
    """The computed values from which elementwise nodes lead to `curve`, nearest first."""
    found: dict[ir.Value, None] = {}
    waiting = [curve]
    for _ in range(_NODES_BEFORE):
        if not waiting:
            break
        for value in waiting.pop(0).inputs:
            if value is not None and constant(value) is None and value not in found:
                found[value] = None
                node = value.producer()
                if node is not None and node.op_type in _OPERATORS:
                    waiting.append(node)
    return list(found)


def _evaluate(value: ir.Value | None, x: ir.Value) -> Array | None:
    """`value` at the samples of x; None where it depends on anything but x and scalars."""
    if value is x:
        return _SAMPLES
    number = constant(value)
    if number is not None:
        rank = 0 if x.shape is None else len(x.shape)
        return number.astype(np.float64).reshape(()) if number.size == 1 and number.ndim <= rank else None
    node = None if value is None else value.producer()
    if node is None or node.op_type not in _OPERATORS:
        return None
    parts: list[Array] = []
    for part in node.inputs:
        values = _evaluate(part, x)
        if values is None:
            return None
        parts.append(values)
    return np.asarray(_OPERATORS[node.op_type](*parts))

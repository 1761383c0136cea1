"""GELU in the one form that the target fuses."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, constant, dtype_of, producer, replace
from vitdeploy.graph.gelu import Gelu, find_gelus
from vitdeploy.passes.base import GraphPass

_GELU_SINCE = 20


class GeluForm(GraphPass):
    """Every GELU as ONNX Gelu (opset 20), or as the decomposition that backends fuse, whichever the target asks for.

    A hand-written GELU is recognised by its values, see `find_gelus`.
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
        for gelu in find_gelus(model.graph):
            if self._is_in_form(gelu):
                continue
            if self.target.gelu == "gelu":
                out = Builder(model.graph, gelu.last).op("Gelu", [gelu.x], gelu.x.shape, approximate=gelu.approximate)
            else:
                out = decompose(model.graph, gelu.last, gelu.x, gelu.approximate)
            changes.append(f"{gelu.last.name}: GELU restated as {self.target.gelu}")
            replace(gelu.last, out)
        return changes

    def _is_in_form(self, gelu: Gelu) -> bool:
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

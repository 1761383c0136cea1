"""Where a graph holds a GELU: one operator, or any elementwise nodes that compute its curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, input_of, of_type, only_consumer

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

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SAMPLES = np.linspace(-6.0, 6.0, 121)
_CURVES: dict[str, Array] = {
    "none": 0.5 * _SAMPLES * (1 + _erf(_SAMPLES / math.sqrt(2))),
    "tanh": 0.5 * _SAMPLES * (1 + np.tanh(math.sqrt(2 / math.pi) * (_SAMPLES + 0.044715 * _SAMPLES**3))),
}
# The two curves differ by 5e-4. Constants in FP32 move them by less than 1e-6, those in FP16 by 3e-5.
_TOLERANCE, _HALF_TOLERANCE = 1e-6, 1e-4

# Nodes between the input of a hand-written GELU and its curve (Erf or Tanh), and from there to its output.
_NODES_BEFORE, _NODES_BEHIND = 8, 5


@dataclass(frozen=True)
class Gelu:
    """The GELU of `x` that ends in `last`; `approximate` as in ONNX."""

    x: ir.Value
    last: ir.Node
    approximate: str

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes between `x` and the result of `last`, which comes last."""
        found: dict[ir.Node, None] = {}

        def visit(node: ir.Node) -> None:
            for value in node.inputs:
                above = None if value is None or value is self.x else value.producer()
                if above is not None and above not in found and above.op_type != "Constant":
                    visit(above)
            found[node] = None

        visit(self.last)
        return tuple(found)


def find_gelus(graph: ir.Graph) -> Iterator[Gelu]:
    """Every GELU, in the order of the graph.

    One in elementwise nodes is recognised by its values: the nodes between two tensors are evaluated on [-6, 6] and
    compared with the erf and the tanh curve, so the order and grouping of the operators do not matter.
    """
    for node in of_type(graph, "Gelu", "Erf", "Tanh"):
        gelu = _recognise(node)
        if gelu is not None:
            yield gelu


def _recognise(curve: ir.Node) -> Gelu | None:
    """The GELU that `curve` is, or that stands around an Erf or Tanh."""
    if curve.op_type == "Gelu":
        return Gelu(input_of(curve, 0), curve, attribute(curve, "approximate", "none"))
    inputs = _ancestors(curve)
    tolerance = _HALF_TOLERANCE if curve.outputs[0].dtype in _HALF else _TOLERANCE
    last: ir.Node | None = curve
    for _ in range(_NODES_BEHIND):
        last = only_consumer(last.outputs[0]) if last is not None else None
        if last is None or last.op_type not in _OPERATORS:
            return None
        for x in inputs:
            with np.errstate(all="ignore"):
                values = _evaluate(last.outputs[0], x)
            for approximate, expected in _CURVES.items():
                if values is not None and np.abs(values - expected).max() <= tolerance:
                    return Gelu(x, last, approximate)
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

"""Small questions and edits that every lowering and pass needs on an onnx-ir graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.errors import ExportError
from vitdeploy.graph.names import fresh_name, names_in, unused_name

Array = NDArray[Any]
T = TypeVar("T")

# Operators that map each element of their first input on its own; what other inputs they have are scalars.
_UNARY = """
    Abs Cast Ceil Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal Relu
    Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Swish Tanh
"""
UNARY = frozenset(_UNARY.split())


def need(thing: T | None, what: str) -> T:
    """`thing`; ExportError where it is None, so that the graph lacks `what`: "the shape of x"."""
    if thing is None:
        raise ExportError(
            f"the graph does not state {what}",
            why="a rewrite needs it",
            fix="state the shapes and types of all values, as onnx.shape_inference.infer_shapes does",
        )
    return thing


def shape_of(value: ir.Value) -> ir.Shape:
    """The shape of `value`; ExportError where not even the rank is known."""
    return need(value.shape, f"the shape of {value.name}")


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of `value`; ExportError where it is unknown."""
    return need(value.dtype, f"the type of {value.name}")


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of `node`; ExportError where it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return need(value, f"input {index} of {node.op_type} {node.name}")


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that `node` is in; ExportError for a node that was removed or belongs to a function."""
    graph = node.graph
    return need(graph if isinstance(graph, ir.Graph) else None, f"a graph around {node.op_type} {node.name}")


def constant(value: ir.Value | None) -> Array | None:
    """The array behind an initializer or a Constant node's output; None for anything computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_weight(value: ir.Value | None) -> bool:
    """Whether `value` is a constant, or one behind Q/DQ."""
    while (node := producer(value)) is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        value = node.inputs[0]
    return constant(value) is not None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Value of attribute `name`, or `default` where the node does not state it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def producer(value: ir.Value | None, op_type: str | None = None) -> ir.Node | None:
    """The node that makes `value`, if there is one and it is an `op_type`."""
    node = None if value is None else value.producer()
    return node if node is not None and op_type in (None, node.op_type) else None


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that take `value` as an input, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def only_consumer(value: ir.Value, op_type: str | None = None) -> ir.Node | None:
    """The single consumer of `value`, if there is just one, it is an `op_type`, and `value` is no graph output."""
    found = consumers(value)
    if value.is_graph_output() or len(found) != 1 or op_type not in (None, found[0].op_type):
        return None
    return found[0]


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape where every dimension is known."""
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]


def dims(value: ir.Value) -> tuple[int | None, ...] | None:
    """The shape with None for unknown dimensions; None where not even the rank is known."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def sizes(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The shape, free dimensions by name (equal names are equal sizes); None where one is unknown."""
    if value is None or value.shape is None:
        return None
    found = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return None if None in found else tuple(dim if isinstance(dim, int) else str(dim) for dim in found)


def rows_name(count: int, free: str) -> str:
    """What `count` tokens of each entry of the free dimension `free` are called as one dimension."""
    return free if count == 1 else f"{count}*{free}"


def for_one(size: int | str | ir.SymbolicDim | None) -> int:
    """How much of a dimension is one image's: 1 of a free dimension, the count of one that `rows_name` called."""
    if isinstance(size, int):
        return size
    count, times, _ = str(size.value if isinstance(size, ir.SymbolicDim) else size).partition("*")
    return int(count) if times and count.isdecimal() else 1


def reshape_target(shape: Sequence[int | str]) -> Array | None:
    """The second input of a Reshape to `shape`, -1 for its free dimension; None where two are free or one is empty."""
    if sum(isinstance(dim, str) for dim in shape) > 1 or 0 in shape:
        return None
    return np.array([-1 if isinstance(dim, str) else dim for dim in shape], dtype=np.int64)


def make_reshape(node: ir.Node, shape: Sequence[int | str]) -> None:
    """Make `node`, which just names another shape, a Reshape to `shape`, of which one dimension may be free."""
    target = _one_reshape(shape)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    set_constant(node, 1, target, "shape")


def _one_reshape(shape: Sequence[int | str]) -> Array:
    return need(reshape_target(shape), f"the shape {list(shape)} for one Reshape")


class _Names(set[str]):
    """The names in a graph, as long as somebody adds to it: builders that live at the same time have one in common."""

    live: ClassVar[weakref.WeakKeyDictionary[ir.Graph, weakref.ref[_Names]]] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, graph: ir.Graph) -> _Names:
        """The names of `graph`, with those that live builders have given."""
        known = cls.live.get(graph)
        found = known() if known is not None else None
        if found is None:
            found = cls()
            cls.live[graph] = weakref.ref(found)
        found |= names_in(graph)
        return found


class Builder:
    """Adds nodes in front of `anchor`, naming them after it; initializers go to the graph. `made` lists the nodes.

    `taken` are the `names_in(graph)`, to which it adds; given where many edits follow each other.
    """

    def __init__(self, graph: ir.Graph, anchor: ir.Node, *, taken: set[str] | None = None) -> None:
        self.graph, self.anchor = graph, anchor
        self.scope = (anchor.name or "graph").rpartition("/")[0]
        self.made: list[ir.Node] = []
        self._taken = _Names.of(graph) if taken is None else taken

    def constant(self, array: Array, name: str) -> ir.Value:
        """A new initializer holding `array`, called after `name`."""
        value = ir.Value(name=self.unused(f"{self.scope}/{name}" if self.scope else name))
        value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int | str | ir.SymbolicDim | None] | ir.Shape | None = None,
        *,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Insert one node with one output; the output's type is `dtype` or that of the first input."""
        name = self.unused(f"{self.scope}/{op_type}" if self.scope else op_type)
        node = ir.node(op_type, inputs, attributes=attributes, name=name)
        out = node.outputs[0]
        out.name = self.unused(f"{name}.out")
        out.shape = shape.copy() if isinstance(shape, ir.Shape) else None if shape is None else ir.Shape(shape)
        first = next(value for value in inputs if value is not None)
        out.type = ir.TensorType(dtype) if dtype is not None else first.type
        self.graph.insert_before(self.anchor, node)
        self.made.append(node)
        return out

    def reshape(self, value: ir.Value, shape: Sequence[int | str]) -> ir.Value:
        """Insert one Reshape to `shape`; ExportError where more than one dimension is free, or one is empty."""
        return self.op("Reshape", [value, self.constant(_one_reshape(shape), "shape")], shape)

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
        """Insert one Split of `value` into parts of the given sizes (the form of opset 13 to 17, valid later too)."""
        name = self.unused(f"{self.scope}/Split" if self.scope else "Split")
        lengths = self.constant(np.asarray(sizes, dtype=np.int64), "split")
        node = ir.node("Split", [value, lengths], attributes={"axis": axis}, num_outputs=len(sizes), name=name)
        for index, (out, size) in enumerate(zip(node.outputs, sizes, strict=True)):
            out.name = self.unused(f"{name}.out{index}")
            out.type = value.type
            if value.shape is not None:
                shape = list(value.shape)
                shape[axis] = size
                out.shape = ir.Shape(shape)
        self.graph.insert_before(self.anchor, node)
        return list(node.outputs)

    def unused(self, name: str) -> str:
        """`name`, numbered where it is taken, and taken from now on."""
        found = unused_name(name, self._taken, self.graph.initializers)
        self._taken.add(found)
        return found


def replace(node: ir.Node, value: ir.Value) -> None:
    """Let `value` stand for the single output of `node` everywhere, and remove `node`."""
    graph, old = graph_of(node), node.outputs[0]
    if old.is_graph_output():
        name = old.name
        if value.shape is None:
            value.shape = old.shape
        old.name = fresh_name(graph, f"{name}.replaced")
        value.name = name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def bypass(node: ir.Node, value: ir.Value | None) -> bool:
    """Replace `node` by `value` unless a graph output would lose its name; says whether it happened."""
    if value is None:
        return False
    taken = value.is_graph_input() or value.is_graph_output() or value.is_initializer()
    if taken and node.outputs[0].is_graph_output():
        return False
    replace(node, value)
    return True


def inherit_name(new: ir.Value, old: ir.Value) -> None:
    """Call the initializer `new` after the initializer `old`, which is removed if it has no consumer."""
    graph, stem = need(new.graph, f"a graph around {new.name}"), str(old.name)
    del graph.initializers[str(new.name)]
    if not old.uses() and not old.is_graph_output():
        del graph.initializers[stem]
        new.name = stem
    else:
        new.name = fresh_name(graph, stem)
    graph.register_initializer(new)


def set_constant(node: ir.Node, index: int, array: Array, name: str) -> None:
    """Make input `index` of `node` the constant `array`, which `name` calls where there was none.

    An initializer that is only this input keeps its name; one with other consumers is left to them.
    """
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    new = Builder(graph_of(node), node).constant(array, name)
    if old is not None and old.is_initializer():
        if len(old.uses()) == 1:
            node.replace_input_with(index, None)
        inherit_name(new, old)
    node.replace_input_with(index, new)


def remove_unused(model: ir.Model) -> None:
    """Drop nodes and initializers that no output depends on."""
    RemoveUnusedNodesPass()(model)


def of_type(graph: ir.Graph, *op_types: str) -> Iterator[ir.Node]:
    """The nodes of the given types in topological order; the graph may be edited meanwhile."""
    for node in list(graph):
        if node.op_type in op_types and node.graph is graph:
            yield node

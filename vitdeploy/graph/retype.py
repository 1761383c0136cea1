"""The float type that nodes compute in, changed in the graph, with Casts where two types meet."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from vitdeploy.graph.edit import constant, consumers, dtype_of
from vitdeploy.graph.names import names_in, unused_name

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

# What they give is typed by an attribute, or by a value that may come from anywhere.
_TYPED_BY_RULE = frozenset({"CastLike", "Constant", "ConstantOfShape", "EyeLike", "Range"}) | {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
}
# Q and DQ know no float but float32 before.
_QUANTIZATION, _QUANTIZATION_OF_ANY_FLOAT = frozenset({"QuantizeLinear", "DequantizeLinear"}), 19
# What they are given may have any type.
_TAKE_ANY = frozenset({"Cast", "Shape", "Size"})
# Inputs that ONNX types as float32 whatever the data is.
_ALWAYS_SINGLE = {"Resize": frozenset({1, 2})}


def retype(graph: ir.Graph, nodes: Collection[ir.Node], dtype: ir.DataType) -> int:
    """Let `nodes` compute in `dtype`, one of FLOATS, while all others and the graph's outputs keep their types.

    Constants are converted, a Cast among the nodes gives `dtype` itself, and values that cross from or to other nodes
    get one Cast each. Nodes whose type ONNX fixes are left alone. Returns how many values changed their type.
    """
    opset = graph.opset_imports.get("", 0)
    chosen = {node for node in nodes if not _is_fixed(node, opset)}
    casts, changed = _Casts(graph), 0
    for node in [node for node in graph if node in chosen]:
        for index, value in float_inputs(node):
            if value.dtype != dtype:
                node.replace_input_with(index, casts.of(value, dtype))
        for out in node.outputs:
            if out.dtype in FLOATS and out.dtype != dtype:
                _change(casts, out, dtype, chosen)
                changed += 1
        if node.op_type == "Cast" and node.outputs[0].dtype == dtype:
            node.attributes["to"] = ir.AttrInt64("to", dtype.value)
    return changed


def float_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Position and value of the float inputs of `node` whose type follows what the node computes in."""
    fixed = _ALWAYS_SINGLE.get(node.op_type, frozenset())
    for index, value in enumerate(() if node.op_type in _TAKE_ANY else node.inputs):
        if value is not None and value.dtype in FLOATS and index not in fixed:
            yield index, value


def _is_fixed(node: ir.Node, opset: int) -> bool:
    if node.op_type in _QUANTIZATION:
        return opset < _QUANTIZATION_OF_ANY_FLOAT
    return node.op_type in _TYPED_BY_RULE


def _change(casts: _Casts, out: ir.Value, dtype: ir.DataType, chosen: Collection[ir.Node]) -> None:
    """Make `out` a `dtype`; consumers that are not chosen, and the graph's outputs, get what it was."""
    graph, old = casts.graph, dtype_of(out)
    out.type = ir.TensorType(dtype)
    others = [node for node in consumers(out) if node not in chosen and node.op_type not in _TAKE_ANY]
    places = [index for index, value in enumerate(graph.outputs) if value is out]
    if not others and not places:
        return
    back = casts.of(out, old)
    for consumer in others:
        for index, value in enumerate(consumer.inputs):
            if value is out:
                consumer.replace_input_with(index, back)
    for index in places:
        graph.outputs[index] = back
    if places:
        out.name, back.name = casts.name(f"{out.name}.{dtype.name.lower()}"), out.name


class _Casts:
    """Values in other types, each made once: a converted initializer, or a Cast right behind the producer."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._taken = names_in(graph)
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as a `dtype`."""
        if (value, dtype) not in self._made:
            self._made[value, dtype] = self._make(value, dtype)
        return self._made[value, dtype]

    def name(self, name: str) -> str:
        """`name`, numbered where it is taken, and taken from now on."""
        found = unused_name(name, self._taken)
        self._taken.add(found)
        return found

    def _make(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name, array = self.name(f"{value.name}.as_{dtype.name.lower()}"), constant(value)
        if array is not None:
            made = ir.Value(name=name, const_value=ir.tensor(array.astype(dtype.numpy()), name=name))
            self.graph.register_initializer(made)
        else:
            cast = ir.node("Cast", [value], attributes={"to": dtype.value}, name=name)
            made = cast.outputs[0]
            made.name = self.name(f"{name}.out")
            source = value.producer()
            if source is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(source, cast)
        made.shape, made.type = value.shape, ir.TensorType(dtype)
        return made

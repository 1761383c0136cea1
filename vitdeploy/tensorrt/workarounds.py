"""What helps where a runtime computes a graph wrongly, as edits of the graph that keep its meaning.

Each takes and gives an ONNX file. The order is that of `BuildOptions.workarounds`: from the edit that costs least.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, as_type, consumers, remove_unused
from vitdeploy.platforms.fusion_rules import Attention, find_attentions

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_HALF = FLOATS - {ir.DataType.FLOAT}

# Their types are stated by attributes or by rules of their own: they stay as they are.
_TYPED_BY_RULE = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "ConstantOfShape", "Shape"})
# Inputs that ONNX types as float32 whatever the data is.
_ALWAYS_SINGLE = {"Resize": frozenset({1, 2})}
_REDUCTION_AXES_AS_INPUT = 18


@dataclass(frozen=True)
class Workaround:
    """One edit. `apply(model, block)` gives the edited file, or None where there is nothing for it to do.

    `block` is the one that diverges first, None where that is not known. `needs_tensorrt` and `needs_sm` (ten times the
    compute capability) say what takes the result.
    """

    name: str
    what: str
    apply: Callable[[bytes, str | None], bytes | None]
    needs_tensorrt: tuple[int, int] = (8, 5)
    needs_sm: int = 0

    def obstacle(self, version: tuple[int, int], sm: int | None) -> str | None:
        """Why it cannot help with this TensorRT on this GPU; None where it may."""
        if version < self.needs_tensorrt:
            return f"it takes TensorRT {self.needs_tensorrt[0]} or newer"
        if sm is not None and sm < self.needs_sm:
            return f"it takes a GPU of compute capability {self.needs_sm // 10}.{self.needs_sm % 10} or newer"
        return None


def read_graph(model: bytes) -> ir.Model:
    """The graph with the shape and type of every tensor."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True)
    return ir.serde.deserialize_model(proto)


def write_graph(model: ir.Model) -> bytes:
    """The file of a graph, without what nothing reads any more."""
    remove_unused(model)
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    return data


def block_of(name: str) -> str:
    """The module that a node belongs to, at most three parts of its path: `stages.3.0` for `stages.3.0.attn/MatMul`."""
    path = name.rpartition("/")[0] or "graph"
    return ".".join(path.split(".")[:3])


def defuse_attention(model: bytes, block: str | None = None) -> bytes | None:
    """Writes every softmax of attention so that no pattern of fused attention matches, with the same result.

    In half precision it computes in FP32 between two Casts; in FP32 its largest score is subtracted first, which the
    softmax does anyway. Both break the pattern by the rules of fused attention (TensorRT's guide;
    tier4/autoware-ml#95). An Identity would not do: the builder folds it away.
    """
    graph = read_graph(model)
    found = list(find_attentions(graph.graph))
    for attention in found:
        scores = attention.softmax.inputs[0]
        assert scores is not None
        if scores.dtype in _HALF:
            retype(graph.graph, [attention.softmax], ir.DataType.FLOAT)
        else:
            _subtract_largest(graph, attention)
    return write_graph(graph) if found else None


def single_precision(model: bytes, block: str | None) -> bytes | None:
    """Has `block` compute in FP32; None where it does already, or where it is not known."""
    graph = read_graph(model)
    nodes = [node for node in graph.graph if block is not None and block_of(str(node.name)) == block]
    return write_graph(graph) if retype(graph.graph, nodes, ir.DataType.FLOAT) else None


def bfloat16_attention(model: bytes, block: str | None = None) -> bytes | None:
    """Has the products and the softmax of half-precision attention compute in bfloat16, whose range is that of FP32."""
    graph = read_graph(model)
    nodes = [
        node
        for attention in find_attentions(graph.graph)
        if attention.operands[0].dtype == ir.DataType.FLOAT16
        for node in (attention.first, *attention.before, attention.softmax, *attention.after, attention.second)
    ]
    return write_graph(graph) if retype(graph.graph, nodes, ir.DataType.BFLOAT16) else None


WORKAROUNDS: tuple[Workaround, ...] = (
    Workaround("defuse", "attention kept from being fused", defuse_attention),
    Workaround("fp32", "FP32 for the block that diverges", single_precision),
    Workaround("bf16", "attention in bfloat16", bfloat16_attention, needs_tensorrt=(10, 0), needs_sm=80),
)


def retype(graph: ir.Graph, nodes: Collection[ir.Node], dtype: ir.DataType) -> int:
    """Has `nodes` compute in `dtype`, between Casts from and to what their neighbours take; how many changed."""
    chosen = {node for node in nodes if node.op_type not in _TYPED_BY_RULE}
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    changed = 0
    for node in [node for node in graph if node in chosen]:
        wrong = [index for index, value in _float_inputs(node) if value.dtype != dtype]
        for index in wrong:
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, as_type(graph, value, dtype, casts))
        for out in node.outputs:
            if out.dtype in FLOATS and out.dtype != dtype:
                _leave_as(graph, out, dtype, chosen)
                changed += 1
    return changed


def _float_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    fixed = _ALWAYS_SINGLE.get(node.op_type, frozenset())
    pairs = [(index, value) for index, value in enumerate(node.inputs) if value is not None and index not in fixed]
    return [(index, value) for index, value in pairs if value.dtype in FLOATS]


def _leave_as(graph: ir.Graph, out: ir.Value, dtype: ir.DataType, chosen: Collection[ir.Node]) -> None:
    """Makes `out` a `dtype`; whoever reads it and is not chosen reads the type that it had, through a Cast."""
    old = out.dtype
    assert old is not None
    others = [node for node in consumers(out) if node not in chosen or node.op_type in _TYPED_BY_RULE]
    producer = out.producer()
    assert producer is not None
    is_output = out.is_graph_output()
    out.type = ir.TensorType(dtype)
    if not others and not is_output:
        return
    back = ir.node("Cast", [out], attributes={"to": old.value}, name=f"{out.name}.back")
    value = back.outputs[0]
    value.name, value.shape, value.type = f"{out.name}.back.out", out.shape, ir.TensorType(old)
    graph.insert_after(producer, back)
    for reader in others:
        for index, operand in enumerate(reader.inputs):
            if operand is out:
                reader.replace_input_with(index, value)
    if is_output:
        graph.outputs[graph.outputs.index(out)] = value
        out.name, value.name = f"{out.name}.computed", out.name


def _subtract_largest(model: ir.Model, attention: Attention) -> None:
    scores = attention.softmax.inputs[0]
    assert scores is not None
    assert scores.shape is not None
    build = Builder(model.graph, attention.softmax)
    rows = [*list(scores.shape)[:-1], 1]
    if model.opset_imports.get("", 0) >= _REDUCTION_AXES_AS_INPUT:
        axes = build.constant(np.array([-1], dtype=np.int64), "last_axis")
        largest = build.op("ReduceMax", [scores, axes], rows, keepdims=1)
    else:
        largest = build.op("ReduceMax", [scores], rows, axes=[-1], keepdims=1)
    attention.softmax.replace_input_with(0, build.op("Sub", [scores, largest], scores.shape))

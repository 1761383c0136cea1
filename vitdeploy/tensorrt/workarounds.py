"""What helps where a runtime computes a graph wrongly, as edits of the graph that keep its meaning.

Each takes and gives an ONNX file. The order is that of `BuildOptions.workarounds`: from the edit that costs least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import Attention, find_attentions
from vitdeploy.graph.edit import Builder, input_of, shape_of
from vitdeploy.graph.names import block_of
from vitdeploy.graph.onnx_file import read_graph, write_graph
from vitdeploy.graph.retype import FLOATS, retype

_HALF = FLOATS - {ir.DataType.FLOAT}
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

    def obstacle(self, version: tuple[int, ...], sm: int | None) -> str | None:
        """Why it cannot help with this TensorRT on this GPU; None where it may."""
        if version < self.needs_tensorrt:
            return f"it takes TensorRT {self.needs_tensorrt[0]} or newer"
        if sm is not None and sm < self.needs_sm:
            return f"it takes a GPU of compute capability {self.needs_sm // 10}.{self.needs_sm % 10} or newer"
        return None


def defuse_attention(model: bytes, block: str | None = None) -> bytes | None:
    """Writes every softmax of attention so that no pattern of fused attention matches, with the same result.

    In half precision it computes in FP32 between two Casts; in FP32 its largest score is subtracted first, which the
    softmax does anyway. Both break the pattern by the rules of fused attention (TensorRT's guide;
    tier4/autoware-ml#95). An Identity would not do: the builder folds it away.
    """
    graph = read_graph(model)
    found = find_attentions(graph.graph)
    for attention in found:
        if input_of(attention.softmax, 0).dtype in _HALF:
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


def _subtract_largest(model: ir.Model, attention: Attention) -> None:
    scores, build = input_of(attention.softmax, 0), Builder(model.graph, attention.softmax)
    rows = [*shape_of(scores)[:-1], 1]
    if model.opset_imports.get("", 0) >= _REDUCTION_AXES_AS_INPUT:
        axes = build.constant(np.array([-1], dtype=np.int64), "last_axis")
        largest = build.op("ReduceMax", [scores, axes], rows, keepdims=1)
    else:
        largest = build.op("ReduceMax", [scores], rows, axes=[-1], keepdims=1)
    attention.softmax.replace_input_with(0, build.op("Sub", [scores, largest], scores.shape))

"""How many bytes a graph moves, operator by operator: what a device whose memory is the limit spends its time on."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitdeploy.graph.edit import for_one

# They give a tensor another shape, or nothing at all, and copy no byte of it.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Constant", "Shape"})
# They move or convert data and compute nothing.
_MOVING = """
    Cast Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape ScatterElements
    ScatterND Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze
"""
MOVING = frozenset(_MOVING.split())


def bytes_moved(graph: ir.Graph) -> int:
    """The bytes that the nodes of `graph` read and write, weights included, one image in every free dimension.

    Every operator counts for itself, as if nothing were fused; a tensor of unknown shape counts for nothing.
    """
    nodes = [node for node in graph if node.op_type not in VIEWS]
    return sum(_bytes(value) for node in nodes for value in (*node.inputs, *node.outputs) if value is not None)


def _bytes(value: ir.Value) -> int:
    if value.shape is None or value.dtype is None:
        return 0
    return int(value.dtype.itemsize * math.prod(for_one(dim) for dim in value.shape))

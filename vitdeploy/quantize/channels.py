"""Which channels of one tensor the elements of another carry, followed from where they are made to where they are read.

A scale put on a channel where it is made arrives unchanged wherever only linear or positively homogeneous functions of
that channel alone lie between, and can be undone in the weights of the layer that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, sizes
from vitdeploy.graph.qdq import Array
from vitdeploy.quantize.layers import output_axis


@dataclass(frozen=True)
class Sink:
    """A layer whose weights can undo the scales of what it reads: by its input channels, the channel that each is."""

    node: ir.Node
    channels: Array


@dataclass
class Followed:
    """Where the channels of a tensor end.

    count   channels followed
    sinks   layers that read them
    sums    nodes on the way and the index of their constant input that is added, with the channel of its elements
    bound   channels that something else reads, too: they cannot be scaled
    """

    count: int = 0
    sinks: list[Sink] = field(default_factory=list)
    sums: list[tuple[ir.Node, int, Array]] = field(default_factory=list)
    bound: set[int] = field(default_factory=set)


def follow(value: ir.Value, axis: int) -> Followed:
    """Follow the channels of `value`, which lie along `axis`, to every reader."""
    shape = sizes(value)
    count = None if shape is None else shape[axis]
    if shape is None or not isinstance(count, int):
        return Followed()
    found = Followed(count)
    map_ = np.arange(count).reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
    waiting = [(value, map_)]
    while waiting:
        value, map_ = waiting.pop()
        if value.is_graph_output():
            found.bound.update(np.unique(map_).tolist())
        for use in value.uses():
            waiting += _read(use.node, use.idx, map_, found)
    return found


def _read(node: ir.Node, index: int, map_: Array, found: Followed) -> list[tuple[ir.Value, Array]]:
    """What a reader passes on; what it takes or binds goes into `found`."""
    channels = _sunk(node, map_) if index == 0 else None
    if channels is not None:
        found.sinks.append(Sink(node, channels))
        return []
    passed = _pass(node, index, map_, found)
    if passed is None:
        found.bound.update(np.unique(map_).tolist())
        return []
    return passed


def _pass(node: ir.Node, index: int, map_: Array, found: Followed) -> list[tuple[ir.Value, Array]] | None:
    """The outputs of a node between, each with the channels of its elements; None where they cannot be told."""
    out = node.outputs[0]
    if node.op_type in {"Relu", "Identity"}:
        return [(out, map_)]
    if node.op_type == "Transpose":
        return [(out, np.transpose(map_, attribute(node, "perm", range(map_.ndim)[::-1])))]
    if node.op_type == "Reshape" and index == 0:
        reshaped = _reshape(map_, sizes(node.inputs[0]), sizes(out))
        return None if reshaped is None else [(out, reshaped)]
    if node.op_type == "Split" and index == 0:
        return _split(node, map_)
    if node.op_type in {"Add", "Mul"}:
        other = constant(node.inputs[1 - index])
        if other is None or other.ndim > map_.ndim:
            return None
        if node.op_type == "Add":
            found.sums.append((node, 1 - index, map_))
        return [(out, map_)]
    if (
        node.op_type == "MatMul"
        and index == 1
        and map_.shape[-2] == 1
        and len(sizes(node.inputs[0]) or ()) == map_.ndim
    ):
        return [(out, map_)]  # a weighted sum over the tokens of each channel, as of attention's values
    return None


def _sunk(node: ir.Node, map_: Array) -> Array | None:
    """The channels that a linear layer or dense convolution sums over; None where `node` is neither."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or node.op_type not in {"MatMul", "Gemm", "Conv"} or attribute(node, "group", 1) != 1:
        return None
    if node.op_type != "Conv" and (weight.ndim != 2 or attribute(node, "transA", 0)):
        return None
    axis = 1 if node.op_type == "Conv" else map_.ndim - 1
    inputs = weight.shape[1 - output_axis(node)]
    return map_.reshape(-1) if map_.shape[axis] == map_.size == inputs else None


def _split(node: ir.Node, map_: Array) -> list[tuple[ir.Value, Array]] | None:
    axis = attribute(node, "axis", 0) % map_.ndim
    if map_.shape[axis] == 1:
        return [(out, map_) for out in node.outputs]
    lengths = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if lengths is None:
        return None
    parts = np.split(map_, np.cumsum(lengths)[:-1], axis=axis)
    return list(zip(node.outputs, parts, strict=True))


def _reshape(map_: Array, before: Sequence[int | str] | None, after: Sequence[int | str] | None) -> Array | None:
    """The map in another shape: dimensions are matched in groups of equal products, a free one only with itself."""
    if before is None or after is None:
        return None
    parts: list[int] = []  # of the new map's shape
    expanded: list[int] = []  # of the old map's, where a group is not constant
    left, right = list(before), list(after)
    at = 0
    while left or right:
        old, new = _group(left, right)
        if old is None or new is None:
            return None
        if all(size == 1 for size in map_.shape[at : at + len(old)]):
            parts += [1] * len(new)
            expanded += [1] * len(old)
        elif any(isinstance(dim, str) for dim in old):
            return None
        else:
            parts += [int(dim) for dim in new]
            expanded += [int(dim) for dim in old]
        at += len(old)
    return np.broadcast_to(map_, expanded).reshape(parts)


def _group(
    left: list[int | str], right: list[int | str]
) -> tuple[list[int | str], list[int | str]] | tuple[None, None]:
    """Take the shortest runs of equal product from the front of both shapes."""
    if left and right and left[0] == right[0]:
        return [left.pop(0)], [right.pop(0)]
    old: list[int | str] = []
    new: list[int | str] = []
    sides = [1, 1]
    while not old or sides[0] != sides[1]:
        shorter = 0 if (not old or sides[0] < sides[1]) and left else 1
        source, taken = ((left, old), (right, new))[shorter]
        if not source or isinstance(source[0], str):
            return None, None
        dim = source.pop(0)
        taken.append(dim)
        sides[shorter] *= int(dim)
    return old, new

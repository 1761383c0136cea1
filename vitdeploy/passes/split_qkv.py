"""Queries, keys and values as a Split of the projection's last axis, on rank 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    consumers,
    dims,
    of_type,
    only_consumer,
    remove_unused,
    shape_of,
)
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import find_projection


@dataclass(frozen=True)
class _Part:
    """What one consumer takes of an axis: [start, stop), the axis itself dropped or kept, as `output`."""

    start: int
    stop: int
    dropped: bool
    output: ir.Value


class SplitQKV(GraphPass):
    """reshape(B, N, 3, h, d).permute(2, 0, 3, 1, 4), then one index each, as Split, Reshape and Transpose.

    Any selection along an axis that a Reshape cut out of the last axis is a choice of columns of the projection.
    Where the chosen columns are blocks, a Split of the projection takes them; where they alternate (heads outside,
    q, k, v inside) and nothing else takes the projection, its columns are put in the order of the parts first. One
    GEMM is kept. Slices that tile the last axis become a Split too: one node in place of three.
    """

    name: ClassVar[str] = "split_qkv"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Rewrite one fused projection after the other, until none is left."""
        changes: list[str] = []
        while found := [*_split_reshaped(model.graph), *_split_slices(model.graph)]:
            changes += found
            remove_unused(model)
        return changes


def _split_reshaped(graph: ir.Graph) -> list[str]:
    changes = []
    for reshape in of_type(graph, "Reshape"):
        change = _rewrite(graph, reshape)
        if change:
            changes.append(change)
    return changes


def _rewrite(graph: ir.Graph, reshape: ir.Node) -> str | None:
    whole, heads = reshape.inputs[0], reshape.outputs[0]
    whole_dims, head_dims = None if whole is None else dims(whole), dims(heads)
    if whole is None or not whole_dims or not head_dims or head_dims.count(None) > 1 or whole_dims[-1] is None:
        return None
    transpose = only_consumer(heads, "Transpose")
    rank = len(head_dims)
    perm = list(range(rank))
    if transpose is not None:
        perm = list(attribute(transpose, "perm", perm[::-1]))
    found = _parts(heads if transpose is None else transpose.outputs[0])
    tail_start = _cut_from_last(head_dims, whole_dims[-1])
    if found is None or tail_start is None or perm[found[0]] < tail_start:
        return None
    axis, parts = perm[found[0]], found[1]

    tail = [int(dim or 0) for dim in head_dims[tail_start:]]
    pieces = _pieces(parts, tail[axis - tail_start])
    if pieces is None or len(pieces) < 2:
        return None
    numbers = np.arange(math.prod(tail)).reshape(tail)
    groups = [numbers.take(range(*piece), axis - tail_start).ravel() for piece in pieces]
    order = np.concatenate(groups)
    reordered = not np.array_equal(order, np.arange(order.size))
    if reordered:
        projection = find_projection(whole) if only_consumer(whole) is reshape else None
        if projection is None:
            return None
        projection.map_columns(partial(_reorder, order=order))

    add = Builder(graph, reshape)
    chunks = add.split(whole, [group.size for group in groups], len(whole_dims) - 1)
    for part in parts:
        chunk = chunks[pieces.index((part.start, part.stop))]
        _replace_part(add, part, chunk, heads, axis, perm)
    order_note = ", its columns put in their order" if reordered else ""
    return f"{reshape.name}: {len(parts)} parts split from one projection{order_note}"


def _replace_part(add: Builder, part: _Part, chunk: ir.Value, heads: ir.Value, axis: int, perm: Sequence[int]) -> None:
    """Reshape and transpose `chunk` into what `part` was."""
    kept = [] if part.dropped else [part.stop - part.start]
    shape = [*shape_of(heads)[:axis], *kept, *shape_of(heads)[axis + 1 :]]
    value = chunk
    if chunk.shape is None or shape != list(chunk.shape):
        target = np.asarray([dim if isinstance(dim, int) else -1 for dim in shape], dtype=np.int64)
        value = add.op("Reshape", [chunk, add.constant(target, "heads")], shape)
    if part.dropped:
        perm = [p - (p > axis) for p in perm if p != axis]
    if list(perm) != sorted(perm):
        value = add.op("Transpose", [value], [shape[p] for p in perm], perm=list(perm))
    ir.convenience.replace_all_uses_with(part.output, value)


def _cut_from_last(head_dims: Sequence[int | None], width: int) -> int | None:
    """Where the dimensions begin that a Reshape made of a last axis of length `width`."""
    product, start = 1, None
    for position in range(len(head_dims) - 1, -1, -1):
        dim = head_dims[position]
        if dim is None:
            break
        product *= dim
        if product == width:
            start = position
    return start


def _pieces(parts: Sequence[_Part], length: int) -> list[tuple[int, int]] | None:
    """The parts' ranges and the gaps between them, in order; None where two overlap."""
    pieces, end = [], 0
    for start, stop in sorted({(part.start, part.stop) for part in parts}):
        if start < end:
            return None
        if start > end:
            pieces.append((end, start))
        pieces.append((start, stop))
        end = stop
    if end < length:
        pieces.append((end, length))
    return pieces


def _parts(value: ir.Value) -> tuple[int, list[_Part]] | None:
    """The axis along which every consumer of `value` selects by constants, and what each takes."""
    if value.is_graph_output() or dims(value) is None:
        return None
    axes, parts = set(), []
    for node in consumers(value):
        found = _selections(node, value)
        if found is None:
            return None
        axes.add(found[0])
        parts += found[1]
    if len(axes) != 1 or any(part.output.is_graph_output() or part.stop <= part.start for part in parts):
        return None
    axis = axes.pop()
    return axis, [_squeezed(part, axis) for part in parts]


def _selections(node: ir.Node, value: ir.Value) -> tuple[int, list[_Part]] | None:
    shape = dims(value)
    if shape is None or node.inputs[0] is not value:
        return None
    axis = int(attribute(node, "axis", 0)) % len(shape)
    length = shape[axis]
    if node.op_type == "Gather" and length is not None:
        index = constant(node.inputs[1])
        if index is None or index.ndim != 0:
            return None
        start = int(index) % length
        return axis, [_Part(start, start + 1, True, node.outputs[0])]
    if node.op_type == "Slice":
        found = _slice_range(node, shape)
        return None if found is None else (found[0], [_Part(found[1], found[2], False, node.outputs[0])])
    if node.op_type == "Split":
        lengths = [(dims(out) or (None,) * len(shape))[axis] for out in node.outputs]
        if None in lengths:
            return None
        ends = np.cumsum([size for size in lengths if size is not None])
        cut = zip([0, *ends[:-1]], ends, node.outputs, strict=True)
        return axis, [_Part(int(start), int(stop), False, out) for start, stop, out in cut if out.uses()]
    return None


def _slice_range(node: ir.Node, shape: Sequence[int | None]) -> tuple[int, int, int] | None:
    """Axis, start and stop of a Slice along one axis with step 1."""
    given = [constant(value) for value in node.inputs[1:]]
    if len(given) < 3 or any(array is None or array.size != 1 for array in given):
        return None
    start, stop, axis, *step = (int(array.item()) for array in given if array is not None)
    axis %= len(shape)
    length = shape[axis]
    if length is None or step not in ([], [1]):
        return None
    return axis, *slice(start, stop).indices(length)[:2]


def _squeezed(part: _Part, axis: int) -> _Part:
    """A part of length one together with the Squeeze behind it."""
    squeeze = only_consumer(part.output, "Squeeze")
    if part.dropped or part.stop - part.start != 1 or squeeze is None or squeeze.outputs[0].is_graph_output():
        return part
    axes = constant(squeeze.inputs[1]) if len(squeeze.inputs) > 1 else None
    rank = len(part.output.shape) if part.output.shape is not None else 0
    if axes is None or axes.size != 1 or not rank or int(axes.item()) % rank != axis:
        return part
    return _Part(part.start, part.stop, True, squeeze.outputs[0])


def _split_slices(graph: ir.Graph) -> list[str]:
    """Slices that tile the last axis of a value exactly, as one Split."""
    changes = []
    for first in of_type(graph, "Slice"):
        whole = first.inputs[0]
        shape = None if whole is None else dims(whole)
        if whole is None or not shape or shape[-1] is None or not first.outputs[0].uses():
            continue
        last = len(shape) - 1
        slices = [
            node for node in consumers(whole) if node.op_type == "Slice" and not node.outputs[0].is_graph_output()
        ]
        ranges = {node: _slice_range(node, shape) for node in slices}
        tiles = {node: found[1:] for node, found in ranges.items() if found is not None and found[0] == last}
        pieces = sorted(set(tiles.values()))
        ends = [stop for _, stop in pieces]
        if len(pieces) < 2 or [start for start, _ in pieces] != [0, *ends[:-1]] or ends[-1] != shape[-1]:
            continue
        chunks = Builder(graph, first).split(whole, [stop - start for start, stop in pieces], last)
        for node, piece in tiles.items():
            ir.convenience.replace_all_uses_with(node.outputs[0], chunks[pieces.index(piece)])
            graph.remove(node, safe=True)
        changes.append(f"{first.name}: {len(tiles)} slices became one Split")
    return changes


def _reorder(weights: Array, order: Array) -> Array:
    return weights[..., order]

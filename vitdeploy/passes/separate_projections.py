"""Queries, keys and values from a linear layer each, where the target is slow to split one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, input_of, of_type, only_consumer, shape_of
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import Projection, find_projection


class SeparateProjections(GraphPass):
    """Split(x W + b) = x W_i + b_i: the weights are split now instead of the product at every call.

    Where a fused projection of several token streams is split by stream first, each part is split by stream instead.
    A part whose bias is zero, such as that of the keys, gets none.
    """

    name: ClassVar[str] = "separate_projections"

    def applies(self) -> bool:
        """Where a Split costs more than the rows read again."""
        return self.target.projections == "separate"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Separate one fused projection after the other."""
        changes = []
        for split in of_type(model.graph, "Split"):
            fused = split.inputs[0]
            projection = None if fused is None or only_consumer(fused) is not split else find_projection(fused)
            if projection is None:
                continue
            leaves, streams = ([split], None) if _cuts_last_axis(split) else (_leaves(split), split)
            if leaves and _separate(model.graph, projection, leaves, streams):
                changes.append(f"{projection.linear.name}: {len(leaves[0].outputs)} linear layers in place of one")
        return changes


def _axis(split: ir.Node) -> int:
    return int(attribute(split, "axis", 0)) % len(shape_of(input_of(split, 0)))


def _cuts_last_axis(split: ir.Node) -> bool:
    whole = split.inputs[0]
    return whole is not None and whole.shape is not None and _axis(split) == len(whole.shape) - 1


def _lengths(split: ir.Node) -> list[int] | None:
    """What the parts hold of the axis that is cut; None where that is not static or a part is a graph output."""
    if any(out.shape is None or out.is_graph_output() for out in split.outputs):
        return None
    lengths = [out.shape[_axis(split)] for out in split.outputs]  # type: ignore[index]
    return [int(n) for n in lengths if isinstance(n, int)] if all(isinstance(n, int) for n in lengths) else None


def _leaves(split: ir.Node) -> list[ir.Node]:
    """The Splits that cut every part of `split` alike along the last axis; none where a part has another consumer."""
    leaves = [only_consumer(part, "Split") for part in split.outputs]
    found = [leaf for leaf in leaves if leaf is not None and _cuts_last_axis(leaf)]
    alike = len(found) == len(leaves) and all(_lengths(leaf) == _lengths(found[0]) for leaf in found)
    return found if alike and _lengths(split) is not None else []


def _separate(graph: ir.Graph, fused: Projection, leaves: Sequence[ir.Node], streams: ir.Node | None) -> bool:
    """Give each part of the leaves a linear layer of its own, cut into the parts of `streams` if there are any."""
    widths, rows = _lengths(leaves[0]), None if streams is None else _lengths(streams)
    if widths is None:
        return False
    start = 0
    for index, width in enumerate(widths):
        add = Builder(graph, fused.linear)
        part = _part(add, fused, slice(start, start + width))
        parts = [part] if streams is None or rows is None else add.split(part, rows, _axis(streams))
        for leaf, value in zip(leaves, parts, strict=True):
            ir.convenience.replace_all_uses_with(leaf.outputs[index], value)
        start += width
    return True


def _part(add: Builder, fused: Projection, columns: slice) -> ir.Value:
    """The linear layer that makes these columns of `fused`."""
    linear = fused.linear
    weight, bias = fused.weight, fused.bias_of(columns)
    transposed = bool(attribute(linear, "transB", 0))
    own = weight[columns] if transposed else weight[:, columns]
    inputs = [linear.inputs[0], add.constant(own, "weight")]
    shape = [*shape_of(linear.outputs[0])[:-1], own.shape[0 if transposed else 1]]
    added = add.constant(bias, "bias") if bias is not None and bias.any() else None
    if added is not None and linear.op_type == "Gemm":
        inputs.append(added)
    attributes = {name: found.value for name, found in linear.attributes.items()}
    out = add.op(linear.op_type, inputs, shape, **attributes)
    return out if added is None or linear.op_type == "Gemm" else add.op("Add", [out, added], shape)

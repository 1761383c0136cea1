"""Queries, keys and values of one linear layer, cut apart once their heads are laid out."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, of_type, only_consumer, replace, reshape_target, sizes
from vitdeploy.passes.base import GraphPass

_HEADS, _KEYS = [0, 2, 1, 3], [0, 2, 3, 1]  # [B, N, h, d] -> [B, h, N, d] and [B, h, d, N]


class PackHeads(GraphPass):
    """[B, N, n C] is cut as [n, B, h, N, d], and not as [B, N, C] before the heads are divided.

    A compiler takes a cut of columns into the weights. Where these are integers with a scale for each channel, NVIDIA's
    then multiplies them out at every call, and computes the layer in float.
    """

    name: ClassVar[str] = "pack_heads"

    def applies(self) -> bool:
        """Where the target's integer layers want it; it is run on what becomes INT8."""
        return self.target.int8 is not None and self.target.int8.packed_heads

    def rewrite(self, model: ir.Model) -> list[str]:
        """One Split after the other."""
        changes = []
        for split in of_type(model.graph, "Split"):
            name, parts = split.name, _heads(split)
            if parts and _pack(model.graph, split, parts):
                changes.append(f"{name}: heads first, then {len(parts)} parts")
        return changes


def _heads(split: ir.Node) -> list[ir.Node]:
    """The Transposes that lay out the heads of each part; none where one part has other heads, or none."""
    whole, found = sizes(split.inputs[0]), []
    shapes = set()
    if whole is None or len(whole) != 3 or int(attribute(split, "axis", 0)) % 3 != 2:
        return []
    for part in split.outputs:
        reshape = only_consumer(part, "Reshape")
        transpose = None if reshape is None else only_consumer(reshape.outputs[0], "Transpose")
        if reshape is None or transpose is None or list(attribute(transpose, "perm", [])) not in (_HEADS, _KEYS):
            return []
        shapes.add(sizes(reshape.outputs[0]))
        found.append(transpose)
    divided = next(iter(shapes))
    return found if len(shapes) == 1 and divided is not None and divided[:2] == whole[:2] else []


def _pack(graph: ir.Graph, split: ir.Node, transposes: list[ir.Node]) -> bool:
    batch, tokens, heads, width = sizes(transposes[0].inputs[0]) or ()
    count, add = len(transposes), Builder(graph, split)
    target = reshape_target([batch, tokens, count, heads, width])
    if target is None:
        return False
    divided = add.op("Reshape", [split.inputs[0], add.constant(target, "heads")], [batch, tokens, count, heads, width])
    laid_out = add.op("Transpose", [divided], [count, batch, heads, tokens, width], perm=[2, 0, 3, 1, 4])
    first = add.constant(np.array([0], dtype=np.int64), "axis")
    for transpose, part in zip(transposes, add.split(laid_out, [1] * count, 0), strict=True):
        value = add.op("Squeeze", [part, first], [batch, heads, tokens, width])
        if list(attribute(transpose, "perm")) == _KEYS:
            value = add.op("Transpose", [value], [batch, heads, width, tokens], perm=[0, 1, 3, 2])
        replace(transpose, value)
    return True

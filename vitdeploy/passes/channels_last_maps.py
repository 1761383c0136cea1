"""Tokens become a map, and a map tokens, in the layout of the tokens: channels last."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, bypass, of_type, only_consumer, producer, reshape_target, sizes
from vitdeploy.passes.base import GraphPass


class ChannelsLastMaps(GraphPass):
    """Tokens [B, HW, C] -> [B, H, W, C] -> map [B, C, H, W] rather than by [B, C, HW], and the same way back.

    A runtime that convolves channels last then cancels the Transposes with its own.
    """

    name: ClassVar[str] = "channels_last_maps"

    def applies(self) -> bool:
        """Where the target's integer convolutions are channels last."""
        return self.target.channels_last_maps

    def rewrite(self, model: ir.Model) -> list[str]:
        """Both ways in one walk."""
        changes = []
        for node in of_type(model.graph, "Reshape", "Transpose"):
            name = node.name
            if _to_map(model.graph, node) if node.op_type == "Reshape" else _to_tokens(model.graph, node):
                changes.append(f"{name}: channels last")
        return changes


def _to_map(graph: ir.Graph, reshape: ir.Node) -> bool:
    """Transpose, Reshape -> Reshape, Transpose."""
    transpose, shape = producer(reshape.inputs[0], "Transpose"), sizes(reshape.outputs[0])
    if transpose is None or not _swaps(transpose) or shape is None or len(shape) != 4:
        return False
    tokens, swapped = transpose.inputs[0], sizes(transpose.outputs[0])
    target = reshape_target([shape[0], *shape[2:], shape[1]])
    if tokens is None or swapped is None or swapped[:2] != shape[:2] or target is None:
        return False
    add = Builder(graph, reshape)
    last = add.op("Reshape", [tokens, add.constant(target, "shape")], [shape[0], *shape[2:], shape[1]])
    return bypass(reshape, add.op("Transpose", [last], shape, perm=[0, 3, 1, 2]))


def _to_tokens(graph: ir.Graph, transpose: ir.Node) -> bool:
    """Reshape, Transpose -> Transpose, Reshape."""
    reshape, shape = producer(transpose.inputs[0], "Reshape"), sizes(transpose.outputs[0])
    if reshape is None or not _swaps(transpose) or shape is None or only_consumer(reshape.outputs[0]) is not transpose:
        return False
    image, source = reshape.inputs[0], sizes(reshape.inputs[0])
    flat, target = sizes(reshape.outputs[0]), reshape_target(shape)
    if image is None or source is None or len(source) != 4 or flat is None or flat[:2] != source[:2] or target is None:
        return False
    add = Builder(graph, transpose)
    last = add.op("Transpose", [image], [source[0], *source[2:], source[1]], perm=[0, 2, 3, 1])
    return bypass(transpose, add.op("Reshape", [last, add.constant(target, "shape")], shape))


def _swaps(transpose: ir.Node) -> bool:
    return list(attribute(transpose, "perm", [])) == [0, 2, 1]

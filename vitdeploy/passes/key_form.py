"""How the keys of an attention come to stand as columns."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, bypass, constant, of_type, only_consumer, producer, sizes
from vitdeploy.passes.base import GraphPass


class KeyForm(GraphPass):
    """Keys laid out as the queries [B, h, M, d] first, and a Transpose of the last two axes in front of the product.

    Two Transposes where one would do, for runtimes that read the second as an option of the product.
    """

    name: ClassVar[str] = "key_form"

    def applies(self) -> bool:
        """Where the target asks for it."""
        return self.target.key_transpose == "apart"

    def rewrite(self, model: ir.Model) -> list[str]:
        """One product after the other."""
        changes = []
        for product in of_type(model.graph, "MatMul"):
            transpose = producer(product.inputs[1], "Transpose")
            if transpose is not None and constant(product.inputs[0]) is None and _split(model.graph, transpose):
                changes.append(f"{product.name}: its keys laid out first, then transposed")
        return changes


def _split(graph: ir.Graph, transpose: ir.Node) -> bool:
    source, shape = transpose.inputs[0], sizes(transpose.outputs[0])
    perm = list(attribute(transpose, "perm", []))
    if source is None or shape is None or len(perm) < 4 or only_consumer(transpose.outputs[0]) is None:
        return False
    laid_out = [*perm[:-2], perm[-1], perm[-2]]
    last = len(perm) - 1
    if laid_out[-1] != last or laid_out == sorted(laid_out):
        return False
    add = Builder(graph, transpose)
    keys = add.op("Transpose", [source], [*shape[:-2], shape[-1], shape[-2]], perm=laid_out)
    return bypass(transpose, add.op("Transpose", [keys], shape, perm=[*range(last - 1), last, last - 1]))

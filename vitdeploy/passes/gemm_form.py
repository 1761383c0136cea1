"""Linear layers on matrices in the form that the target computes best."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, bypass, constant, of_type, sizes
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import Projection, find_projection


class GemmForm(GraphPass):
    """x W + b of a matrix x as one Gemm, where the target has an integer kernel for that and none for the two."""

    name: ClassVar[str] = "gemm_form"

    def applies(self) -> bool:
        """Where the target asks for it."""
        return self.target.linear == "gemm"

    def ensures(self, model: ir.Model) -> None:
        """None is left in two operators."""
        left = next((node for node in model.graph if self.applies() and _find(node) is not None), None)
        if left is not None:
            raise ir.passes.PostconditionError(f"{left.name} still adds a bias to a product")

    def rewrite(self, model: ir.Model) -> list[str]:
        """One linear layer after the other."""
        changes = []
        for node in of_type(model.graph, "Add"):
            found = _find(node)
            if found is None:
                continue
            layer, bias = found
            name, add, array = node.name, Builder(model.graph, node), constant(bias)
            if array is not None and array.shape != (layer.width,):
                bias = add.constant(np.broadcast_to(array.reshape(-1), (layer.width,)), "bias")
            gemm = add.op("Gemm", [*layer.linear.inputs, bias], node.outputs[0].shape)
            if bypass(node, gemm):
                changes.append(f"{name}: became {gemm.name}")
        return changes


def _find(node: ir.Node) -> tuple[Projection, ir.Value] | None:
    """The linear layer of matrices that ends in `node`, and its constant bias."""
    layer = find_projection(node.outputs[0]) if node.op_type == "Add" else None
    if layer is None or layer.bias is None:
        return None
    shape, bias = sizes(node.outputs[0]), node.inputs[layer.bias[1]]
    if bias is None or shape is None or len(shape) != 2 or sizes(layer.linear.outputs[0]) != shape:
        return None
    return layer, bias

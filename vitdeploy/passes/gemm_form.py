"""Linear layers on matrices in the form that the target computes best."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, bypass, constant, of_type, sizes
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import find_projection


class GemmForm(GraphPass):
    """x W + b of a matrix x as one Gemm, where the target has an integer kernel for that and none for the two."""

    name: ClassVar[str] = "gemm_form"
    expects: ClassVar[str] = "linear layers as MatMul and Add, every value annotated with its shape"
    guarantees: ClassVar[str] = "no Add of a constant row behind a MatMul of rank 2 with constant weights"

    def applies(self) -> bool:
        """Where the target asks for it."""
        return self.target.linear == "gemm"

    def rewrite(self, model: ir.Model) -> list[str]:
        """One linear layer after the other."""
        changes = []
        for node in of_type(model.graph, "Add"):
            layer, shape = find_projection(node.outputs[0]), sizes(node.outputs[0])
            if layer is None or layer.bias is None or shape is None or len(shape) != 2:
                continue
            bias = node.inputs[layer.bias[1]]
            array = constant(bias)
            if array is None or sizes(layer.linear.outputs[0]) != shape:
                continue
            name, add = node.name, Builder(model.graph, node)
            if array.shape != (layer.width,):
                bias = add.constant(np.broadcast_to(array.reshape(-1), (layer.width,)), "bias")
            gemm = add.op("Gemm", [*layer.linear.inputs, bias], shape)
            if bypass(node, gemm):
                changes.append(f"{name}: became {gemm.name}")
        return changes

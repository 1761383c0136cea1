"""Narrow linear layers beside others of the same input, widened so that a compiler can run them as one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, constant, consumers, of_type, replace
from vitdeploy.passes.base import GraphPass


class PadColumns(GraphPass):
    """x W = (x [W 0]) cut to the columns of W, where another linear layer reads x, too.

    A compiler runs linear layers of one input as one GEMM. Where the columns of one are no multiple of what its kernels
    take at once, it fills the GEMM up and cuts the result, which copies all of it; zero columns that are cut behind one
    layer alone are never written anywhere.
    """

    name: ClassVar[str] = "pad_columns"

    def applies(self) -> bool:
        """Where the target's kernels take several columns at once."""
        return self.target.columns_at_once > 1

    def rewrite(self, model: ir.Model) -> list[str]:
        """One layer after the other."""
        changes, step = [], self.target.columns_at_once
        for node in of_type(model.graph, "MatMul"):
            weight, source, out = constant(node.inputs[1]), node.inputs[0], node.outputs[0]
            if weight is None or weight.ndim != 2 or source is None or out.shape is None or out.is_graph_output():
                continue
            width, beside = weight.shape[1], [other for other in consumers(source) if other is not node]
            if width % step == 0 or not any(_is_linear(other, source) for other in beside):
                continue
            wide = -(-width // step) * step
            _widen(model.graph, node, wide)
            changes.append(f"{node.name}: {wide} columns for {width}")
        return changes


def _is_linear(node: ir.Node, source: ir.Value) -> bool:
    weight = constant(node.inputs[1]) if node.op_type == "MatMul" and node.inputs[0] is source else None
    return weight is not None and weight.ndim == 2


def _widen(graph: ir.Graph, node: ir.Node, wide: int) -> None:
    weight, out = constant(node.inputs[1]), node.outputs[0]
    if weight is None or out.shape is None:
        return
    width, lead = weight.shape[1], list(out.shape)[:-1]
    add = Builder(graph, node)
    padded = add.constant(np.pad(weight, ((0, 0), (0, wide - width))), "weight")
    whole = add.op("MatMul", [node.inputs[0], padded], [*lead, wide], dtype=out.dtype)
    add.made[-1].metadata_props.update(node.metadata_props)
    bounds = {"start": 0, "stop": width, "axes": len(lead)}
    cut = [add.constant(np.array([number], dtype=np.int64), name) for name, number in bounds.items()]
    replace(node, add.op("Slice", [whole, *cut], [*lead, width]))

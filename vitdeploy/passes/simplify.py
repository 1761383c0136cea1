"""Constant folding, shape inference and the stock fusions of onnxsim."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.names import make_unique
from vitdeploy.passes.base import GraphPass


class Simplify(GraphPass):
    """What a general simplifier does for any graph, before the rewrites that know vision transformers."""

    name: ClassVar[str] = "onnxsim"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Let onnxsim rewrite the whole graph, and put its result in the place of the graph."""
        import onnxsim

        before = _count(model)
        # A batched MatMul + Add as Gemm costs two Reshapes around it, and hides attention from every fuser.
        skipped = ["fuse_matmul_add_bias_into_gemm_batched"]
        proto, _ = onnxsim.simplify(ir.to_proto(model), skipped_optimizers=skipped, skip_fuse_bn=True)
        simplified = ir.from_proto(proto)
        model.graph, model.ir_version = simplified.graph, simplified.ir_version
        make_unique(model.graph)
        model.metadata_props.update(simplified.metadata_props)
        return [f"{before} nodes became {_count(model)}"]


def _count(model: ir.Model) -> int:
    return sum(node.op_type != "Constant" for node in model.graph)

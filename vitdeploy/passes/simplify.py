"""Constant folding, shape inference and the stock fusions of onnxsim."""

from __future__ import annotations

import logging
from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.names import make_unique
from vitdeploy.passes.base import GraphPass

log = logging.getLogger(__name__)

# A batched MatMul + Add as Gemm costs two Reshapes around it, and hides attention from every fuser. The layers of
# queries, keys and values are merged by MergeParallelLinear: onnxsim 0.7.3, the last one for Python 3.10, crashes where
# they read an input of the graph.
SKIPPED = ("fuse_matmul_add_bias_into_gemm_batched", "fuse_qkv")


class Simplify(GraphPass):
    """What a general simplifier does for any graph, before the rewrites that know vision transformers."""

    name: ClassVar[str] = "onnxsim"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Let onnxsim rewrite the whole graph, and put its result in the place of the graph."""
        import onnxsim

        before = _count(model)
        written, note = ir.to_proto(model), ""
        try:
            proto, _ = onnxsim.simplify(written, skipped_optimizers=list(SKIPPED), skip_fuse_bn=True)
        except RuntimeError as error:  # an assertion in one of its stock fusions
            note = f"without the stock fusions, for onnxsim failed: {error}"
            log.warning("%s", note)
            proto, _ = onnxsim.simplify(written, perform_optimization=False)
        simplified = ir.from_proto(proto)
        model.graph, model.ir_version = simplified.graph, simplified.ir_version
        make_unique(model.graph)
        model.metadata_props.update(simplified.metadata_props)
        return [f"{before} nodes became {_count(model)}", *([note] if note else [])]


def _count(model: ir.Model) -> int:
    return sum(node.op_type != "Constant" for node in model.graph)

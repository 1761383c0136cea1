"""The shapes of a graph that somebody else wrote: its inputs as they are asked for, and all that follows from them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vitdeploy.errors import REPORT, ExportError

log = logging.getLogger(__name__)

Shape = Sequence[int | str]


def state_inputs(model: ir.Model, shapes: Mapping[str, Shape]) -> None:
    """Give the inputs of `model` these shapes, and forget what was said of all other shapes."""
    for value in model.graph.inputs:
        value.shape = ir.Shape(list(shapes[str(value.name)]))
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            for value in node.outputs:
                value.shape = None


def settled(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The graph with what is constant computed, branches that are never taken gone, and shapes as far as they follow.

    Raises ExportError for a graph that decides by its inputs what it computes.
    """
    import onnxsim

    with contextlib.redirect_stdout(io.StringIO()):
        folded, _ = onnxsim.simplify(proto, perform_optimization=False, skip_fuse_bn=True)
    branch = next((node for node in folded.graph.node if node.op_type in ("If", "Loop", "Scan")), None)
    if branch is not None:
        raise ExportError(
            f"{where} decides with {branch.op_type} what it computes, at the node {branch.name or branch.output[0]}",
            why="what is executed depends on the values of the inputs",
            fix="export it again without the branch, or for fixed sizes: --batch 1",
        )
    free = any(dim.dim_param for value in folded.graph.input for dim in value.type.tensor_type.shape.dim)
    return _symbolic(folded) if free or _unknown(ir.from_proto(folded)) is not None else folded


def annotated(proto: onnx.ModelProto, where: str) -> ir.Model:
    """The settled graph, its constants among the weights; ExportError where the rank of a value is not known."""
    model: ir.Model = ir.from_proto(proto)
    unknown = _unknown(model)
    if unknown is not None:
        raise ExportError(
            f"the shape of {unknown.name} in {where} does not follow from those of its inputs",
            why="even its rank is not known",
            fix=f"fixed sizes: --batch 1, and --input NAME=SHAPE for every input; or {REPORT}",
        )
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def _unknown(model: ir.Model) -> ir.Value | None:
    """The first value whose rank or type is not known."""
    made = (value for node in model.graph for value in node.outputs if value.name and value.uses())
    outputs = model.graph.outputs
    return next((value for value in (*made, *outputs) if value.shape is None or value.dtype is None), None)


def _symbolic(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With shapes computed as formulas of the free axes, where the inference of ONNX has a new name for every one."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    try:
        from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

        with contextlib.redirect_stdout(io.StringIO()):
            found: onnx.ModelProto = SymbolicShapeInference.infer_shapes(bare, auto_merge=True)
    except Exception:  # it gives up in many ways, and then the shapes stay as they are
        log.debug("no symbolic shapes", exc_info=True)
        return proto
    return found

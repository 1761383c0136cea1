"""The order of the rewrites between capture and precision, and the record of what each did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from vitdeploy.errors import REPORT, ExportError
from vitdeploy.exporter.composites import is_composite
from vitdeploy.exporter.lowering.attention import lower_attention
from vitdeploy.exporter.lowering.deconvolution import lower_deconvolution
from vitdeploy.exporter.lowering.layer_norm import lower_layer_norm
from vitdeploy.exporter.lowering.opset import lower_opset
from vitdeploy.passes.absorb_projections import AbsorbProjections
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.bias_after_heads import BiasAfterHeads
from vitdeploy.passes.channels_last_maps import ChannelsLastMaps
from vitdeploy.passes.drop_batch_axis import DropBatchAxis
from vitdeploy.passes.drop_key_bias import DropKeyBias
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm
from vitdeploy.passes.fold_query_scale import FoldQueryScale
from vitdeploy.passes.fold_residual_conv import FoldResidualConv
from vitdeploy.passes.fold_value_bias import FoldValueBias
from vitdeploy.passes.fuse_layer_norm import FuseLayerNorm
from vitdeploy.passes.gelu_form import GeluForm
from vitdeploy.passes.gemm_form import GemmForm
from vitdeploy.passes.hoist_broadcast import HoistBroadcast
from vitdeploy.passes.key_form import KeyForm
from vitdeploy.passes.merge_parallel_conv import MergeParallelConv
from vitdeploy.passes.merge_parallel_linear import MergeParallelLinear
from vitdeploy.passes.merge_shared_attention import MergeSharedAttention
from vitdeploy.passes.merge_shared_linear import MergeSharedLinear
from vitdeploy.passes.merge_transposes import MergeTransposes
from vitdeploy.passes.pad_columns import PadColumns
from vitdeploy.passes.separate_projections import SeparateProjections
from vitdeploy.passes.simplify import Simplify
from vitdeploy.passes.split_qkv import SplitQKV
from vitdeploy.passes.static_shapes import StaticShapes
from vitdeploy.passes.token_rows import TokenRows
from vitdeploy.progress import each
from vitdeploy.registry import Registry
from vitdeploy.targets import Target

log = logging.getLogger(__name__)

Record = dict[str, Any]

# Shapes first, since every later pass asks for them. The q/k/v idiom moves the batch off axis 0, where HoistBroadcast
# looks for it, so it is undone before. GEMMs merge before transposes, which then see the final structure.
PASSES: tuple[type[GraphPass], ...] = (
    StaticShapes,
    SplitQKV,
    HoistBroadcast,
    Simplify,
    FuseLayerNorm,
    FoldQueryScale,
    DropKeyBias,
    FoldBatchNorm,
    FoldResidualConv,
    MergeParallelConv,
    MergeParallelLinear,
    MergeSharedAttention,
    MergeSharedLinear,
    FoldValueBias,
    MergeTransposes,
    AbsorbProjections,
    BiasAfterHeads,
    KeyForm,
    SeparateProjections,
    ChannelsLastMaps,
    DropBatchAxis,
    TokenRows,
    GemmForm,
    PadColumns,
    GeluForm,
)
_ANNOUNCED: Registry[type[GraphPass]] = Registry("vitdeploy.passes", kind="pass", option="", kept={})


def lower(model: ir.Model, target: Target) -> list[Record]:
    """Turn the composites of a captured graph into the target's standard operators, in place."""
    return list(_lowered(model, target))


def optimize(model: ir.Model, target: Target) -> list[Record]:
    """Simplify a lowered graph in place, its outputs the same but for rounding, and state it in the target's opset.

    Returns one record for each rewrite: its name and what it changed.
    """
    return list(_optimized(model, target))


def rewrites(model: ir.Model, target: Target) -> Iterator[Record]:
    """`lower` and `optimize` step by step: the record of each rewrite as soon as it has changed `model`."""
    yield from _lowered(model, target)
    yield from _optimized(model, target)


def _lowered(model: ir.Model, target: Target) -> Iterator[Record]:
    yield _record("lower_attention", lower_attention(model))
    yield _record("lower_deconvolution", lower_deconvolution(model, target))
    model.functions.clear()
    model.graph.opset_imports.pop("vitdeploy", None)
    left = [str(node.name) for node in model.graph if is_composite(node)]
    if left:
        raise ExportError(f"{left[0]} has no lowering", why=f"{len(left)} composite operators are left", fix=REPORT)


def _optimized(model: ir.Model, target: Target) -> Iterator[Record]:
    for kind in each("optimizing", (*PASSES, *_ANNOUNCED.announced())):
        yield run_pass(kind(target), model)
    yield _record("lower_layer_norm", lower_layer_norm(model, target))
    yield _record("lower_opset", lower_opset(model, target))
    _tidy(model)


def node_count(model: ir.Model) -> int:
    """Nodes that compute something (constants are not counted)."""
    return sum(node.op_type != "Constant" for node in model.graph)


def run_pass(graph_pass: GraphPass, model: ir.Model) -> Record:
    """Run one rewrite on `model` in place and return its record; ExportError where it does not keep its contract."""
    log.debug("%s", graph_pass.name)
    try:
        graph_pass(model)
    except ir.passes.InvariantError as error:
        what = f"the graph pass {graph_pass.name} does not fit this network"
        raise ExportError(what, why=str(error), fix=REPORT) from error
    return _record(graph_pass.name, graph_pass.changes)


def _tidy(model: ir.Model) -> None:
    passes: tuple[Callable[[ir.Model], Any], ...] = (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    )
    for step in passes:
        step(model)


def _record(name: str, changes: list[str]) -> Record:
    return {"pass": name, "changes": changes}

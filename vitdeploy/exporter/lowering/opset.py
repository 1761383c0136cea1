"""From the opset of the capture to the opset of the target, and the proof that the graph is valid there."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from vitdeploy.exporter.lowering.opset_rules import NEW_OPERATORS, RULES, reduction_of_flags
from vitdeploy.exporter.lowering.validity import require_valid
from vitdeploy.graph.edit import attribute, of_type
from vitdeploy.platforms.boards import PLATFORMS
from vitdeploy.platforms.graph_rules import has_operator
from vitdeploy.targets import Target

# The parser of TensorRT takes `linear` and `cubic`, GridSample's names since opset 20, for `nearest` and says nothing
# (NVIDIA/TensorRT#4646, onnx/onnx-tensorrt#1060); it reads the older names right.
GRID_SAMPLE_OPSET = 19


def lower_opset(model: ir.Model, target: Target) -> list[str]:
    """Restate `model` in the target's opset; returns one line for each operator that changed its form.

    Downwards every operator whose form changed on the way is rewritten by its row of `RULES`; upwards to 23 the
    operators in use only gained types. Raises ExportError for a form that the target's opset cannot say, and for a
    graph that is not valid at its opset.
    """
    target = dataclasses.replace(target, opset=declared_opset(model, target))
    have = model.graph.opset_imports[""]
    changes = []
    for since, rules in RULES.items():
        for op_type, rule in rules.items():
            newer = target.opset < since <= have
            refused = target.for_nvidia and rule is reduction_of_flags
            if not (newer or refused or (op_type in NEW_OPERATORS and _lacks(target, op_type))):
                continue
            for node in of_type(model.graph, op_type):
                name = node.name
                if rule(model.graph, node, target):
                    changes.append(f"{name}: {op_type} restated for opset {target.opset}")
    model.graph.opset_imports[""] = target.opset
    require_valid(model, target)
    return changes


def declared_opset(model: ir.Model, target: Target) -> int:
    """The opset that the file of `model` declares: that of the target, older where its runtime misreads the newer."""
    interpolated = (
        attribute(node, "mode", "linear") != "nearest" for node in model.graph if node.op_type == "GridSample"
    )
    if target.for_nvidia and target.opset > GRID_SAMPLE_OPSET and any(interpolated):
        return GRID_SAMPLE_OPSET
    return target.opset


def _lacks(target: Target, op_type: str) -> bool:
    """Whether the TensorRT that the target is for has no such operator."""
    return target.name in PLATFORMS and not has_operator(PLATFORMS[target.name], op_type)

"""From the opset of the capture to the opset of the target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import ExportError
from vitdeploy.graph.edit import Builder, attribute, constant, input_of, of_type, shape_of
from vitdeploy.targets import Target

_NEWER = "--target with opset 18 or newer (vitdeploy targets), or make the axes constant in the network"


def lower_opset(model: ir.Model, target: Target) -> list[str]:
    """Restate `model` in the target's opset; returns one line for each operator that changed its form.

    Downwards the operators whose signature changed between opset 17 and 20 are rewritten; upwards to 23 the operators
    in use only gained types. Raises ExportError for an operator that does not exist in the target's opset.
    """
    have = model.graph.opset_imports[""]
    changes = []
    if target.opset < have:
        for since, rules in _INTRODUCED.items():
            if target.opset < since <= have:
                for op_type, rule in rules.items():
                    for node in of_type(model.graph, op_type):
                        if rule(model.graph, node):
                            changes.append(f"{node.name}: {op_type} restated for opset {target.opset}")
    model.graph.opset_imports[""] = target.opset
    return changes


def _axes_as_attribute(graph: ir.Graph, node: ir.Node) -> bool:
    """Reductions took their axes as an attribute before opset 18."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and axes is None:
        raise ExportError(f"{node.name}: {node.op_type} over computed axes needs opset 18", fix=_NEWER)
    if axes is not None:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    return True


def _explicit_split(graph: ir.Graph, node: ir.Node) -> bool:
    """Split's `num_outputs` is of opset 18; before, sizes are given or equal."""
    if "num_outputs" not in node.attributes:
        return False
    count = len(node.outputs)
    axis = int(attribute(node, "axis", 0))
    shape = input_of(node, 0).shape
    length = None if shape is None else shape[axis]
    node.attributes.pop("num_outputs")
    if isinstance(length, int):
        chunk = -(-length // count)
        sizes = [chunk] * (count - 1) + [length - chunk * (count - 1)]
        split = Builder(graph, node).constant(np.asarray(sizes, dtype=np.int64), "split")
        node.resize_inputs(2)
        node.replace_input_with(1, split)
    return True


def _no_pad_axes(graph: ir.Graph, node: ir.Node) -> bool:
    """Pad's `axes` input is of opset 18: spell the pads of every axis out."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return False
    pads, axes = constant(node.inputs[1]), constant(node.inputs[3])
    if pads is None or axes is None:
        raise ExportError(f"{node.name}: Pad over computed axes needs opset 18", fix=_NEWER)
    rank = len(shape_of(input_of(node, 0)))
    full = np.zeros(2 * rank, dtype=np.int64)
    for index, axis in enumerate(axes):
        full[int(axis) % rank] = pads[index]
        full[int(axis) % rank + rank] = pads[index + len(axes)]
    node.replace_input_with(1, Builder(graph, node).constant(full, "pads"))
    node.resize_inputs(3)
    return True


def _plain_resize(graph: ir.Graph, node: ir.Node) -> bool:
    """`axes`, `antialias` and `keep_aspect_ratio_policy` of Resize are of opset 18."""
    if "axes" in node.attributes or attribute(node, "antialias", 0):
        raise ExportError(
            f"{node.name}: an antialiased Resize, or one of some axes, needs opset 18",
            fix="--target onnxruntime, or resize without antialias",
        )
    return any(node.attributes.pop(name, None) for name in ("antialias", "keep_aspect_ratio_policy"))


def _newer(graph: ir.Graph, node: ir.Node) -> bool:
    raise ExportError(
        f"{node.name}: {node.op_type} does not exist in the opset of this target",
        fix="--target onnxruntime",
    )


_Rule = Callable[[ir.Graph, ir.Node], bool]
_REDUCTIONS = (
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
)

# The opset that introduced a form, and how to say the same without it.
_INTRODUCED: dict[int, dict[str, _Rule]] = {
    20: {"Gelu": _newer},
    18: {
        **dict.fromkeys(_REDUCTIONS, _axes_as_attribute),
        "Split": _explicit_split,
        "Pad": _no_pad_axes,
        "Resize": _plain_resize,
        **dict.fromkeys(
            ("Col2Im", "CenterCropPad", "Mish", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"), _newer
        ),
    },
}

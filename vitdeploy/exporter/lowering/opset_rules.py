"""How each operator form of opset 18 to 20 is said before the opset that introduced it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.lowering.newer_operators import bits, bits_inverted, gelu, mish, numbers
from vitdeploy.exporter.lowering.refusal import too_new
from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    dtype_of,
    input_of,
    need,
    replace,
    shape_of,
    static_shape,
)
from vitdeploy.targets import Target

Rule = Callable[[ir.Graph, ir.Node, Target], bool]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})


def _known(node: ir.Node, index: int, what: str, target: Target, since: int) -> Array | None:
    """The constant behind input `index`; None where the input is left out; ExportError where it is computed."""
    value = node.inputs[index] if len(node.inputs) > index else None
    found = constant(value)
    if value is not None and found is None:
        raise too_new(node, target, f"{node.op_type} with computed {what}", since, f"make the {what} constant")
    return found


def _reduction(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """Reductions took their axes as an attribute before opset 18; no axes mean all of them, or none at all."""
    axes = _known(node, 1, "axes", target, 18)
    if axes is not None and axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    elif attribute(node, "noop_with_empty_axes", 0):
        if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"):
            raise too_new(node, target, f"{node.op_type} over no axis", 18, "leave the reduction out")
        add = Builder(graph, node)
        replace(node, add.op("Identity", [input_of(node, 0)], node.outputs[0].shape))
        return True
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    return True


def _reduction_by_sums(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """Absolute sums and logarithms of sums by ReduceSum, whose axes have been an input since opset 13.

    OpenVINO reads their axes as an input from opset 13 on, where they are an attribute up to 17, and reduces all axes
    instead (measured with 2026.4.1: ReduceL1, ReduceLogSum, ReduceLogSumExp).
    """
    axes = _known(node, 1, "axes", target, 18)
    if axes is None or not axes.size:
        return _reduction(graph, node, target)
    x, out, add = input_of(node, 0), node.outputs[0], Builder(graph, node)
    keepdims, along = int(attribute(node, "keepdims", 1)), add.constant(axes.astype(np.int64), "axes")

    def total(terms: ir.Value) -> ir.Value:
        return add.op("ReduceSum", [terms, along], out.shape, keepdims=keepdims)

    if node.op_type == "ReduceL1":
        replace(node, total(add.op("Abs", [x], x.shape)))
    elif node.op_type == "ReduceLogSum":
        replace(node, add.op("Log", [total(x)], out.shape))
    else:
        # The largest, kept finite, is taken out, so that no power overflows.
        number, limit = numbers(add, x), float(np.finfo(dtype_of(x).numpy()).max)
        reduced = list(shape_of(x))
        for axis in axes:
            reduced[int(axis)] = 1
        largest = add.op("ReduceMax", [x, along], reduced, keepdims=1)
        largest = add.op("Clip", [largest, number(-limit), number(limit)], reduced)
        sums = add.op("Log", [total(add.op("Exp", [add.op("Sub", [x, largest], x.shape)], x.shape))], out.shape)
        if not keepdims:
            largest = add.op("Squeeze", [largest, along], out.shape)
        replace(node, add.op("Add", [sums, largest], out.shape))
    return True


def reduction_of_flags(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """The largest and the smallest flag are of opset 20, and NVIDIA's parser refuses them; those of zeros and ones."""
    x, out = input_of(node, 0), node.outputs[0]
    if x.dtype != ir.DataType.BOOL:
        return False
    add = Builder(graph, node)
    kind = ir.DataType.FLOAT  # older TensorRT reduces no integers either
    numbers = add.op("Cast", [x], x.shape, dtype=kind, to=int(kind))
    attributes = {name: attribute(node, name) for name in node.attributes}
    reduced = add.op(node.op_type, [numbers, *node.inputs[1:]], out.shape, dtype=kind, **attributes)
    replace(node, add.op("Cast", [reduced], out.shape, dtype=ir.DataType.BOOL, to=int(ir.DataType.BOOL)))
    return True


def _split(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """Split's `num_outputs` is of opset 18; before, the sizes are given, or equal."""
    if "num_outputs" not in node.attributes:
        return False
    count = len(node.outputs)
    shape = shape_of(input_of(node, 0))
    length = shape[int(attribute(node, "axis", 0)) % len(shape)]
    if not isinstance(length, int):
        raise too_new(node, target, "Split of an axis of free length", 18, "split an axis of fixed length")
    node.attributes.pop("num_outputs")
    chunk = -(-length // count)
    sizes = [chunk] * (count - 1) + [length - chunk * (count - 1)]
    split = Builder(graph, node).constant(np.asarray(sizes, dtype=np.int64), "split")
    node.resize_inputs(2)
    node.replace_input_with(1, split)
    return True


def _pad_axes(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """Pad's `axes` input is of opset 18: spell the pads of every axis out."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return False
    pads, axes = _known(node, 1, "pads", target, 18), _known(node, 3, "axes", target, 18)
    full = _spread(need(axes, "axes"), len(shape_of(input_of(node, 0))), need(pads, "pads"))
    node.replace_input_with(1, Builder(graph, node).constant(full, "pads"))
    node.resize_inputs(3)
    return True


def _spread(axes: Array, rank: int, pads: Array) -> Array:
    full = np.zeros(2 * rank, dtype=np.int64)
    for index, axis in enumerate(axes):
        full[int(axis) % rank] = pads[index]
        full[int(axis) % rank + rank] = pads[index + len(axes)]
    return full


def _pad_wrap(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """Circular padding is of opset 19; before, the ends of every axis are cut out and put behind the other end."""
    if attribute(node, "mode", "constant") != "wrap":
        return False
    value, add = input_of(node, 0), Builder(graph, node)
    shape = list(shape_of(value))
    pads = need(_known(node, 1, "pads", target, 19), "pads")
    axes = _known(node, 3, "axes", target, 19)
    full = pads if axes is None else _spread(axes, len(shape), pads)
    for axis, (before, after) in enumerate(zip(full[: len(shape)], full[len(shape) :], strict=True)):
        length = shape[axis]
        if not before and not after:
            continue
        if not isinstance(length, int):
            raise too_new(node, target, "circular padding of an axis of free length", 19, "pad axes of fixed length")
        index = np.arange(-int(before), length + int(after)) % length
        shape[axis] = len(index)
        value = add.op("Gather", [value, add.constant(index, "index")], shape, axis=axis)
    replace(node, value if add.made else add.op("Identity", [value], shape))
    return True


_RESIZE_DEFAULTS = {"antialias": 0, "keep_aspect_ratio_policy": "stretch"}


def _resize(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """`axes`, `antialias` and `keep_aspect_ratio_policy` of Resize are of opset 18: `axes` are spelled out."""
    for name, default in _RESIZE_DEFAULTS.items():
        if attribute(node, name, default) != default:
            raise too_new(node, target, f"Resize with {name} {attribute(node, name)}", 18, "resize without it")
    stated = [node.attributes.pop(name, None) for name in _RESIZE_DEFAULTS]
    axes = node.attributes.pop("axes", None)
    if axes is None:
        return any(attr is not None for attr in stated)
    shape, add = shape_of(input_of(node, 0)), Builder(graph, node)
    order = [int(axis) % len(shape) for axis in axes.as_ints()]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        scales = np.ones(len(shape), dtype=np.float32)
        scales[order] = need(_known(node, 2, "scales", target, 18), "scales")
        node.replace_input_with(2, add.constant(scales, "scales"))
    else:
        given, known = need(_known(node, 3, "sizes", target, 18), "sizes"), static_shape(input_of(node, 0))
        if known is None:
            raise too_new(node, target, "Resize of some axes to a size", 18, "--batch 1, or resize by a scale")
        sizes = np.array(known, dtype=np.int64)
        sizes[order] = given
        node.replace_input_with(3, add.constant(sizes, "sizes"))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        region = need(_known(node, 1, "region", target, 18), "region")
        full = np.concatenate([np.zeros(len(shape)), np.ones(len(shape))]).astype(region.dtype)
        full[order], full[[axis + len(shape) for axis in order]] = np.split(region, 2)
        node.replace_input_with(1, add.constant(full, "roi"))
    return True


def _resize_coordinates(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """`half_pixel_symmetric` is of opset 19, and `half_pixel` where the scale gives a whole number of pixels."""
    if attribute(node, "coordinate_transformation_mode", "half_pixel") != "half_pixel_symmetric":
        return False
    before, after = static_shape(input_of(node, 0)), static_shape(node.outputs[0])
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    exact = scales is None or (
        before is not None and after is not None and np.allclose(np.array(before) * scales, after, rtol=1e-6, atol=0)
    )
    if not exact:
        raise too_new(node, target, "Resize with half_pixel_symmetric", 19, "resize to a size")
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "half_pixel")
    return True


def _dft(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """DFT's axis is an input since opset 20 and an attribute before, the last axis but one by default only since."""
    axis = _known(node, 2, "axis", target, 20)
    rank = len(shape_of(input_of(node, 0)))
    node.attributes["axis"] = ir.AttrInt64("axis", (-2 if axis is None else int(axis.item())) % rank)
    node.resize_inputs(2 if len(node.inputs) > 1 and node.inputs[1] is not None else 1)
    return True


def _grid_sample(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """The modes have other names before opset 20, which brought volumes too."""
    if len(shape_of(input_of(node, 0))) != 4:
        raise too_new(node, target, "GridSample of a volume", 20, "sample planes")
    name = attribute(node, "mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(name, name))
    return True


def _is_inf(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """IsInf reads half precision since opset 20 only."""
    x = input_of(node, 0)
    if x.dtype in _FLOATS:
        return False
    add = Builder(graph, node)
    single = add.op("Cast", [x], x.shape, dtype=ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    node.replace_input_with(0, single)
    return True


def _scatter(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """The largest and the smallest are of opset 18, sums and products of opset 16."""
    reduction = attribute(node, "reduction", "none")
    if reduction in ("max", "min"):
        raise too_new(node, target, f"{node.op_type} with reduction {reduction}", 18, "scatter without a reduction")
    return False


def _without(**defaults: Any) -> Rule:
    """Attributes that came later are left out where they say what was always so."""

    def rule(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
        changed = False
        for name, default in defaults.items():
            value = attribute(node, name)
            if value is None:
                continue
            same = set(value) <= {default} if isinstance(value, (list, tuple)) else value == default
            if same:
                node.attributes.pop(name)
                changed = True
        return changed

    return rule


_SUMS = ("ReduceL1", "ReduceLogSum", "ReduceLogSumExp")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare")

# The opset that introduced a form, newest first, and how to say the same without it. An operator that is new and has
# no row is refused by name; tests/exporter/lowering/test_opset_schemas.py holds these rows against the schemas of ONNX.
RULES: dict[int, dict[str, Rule]] = {
    20: {
        "Gelu": gelu,
        "DFT": _dft,
        "GridSample": _grid_sample,
        "IsInf": _is_inf,
        "ReduceMax": reduction_of_flags,
        "ReduceMin": reduction_of_flags,
    },
    19: {
        "Pad": _pad_wrap,
        "Resize": _resize_coordinates,
        "AveragePool": _without(dilations=1),
        **dict.fromkeys(("Cast", "CastLike", "QuantizeLinear"), _without(saturate=1)),
    },
    18: {
        **dict.fromkeys(_SUMS, _reduction_by_sums),  # first: it adds a ReduceMax
        **dict.fromkeys(_REDUCTIONS, _reduction),
        "Split": _split,
        "Pad": _pad_axes,
        "Resize": _resize,
        **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
        "Mish": mish,
        "LpPool": _without(dilations=1, ceil_mode=0),
        "BitwiseNot": bits_inverted,
        **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), bits),
    },
}

# Operators with a row for all of their forms, which also serves where a runtime does not have them.
NEW_OPERATORS = frozenset({"Gelu", "Mish", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"})

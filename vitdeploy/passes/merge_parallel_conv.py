"""Convolutions of one map that are added up are one convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, of_type, only_consumer, replace, sizes
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.convolution import bias_of, channel_affine, into_convolution_before, set_weights


class MergeParallelConv(GraphPass):
    """Merges the branches that RepVGG and its descendants train side by side: convolutions, norms, the map itself.

    conv_3x3(x) + conv_1x1(x) + norm(x) + x is linear in x, hence one convolution whose kernel is the sum of the others,
    each where its taps lie. What follows channel by channel, such as a norm or a layer scale, goes in as well. Branches
    merge where strides and groups are equal and the kernel costs no more than the two did.
    """

    name: ClassVar[str] = "merge_parallel_conv"

    def rewrite(self, model: ir.Model) -> list[str]:
        """One node after the other, so that a sum finds its summands merged."""
        changes = []
        for node in of_type(model.graph, "BatchNormalization", "Mul", "Div", "Add", "Sub"):
            name, found = node.name, channel_affine(node)
            if found is not None:
                taken = into_convolution_before(node, *found)
                if taken is not None:
                    changes.append(f"{name}: folded {taken}")
            elif node.op_type in ("Add", "Sub"):
                merged = _merge(node)
                if merged is not None:
                    changes.append(f"{name}: one convolution, {merged}")
        return changes


@dataclass(frozen=True)
class _Branch:
    """A linear function of `source`: a convolution, or a factor for each channel where `conv` is None.

    weight  [O, I / group, *kernel], or [C]; float64 as the bias [O]
    """

    source: ir.Value
    weight: Array
    bias: Array
    conv: ir.Node | None = None


@dataclass(frozen=True)
class _Axis:
    """How a kernel lies along one axis: taps at `begin`, `begin + step`, ..., `count` of them; `slack` of the end."""

    begin: int
    step: int
    count: int
    slack: int


def _merge(node: ir.Node) -> str | None:
    """Make the sum or difference of two branches of one map one convolution; its name."""
    first, second = node.inputs
    if first is None or second is None or first is second or sizes(first) != sizes(second) or sizes(first) is None:
        return None
    sign = -1.0 if node.op_type == "Sub" else 1.0
    for one in _branches(first, node):
        for other in _branches(second, node):
            if one.source is not other.source:
                continue
            negated = _Branch(other.source, sign * other.weight, sign * other.bias, other.conv)
            conv = _sum(one, negated) if one.conv is not None else _sum(negated, one)
            if conv is not None:
                replace(node, conv.outputs[0])
                return str(conv.name)
    return None


def _branches(value: ir.Value, consumer: ir.Node) -> Iterator[_Branch]:
    """What `value` is a linear function of; a convolution counts where nobody else needs its result."""
    shape, node = sizes(value) or (), value.producer()
    if len(shape) < 3 or not isinstance(shape[1], int):
        return
    found = None if node is None else channel_affine(node)
    if found is not None:
        yield _Branch(found[0], found[1].scale, found[1].shift)
    if node is not None and node.op_type == "Conv" and only_consumer(value) is consumer:
        weight, bias = constant(node.inputs[1]), bias_of(node)
        if weight is not None and bias is not None and node.inputs[0] is not None:
            bias = np.broadcast_to(bias, (weight.shape[0],))
            yield _Branch(node.inputs[0], weight.astype(np.float64), bias, node)
    yield _Branch(value, np.ones(shape[1]), np.zeros(shape[1]))


def _sum(one: _Branch, other: _Branch) -> ir.Node | None:
    """Let the convolution of `one` compute both branches; None where that is impossible, or would cost more."""
    conv, axes = one.conv, None if one.conv is None else _axes(one.conv, one.weight)
    weight = None if conv is None else constant(conv.inputs[1])
    if conv is None or axes is None or weight is None:
        return None
    if other.conv is None:
        kernel = _with_factors(one.weight, axes, other.weight, conv)
        merged = None if kernel is None else (kernel, axes)
    else:
        merged = _with_kernel(one, axes, other)
    if merged is None:
        return None
    kernel, axes = merged
    conv.attributes.pop("auto_pad", None)
    conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", kernel.shape[2:])
    conv.attributes["dilations"] = ir.AttrInt64s("dilations", [axis.step for axis in axes])
    ends = [axis.slack + axis.begin + (axis.count - 1) * axis.step for axis in axes]
    conv.attributes["pads"] = ir.AttrInt64s("pads", [*(-axis.begin for axis in axes), *ends])
    set_weights(conv, weight, kernel, one.bias + other.bias)
    return conv


def _axes(conv: ir.Node, weight: Array) -> list[_Axis] | None:
    """How the kernel lies; None for padding that depends on the size of the map."""
    kernel, padding = weight.shape[2:], attribute(conv, "auto_pad", "NOTSET")
    steps = attribute(conv, "dilations", [1] * len(kernel))
    pads = list(attribute(conv, "pads", [0] * 2 * len(kernel)))
    if padding == "VALID":
        pads = [0] * 2 * len(kernel)
    elif padding != "NOTSET":
        spans = [step * (size - 1) for step, size in zip(steps, kernel, strict=True)]
        if any(stride != 1 for stride in _strides(conv, len(kernel))) or any(span % 2 for span in spans):
            return None
        pads = [span // 2 for span in spans] * 2
    rows = zip(pads[: len(kernel)], pads[len(kernel) :], steps, kernel, strict=True)
    return [_Axis(-begin, step, size, end + begin - step * (size - 1)) for begin, end, step, size in rows]


def _strides(conv: ir.Node, rank: int) -> list[int]:
    return list(attribute(conv, "strides", [1] * rank))


def _with_factors(weight: Array, axes: Sequence[_Axis], factors: Array, conv: ir.Node) -> Array | None:
    """The kernel that also adds each channel of the map times its factor to the channel of the same place."""
    if weight.shape[0] != len(factors) or weight.shape[1] * attribute(conv, "group", 1) != len(factors):
        return None
    if any(stride != 1 for stride in _strides(conv, len(axes))) or any(axis.slack for axis in axes):
        return None
    if any(axis.begin % axis.step or not 0 <= -axis.begin // axis.step < axis.count for axis in axes):
        return None
    changed: Array = weight.copy()
    outputs = np.arange(len(factors))
    place = tuple(-axis.begin // axis.step for axis in axes)
    index = (outputs, outputs % weight.shape[1], *place)
    changed[index] += factors
    return changed


def _with_kernel(one: _Branch, axes: Sequence[_Axis], other: _Branch) -> tuple[Array, list[_Axis]] | None:
    """The sum of two kernels, each where its taps lie, and how the sum lies."""
    first, second = one.conv, other.conv
    theirs = None if second is None else _axes(second, other.weight)
    if first is None or second is None or theirs is None:
        return None
    alike = all(attribute(conv, "group", 1) == attribute(first, "group", 1) for conv in (first, second))
    if not alike or _strides(first, len(axes)) != _strides(second, len(axes)):
        return None
    if one.weight.shape[:2] != other.weight.shape[:2]:
        return None
    union = [_union(mine, their) for mine, their in zip(axes, theirs, strict=True)]
    lain = [axis for axis in union if axis is not None]
    size = int(np.prod([axis.count for axis in lain]))
    if len(lain) < len(union) or size > one.weight[0, 0].size + other.weight[0, 0].size:
        return None
    kernel = np.zeros((*one.weight.shape[:2], *(axis.count for axis in lain)))
    for part, lies in ((one.weight, axes), (other.weight, theirs)):
        starts = [(mine.begin - axis.begin) // axis.step for mine, axis in zip(lies, lain, strict=True)]
        places = [slice(start, start + mine.count) for start, mine in zip(starts, lies, strict=True)]
        index = (slice(None), slice(None), *places)
        kernel[index] += part
    return kernel, lain


def _union(one: _Axis, other: _Axis) -> _Axis | None:
    """The taps of both along an axis; None where they do not lie on one grid or the results differ in size."""
    step = other.step if one.count == 1 else one.step
    if (other.count > 1 and other.step != step) or one.slack != other.slack or (one.begin - other.begin) % step:
        return None
    begin = min(one.begin, other.begin)
    end = max(axis.begin + (axis.count - 1) * step for axis in (one, other))
    return _Axis(begin, step, (end - begin) // step + 1, one.slack)

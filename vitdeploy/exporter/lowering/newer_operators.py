"""Operators that are new in opset 18 to 20 in those of opset 17."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.lowering.refusal import too_new
from vitdeploy.graph.edit import Builder, attribute, constant, dtype_of, input_of, need, replace
from vitdeploy.targets import Target


def gelu(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """x Phi(x), by the error function or by its approximation with the hyperbolic tangent."""
    x, add = input_of(node, 0), Builder(graph, node)
    number = numbers(add, x)
    if attribute(node, "approximate", "none") == "tanh":
        cube = add.op("Mul", [add.op("Mul", [x, x], x.shape), x], x.shape)
        inner = add.op("Add", [x, add.op("Mul", [cube, number(0.044715)], x.shape)], x.shape)
        inner = add.op("Mul", [inner, number(math.sqrt(2 / math.pi))], x.shape)
        phi = add.op("Tanh", [inner], x.shape)
    else:
        phi = add.op("Erf", [add.op("Div", [x, number(math.sqrt(2))], x.shape)], x.shape)
    weighted = add.op("Mul", [x, add.op("Add", [phi, number(1)], x.shape)], x.shape)
    replace(node, add.op("Mul", [weighted, number(0.5)], x.shape))
    return True


def mish(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """x tanh(softplus(x))."""
    x, add = input_of(node, 0), Builder(graph, node)
    gate = add.op("Tanh", [add.op("Softplus", [x], x.shape)], x.shape)
    replace(node, add.op("Mul", [x, gate], x.shape))
    return True


def numbers(add: Builder, like: ir.Value) -> Callable[[float], ir.Value]:
    """Makes constants of one number, of the type of `like`."""
    kind = dtype_of(like).numpy()
    return lambda number: add.constant(np.asarray(number, dtype=kind), "number")


def bits_inverted(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """The inverted bits of a signed integer x are -1 - x."""
    x, add = input_of(node, 0), Builder(graph, node)
    if not dtype_of(x).is_signed():
        raise too_new(node, target, "the inverted bits of unsigned integers", 18, "use signed integers")
    replace(node, add.op("Sub", [numbers(add, x)(-1), x], x.shape))
    return True


def bits(graph: ir.Graph, node: ir.Node, target: Target) -> bool:
    """Integers and a constant mask, by remainders: x and (2^k - 1) is x modulo 2^k, also where x is negative."""
    masks = [constant(value) for value in node.inputs]
    index = next((i for i, mask in enumerate(masks) if mask is not None and mask.size == 1), None)
    if index is None:
        raise too_new(node, target, "bits of two computed integers", 18, "use a constant mask of one number")
    x, out, add = input_of(node, 1 - index), node.outputs[0], Builder(graph, node)
    if not dtype_of(x).is_signed():
        raise too_new(node, target, "bits of unsigned integers", 18, "use signed integers")
    mask = int(need(masks[index], "the mask").item())
    common = _masked(add, x, mask)
    if node.op_type == "BitwiseAnd":
        replace(node, common if add.made else add.op("Identity", [common], out.shape))
        return True
    # x or m = x + m - (x and m), x xor m = x + m - 2 (x and m)
    both = common if node.op_type == "BitwiseOr" else add.op("Add", [common, common], out.shape)
    rest = add.op("Sub", [x, both], out.shape)
    replace(node, add.op("Add", [rest, numbers(add, x)(mask)], out.shape))
    return True


def _masked(add: Builder, x: ir.Value, mask: int) -> ir.Value:
    """x and mask, by one difference of remainders for every run of ones in the mask."""
    number = numbers(add, x)
    if mask < 0:
        return add.op("Sub", [x, _masked(add, x, ~mask)], x.shape)
    parts = []
    for low, high in _runs(mask):
        part = add.op("Mod", [x, number(1 << high)], x.shape)
        if low:
            part = add.op("Sub", [part, add.op("Mod", [x, number(1 << low)], x.shape)], x.shape)
        parts.append(part)
    if not parts:
        return add.op("Sub", [x, x], x.shape)
    total = parts[0]
    for part in parts[1:]:
        total = add.op("Add", [total, part], x.shape)
    return total


def _runs(mask: int) -> Sequence[tuple[int, int]]:
    """The runs of ones of a mask of at least 0, each from its lowest bit to the bit behind its highest."""
    bits = [place for place in range(mask.bit_length()) if mask >> place & 1]
    starts = [bit for bit in bits if bit - 1 not in bits]
    ends = [bit + 1 for bit in bits if bit + 1 not in bits]
    return list(zip(starts, ends, strict=True))

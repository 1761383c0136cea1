"""How much of a network INT8 tensor cores could take, layer by layer, before anybody calibrates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from vitdeploy.graph.edit import attribute, for_one, is_weight, producer, sizes
from vitdeploy.platforms.capabilities import INT8
from vitdeploy.platforms.report import Int8Report, Verdict


@dataclass(frozen=True)
class Product:
    """A layer that multiplies: multiply-accumulates an image, and why INT8 is not for it (None where it is)."""

    name: str
    macs: int
    obstacle: str | None
    quantized: bool


def judge_int8(graph: ir.Graph) -> Int8Report:
    """Whether INT8 can beat FP16 in this network: `no`, or `measure` with the bound that arithmetic sets."""
    products = list(_products(graph))
    total = sum(product.macs for product in products)
    fit = sum(product.macs for product in products if product.obstacle is None)
    obstacles: Counter[str] = Counter()
    for product in products:
        if product.obstacle is not None:
            obstacles[product.obstacle] += product.macs
    share = fit / total if total else 0.0
    bound = 1 / (1 - share * (1 - 1 / INT8.speedup))
    facts = (
        f"{share:.0%} of the multiply-accumulates are in layers that gain, at best {bound:.2f} times as fast as FP16"
    )
    if bound < INT8.min_bound:
        verdict = Verdict("no", f"{facts}; conversions and lost fusions eat that")
    else:
        verdict = Verdict("measure", f"{facts} where arithmetic is the limit; quantize these layers only")
    quantized = sum(product.quantized for product in products)
    return Int8Report(verdict, share, bound, quantized, dict(obstacles.most_common()))


def _products(graph: ir.Graph) -> Iterator[Product]:
    for node in graph:
        if node.op_type in ("MatMul", "Gemm"):
            yield from _matrix_product(node)
        elif node.op_type in ("Conv", "ConvTranspose"):
            yield from _convolution(node)


def _matrix_product(node: ir.Node) -> Iterator[Product]:
    left, right, out = sizes(node.inputs[0]), sizes(node.inputs[1]), sizes(node.outputs[0])
    if left is None or right is None or out is None:
        return
    transposed = node.op_type == "Gemm" and int(attribute(node, "transA", 0)) == 1
    inner = for_one(left[0 if transposed else -1])
    rows, columns = prod(map(for_one, out[:-1])), for_one(out[-1])
    obstacle = None
    if not is_weight(node.inputs[1]) and not is_weight(node.inputs[0]):
        obstacle = "product of two activations, left to the FP16 attention kernel"
    elif min(inner, columns) < INT8.min_channels:
        obstacle = f"fewer than {INT8.min_channels} channels"
    elif 1 in (rows, columns):
        obstacle = "one row only, bound by memory"
    yield Product(str(node.name), rows * columns * inner, obstacle, _is_quantized(node))


def _convolution(node: ir.Node) -> Iterator[Product]:
    weight, image, out = sizes(node.inputs[1]), sizes(node.inputs[0]), sizes(node.outputs[0])
    if weight is None or image is None or out is None:
        return
    group = int(attribute(node, "group", 1))
    back = node.op_type == "ConvTranspose"
    pixels = prod(map(for_one, (image if back else out)[2:]))
    inputs, outputs = for_one(image[1]), for_one(out[1])
    kernel = [for_one(length) for length in weight[2:]]
    obstacle = None
    if group > 1 and (outputs % INT8.grouped_multiple or min(kernel) < INT8.grouped_kernel):
        obstacle = f"grouped, without a kernel of {INT8.grouped_kernel} and channels by {INT8.grouped_multiple}"
    elif group == 1 and min(inputs, outputs) < INT8.min_channels:
        obstacle = f"fewer than {INT8.min_channels} channels"
    macs = pixels * prod(kernel) * inputs * outputs // group
    yield Product(str(node.name), macs, obstacle, _is_quantized(node))


def _is_quantized(node: ir.Node) -> bool:
    return all(producer(value, "DequantizeLinear") is not None for value in node.inputs[:2])

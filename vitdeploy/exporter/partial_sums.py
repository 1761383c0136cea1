"""How far the sums inside products go: kernels that add up in FP16 overflow there, though what comes out may be small.

Tensor cores and the emulation add up in FP32; the FP16 kernels of Arm processors, and some that TensorRT may choose,
do not. Large terms of both signs that cancel are an infinity in them, or infinity less infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.emulation import HALF_MAX, Range
from vitdeploy.graph.edit import Array, attribute, constant, dims, graph_of, input_of
from vitdeploy.graph.run import Runner

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})


def partial_sums(model: ir.Model, inputs: Mapping[str, Array], ranges: Mapping[str, Range]) -> dict[str, float]:
    """The products whose terms may add up to more than FP16 holds, by node name, and the largest sum of magnitudes.

    `ranges` are those of `activation_ranges` for the same graph and inputs. Only nodes that they do not already clear
    are computed once more, with the magnitudes of both factors.
    """
    watched = model.clone()
    suspects = [node for node in watched.graph if node.op_type in PRODUCTS and not _bound(node, ranges) <= HALF_MAX]
    if not suspects:
        return {}
    watched.graph.outputs.clear()
    for index, node in enumerate(suspects):
        watched.graph.outputs.append(_sum_of_magnitudes(node, f"watch.{index}"))
    parts = list(Runner(watched, "as_written").batches(inputs))
    sums = {str(node.name): max(float(part[f"watch.{index}"]) for part in parts) for index, node in enumerate(suspects)}
    return {name: largest for name, largest in sums.items() if not largest <= HALF_MAX}


def _bound(node: ir.Node, ranges: Mapping[str, Range]) -> float:
    """What the sums of `node` cannot pass: the number of terms by the largest magnitude of each factor."""
    left, right = input_of(node, 0), input_of(node, 1)
    return _terms(node) * _largest(left, ranges) * _largest(right, ranges)


def _terms(node: ir.Node) -> float:
    """At most so many products are added up to one element; infinite where the graph does not say."""
    factor = dims(input_of(node, 0 if node.op_type in ("MatMul", "Gemm") else 1)) or (None,)
    if node.op_type == "Conv":
        summed = factor[1:]
    elif node.op_type == "ConvTranspose":
        summed = (factor[0], *factor[2:])
    else:
        summed = factor[:1] if attribute(node, "transA", 0) else factor[-1:]
    known = [dim for dim in summed if dim is not None]
    return math.prod(known) if len(known) == len(summed) else math.inf


def _largest(value: ir.Value, ranges: Mapping[str, Range]) -> float:
    array = constant(value)
    if array is not None:
        return float(np.abs(array).max(initial=0.0))
    return ranges[str(value.name)].max_abs if value.name in ranges else math.inf


def _sum_of_magnitudes(node: ir.Node, name: str) -> ir.Value:
    """A new output, float32 []: the largest element of the product of the magnitudes."""
    graph = graph_of(node)
    factors = [ir.node("Abs", [input_of(node, index)]) for index in (0, 1)]
    product = ir.Node(
        "", node.op_type, [factor.outputs[0] for factor in factors], attributes=list(node.attributes.values())
    )
    largest = ir.node("ReduceMax", [product.outputs[0]], attributes={"keepdims": 0})
    made = [*factors, product, largest]
    for one in made:
        one.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    largest.outputs[0].name, largest.outputs[0].shape = name, ir.Shape([])
    graph.insert_after(node, made)
    return largest.outputs[0]

"""The bias of the keys, which no softmax sees."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, of_type, only_consumer, sizes
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import Projection, bias_at


class DropKeyBias(GraphPass):
    """softmax(q (k + b)^T) = softmax(q k^T + q b^T): q b^T is one number a query, and softmax ignores it.

    The bias goes where it is the same for every key, the keys serve this product only, and between the product and the
    softmax over its last axis stand only masks and factors that do not depend on the key. Of a fused projection the
    part of the keys becomes zero; a bias of which nothing is left is removed.
    """

    name: ClassVar[str] = "drop_key_bias"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Look at what each softmax is taken of."""
        changes = []
        for softmax in of_type(model.graph, "Softmax"):
            for product in _products(softmax):
                found = _key_bias(product)
                if found is not None:
                    projection, columns = found
                    removed = projection.clear_bias(columns)
                    part = "the bias" if removed else "its part of the bias"
                    changes.append(f"{projection.linear.name}: {part} does not reach {softmax.name}")
        return changes


def _products(softmax: ir.Node) -> list[ir.Node]:
    """The products that enter `softmax` as summands, each key in one column."""
    source = softmax.inputs[0]
    shape = None if source is None else sizes(source)
    if source is None or not shape or int(attribute(softmax, "axis", -1)) % len(shape) != len(shape) - 1:
        return []
    return _summands(source, softmax)


def _summands(value: ir.Value, consumer: ir.Node) -> list[ir.Node]:
    node, shape = value.producer(), sizes(value)
    if node is None or not shape or only_consumer(value) is not consumer:
        return []
    if node.op_type == "MatMul":
        return [node]
    inputs = [operand for operand in node.inputs if operand is not None]
    if node.op_type == "Add":
        return [product for operand in inputs for product in _summands(operand, node)]
    if node.op_type in ("Mul", "Div"):
        factors = [array for array in map(constant, inputs) if array is not None]
        alike = all(array.ndim == 0 or array.shape[-1] == 1 for array in factors)
        scaled = [operand for operand in inputs[: 1 if node.op_type == "Div" else 2] if constant(operand) is None]
        return _summands(scaled[0], node) if alike and len(factors) == len(scaled) == 1 else []
    if node.op_type == "Reshape" and (sizes(inputs[0]) or (None,))[-1] == shape[-1]:
        return _summands(inputs[0], node)
    return []


def _key_bias(product: ir.Node) -> tuple[Projection, slice] | None:
    """The projection that makes the right factor of `product`, and the columns whose bias no row of it can see."""
    keys = product.inputs[1]
    if keys is None or only_consumer(keys) is not product or product.inputs[0] is keys:
        return None
    found = bias_at(keys)
    return found[:2] if found is not None and _alike(found[2]) else None


def _alike(bias: Array) -> bool:
    """Whether every key, i.e. every entry of the last axis, gets the same bias."""
    return bool(np.all(bias == bias[..., :1]))

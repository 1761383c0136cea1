"""The scale of an attention, folded into the projection that makes the queries."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    dtype_of,
    graph_of,
    of_type,
    only_consumer,
    producer,
    replace,
)
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import find_columns

_LAYOUT = ("Reshape", "Transpose")
_TOKENS_TO_HEADS = [0, 2, 1, 3]


class FoldQueryScale(GraphPass):
    """scale * (x W + b) = x (scale W) + scale b, on the columns of the queries only.

    Takes a scalar on either operand of a product of two computed matrices, or on the product itself; where the operand
    that is scaled comes from no projection, such as queries made of a map, the other one's takes it. A Mul stays where
    the projection, or its part of a fused one, has another consumer, such as queries that are keys elsewhere. One
    that stays goes before the Reshape and Transpose that divide into heads: OpenVINO takes queries that something is
    done to after that for queries by token, where there are as many tokens as heads (2026.4.1).
    """

    name: ClassVar[str] = "fold_query_scale"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Fold scale after scale."""
        changes = []
        for node in list(of_type(model.graph, "Mul", "Div")):
            scaled, factor = _scalar_factor(node)
            if scaled is None:
                continue
            for operand in _operands(node, scaled):
                found = find_columns(operand)
                if found is not None:
                    projection, columns = found
                    weight = projection.map_columns(partial(_scaled, columns=columns, factor=factor))
                    changes.append(f"{node.name}: folded the scale {factor:.6g} into {weight}")
                    replace(node, scaled)
                    break
            else:
                changes += _moved_forward(node, scaled, factor)
        return changes


def _scalar_factor(node: ir.Node) -> tuple[ir.Value | None, float]:
    """What `node` multiplies, and by which number; None where the factor is not one constant number."""
    first, second = node.inputs
    orders = [(first, second)] if node.op_type == "Div" else [(first, second), (second, first)]
    for scaled, factor in orders:
        number = constant(factor)
        if scaled is None or number is None or number.size != 1 or scaled.shape is None or constant(scaled) is not None:
            continue
        if number.ndim <= len(scaled.shape) and float(number.item()) != 0:
            return scaled, 1 / float(number.item()) if node.op_type == "Div" else float(number.item())
    return None, 1.0


def _operands(node: ir.Node, scaled: ir.Value) -> list[ir.Value]:
    """The matrices that may take the scale: what is scaled before a product, or either side of a scaled product."""
    product = producer(scaled, "MatMul")
    if product is not None and _both_computed(product):
        left, right = product.inputs
        return [] if only_consumer(scaled) is not node or left is right else [v for v in (left, right) if v is not None]
    factor, consumer = _factor_of(node)
    return [] if consumer is None else [scaled, *(v for v in consumer.inputs if v is not None and v is not factor)]


def _factor_of(node: ir.Node) -> tuple[ir.Value, ir.Node | None]:
    """What becomes of the result of `node` on its way into a product of two computed matrices, and that product."""
    value = node.outputs[0]
    consumer = only_consumer(value)
    while consumer is not None and consumer.op_type in _LAYOUT:
        value = consumer.outputs[0]
        consumer = only_consumer(value)
    return value, consumer if consumer is not None and consumer.op_type == "MatMul" and _both_computed(
        consumer
    ) else None


def _moved_forward(node: ir.Node, scaled: ir.Value, factor: float) -> list[str]:
    """Scale before the heads are divided, where they are in another way than by the usual Transpose of tokens."""
    first, source = scaled.producer(), scaled
    if _factor_of(node)[1] is None or first is None or list(attribute(first, "perm", ())) == _TOKENS_TO_HEADS:
        return []
    while only_consumer(source) is not None and first is not None and first.op_type in _LAYOUT and first.inputs[0]:
        source = first.inputs[0]
        anchor, first = first, source.producer()
    if source is scaled:
        return []
    add = Builder(graph_of(node), anchor)
    number = add.constant(np.asarray(factor, dtype=dtype_of(source).numpy()), "scale")
    anchor.replace_input_with(0, add.op("Mul", [source, number], source.shape))
    name = node.name
    replace(node, scaled)
    return [f"{name}: moved before {anchor.name}"]


def _both_computed(product: ir.Node) -> bool:
    return all(constant(value) is None for value in product.inputs)


def _scaled(weights: Array, columns: slice, factor: float) -> Array:
    out = weights.astype(np.float64)
    out[..., columns] *= factor
    return out

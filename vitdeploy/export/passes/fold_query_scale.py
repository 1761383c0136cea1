"""The scale of an attention, folded into the projection that makes the queries."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from vitdeploy.export.graph import Array, attribute, constant, of_type, only_user, producer, replace
from vitdeploy.export.passes.base import GraphPass
from vitdeploy.export.passes.projection import Projection, find_projection

_KEEPS_ELEMENTS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand")


class FoldQueryScale(GraphPass):
    """scale * (x W + b) = x (scale W) + scale b, on the columns of the queries only.

    Takes a scalar on either operand of a product of two computed matrices, or on the product itself. A Mul stays where
    the projection, or its part of a fused one, has another reader, such as queries that are keys elsewhere.
    """

    name = "fold_query_scale"
    expects = (
        "attention as MatMul, Softmax, MatMul with the scale a scalar constant, q, k, v parts of one Split at most"
    )
    guarantees = "no scale in front of an attention product whose operand is a projection that serves nothing else"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Fold scale after scale."""
        changes = []
        for node in of_type(model.graph, "Mul", "Div"):
            scaled, factor = _scalar_factor(node)
            for operand in () if scaled is None else _operands(node, scaled):
                found = _columns(operand)
                if found is not None:
                    projection, columns = found
                    weight = projection.map_columns(partial(_scaled, columns=columns, factor=factor))
                    changes.append(f"{node.name}: folded the scale {factor:.6g} into {weight}")
                    assert scaled is not None
                    replace(node, scaled)
                    break
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
        return [] if only_user(scaled) is not node or left is right else [v for v in (left, right) if v is not None]
    user = only_user(node.outputs[0])
    while user is not None and user.op_type in ("Reshape", "Transpose"):
        user = only_user(user.outputs[0])
    return [scaled] if user is not None and user.op_type == "MatMul" and _both_computed(user) else []


def _both_computed(product: ir.Node) -> bool:
    return all(constant(value) is None for value in product.inputs)


def _columns(value: ir.Value) -> tuple[Projection, slice] | None:
    """The projection, and the columns of it, that `value` holds and that nothing else reads."""
    columns = slice(None)
    while only_user(value) is not None:
        node = value.producer()
        if node is None:
            return None
        if columns == slice(None) and node.op_type in _KEEPS_ELEMENTS:
            value = node.inputs[0]  # type: ignore[assignment]
        elif columns == slice(None) and node.op_type == "Split":
            part = _last_axis_part(node, value)
            if part is None or node.inputs[0] is None:
                return None
            value, columns = node.inputs[0], part
        elif node.op_type == "Reshape" and _last(value) is not None and _last(value) == _last(node.inputs[0]):
            value = node.inputs[0]  # type: ignore[assignment]
        else:
            found = find_projection(value)
            return None if found is None else (found, columns)
    return None


def _last_axis_part(split: ir.Node, part: ir.Value) -> slice | None:
    whole = split.inputs[0]
    rank = 0 if whole is None or whole.shape is None else len(whole.shape)
    lengths = [_last(out) for out in split.outputs]
    if not rank or int(attribute(split, "axis", 0)) % rank != rank - 1 or None in lengths:
        return None
    position = split.outputs.index(part)
    start = sum(length for length in lengths[:position] if length is not None)
    return slice(start, start + (lengths[position] or 0))


def _last(value: ir.Value | None) -> int | None:
    last = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None


def _scaled(weights: Array, columns: slice, factor: float) -> Array:
    out = weights.astype(np.float64)
    out[..., columns] *= factor
    return out

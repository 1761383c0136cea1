"""Attention between few tokens and many: the linear layers of the many tokens are applied to the few instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import Attention, find_attentions
from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    input_of,
    only_consumer,
    producer,
    replace,
    sizes,
)
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.groups import Groups
from vitdeploy.passes.projection import Projection, find_columns

_HEADS, _TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]


class AbsorbProjections(GraphPass):
    """(X Wq) k^T = X (Wq k^T) and A (v Wp) = (A v) Wp; q (X Wk)^T = (q Wk^T) X^T and A (X Wv) = (A X) Wv.

    X are many tokens of width C. Head by head their weights are multiplied with what the few tokens give, [C, M] for M
    tokens, and all heads lie beside each other in one product with X itself, which is never laid out in heads. The bias
    of queries adds b k^T to the scores, that of values goes behind the product, because rows of A add up to 1, and that
    of keys adds the same to all scores of a softmax, which cancels it.

    A linear layer of X goes whole or not at all: all that reads it is absorbed, both directions of a block, and the
    whole has fewer multiplications than before.
    """

    name: ClassVar[str] = "absorb_projections"

    def applies(self) -> bool:
        """Where it was measured to take less time."""
        return bool(self.target.absorbs_projections)

    def rewrite(self, model: ir.Model) -> list[str]:
        """Find the attentions, keep the layers of which nothing is left, and rewrite the groups that pay."""
        found = [one for attention in find_attentions(model.graph) if (one := _find(attention)) is not None]
        changes = []
        for group in _groups(found):
            if sum(one.after for one in group) < sum(one.before for one in group):
                for one in group:
                    one.rewrite(model.graph)
                    changes.append(f"{one.attention.first.name}: no linear layer of its {one.count} tokens")
        return changes


@dataclass(frozen=True)
class _Heads:
    """Columns of a linear layer of tokens [B, N, C], laid out in heads: their weights [h, C, d] and bias [h, 1, d]."""

    projection: Projection
    columns: slice
    tokens: ir.Value
    weight: Array
    bias: Array | None

    @property
    def linear(self) -> ir.Node:
        """The product with the weights."""
        return self.projection.linear


@dataclass(frozen=True)
class _Absorption:
    """An attention that can do without the linear layers of its many tokens.

    many     the queries; or the keys and the values
    count    N, how many tokens these are
    few      M, how many the others are
    before   multiplications of an image that are left out
    after    and those that take their place
    rewrite  makes the change
    """

    attention: Attention
    many: tuple[_Heads, ...]
    count: int
    before: int
    after: int
    rewrite: Callable[[ir.Graph], None]


def _find(attention: Attention) -> _Absorption | None:
    """What can be absorbed of an attention [B, h, N, d] with nothing between its products but the softmax."""
    shapes = [sizes(operand) for operand in attention.operands]
    axis = attribute(attention.softmax, "axis", -1)
    if attention.before or attention.after or axis not in (-1, 3) or any(len(shape or ()) != 4 for shape in shapes):
        return None
    weights = attention.softmax.outputs[0]
    apart = only_consumer(attention.first.outputs[0]) is not None and only_consumer(weights) is not None
    if not apart or attention.second.inputs[0] is not weights:
        return None
    queries, keys = (shape[position] for shape, position in zip(shapes, (2, 3), strict=False) if shape)
    if not (isinstance(queries, int) and isinstance(keys, int)) or queries == keys:
        return None
    return _of_queries(attention) if queries > keys else _of_keys(attention)


def _of_queries(attention: Attention) -> _Absorption | None:
    """Many queries: their own layer, and the one behind the attention."""
    query, key, value = attention.operands
    many, out = _heads(query, _HEADS), _output(attention)
    if many is None or out is None:
        return None
    product, weight = out
    _, heads, tokens, depth = sizes(query) or ()
    few, width = int((sizes(key) or ())[3]), int((sizes(value) or ())[3])
    n, h, d = int(tokens), int(heads), int(depth)
    inner, outer = many.weight.shape[1], weight.shape[1]

    def rewrite(graph: ir.Graph) -> None:
        add = Builder(graph, product)
        keys, values, both = map(_batch, (key, value, attention.first.outputs[0]))
        each = add.op("MatMul", [_stack(add, many.weight, "query_weight"), key], [keys, h, inner, few])
        each = add.op("Transpose", [each], [keys, inner, h, few], perm=[0, 2, 1, 3])
        side = add.reshape(each, [keys, inner, h * few])
        scores = add.op("MatMul", [many.tokens, side], [both, n, h * few])
        if many.bias is not None:
            row = add.op("MatMul", [_stack(add, many.bias, "query_bias"), key], [keys, h, 1, few])
            scores = add.op("Add", [scores, add.reshape(row, [keys, 1, h * few])], scores.shape)
        soft = add.op("Softmax", [add.reshape(scores, [both, n, h, few])], [both, n, h, few], axis=-1)
        stacked = _stack(add, weight.reshape(h, width, outer), "weight")
        projected = add.op("MatMul", [value, stacked], [values, h, few, outer])
        columns = add.reshape(projected, [values, h * few, outer])
        flat = add.reshape(soft, [both, n, h * few])
        replace(product, add.op("MatMul", [flat, columns], [_batch(attention.second.outputs[0]), n, outer]))

    before = n * (inner * h * d + h * few * (d + width) + h * width * outer)
    after = n * h * few * (inner + outer) + h * few * (inner * d + width * outer)
    return _Absorption(attention, (many,), n, before, after, rewrite)


def _of_keys(attention: Attention) -> _Absorption | None:
    """Many keys and values of the same tokens: the layers of both."""
    query, key, value = attention.operands
    keys, values = _heads(key, _TRANSPOSED), _heads(value, _HEADS)
    if keys is None or values is None or keys.tokens is not values.tokens:
        return None
    _, heads, rows, depth = sizes(query) or ()
    n, width = int((sizes(key) or ())[3]), int((sizes(value) or ())[3])
    few, h, d = int(rows), int(heads), int(depth)
    inner = keys.weight.shape[1]

    def rewrite(graph: ir.Graph) -> None:
        add = Builder(graph, attention.second)
        queries, many = _batch(query), _batch(keys.tokens)
        batch = _batch(attention.second.outputs[0])  # of the scores too, since the keys are of the values' tokens
        turned = np.ascontiguousarray(keys.weight.swapaxes(1, 2))
        each = add.op("MatMul", [query, _stack(add, turned, "key_weight")], [queries, h, few, inner])
        across = add.op("Transpose", [keys.tokens], [many, inner, n], perm=[0, 2, 1])
        scores = add.op("MatMul", [add.reshape(each, [queries, h * few, inner]), across], [batch, h * few, n])
        soft = add.op("Softmax", [scores], scores.shape, axis=-1)
        mixed = add.reshape(add.op("MatMul", [soft, keys.tokens], [batch, h * few, inner]), [batch, h, few, inner])
        result = add.op("MatMul", [mixed, _stack(add, values.weight, "value_weight")], [batch, h, few, width])
        if values.bias is not None:
            result = add.op("Add", [result, _stack(add, values.bias, "value_bias")], result.shape)
        replace(attention.second, result)

    before = n * (inner * h * (d + width) + h * few * (d + width))
    after = n * h * few * 2 * inner + h * few * inner * (d + width)
    return _Absorption(attention, (keys, values), n, before, after, rewrite)


def _batch(value: ir.Value) -> int | str:
    """The length of the first axis: one where it is the same for all images, as learned tokens are."""
    return (sizes(value) or ())[0]


def _groups(found: Sequence[_Absorption]) -> list[list[_Absorption]]:
    """Those that share linear layers, without any that would leave a part of a layer to be computed."""
    kept = list(found)
    while True:
        taken: dict[ir.Node, int] = {}
        for heads in (heads for one in kept for heads in one.many):
            taken[heads.linear] = taken.get(heads.linear, 0) + len(range(heads.projection.width)[heads.columns])
        whole = [one for one in kept if all(taken[heads.linear] == heads.projection.width for heads in one.many)]
        if len(whole) == len(kept):
            break
        kept = whole
    groups = Groups()
    for one in kept:
        groups.unite([heads.linear.outputs[0] for heads in one.many])
    members: dict[ir.Value, list[_Absorption]] = {}
    for one in kept:
        members.setdefault(groups.of(one.many[0].linear.outputs[0]), []).append(one)
    return list(members.values())


def _heads(operand: ir.Value, perm: list[int]) -> _Heads | None:
    """The columns of a layer of tokens [B, N, C] that become `operand` by a Reshape to heads and a Transpose."""
    transpose = producer(operand, "Transpose")
    split = None if transpose is None else producer(transpose.inputs[0], "Reshape")
    if transpose is None or split is None or list(attribute(transpose, "perm", [])) != perm:
        return None
    laid_out, flat = sizes(split.outputs[0]), sizes(split.inputs[0])
    if laid_out is None or flat is None or len(laid_out) != 4 or len(flat) != 3 or laid_out[:2] != flat[:2]:
        return None
    columns = find_columns(operand)
    if columns is None or columns[0].linear.op_type != "MatMul" or not all(isinstance(n, int) for n in laid_out[1:]):
        return None
    projection, part = columns
    tokens, heads = input_of(projection.linear, 0), int(laid_out[2])
    if (sizes(tokens) or ())[:-1] != flat[:2]:
        return None
    weight = projection.weight[:, part]
    bias = projection.bias_of(part)
    stacked = weight.reshape(weight.shape[0], heads, -1).transpose(1, 0, 2)
    row = None if bias is None or not bias.any() else bias.reshape(heads, 1, -1)
    return _Heads(projection, part, tokens, stacked, row)


def _output(attention: Attention) -> tuple[ir.Node, Array] | None:
    """The product [B, N, D] that all heads of the result go to, and its weights [h * e, D]."""
    result = sizes(attention.second.outputs[0])
    transpose = only_consumer(attention.second.outputs[0], "Transpose")
    merge = None if transpose is None else only_consumer(transpose.outputs[0], "Reshape")
    product = None if merge is None else only_consumer(merge.outputs[0], "MatMul")
    if transpose is None or merge is None or product is None or result is None:
        return None
    weight, flat = constant(product.inputs[1]), sizes(merge.outputs[0])
    batch, heads, tokens, width = result
    if list(attribute(transpose, "perm", [])) != _HEADS or weight is None or weight.ndim != 2:
        return None
    whole = isinstance(heads, int) and isinstance(width, int) and flat == (batch, tokens, prod((heads, width)))
    return (product, weight) if whole and product.inputs[0] is merge.outputs[0] else None


def _stack(add: Builder, array: Array, name: str) -> ir.Value:
    """A constant for each head [1, h, ., .]."""
    return add.constant(np.ascontiguousarray(array)[None], name)

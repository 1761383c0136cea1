"""Tokens of any rank as the rows of a matrix, around linear layers."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.edit import (
    Builder,
    attribute,
    bypass,
    constant,
    consumers,
    graph_of,
    input_of,
    make_reshape,
    need,
    producer,
    reshape_target,
    rows_name,
    set_constant,
    sizes,
)
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.groups import Groups
from vitdeploy.passes.hoist_broadcast import ELEMENTWISE, LOGICAL

# Operators along one axis, and the axis they take where they state none.
_ALONG_AXIS = {"Concat": 0, "LayerNormalization": -1, "LogSoftmax": -1, "Softmax": -1, "Split": 0}
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


class TokenRows(GraphPass):
    """Tokens [B, N, C] or [B, H, W, C] become the rows of a matrix [B N, C], so that a linear layer is a plain GEMM.

    Operators that treat each row on its own (linear layers, norms and softmaxes over the channels, activations, sums)
    are bound to each other by the values between them. Where a linear layer is among them, all of them compute on rows,
    with a Reshape in front and behind; a Reshape that is there already just names another shape. The batch may be free:
    the Reshape infers how many rows there are.
    """

    name: ClassVar[str] = "token_rows"

    def applies(self) -> bool:
        """Where the target has a better kernel for products of matrices."""
        return self.target.linear == "gemm"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Choose, then edit operator after operator in graph order."""
        chosen = _choose(model.graph)
        if not chosen:
            return []
        layers = sum(map(_is_linear, chosen))
        made: dict[ir.Value, ir.Value] = {}
        for node in chosen:
            _edit(node, made)
        for node in chosen:
            for rows in node.outputs:
                _pass_by(rows)
        return [f"{len(chosen)} operators compute on rows, {layers} of them linear layers"]


def _choose(graph: ir.Graph) -> list[ir.Node]:
    """The operators that are to compute on rows."""
    groups, found = Groups(), []
    for node in graph:
        if _by_rows(node):
            found.append(node)
            groups.unite([*node.outputs, *(value for value in node.inputs if value is not None and _is_full(value))])
    wanted = {groups.of(node.outputs[0]) for node in found if _is_linear(node)}
    return [node for node in found if groups.of(node.outputs[0]) in wanted]


def _is_linear(node: ir.Node) -> bool:
    weight = constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return weight is not None and weight.ndim == 2


def _is_full(value: ir.Value) -> bool:
    """Whether `value` is computed and has more axes than a matrix."""
    return constant(value) is None and value.shape is not None and len(value.shape) > 2


def _matrix(value: ir.Value) -> tuple[int | str, int] | None:
    """Rows and columns of `value`, a free number of rows by name; None where no Reshape can name the shape."""
    shape = sizes(value)
    if not shape or reshape_target(shape) is None or not isinstance(shape[-1], int):
        return None
    free = [size for size in shape[:-1] if isinstance(size, str)]
    fixed = prod(size for size in shape[:-1] if isinstance(size, int))
    return rows_name(fixed, free[0]) if free else fixed, shape[-1]


def _rows(value: ir.Value) -> int | str | None:
    found = _matrix(value)
    return None if found is None else found[0]


def _by_rows(node: ir.Node) -> bool:
    """Whether `node` computes each row of its output from the same rows of its inputs, and there are more axes."""
    out, count = node.outputs[0], _rows(node.outputs[0])
    if not _is_full(out) or count is None:
        return False
    if node.op_type in ELEMENTWISE | LOGICAL:
        return all(value is None or _aligned(value, count) for value in node.inputs)
    first = node.inputs[0]
    if first is None or not _is_full(first) or _rows(first) != count:
        return False
    if node.op_type in _ALONG_AXIS:
        rank = len(out.shape or ())
        last = int(attribute(node, "axis", _ALONG_AXIS[node.op_type])) % rank == rank - 1
        computed = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        same = all(value is not None and _is_full(value) and _rows(value) == count for value in computed)
        return last and same and all(_rows(value) == count for value in node.outputs)
    return _is_linear(node)


def _aligned(value: ir.Value, count: int | str) -> bool:
    """Whether an operand has as many rows, or one row or number that all rows take."""
    array = constant(value)
    if array is not None:
        return array.ndim < 2 or prod(array.shape[:-1]) in (1, count)
    return value.shape is not None and (len(value.shape) < 2 or _rows(value) in (1, count))


def _edit(node: ir.Node, made: dict[ir.Value, ir.Value]) -> None:
    """Let `node` read and give rows; `made` holds the rows of the values that have them."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if value is not None and _is_full(value):
            if value not in made:
                made[value] = _read(node, value)
            node.replace_input_with(index, made[value])
        elif array is not None and array.ndim > 2:
            set_constant(node, index, array.reshape(-1, array.shape[-1]), "constant")
    if node.op_type in _ALONG_AXIS:
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
    for out in node.outputs:
        made[_restored(node, out)] = out


def _read(node: ir.Node, value: ir.Value) -> ir.Value:
    """`value` as rows in front of `node`, straight from what its own Reshape reads."""
    maker, shape = producer(value), need(_matrix(value), f"the shape of {value.name}")
    source = input_of(maker, 0) if maker is not None and maker.op_type in _RESHAPES else value
    return source if sizes(source) == shape else Builder(graph_of(node), node).reshape(source, shape)


def _restored(node: ir.Node, out: ir.Value) -> ir.Value:
    """Make an output of `node` rows, and put a Reshape to what it was in its place everywhere."""
    graph, rows = graph_of(node), _matrix(out)
    add = Builder(graph, node)
    full = add.reshape(out, need(sizes(out), f"the shape of {out.name}"))
    (behind,) = add.made
    behind.replace_input_with(0, None)
    ir.convenience.replace_all_uses_with(out, full, replace_graph_outputs=True)
    behind.replace_input_with(0, out)
    graph.remove(behind)
    graph.insert_after(node, behind)
    if full.is_graph_output():
        full.name, out.name = out.name, full.name
    out.shape = ir.Shape(need(rows, f"the shape of {out.name}"))
    return full


def _pass_by(rows: ir.Value) -> None:
    """Let the Reshapes behind the Reshape of `rows` to all axes read `rows` instead."""
    for full in (node.outputs[0] for node in consumers(rows) if node.op_type == "Reshape"):
        for node in consumers(full):
            shape = sizes(node.outputs[0]) if node.op_type in _RESHAPES else None
            if shape is None or reshape_target(shape) is None or (shape == sizes(rows) and bypass(node, rows)):
                continue
            make_reshape(node, shape)
            node.replace_input_with(0, rows)

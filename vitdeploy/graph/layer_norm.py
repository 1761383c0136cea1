"""Where a graph holds layer normalization: one operator, or mean, variance and division in any of their spellings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, dims, producer, sizes

Axes = tuple[int, ...]

_MEANS = ("ReduceMean", "GlobalAveragePool")
_SAME_ELEMENTS = ("Reshape", "Expand", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class WrittenOut:
    """(x - mean) / sqrt(var + epsilon) over `axes` of `x` in primitive operators, of which `last` gives the result.

    scale, bias  what is multiplied and added in between, where the two are not behind it
    """

    x: ir.Value
    axes: Axes
    epsilon: float
    last: ir.Node
    scale: ir.Value | None = None
    bias: ir.Value | None = None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes between `x` and the result of `last`, each behind what it takes."""
        found: dict[ir.Node, None] = {}

        def visit(node: ir.Node) -> None:
            for value in node.inputs[:1] if node.op_type in _SAME_ELEMENTS else node.inputs:
                above = None if value is self.x else producer(value)
                if above is not None and above not in found and above.op_type != "Constant":
                    visit(above)
            found[node] = None

        visit(self.last)
        return tuple(found)


def layer_norms(graph: ir.Graph) -> Iterator[tuple[ir.Node, ...]]:
    """The nodes of each layer norm, the last of which gives the result; scale and shift of one written out excepted."""
    for node in graph:
        if node.op_type == "LayerNormalization":
            yield (node,)
        elif (norm := written_out(node)) is not None:
            yield norm.nodes


def written_out(node: ir.Node) -> WrittenOut | None:
    """The layer norm that ends in `node`; None where none does.

    It is a Div of what is centred, a Mul with the inverse, or the difference x m - mean m of two such products. The
    epsilon must stand under the root and the variance must be the biased one: anything else is another function.
    """
    if node.op_type in ("Add", "Sub"):
        return _by_factor(node)
    if node.op_type not in ("Div", "Mul"):
        return None
    first, second = node.inputs
    orders = [(first, second, 0.5)]
    if node.op_type == "Mul":
        orders = [(first, second, -0.5), (second, first, -0.5)]
    for centred, spread, exponent in orders:
        over = _centred(centred)
        epsilon = None if over is None else _epsilon(spread, over, exponent)
        if over is not None and epsilon is not None:
            return WrittenOut(*over, epsilon, node)
    return None


def _epsilon(spread: ir.Value | None, over: tuple[ir.Value, Axes], exponent: float) -> float | None:
    """What is added to the variance over these axes, where `spread` is that sum to the power of `exponent`."""
    base, power = _power(spread)
    total = producer(base, "Add") if power == exponent else None
    for variance, epsilon in () if total is None else (total.inputs, total.inputs[::-1]):
        number = constant(epsilon)
        if number is not None and number.size == 1 and _variance(variance) == over:
            return float(number.item())
    return None


def _by_factor(node: ir.Node) -> WrittenOut | None:
    """x m - mean m, where m is the inverse deviation, perhaps times a scale, and a bias may be added to the second."""
    first, second = node.inputs
    cases: list[tuple[ir.Value | None, ir.Value | None, ir.Value | None, ir.Value | None]]
    if node.op_type == "Sub":
        cases = [(first, *factors, None) for factors in _factors(second)]
    else:
        orders = ((first, second), (second, first))
        cases = [(product, *case) for product, rest in orders for case in _less_mean(rest)]
    for product, mean, factor, bias in cases:
        x = next((x for x, same in _factors(product) if same is factor), None)
        over = _mean(mean)
        if over is None or over[0] is not x:
            continue
        for inverse, scale in [(factor, None), *_factors(factor)]:
            epsilon = _epsilon(inverse, over, -0.5)
            if epsilon is not None:
                return WrittenOut(*over, epsilon, node, scale, bias)
    return None


def _factors(value: ir.Value | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """The operands of a product, in both orders."""
    node = producer(value, "Mul")
    return [] if node is None else [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]


def _less_mean(value: ir.Value | None) -> list[tuple[ir.Value | None, ir.Value | None, ir.Value | None]]:
    """Every mean, factor and bias for which `value` may be bias - mean factor."""
    node = producer(value)
    if node is not None and node.op_type == "Neg":
        return [(*factors, None) for factors in _factors(node.inputs[0])]
    if node is not None and node.op_type == "Sub":
        return [(*factors, node.inputs[0]) for factors in _factors(node.inputs[1])]
    if node is not None and node.op_type == "Add":
        orders = (tuple(node.inputs), tuple(node.inputs)[::-1])
        parts = [(part, bias) for rest, bias in orders for part in _less_mean(rest)]
        return [(mean, factor, bias) for (mean, factor, inner), bias in parts if inner is None]
    negated = [(producer(one, "Neg"), other) for one, other in _factors(value)]
    return [(one.inputs[0], other, None) for one, other in negated if one is not None]


def _power(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """`value` as base ** exponent, roots and inverses gathered."""
    node = producer(value)
    if node is None or not node.inputs:
        return value, 1.0
    factor = {"Sqrt": 0.5, "Reciprocal": -1.0}.get(node.op_type)
    base = node.inputs[0]
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        factor = float(exponent.item()) if exponent is not None and exponent.size == 1 else None
    elif node.op_type == "Div":
        one = constant(node.inputs[0])
        factor = -1.0 if one is not None and one.size == 1 and one.item() == 1 else None
        base = node.inputs[1]
    if factor is None:
        return value, 1.0
    inner, power = _power(base)
    return inner, power * factor


def _centred(value: ir.Value | None) -> tuple[ir.Value, Axes] | None:
    """x and the axes, where `value` is x minus its mean over them."""
    node = producer(value, "Sub")
    found = None if node is None else _mean(node.inputs[1])
    return found if node is not None and found is not None and found[0] is node.inputs[0] else None


def _variance(value: ir.Value | None) -> tuple[ir.Value, Axes] | None:
    """x and the axes, where `value` is the biased variance of x over them."""
    mean = _mean(value)
    node = None if mean is None else producer(mean[0])
    if mean is None or node is None:
        return None
    power = constant(node.inputs[1]) if node.op_type == "Pow" else None
    squared = power is not None and power.size == 1 and power.item() == 2
    if squared or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]):
        found = _centred(node.inputs[0])
        return found if found is not None and found[1] == mean[1] else None
    return None


def _mean(value: ir.Value | None) -> tuple[ir.Value, Axes] | None:
    """x and the axes, where `value` is the mean of x over them, each kept with length one."""
    if value is None:
        return None
    node, regained = _reduction(value)
    factor = None
    if node is not None and node.op_type in ("Div", "Mul"):
        number = constant(node.inputs[1])
        if number is None or number.size != 1 or node.inputs[0] is None or number.item() == 0:
            return None
        factor = float(number.item()) if node.op_type == "Mul" else 1 / float(number.item())
        node, inner_regained = _reduction(node.inputs[0])
        regained |= inner_regained
    if node is None or node.op_type not in (_MEANS if factor is None else ("ReduceSum",)):
        return None
    x, axes = node.inputs[0], _reduced_axes(node)
    known = None if x is None else dims(x)
    if x is None or known is None or not axes:
        return None
    lengths = [known[axis] or 0 for axis in axes]
    if factor is not None and not math.isclose(factor * math.prod(lengths), 1, rel_tol=1e-6):
        return None
    kept = _keeps_axes(value, x, axes, regained) if regained else attribute(node, "keepdims", 1) == 1
    return (x, axes) if kept else None


def _reduction(value: ir.Value) -> tuple[ir.Node | None, frozenset[str]]:
    """The node behind whatever gives the axes back that a reduction dropped, and the kinds of the nodes that do."""
    kinds = set()
    node = value.producer()
    while node is not None and node.op_type in _SAME_ELEMENTS and node.inputs[0] is not None:
        kinds.add(node.op_type)
        node = node.inputs[0].producer()
    return node, frozenset(kinds)


def _keeps_axes(value: ir.Value, x: ir.Value, axes: Axes, regained: frozenset[str]) -> bool:
    """Whether `value` has the shape of x with `axes` of length one, and so the elements of the reduction in order.

    With as many elements as the reduction left, no Reshape can have moved one and no Expand repeated one. A dimension
    without a name proves that only when it is the single unknown and nothing expands.
    """
    have, want = dims(value), dims(x)
    if have is None or want is None or have != _with_ones(want, axes):
        return False
    named_have, named_want = sizes(value), sizes(x)
    if named_have and named_want and named_have == _with_ones(named_want, axes):
        return True
    return have.count(None) == 1 and "Expand" not in regained


def _with_ones(shape: tuple[int | str | None, ...], axes: Axes) -> tuple[int | str | None, ...]:
    return tuple(1 if axis in axes else length for axis, length in enumerate(shape))


def _reduced_axes(node: ir.Node) -> Axes | None:
    """The axes that a reduction goes over, in order; None where they or the rank are not known, or none are stated."""
    axes = attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1])
        axes = None if given is None else given.reshape(-1).tolist()
    x = node.inputs[0]
    if node.op_type == "GlobalAveragePool" and x is not None and x.shape is not None:
        axes = range(2, len(x.shape))
    if axes is None or x is None or x.shape is None:
        return None
    return tuple(sorted(int(axis) % len(x.shape) for axis in axes))

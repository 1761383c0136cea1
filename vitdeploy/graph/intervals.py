"""Between which two numbers every element of a value lies, whatever finite numbers go into the graph.

Interval arithmetic over real numbers, one node at a time, so that what it states holds for images that nobody tried.
What it does not know is unbounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, producer

# Operators that move elements about, or choose among them, and compute nothing.
MOVES = frozenset(
    {"Cast", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"}
) | {"Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"}


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included; an infinite end is no bound."""

    low: float = -math.inf
    high: float = math.inf

    def hull(self, *others: Interval) -> Interval:
        """The smallest interval with this one and the others in it."""
        every = (self, *others)
        return Interval(min(one.low for one in every), max(one.high for one in every))

    def excludes(self, distance: float) -> bool:
        """Whether every number in it is at least `distance` away from zero."""
        return self.low >= distance or self.high <= -distance


ANY = Interval()
ZERO = Interval(0.0, 0.0)

Rule = Callable[[ir.Node, Sequence[Interval]], Interval]


def intervals(graph: ir.Graph) -> dict[ir.Value, Interval]:
    """The interval of every initializer and of every value that a node of `graph` computes."""
    known: dict[ir.Value, Interval] = {}
    for value in graph.initializers.values():
        known[value] = _of_constant(value)
    for node in graph:
        inputs = [ANY if value is None else known.get(value, ANY) for value in node.inputs]
        rule = _RULES.get(node.op_type)
        made = constant(node.outputs[0]) if node.op_type == "Constant" else None
        found = _of_array(made) if made is not None else rule(node, inputs) if rule and inputs else ANY
        for out in node.outputs:
            known[out] = found if not math.isnan(found.low + found.high) else ANY
    return known


def _of_constant(value: ir.Value) -> Interval:
    array = constant(value)
    return ANY if array is None else _of_array(array)


def _of_array(array: np.ndarray) -> Interval:
    if array.size == 0 or array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        return ANY
    return Interval(float(array.min()), float(array.max()))


def _ends(function: Callable[[float], float]) -> Rule:
    """The rule of an operator that never decreases."""

    def rule(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
        return Interval(function(inputs[0].low), function(inputs[0].high))

    return rule


def _within(low: float, high: float) -> Rule:
    return lambda node, inputs: Interval(low, high)


def _same(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return inputs[0]


def _with_zero(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return inputs[0].hull(ZERO)


def _all(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return inputs[0].hull(*inputs[1:])


def _gated(lowest: float) -> Rule:
    """An activation x g(x) with g between 0 and 1, which is nowhere below `lowest`."""

    def rule(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
        return Interval(0.0 if inputs[0].low >= 0 else lowest, max(inputs[0].high, 0.0))

    return rule


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _log(x: float) -> float:
    return math.log(x) if 0 < x < math.inf else (math.inf if x > 0 else -math.inf)


def _sqrt(x: float) -> float:
    return math.sqrt(max(x, 0.0))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _cast(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    source = node.inputs[0]
    return Interval(0.0, 1.0) if source is not None and source.dtype == ir.DataType.BOOL else inputs[0]


def _square(x: Interval) -> Interval:
    ends = (_times(x.low, x.low), _times(x.high, x.high))
    return Interval(0.0 if x.low < 0 < x.high else min(ends), max(ends))


def _abs(x: Interval) -> Interval:
    return Interval(0.0 if x.low < 0 < x.high else min(abs(x.low), abs(x.high)), max(abs(x.low), abs(x.high)))


def _add(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(sum(one.low for one in inputs), sum(one.high for one in inputs))


def _sub(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    a, b = inputs
    return Interval(a.low - b.high, a.high - b.low)


def _mul(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    a, b = inputs
    if node.inputs[0] is node.inputs[1]:
        return _square(a)
    products = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(min(products), max(products))


def _inverse(x: Interval) -> Interval:
    if x.low < 0 < x.high:
        return ANY
    low, high = (1 / x.high if x.high else -math.inf), (1 / x.low if x.low else math.inf)
    return Interval(low, high)


def _div(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    a, b = inputs[0], _inverse(inputs[1])
    products = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(min(products), max(products))


def _pow(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    base, exponent = inputs
    if exponent.low != exponent.high:
        return Interval(0.0) if base.low >= 0 else ANY
    e = exponent.low
    if e == 2:
        return _square(base)
    if e > 0 and e % 2 == 0:
        return Interval(0.0 if base.low < 0 < base.high else _power(min(_abs(base).low, _abs(base).high), e))
    if base.low < 0:
        return Interval(_power(base.low, e), _power(base.high, e)) if e > 0 and e % 2 == 1 else ANY
    ends = (_power(base.low, e), _power(base.high, e))
    return Interval(min(ends), max(ends))


def _power(x: float, e: float) -> float:
    try:
        return math.copysign(abs(x) ** e, x) if e % 2 == 1 else abs(x) ** e
    except (OverflowError, ZeroDivisionError):
        return math.copysign(math.inf, x) if e % 2 == 1 else math.inf


def _clip(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    low, high = inputs[0].low, inputs[0].high
    if len(inputs) > 1 and node.inputs[1] is not None:
        low, high = max(low, inputs[1].low), max(high, inputs[1].high)
    if len(inputs) > 2 and node.inputs[2] is not None:
        low, high = min(low, inputs[2].low), min(high, inputs[2].high)
    return Interval(low, high)


def _max(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(max(one.low for one in inputs), max(one.high for one in inputs))


def _min(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(min(one.low for one in inputs), min(one.high for one in inputs))


def _where(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    return inputs[1].hull(inputs[2])


def _pad(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    if attribute(node, "mode", "constant") != "constant":
        return inputs[0]
    given = len(inputs) > 2 and node.inputs[2] is not None
    return inputs[0].hull(inputs[2] if given else ZERO)


def _sum(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """At least one element is summed: a sum of numbers of one sign is at least as far from zero as each of them."""
    x = inputs[0]
    low, high = (x.low if x.low >= 0 else -math.inf), (x.high if x.high <= 0 else math.inf)
    return Interval(1.0 if _is_softmax_sum(node) else low, high)


def _is_softmax_sum(node: ir.Node) -> bool:
    """Whether it sums exp(x - max x): one summand is 1."""
    exp = producer(node.inputs[0], "Exp")
    centred = producer(exp.inputs[0], "Sub") if exp is not None else None
    largest = producer(centred.inputs[1], "ReduceMax") if centred is not None else None
    return (
        centred is not None
        and largest is not None
        and largest.inputs[0] is centred.inputs[0]
        and _axes(largest) is not None
        and _axes(largest) == _axes(node)
    )


def _axes(node: ir.Node) -> list[int] | None:
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = attribute(node, "axes") if given is None else given
    return None if axes is None else sorted(int(axis) for axis in np.ravel(axes))


def _sum_of(function: Callable[[Interval], Interval], then: Callable[[float], float] = float) -> Rule:
    def rule(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
        return Interval(then(function(inputs[0]).low))

    return rule


def _product(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """Sums of products of numbers that are not negative; a bias of Gemm counts as well."""
    return Interval(0.0) if all(one.low >= 0 for one in inputs) and node.op_type == "MatMul" else ANY


def _dequantize(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """Rounding keeps signs, as far as they are known."""
    return Interval(0.0 if inputs[0].low >= 0 else -math.inf, 0.0 if inputs[0].high <= 0 else math.inf)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(MOVES, _same),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool"), _same),
    **dict.fromkeys(("AveragePool", "MaxPool", "Dropout", "QuantizeLinear"), _with_zero),
    "Abs": lambda node, inputs: _abs(inputs[0]),
    "Add": _add,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _all,
    "Cos": _within(-1.0, 1.0),
    "DequantizeLinear": lambda node, inputs: (
        _dequantize(node, inputs) if producer(node.inputs[0], "QuantizeLinear") else ANY
    ),
    "Div": _div,
    "Elu": lambda node, inputs: Interval(-abs(attribute(node, "alpha", 1.0)), max(inputs[0].high, 0.0)),
    "Erf": _ends(lambda x: math.erf(x)),
    "Exp": _ends(_exp),
    "Gelu": _gated(-0.18),
    "HardSigmoid": _within(0.0, 1.0),
    "HardSwish": _gated(-0.376),
    "Log": _ends(_log),
    "MatMul": _product,
    "Max": _max,
    "Min": _min,
    "Mish": _gated(-0.31),
    "Mul": _mul,
    "Neg": lambda node, inputs: Interval(-inputs[0].high, -inputs[0].low),
    "Pad": _pad,
    "Pow": _pow,
    "Reciprocal": lambda node, inputs: _inverse(inputs[0]),
    "ReduceL1": _sum_of(_abs),
    "ReduceL2": _sum_of(_square, _sqrt),
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_of(_square),
    "Relu": _ends(lambda x: max(x, 0.0)),
    "Sigmoid": _ends(lambda x: 1 / (1 + _exp(-x))),
    "Sin": _within(-1.0, 1.0),
    "Softmax": _within(0.0, 1.0),
    "Softplus": _within(0.0, math.inf),
    "Sqrt": _ends(_sqrt),
    "Sub": _sub,
    "Sum": _add,
    "Swish": _gated(-0.279),
    "Tanh": _ends(math.tanh),
    "Where": _where,
}

"""What stays FP32 around a division, power, logarithm or root that a tiny constant keeps away from zero.

`x / (norm + 1e-12)` is safe in FP32 and 0 / 0 in FP16, whose smallest number is 6e-8: on the flat corner of an image
that no reference image has. So nothing here looks at activations. A value that may come closer to zero than FP16 can
tell apart is followed back to where it is made, and from there through the operation that is singular at zero all
stays FP32. Sums of squares, products of linear attention and exponentials on that way lose their small values too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.emulation import HALF_MAX, MIN_TENSOR_SNR_DB
from vitdeploy.graph.edit import constant, consumers, input_of, is_weight, producer
from vitdeploy.graph.intervals import ANY, MOVES, Interval, intervals

# Subnormal numbers of FP16 are 2^-24 apart, so that rounding a smaller one leaves less than MIN_TENSOR_SNR_DB.
SMALLEST = 2.0**-25 * 10 ** (MIN_TENSOR_SNR_DB / 20)

# Their results are small where their inputs are, or become small in between.
_SHRINK = frozenset(
    {"Abs", "Clip", "Div", "Exp", "Max", "Mul", "Neg", "Pow", "Reciprocal", "Sigmoid", "Softmax", "Sqrt", "Sum"}
) | {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"}
_GUARDS = frozenset({"Add", "Clip", "Max", "Sub", "Sum", "Where"})
# Sums of products of what is computed.
_PRODUCTS = frozenset({"MatMul", "Einsum"})
# They square or exponentiate, add up and divide or take a logarithm in one.
_WHOLE = frozenset({"LpNormalization", "ReduceLogSum", "ReduceLogSumExp"})


def guarded_regions(graph: ir.Graph) -> dict[str, str]:
    """The nodes that have to stay FP32, by name, with the reason."""
    regions = _Regions(intervals(graph))
    for node in graph:
        regions.add(node)
    return regions.kept


class _Regions:
    def __init__(self, known: Mapping[ir.Value, Interval]) -> None:
        self.known = known
        self.kept: dict[str, str] = {}

    def add(self, node: ir.Node) -> None:
        """Keep what `node` needs, if it is singular at zero and may come near it."""
        if node.op_type in _WHOLE:
            self.kept.setdefault(str(node.name), f"underflow: {node.op_type} is singular at zero")
        found = _singular(node)
        if found is None:
            return
        index, only_guarded = found
        value = input_of(node, index)
        interval = self.known.get(value, ANY)
        if interval.excludes(SMALLEST) or constant(value) is not None:
            return
        region: dict[ir.Node, None] = {}
        self._follow(value, region)
        guarded = any(_is_guard(member) for member in region) or interval.excludes(1e-300)
        if not (guarded or (self._one_sided(value) and region and not only_guarded)):
            return
        region[node] = None
        for other in node.inputs[:index]:
            self._follow(other, region)
        self._lead_on(node, region)
        why = f"underflow: {value.name} may be as good as zero in half precision, where {node.op_type} is singular"
        for member in region:
            self.kept.setdefault(str(member.name), why)

    def _follow(self, value: ir.Value | None, region: dict[ir.Node, None]) -> bool:
        """Add the nodes that make `value` as far as they may lose it in half precision; whether there was one."""
        node = producer(value)
        if node is None or value is None:
            return False
        if node in region:
            return True
        if node.op_type in MOVES:
            inside = self._follow(node.inputs[0], region)
        elif node.op_type in _PRODUCTS:
            inside = not any(is_weight(factor) or _is_softmax(factor) for factor in node.inputs)
        elif node.op_type == "Sub" and _is_centring(node):
            region[input_of(node, 1).producer() or node] = None
            region[node] = None
            return True
        else:
            inside = _is_guard(node) or (
                (node.op_type in _SHRINK or node.op_type == "Add")
                and self._one_sided(value)
                and not self.known.get(value, ANY).excludes(SMALLEST)
            )
        if inside:
            region[node] = None
            for part in node.inputs:
                self._follow(part, region)
        return inside

    def _one_sided(self, value: ir.Value) -> bool:
        interval = self.known.get(value, ANY)
        return interval.low >= 0 or interval.high <= 0

    def _lead_on(self, node: ir.Node, region: dict[ir.Node, None]) -> None:
        """A reciprocal may be beyond FP16: add what leads from it to the product that makes it ordinary again."""
        inverts = node.op_type in ("Reciprocal", "Pow") or (
            node.op_type == "Div" and constant(node.inputs[0]) is not None
        )
        interval = self.known.get(node.outputs[0], ANY)
        if not inverts or max(abs(interval.low), abs(interval.high)) <= HALF_MAX:
            return
        waiting = consumers(node.outputs[0])
        while waiting:
            consumer = waiting.pop()
            if consumer.op_type in MOVES:
                waiting += consumers(consumer.outputs[0])
            elif consumer.op_type in ("Mul", "Div") or consumer.op_type in _PRODUCTS:
                for factor in consumer.inputs:
                    self._follow(factor, region)
            else:
                continue
            region[consumer] = None


def _singular(node: ir.Node) -> tuple[int, bool] | None:
    """Which input must not be zero, and whether it has to be guarded for that to matter: a root of 0 is just 0."""
    if node.op_type == "Div":
        return 1, False
    if node.op_type in ("Reciprocal", "Log"):
        return 0, False
    if node.op_type == "Sqrt":
        return 0, True
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        if exponent is not None and exponent.size and (exponent < 1).all():
            return 0, bool((exponent > 0).any())
    return None


def _is_guard(node: ir.Node) -> bool:
    """Whether a constant that half precision cannot hold keeps the result away from zero."""
    if node.op_type not in _GUARDS:
        return False
    arrays = [constant(value) for value in node.inputs[-2:] if value is not None]
    return any(_is_tiny(array) for array in arrays if array is not None)


def _is_tiny(array: np.ndarray) -> bool:
    if array.dtype.kind != "f" or not array.size:
        return False
    largest = float(np.abs(array).max())
    return 0 < largest < SMALLEST


def _is_centring(node: ir.Node) -> bool:
    """x - mean(x), which a variance is made of."""
    mean = producer(node.inputs[1], "ReduceMean")
    return mean is not None and mean.inputs[0] is node.inputs[0]


def _is_softmax(value: ir.Value | None) -> bool:
    """Whether `value` holds probabilities: products with them are averages, which are not small."""
    node = producer(value)
    while node is not None and node.op_type in MOVES:
        node = producer(node.inputs[0])
    return node is not None and node.op_type == "Softmax"

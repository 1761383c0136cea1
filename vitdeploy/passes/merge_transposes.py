"""Transposes meet, merge and cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    UNARY,
    Builder,
    attribute,
    bypass,
    constant,
    graph_of,
    need,
    of_type,
    only_consumer,
    remove_unused,
    reshape_target,
    sizes,
)
from vitdeploy.graph.layout import MOVERS, Movement, after
from vitdeploy.graph.names import fresh_name
from vitdeploy.passes.base import GraphPass

_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})


class MergeTransposes(GraphPass):
    """Pulls each Transpose and Reshape up the graph, and keeps the result where fewer of them are left.

    Neighbours compose: two Transposes become one, or none. Elementwise operators in between are computed in the layout
    in front of them, their constants moved along. A mean, sum or maximum is taken over the axes as they lay before a
    Transpose.
    """

    name: ClassVar[str] = "merge_transposes"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Try every movement and reduction, from the outputs up, until nothing is left to win."""
        changes: list[str] = []
        found = True
        while found:
            found = False
            for node in reversed(list(of_type(model.graph, *MOVERS, *_REDUCTIONS))):
                if node.graph is None:  # an earlier change made it unused
                    continue
                name = node.name
                line = _reduce_before(model.graph, node) if node.op_type in _REDUCTIONS else _pull(model.graph, node)
                if line:
                    changes.append(f"{name}: {line}")
                    remove_unused(model)
                    found = True
        return changes


@dataclass
class _Plan:
    """A way to get a value in another layout: the Transposes and movements it adds (takes away where negative)."""

    transposes: int
    movements: int
    build: Callable[[Builder], ir.Value]

    @property
    def cost(self) -> tuple[int, int]:
        return self.transposes, self.movements


def _pull(graph: ir.Graph, node: ir.Node) -> str | None:
    """Do `node` further up where that leaves fewer Transposes, or as many and fewer Reshapes."""
    source, shape = node.inputs[0], sizes(node.outputs[0])
    movement = None if shape is None else after(node, Movement.still(shape))
    if source is None or movement is None:
        return None
    plan = _plan(source, movement, node)
    own = int(node.op_type == "Transpose")
    if plan is None or plan.cost >= (own, 1) or not bypass(node, plan.build(Builder(graph, node))):
        return None
    return f"pulled up, {own - plan.transposes} Transposes and {1 - plan.movements} movements in all fewer"


def _plan(value: ir.Value, movement: Movement, owner: ir.Node | None) -> _Plan | None:
    """The cheapest way to `value` moved by `movement`; `owner` is its consumer if nothing else needs that one.

    Either the movement is done here, or further up: then what only this path needs goes away.
    """
    node = value.producer()
    owned = owner is not None and only_consumer(value) is owner
    further: _Plan | None = None
    if constant(value) is not None or node is None:
        pass
    elif node.op_type in MOVERS:
        earlier, source = after(node, movement), node.inputs[0]
        if earlier is not None and source is not None:
            further = _plan(source, earlier, node if owned else None)
        if further is not None and owned:
            further = _Plan(further.transposes - (node.op_type == "Transpose"), further.movements - 1, further.build)
    elif owned and (node.op_type in UNARY or node.op_type in _BINARY):
        further = _through(node, movement)
    plans = [plan for plan in (_here(value, movement), further) if plan is not None]
    return min(plans, key=lambda plan: plan.cost, default=None)


def _here(value: ir.Value, movement: Movement) -> _Plan | None:
    """Move `value` itself, for nothing if it is a constant."""
    array = constant(value)
    if array is not None:
        moved = movement.move(array)
        name = str(value.name).rpartition("/")[2]
        return None if moved is None else _Plan(0, 0, lambda add: add.constant(moved, name))
    steps = movement.steps()
    if any(step.perm is None and reshape_target(step.shape) is None for step in steps):
        return None

    def build(add: Builder) -> ir.Value:
        out = value
        for perm, shape in steps:
            out = add.reshape(out, shape) if perm is None else add.op("Transpose", [out], shape, perm=perm)
        return out

    return _Plan(sum(step.perm is not None for step in steps), len(steps), build)


def _through(node: ir.Node, movement: Movement) -> _Plan | None:
    """Move the operands of an elementwise operator instead of its result."""
    plans: dict[ir.Value, _Plan] = {}  # x * x moves x once
    operands = node.inputs[:1] if node.op_type in UNARY else node.inputs
    for value in operands:
        if value is None:
            return None
        array = constant(value)
        # Only a constant may broadcast: elsewhere a movement would have to say what becomes of an axis of size 1.
        fits = sizes(value) == sizes(node.outputs[0]) if array is None else array.ndim <= len(movement.source)
        plan = None if not fits else _plan(value, movement, node)
        if plan is None:
            return None
        plans[value] = plan
    extras = [constant(value) for value in node.inputs[len(operands) :] if value is not None]
    if any(extra is None or extra.size != 1 for extra in extras):
        return None

    def build(add: Builder) -> ir.Value:
        moved = {value: plan.build(add) for value, plan in plans.items()}
        inputs = [value if value is None else moved.get(value, value) for value in node.inputs]
        attributes = {name: found.value for name, found in node.attributes.items()}
        new = add.op(node.op_type, inputs, movement.shape, dtype=node.outputs[0].dtype, **attributes)
        _take_name(new, node)
        return new

    return _Plan(sum(plan.transposes for plan in plans.values()), sum(plan.movements for plan in plans.values()), build)


def _take_name(value: ir.Value, old: ir.Node) -> None:
    """Call `value` and its node after `old`, whose place they take."""
    new = need(value.producer(), f"what makes {value.name}")
    new.name, value.name = old.name, old.outputs[0].name
    graph = graph_of(old)
    old.name = fresh_name(graph, f"{old.name}.moved")
    old.outputs[0].name = fresh_name(graph, f"{old.outputs[0].name}.moved")


def _reduce_before(graph: ir.Graph, node: ir.Node) -> str | None:
    """Reduce over the axes as they lay before the Transposes in front of `node`."""
    value, consumer = node.inputs[0], node
    shape, out = sizes(value), sizes(node.outputs[0])
    by_input = len(node.inputs) > 1
    axes = constant(node.inputs[1]) if by_input else attribute(node, "axes")
    if shape is None or out is None or reshape_target(out) is None or axes is None or len(axes) == 0:
        return None
    movement: Movement | None = Movement.still(shape)
    transposes, best = 0, None
    while value is not None and only_consumer(value) is consumer:
        mover = value.producer()
        if mover is None or mover.op_type not in MOVERS or movement is None:
            break
        movement, value, consumer = after(mover, movement), mover.inputs[0], mover
        transposes += mover.op_type == "Transpose"
        earlier = None if movement is None else movement.axes_before({int(axis) % len(shape) for axis in axes})
        if transposes and earlier is not None:
            best = value, earlier
    if best is None:
        return None
    value, earlier = best
    before, add = sizes(value) or (), Builder(graph, node)
    kept = tuple(1 if index in earlier else size for index, size in enumerate(before))
    dropped = tuple(size for index, size in enumerate(before) if index not in earlier)
    keepdims = kept == out
    given = np.array(earlier, dtype=np.int64)
    inputs = [value, add.constant(given, "axes")] if by_input else [value]
    attributes: dict[str, Any] = {} if by_input else {"axes": earlier}
    result = add.op(node.op_type, inputs, kept if keepdims else dropped, keepdims=int(keepdims), **attributes)
    if not keepdims and dropped != out:
        result = add.reshape(result, out)
    bypass(node, result)
    return f"over axes {earlier}, as they lay before the Transpose"

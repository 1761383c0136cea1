"""Token streams that pass the same attention, each on its own, as one stream whose parts do not see each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import Attention, find_attentions
from vitdeploy.graph.edit import Builder, attribute, constant, need, only_consumer, reshape_target, sizes
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.streams import MAX_SHORT_TOKENS, Merger, independent, joined, mergeable, same_operator, tokens_of

MASK = -10000.0  # exp of it is 0, and half precision holds it with room for the score

# Of both streams, where the mask itself costs something. Measured on LeMeViT-tiny in ONNX Runtime, batch 1, one CPU
# thread: time with the attentions of 32, 52, 80 and 212 tokens as one over time without, INT8 0.97 1.00 0.99 1.03, FP32
# 0.99 0.95 0.98 1.00.
MAX_MASKED_TOKENS = 128

# Whether streams of so many tokens, the longer one first, are worth one attention.
_FITS: Mapping[str, Callable[[Sequence[int]], bool]] = {
    "attention": lambda lengths: lengths[1] <= MAX_SHORT_TOKENS,
    "short attention": lambda lengths: sum(lengths) <= MAX_MASKED_TOKENS,
}


class MergeSharedAttention(GraphPass):
    """attention(x) and attention(y) with the same weights are attention([x; y]) under a mask.

    The mask adds a large negative number where a token of one stream would see a token of another, so that its weight
    in the softmax is 0. The linear layers before it become one, and the copies go that would cut its result into
    streams. The shorter stream is short, so that few scores are computed in vain, and where the target adds the mask in
    an operator of its own, both are short together. Attentions with anything between their products stay apart.
    """

    name: ClassVar[str] = "merge_shared_attention"

    def applies(self) -> bool:
        """Where the target fuses the mask into its attention, or copies cost it more than the scores of few tokens."""
        return self.target.shared_streams in _FITS

    def rewrite(self, model: ir.Model) -> list[str]:
        """Join each attention with the later ones that have its weights."""
        changes, fits = [], _FITS[self.target.shared_streams]
        waiting = [found for found in find_attentions(model.graph) if not found.before and not found.after]
        while waiting:
            first = waiting.pop(0)
            for other in list(waiting):
                pair = sorted((first, other), key=_queries, reverse=True)
                lengths = [_queries(one) for one in pair]
                if lengths[1] > 1 and fits(lengths) and _join(model, pair, lengths):
                    changes.append(f"{first.name}: one attention for {lengths[0]} + {lengths[1]} tokens, masked")
                    waiting.remove(other)
                    break
        return changes


def _queries(attention: Attention) -> int:
    """The number of its queries; 0 where it is not fixed."""
    shape = sizes(attention.second.outputs[0])
    return shape[-2] if shape is not None and len(shape) > 2 and isinstance(shape[-2], int) else 0


@dataclass
class _Joint:
    """Values of the streams as one: the axis of the tokens, the shape, and what builds it."""

    axis: int
    shape: tuple[int | str, ...]
    build: Callable[[], ir.Value]
    made: ir.Value | None = None

    def make(self) -> ir.Value:
        """The value, built at the first call."""
        if self.made is None:
            self.made = self.build()
        return self.made


def _join(model: ir.Model, pair: Sequence[Attention], lengths: Sequence[int]) -> bool:
    """Make the two attentions one, if they are of the same weights; whether they were."""
    graph, rows = model.graph, [[one.second.outputs[0] for one in pair]]
    while all(only_consumer(end) is not None for end in rows[-1]):
        following = [need(only_consumer(end), "a consumer") for end in rows[-1]]
        if {node.op_type for node in following} not in ({"Reshape"}, {"Transpose"}):
            break
        rows.append([node.outputs[0] for node in following])
    plan = _Plan(graph, pair, lengths)
    found = next(((ends, joint) for ends in reversed(rows) if (joint := plan.made(ends)) is not None), None)
    if found is None or not independent([one.second for one in pair]):
        return False
    ends, joint = found
    if any(end.is_graph_output() for end in ends):
        return False
    parts = Builder(graph, plan.last).split(joint.make(), lengths, joint.axis)
    for end, part in zip(ends, parts, strict=True):
        ir.convenience.replace_all_uses_with(end, part)
    graph.sort()
    return True


class _Plan:
    """How the values of two streams become one, from an attention's result up to the linear layers before it."""

    def __init__(self, graph: ir.Graph, pair: Sequence[Attention], lengths: Sequence[int]) -> None:
        self.graph, self.pair, self.lengths = graph, pair, lengths
        self.merger = Merger(graph)
        order = {node: index for index, node in enumerate(graph)}
        self.last = max((one.second for one in pair), key=lambda node: order[node])
        self._splits: dict[ir.Node, list[ir.Value]] = {}
        self._known: dict[tuple[ir.Value, ...], _Joint | None] = {}
        self._taken: dict[ir.Node, ir.Node] = {}

    def of(self, values: Sequence[ir.Value]) -> _Joint | None:
        """The joint of `values`, one of each stream in the order of the pair; None where they differ in more."""
        key = tuple(values)
        if key not in self._known:
            self._known[key] = self._present(values) or self.made(values)
        return self._known[key]

    def _present(self, values: Sequence[ir.Value]) -> _Joint | None:
        """Where the streams are one already, or a Concat makes them one."""
        whole = joined(values)
        if whole is None or [tokens_of(value) for value in values] != list(self.lengths):
            return None
        return _Joint(1, need(sizes(whole), "a shape"), lambda: whole)

    def made(self, values: Sequence[ir.Value]) -> _Joint | None:
        """The joint of `values` by what makes them: where an attention ends, a Concat of its results is no help."""
        nodes = [node for node in (value.producer() for value in values) if node is not None]
        if len(set(nodes)) != len(values) or len({node.op_type for node in nodes}) != 1:
            return None
        if nodes == [one.second for one in self.pair]:
            return self._attention()
        if nodes[0].op_type in ("Reshape", "Transpose"):
            return self._moved(nodes, values)
        if nodes[0].op_type == "Split":
            return self._part(nodes, values)
        return self._by_token(nodes, values) or self._scaled(nodes)

    def _by_token(self, nodes: list[ir.Node], values: Sequence[ir.Value]) -> _Joint | None:
        """Linear layers, their bias, and what else works on each token alone."""
        operands, tokens = _varying(nodes), [(sizes(value) or (None, None))[1] for value in values]
        if not mergeable(nodes) or operands is None or tokens != list(self.lengths):
            return None
        if any(self._taken.setdefault(node, nodes[0]) is not nodes[0] for node in nodes):
            return None  # one stream's queries are the other's keys
        before = None if nodes[0].op_type == "MatMul" else self.of(operands)
        if before is None and nodes[0].op_type != "MatMul":
            return None
        shape = list(need(sizes(values[0]), "a shape"))
        shape[1] = sum(self.lengths)

        def build() -> ir.Value:
            if before is not None:
                before.make()
            return self.merger.merge(nodes)

        return _Joint(1, tuple(shape), build)

    def _scaled(self, nodes: list[ir.Node]) -> _Joint | None:
        """A scale that stands behind the heads."""
        operands = _varying(nodes) if nodes[0].op_type in ("Mul", "Div") and same_operator(*nodes) else None
        before = None if operands is None else self.of(operands)
        factors = [array for array in map(constant, nodes[0].inputs) if array is not None]
        if operands is None or before is None or any(array.size != 1 for array in factors):
            return None
        if any(array.ndim > len(before.shape) for array in factors):
            return None

        def build() -> ir.Value:
            inputs = [before.make() if value is operands[0] else value for value in nodes[0].inputs]
            return self._add.op(nodes[0].op_type, inputs, before.shape, dtype=operands[0].dtype)

        return _Joint(before.axis, before.shape, build)

    def _moved(self, nodes: list[ir.Node], values: Sequence[ir.Value]) -> _Joint | None:
        """A Transpose or Reshape of both, which leaves the tokens an axis of their own."""
        before = self.of([need(node.inputs[0], "an input") for node in nodes])
        shapes = [sizes(value) for value in values]
        if before is None or any(shape is None for shape in shapes):
            return None
        if nodes[0].op_type == "Transpose":
            perms = [list(attribute(node, "perm", range(len(before.shape))[::-1])) for node in nodes]
            if perms[0] != perms[1]:
                return None
            axis, shape = perms[0].index(before.axis), [before.shape[index] for index in perms[0]]
            return _Joint(axis, tuple(shape), lambda: self._add.op("Transpose", [before.make()], shape, perm=perms[0]))
        axes = [_axis_of(length, before, shape or ()) for length, shape in zip(self.lengths, shapes, strict=True)]
        together = [self._together(shape or (), axis) for shape, axis in zip(shapes, axes, strict=True)]
        target = None if together[0] is None else reshape_target(together[0])
        if axes[0] is None or together[0] is None or together[0] != together[1] or target is None:
            return None
        whole = together[0]
        return _Joint(
            axes[0],
            whole,
            lambda: self._add.op("Reshape", [before.make(), self._add.constant(target, "shape")], whole),
        )

    def _together(self, shape: Sequence[int | str], axis: int | None) -> tuple[int | str, ...] | None:
        return None if axis is None else (*shape[:axis], sum(self.lengths), *shape[axis + 1 :])

    def _part(self, nodes: list[ir.Node], values: Sequence[ir.Value]) -> _Joint | None:
        """Queries, keys and values of one linear layer."""
        before = self.of([need(node.inputs[0], "an input") for node in nodes])
        index = list(nodes[0].outputs).index(values[0])
        if before is None or list(nodes[1].outputs).index(values[1]) != index:
            return None
        axis = int(attribute(nodes[0], "axis", 0)) % len(before.shape)
        shapes = [[sizes(out) or () for out in node.outputs] for node in nodes]
        widths = [[size for out in row if isinstance(size := out[axis], int)] for row in shapes if all(row)]
        same_axis = int(attribute(nodes[1], "axis", 0)) % len(before.shape) == axis != before.axis
        if len(widths) != 2 or widths[0] != widths[1] or len(widths[0]) != len(nodes[0].outputs) or not same_axis:
            return None
        shape = list(before.shape)
        shape[axis] = widths[0][index]

        def build() -> ir.Value:
            if nodes[0] not in self._splits:
                self._splits[nodes[0]] = self._add.split(before.make(), widths[0], axis)
            return self._splits[nodes[0]][index]

        return _Joint(before.axis, tuple(shape), build)

    def _attention(self) -> _Joint | None:
        query, key, value = (self.of([one.operands[index] for one in self.pair]) for index in range(3))
        axes = [attribute(one.softmax, "axis", -1) for one in self.pair]
        rank = 0 if query is None else len(query.shape)
        if query is None or key is None or value is None or any(axis not in (-1, rank - 1) for axis in axes):
            return None
        if (query.axis, key.axis, value.axis) != (rank - 2, rank - 1, rank - 2):
            return None
        tokens, features = int(query.shape[-2]), value.shape[-1]
        dtype = need(self.pair[0].first.outputs[0].dtype, "the type of the scores").numpy()
        streams = np.repeat([0, 1], self.lengths)
        if len(streams) != tokens or key.shape[-1] != tokens:
            return None
        mask = np.where(streams[:, None] == streams, 0, MASK).astype(dtype)[(None,) * (rank - 2)]

        def build() -> ir.Value:
            add, shape = self._add, [*query.shape[:-1], tokens]
            scores = add.op("MatMul", [query.make(), key.make()], shape)
            scores = add.op("Add", [scores, add.constant(mask, "streams")], shape)
            weights = add.op("Softmax", [scores], shape, axis=-1)
            return add.op("MatMul", [weights, value.make()], [*shape[:-1], features])

        return _Joint(rank - 2, (*query.shape[:-1], features), build)

    @property
    def _add(self) -> Builder:
        return Builder(self.graph, self.last)


def _varying(nodes: Sequence[ir.Node]) -> list[ir.Value] | None:
    """The one computed input of each node; None where one has several."""
    found = [[value for value in node.inputs if value is not None and constant(value) is None] for node in nodes]
    return [values[0] for values in found] if all(len(values) == 1 for values in found) else None


def _axis_of(length: int, before: _Joint, shape: Sequence[int | str]) -> int | None:
    """The axis of `shape` that the tokens of one stream become in a Reshape; None where they get none of their own."""
    ahead = _volume(before.shape[: before.axis])
    found = (axis for axis, size in enumerate(shape) if size == length and _volume(shape[:axis]) == ahead)
    return next(found, None)


def _volume(shape: Sequence[int | str]) -> tuple[int, tuple[str, ...]]:
    """The product of the fixed sizes, and the free ones."""
    named = tuple(size for size in shape if isinstance(size, str))
    return math.prod(size for size in shape if not isinstance(size, str)), named

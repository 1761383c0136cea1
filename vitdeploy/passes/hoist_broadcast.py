"""What does not depend on the batch is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import UNARY, Builder, attribute, constant, input_of, need, producer, sizes, static_shape
from vitdeploy.graph.names import fresh_name
from vitdeploy.passes.base import GraphPass

# Operators that broadcast all their inputs against each other, the unary ones included.
ELEMENTWISE = frozenset(UNARY | {"Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum", "Where"})
# Operators that broadcast and give flags.
LOGICAL = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"})
# Operators that treat each entry of axis 0 of their first input on its own, all other inputs being constant.
_PER_IMAGE = frozenset(
    {
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Conv", "ConvTranspose"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "DepthToSpace", "SpaceToDepth"),
    }
)
# Operators along one axis, and the axis they take where they state none.
_ALONG_AXIS = {"Concat": 0, "Gather": 0, "LayerNormalization": -1, "LogSoftmax": -1, "Softmax": -1, "Split": 0}
_REDUCTIONS = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
# Operators along several axes, and the input that holds them.
_ALONG_AXES = {**dict.fromkeys(_REDUCTIONS, 1), "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}


class HoistBroadcast(GraphPass):
    """Moves an Expand over the batch behind everything that treats all images alike.

    A value that was expanded over axis 0 stays equal along it through every operator that works on each image on its
    own. The pass computes those values for a batch of one (constant folding then takes them where nothing but weights
    goes in), and brings the batch back at the first operator that mixes them with the images: by that operator's own
    broadcasting, or by an Expand in front of it. The factors of a product get their Expand where TensorRT may be the
    runtime: its fused attention wants one batch for queries and keys.
    """

    name: ClassVar[str] = "hoist_broadcast"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Find the values that are equal for every image, then redirect whoever mixes them with the images."""
        work = _Hoist(model.graph, broadcast_products=not self.target.for_nvidia)
        for node in list(model.graph):
            if node.outputs[0] not in work.equal:
                work.redirect(node)
        work.redirect_outputs()
        return work.changes


class _Hoist:
    """`equal`: the values whose images are all equal, each with the Expand or Tile that its batch comes from."""

    def __init__(self, graph: ir.Graph, *, broadcast_products: bool) -> None:
        self.graph, self.broadcast_products = graph, broadcast_products
        self.changes: list[str] = []
        self.equal: dict[ir.Value, ir.Node] = {}
        self._single: dict[ir.Value, ir.Value] = {}
        self._expanded: dict[ir.Value, ir.Value] = {}
        for node in graph:
            if _expands_batch(node):
                self.equal[node.outputs[0]] = node
            else:
                origins = [self.equal[value] for value in node.inputs if value in self.equal]
                if origins and _treats_images_alike(node, self.equal):
                    self.equal.update(dict.fromkeys(node.outputs, origins[0]))

    def redirect(self, node: ir.Node) -> None:
        """Let `node`, which mixes, read batches of one where it broadcasts and late Expands where it does not."""
        for index, value in enumerate(node.inputs):
            if value is None or value not in self.equal:
                continue
            may = node.op_type != "MatMul" or self.broadcast_products
            if may and _broadcasts(node, index, self.equal):
                node.replace_input_with(index, self.single(value))
                self.changes.append(f"{node.name}: broadcasts {value.name} over the batch")
            elif not self._is_origin(value):
                node.replace_input_with(index, self.expanded(value, node))
                self.changes.append(f"{node.name}: {value.name} expanded just before")

    def redirect_outputs(self) -> None:
        """Let graph outputs that are equal for every image be expanded last of all."""
        for index, value in enumerate(self.graph.outputs):
            if value in self.equal and not self._is_origin(value):
                expand = self.expanded(value, self.graph[-1])
                single = self.single(value)
                expand.name, single.name = single.name, expand.name
                self.graph.outputs[index] = expand
                self.changes.append(f"{expand.name}: expanded last of all")

    def single(self, value: ir.Value) -> ir.Value:
        """`value` for a batch of one, computed in front of the node that makes `value`."""
        if value not in self.equal:
            return value
        if value not in self._single:
            node = need(value.producer(), f"what makes {value.name}")
            if self._is_origin(value):
                self._single[value] = self._single_origin(node)
            else:
                self._single.update(zip(node.outputs, self._single_outputs(node), strict=True))
        return self._single[value]

    def _single_origin(self, node: ir.Node) -> ir.Value:
        source, wanted = input_of(node, 0), _for_one(node.outputs[0])
        if sizes(source) == wanted:
            return source
        add = Builder(self.graph, node)
        return add.op("Expand", [source, add.constant(np.array(wanted, dtype=np.int64), "shape")], wanted)

    def _single_outputs(self, node: ir.Node) -> Sequence[ir.Value]:
        """The outputs of a copy of `node` for a batch of one, which takes over the names."""
        inputs = [None if value is None else self.single(value) for value in node.inputs]
        if node.op_type == "Reshape":
            target = np.array(_for_one(node.outputs[0]), dtype=np.int64)
            inputs[1] = Builder(self.graph, node).constant(target, "shape")
        attributes = node.attributes.values()
        copy = ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
        node.name = fresh_name(self.graph, f"{node.name}.batched")
        for new, old in zip(copy.outputs, node.outputs, strict=True):
            new.name, old.name = old.name, fresh_name(self.graph, f"{old.name}.batched")
            new.type, new.shape = old.type, ir.Shape(_for_one(old))
        self.graph.insert_before(node, copy)
        return copy.outputs

    def expanded(self, value: ir.Value, anchor: ir.Node) -> ir.Value:
        """`value` over the whole batch again, by an Expand in front of `anchor`, its first consumer."""
        if value not in self._expanded:
            single, add = self.single(value), Builder(self.graph, anchor)
            shape = need(sizes(value), f"the shape of {value.name}")
            if isinstance(shape[0], int):
                target = add.constant(np.array(shape, dtype=np.int64), "shape")
            else:
                # The origin's own shape starts with the batch; ones leave the other axes alone.
                batch = _first_entry(add, self.equal[value].inputs[1])
                ones = add.constant(np.ones(len(shape) - 1, dtype=np.int64), "ones")
                target = add.op("Concat", [batch, ones], [len(shape)], axis=0)
            self._expanded[value] = add.op("Expand", [single, target], value.shape)
        return self._expanded[value]

    def _is_origin(self, value: ir.Value) -> bool:
        return self.equal[value] is value.producer()


def _first_entry(add: Builder, shape: ir.Value | None) -> ir.Value:
    """Entry 0 of a computed shape, [1]: what was concatenated in front, or a Gather of it."""
    node = producer(shape, "Concat")
    front = node.inputs[0] if node is not None else None
    if front is not None and static_shape(front) == (1,):
        return front
    return add.op("Gather", [shape, add.constant(np.array([0], dtype=np.int64), "first")], [1], axis=0)


def _expands_batch(node: ir.Node) -> bool:
    """Expand or Tile that repeats one image along axis 0."""
    if node.op_type not in ("Expand", "Tile"):
        return False
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if before is None or not after or after[0] == 1 or any(isinstance(dim, str) for dim in after[1:]):
        return False
    one_image = len(before) < len(after) or before[0] == 1
    return one_image and (node.op_type == "Expand" or before == (1, *after[1:]))


def _for_one(value: ir.Value) -> tuple[int, ...]:
    shape = need(sizes(value), f"the shape of {value.name}")
    return 1, *(int(dim) for dim in shape[1:])


def _treats_images_alike(node: ir.Node, equal: dict[ir.Value, ir.Node]) -> bool:
    """Whether equal images in mean equal images out, and a batch of one in means a batch of one out."""
    outputs = [sizes(value) for value in node.outputs]
    first = node.inputs[0]
    batches = {(sizes(value) or (None,))[0] for value in node.inputs if value is not None and value in equal}
    if len(batches) != 1 or any(not shape or shape[0] not in batches for shape in outputs):
        return False
    if any(isinstance(dim, str) for shape in outputs if shape for dim in shape[1:]):
        return False
    rank = len(outputs[0] or ())
    if node.op_type in ELEMENTWISE or (node.op_type == "Attention" and rank == 4):
        return all(value is None or _same_for_all(value, rank, equal) for value in node.inputs)
    if node.op_type == "MatMul":
        if rank == 2:  # axis 0 of the right factor is summed over
            return first in equal and node.inputs[1] not in equal
        return all(value is not None and _same_for_all(value, rank, equal) for value in node.inputs)
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        weight_ok = node.inputs[1] not in equal and not attribute(node, "transA", 0)
        return weight_ok and first in equal and (bias is None or _same_for_all(bias, 2, equal))
    if node.op_type == "Concat":
        return all(value in equal for value in node.inputs) and int(attribute(node, "axis")) % rank != 0
    others_constant = all(value is None or constant(value) is not None for value in node.inputs[1:])
    return first in equal and others_constant and _leaves_batch_axis(node)


def _same_for_all(value: ir.Value, rank: int, equal: dict[ir.Value, ir.Node]) -> bool:
    """Whether every image of a result of rank `rank` meets the same part of `value`."""
    shape = sizes(value)
    if shape is None or len(shape) > rank:
        return False
    return len(shape) == rank if value in equal else len(shape) < rank or shape[0] == 1


def _leaves_batch_axis(node: ir.Node) -> bool:
    """Whether a single-input operator works on each entry of axis 0 on its own."""
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if before is None or after is None:
        return False
    if node.op_type in _PER_IMAGE:
        return len(node.outputs) == 1 and not attribute(node, "training_mode", 0)
    if node.op_type == "Transpose":
        return int(attribute(node, "perm", [-1])[0]) == 0
    if node.op_type == "Reshape":
        return before[0] == after[0] and all(isinstance(dim, int) for dim in before[1:])
    if node.op_type == "Flatten":
        return int(attribute(node, "axis", 1)) == 1
    if node.op_type in _ALONG_AXIS:
        return int(attribute(node, "axis", _ALONG_AXIS[node.op_type])) % len(before) != 0
    if node.op_type in _ALONG_AXES:
        index = _ALONG_AXES[node.op_type]
        given = constant(node.inputs[index]) if len(node.inputs) > index else attribute(node, "axes")
        rank = len(after) if node.op_type == "Unsqueeze" else len(before)
        return given is not None and len(given) > 0 and all(int(axis) % rank != 0 for axis in given)
    return False


def _broadcasts(node: ir.Node, index: int, equal: dict[ir.Value, ir.Node]) -> bool:
    """Whether input `index` may have a batch of one because another input brings the whole batch."""
    shape, out = sizes(node.inputs[index]), sizes(node.outputs[0])
    if not shape or not out or len(shape) != len(out) or shape[0] != out[0]:
        return False
    if node.op_type == "Gemm":
        return index == 2
    if node.op_type not in ELEMENTWISE and not (node.op_type == "MatMul" and len(out) > 2):
        return False
    others = [value for value in node.inputs if value is not None and value not in equal]
    return any((sizes(value) or (None,))[0] == out[0] and len(sizes(value) or ()) == len(out) for value in others)

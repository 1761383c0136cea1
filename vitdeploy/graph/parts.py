"""Parts of one graph as models of their own: some of its nodes, with the weights that they read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)


class Parts:
    """Parts of one graph as models of their own.

    Constant nodes count as weights. What a part reads from the rest of the graph becomes its inputs, what none of its
    nodes reads its outputs. Where inference finds no type for a value, `known` may have an array of it.
    """

    def __init__(self, model: onnx.ModelProto, known: Mapping[str, NDArray[Any]] | None = None) -> None:
        import onnx

        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        try:
            whole = onnx.shape_inference.infer_shapes(whole)
        except Exception:
            log.debug("no shapes are inferred", exc_info=True)
        graph = whole.graph
        self._model = whole
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = []
        for node in graph.node:
            value = next((attribute for attribute in node.attribute if attribute.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(value.t)
                tensor.name = node.output[0]
                self._weights[tensor.name] = tensor
            else:
                self.nodes.append(node)
        self._types = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
        for name, array in (known or {}).items():
            if name not in self._types:
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                self._types[name] = onnx.helper.make_tensor_value_info(name, kind, array.shape)
        self._results = {value.name for value in graph.output}

    def ports(self, indices: Iterable[int]) -> tuple[list[str], list[str]]:
        """What the nodes at `indices` read from the rest of the graph, and what none of them reads or is a result."""
        nodes = [self.nodes[index] for index in sorted(indices)]
        made = {name for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in reads(node) if name)
        inputs = [name for name in read if name not in made and name not in self._weights]
        given = (name for node in nodes for name in node.output if name)
        outputs = [name for name in given if name not in read or name in self._results]
        return inputs, list(dict.fromkeys(outputs))

    def part(self, indices: Sequence[int]) -> onnx.ModelProto | None:
        """The model of the nodes at `indices`; None where the type of what it reads or gives is not known."""
        import onnx

        inputs, outputs = self.ports(indices)
        if not outputs or any(name not in self._types for name in (*inputs, *outputs)):
            return None
        nodes = [self.nodes[index] for index in sorted(indices)]
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        found = onnx.ModelProto()
        found.CopyFrom(self._model)
        found.graph.Clear()
        found.graph.name = "part"
        found.graph.node.extend(nodes)
        found.graph.input.extend(self._types[name] for name in inputs)
        found.graph.output.extend(self._types[name] for name in outputs)
        found.graph.initializer.extend(self._weights[name] for name in read if name in self._weights)
        return found


def reads(node: onnx.NodeProto) -> list[str]:
    """What a node takes, the graphs inside it included."""
    inner = [sub.g for sub in node.attribute if sub.HasField("g")]
    own = {name for graph in inner for node in graph.node for name in node.output}
    deep = [name for graph in inner for node in graph.node for name in reads(node) if name not in own]
    return [*node.input, *deep]

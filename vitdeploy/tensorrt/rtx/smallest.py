"""The smallest part of a graph that a compiler still fails on, found by leaving nodes out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

TRIALS = 60


class Parts:
    """Parts of one graph as models of their own.

    Constant nodes count as weights. What a part reads from the rest of the graph becomes its inputs, what none of its
    nodes reads its outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
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
        self._results = {value.name for value in graph.output}

    def part(self, indices: Sequence[int]) -> onnx.ModelProto | None:
        """The model of the nodes at `indices`; None where the type of what it reads or gives is not known."""
        import onnx

        nodes = [self.nodes[index] for index in sorted(indices)]
        made = {name for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in _reads(node) if name)
        inputs = [name for name in read if name not in made and name not in self._weights]
        outputs = [
            name for node in nodes for name in node.output if name and (name not in read or name in self._results)
        ]
        if not outputs or any(name not in self._types for name in (*inputs, *outputs)):
            return None
        found = onnx.ModelProto()
        found.CopyFrom(self._model)
        found.graph.Clear()
        found.graph.name = "part"
        found.graph.node.extend(nodes)
        found.graph.input.extend(self._types[name] for name in inputs)
        found.graph.output.extend(self._types[name] for name in dict.fromkeys(outputs))
        found.graph.initializer.extend(self._weights[name] for name in read if name in self._weights)
        return found


def smallest_failing(
    model: onnx.ModelProto, fails: Callable[[onnx.ModelProto], bool], *, trials: int = TRIALS
) -> onnx.ModelProto:
    """The smallest part of `model` on which `fails` still holds that `trials` questions find; else `model` itself.

    First the last node is sought by halving, then the first, then single stretches between them are left out.
    """
    parts = Parts(model)
    asked = 0

    def holds(indices: Sequence[int]) -> bool:
        nonlocal asked
        part = parts.part(indices) if indices and asked < trials else None
        if part is None:
            return False
        asked += 1
        failing = fails(part)
        log.info("%d of %d nodes: %s", len(indices), len(parts.nodes), "fails too" if failing else "compiles")
        return failing

    kept = list(range(len(parts.nodes)))
    kept = kept[: _fewest(len(kept), lambda count: holds(kept[:count]))]
    kept = kept[len(kept) - _fewest(len(kept), lambda count: holds(kept[len(kept) - count :])) :]
    size = max(len(kept) // 2, 1)
    while len(kept) > 1 and asked < trials:
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if holds(rest):
                kept = rest
                break
        else:
            if size == 1:
                break
            size = max(size // 2, 1)
            continue
        size = min(size, max(len(kept) // 2, 1))
    if len(kept) == len(parts.nodes):
        return model
    return parts.part(kept) or model


def _fewest(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest count for which `holds`, by halving; `most` is known to."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node takes, the graphs inside it included."""
    inner = [sub.g for sub in node.attribute if sub.HasField("g")]
    own = {name for graph in inner for node in graph.node for name in node.output}
    deep = [name for graph in inner for node in graph.node for name in _reads(node) if name not in own]
    return [*node.input, *deep]

"""Where does a runtime begin to compute something else? Found by cutting the graph and comparing what crosses the cut.

Nothing here knows a runtime: two callables run an ONNX file and give all its outputs, one that is trusted and one that
is not. Each question costs one build of the suspect, so the cuts are halved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.edit import consumers
from vitdeploy.graph.names import block_of
from vitdeploy.graph.onnx_file import read_graph, write_graph
from vitdeploy.graph.retype import FLOATS
from vitdeploy.proof.parity import Bounds, compare

Array = NDArray[Any]
Runner = Callable[[bytes], Mapping[str, Array]]
Same = Callable[[str, Array, Array], bool]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Divergence:
    """The first block whose result is not the trusted one.

    block    module path, see `block_of`
    tensor   the tensor that differs
    healed   True where looking at the tensor made the outputs right: then a fusion across it is what is wrong
    builds   how many times the suspect was asked
    """

    block: str
    tensor: str
    healed: bool
    builds: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"block": self.block, "tensor": self.tensor, "healed": self.healed, "builds": self.builds}

    def __str__(self) -> str:
        how = "is right as soon as it is an output of the engine" if self.healed else "is the first that differs"
        return f"{self.block}: {self.tensor} {how}"


@dataclass(frozen=True)
class Cut:
    """A place in the graph: the last block before it, and every tensor that crosses it."""

    block: str
    tensors: tuple[str, ...]


def cuts(graph: ir.Graph) -> list[Cut]:
    """A cut behind every block, in the order of the nodes; what is wrong before a cut shows in what crosses it.

    One tensor would not do where a network has several streams: the other may be the wrong one.
    """
    nodes = list(graph)
    position = {node: index for index, node in enumerate(nodes)}
    last_use: dict[ir.Value, int] = {}
    for node in nodes:
        for out in node.outputs:
            if out.dtype in FLOATS and not out.is_graph_output():
                last_use[out] = max((position[node] for node in consumers(out)), default=-1)
    ends = {block_of(str(node.name)): index for index, node in enumerate(nodes)}
    found: list[Cut] = []
    for block, end in sorted(ends.items(), key=lambda pair: pair[1]):
        crossing = tuple(
            str(value.name) for node in nodes[: end + 1] for value in node.outputs if last_use.get(value, -1) > end
        )
        if crossing and (not found or crossing != found[-1].tensors):
            found.append(Cut(block, crossing))
    return found


def first_divergence(model: bytes, trusted: Runner, suspect: Runner, same: Same) -> Divergence | None:
    """The first block of `model` whose result `suspect` gets wrong; None where its outputs are right.

    `same(name, expected, found)` judges one tensor. Assumes that what is wrong at a cut stays wrong behind it.
    """
    graph = read_graph(model).graph
    places, outputs = cuts(graph), {str(value.name) for value in graph.outputs if value.dtype in FLOATS}
    producers = {str(value.name): str(node.name) for node in graph for value in node.outputs}
    expected, found = trusted(model), suspect(model)
    builds, differing = 1, [name for name in outputs if not same(name, expected[name], found[name])]
    if not differing:
        return None

    def wrong(cut: Cut) -> tuple[list[str], bool]:
        """The tensors of the cut that differ, and whether the outputs are right meanwhile."""
        nonlocal builds
        builds += 1
        marked = with_outputs(model, cut.tensors)
        expected, found = trusted(marked), suspect(marked)
        differing = [name for name in cut.tensors if not same(name, expected[name], found[name])]
        right = all(same(name, expected[name], found[name]) for name in outputs)
        log.info("behind %s: %s", cut.block, f"{', '.join(differing)} differ" if differing else "as it should be")
        return differing, right

    low, high = 0, len(places)  # before `low` all is right; at `high`, or at the outputs, it is wrong
    answers: dict[int, list[str]] = {}
    while low < high:
        middle = (low + high) // 2
        answers[middle], right = wrong(places[middle])
        if answers[middle]:
            high = middle
        elif right:
            tensor = places[middle].tensors[-1]
            return Divergence(block_of(producers[tensor]), tensor, True, builds)
        else:
            low = middle + 1
    tensor = answers[high][0] if high < len(places) else differing[0]
    return Divergence(block_of(producers[tensor]), tensor, False, builds)


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """The same model, with these tensors among its outputs."""
    graph = read_graph(model)
    wanted = set(names) - {str(value.name) for value in graph.graph.outputs}
    for node in graph.graph:
        graph.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    return write_graph(graph)


def same_within(bounds: Bounds) -> Same:
    """Judges intermediate tensors by the bounds of the outputs."""

    def same(name: str, expected: Array, found: Array) -> bool:
        # Flat, because the best of a row says nothing of a tensor that is no row of logits.
        flat = expected.astype(np.float32).ravel(), found.astype(np.float32).ravel()
        return compare(name, *flat, precision="fp32", bounds=bounds).passed

    return same

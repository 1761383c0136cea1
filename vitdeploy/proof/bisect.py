"""Where does a runtime begin to compute something else? Found by cutting the graph and comparing what crosses the cut.

Nothing here knows a runtime: two callables run an ONNX file and give all its outputs, one that is trusted and one that
is not. Each question costs one build of the suspect, so the cuts are halved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.traversal import RecursiveGraphIterator

from vitdeploy.errors import BackendError
from vitdeploy.graph.names import block_of
from vitdeploy.graph.onnx_file import read_graph, write_graph
from vitdeploy.graph.retype import FLOATS
from vitdeploy.proof.agreement import agreement
from vitdeploy.proof.parity import Bounds

Array = NDArray[Any]
Runner = Callable[[bytes], Mapping[str, Array]]
Same = Callable[[str, Array, Array], bool]

log = logging.getLogger(__name__)

_WHOLE = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32}
    | {ir.DataType.UINT32, ir.DataType.INT64, ir.DataType.UINT64, ir.DataType.BOOL}
)
NUMBERS = FLOATS | _WHOLE | {ir.DataType.DOUBLE}
# Whose results tell of the sizes of a tensor, and nothing of its values.
_SIZES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Divergence:
    """The first block whose result is not the trusted one.

    block    module path, see `block_of`
    tensor   the tensor that differs
    healed   True where looking at the tensor made the outputs right: then a fusion across it is what is wrong
    builds   how many times the suspect was asked
    start    the first node that may be the culprit: what was looked at before it is right
    stop     the node behind the last one that may be the culprit
    """

    block: str
    tensor: str
    healed: bool
    builds: int
    start: int = 0
    stop: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"block": self.block, "tensor": self.tensor, "healed": self.healed, "builds": self.builds}

    def __str__(self) -> str:
        how = "is right as soon as it is an output of the engine" if self.healed else "is the first that differs"
        return f"{self.block}: {self.tensor} {how}"


@dataclass(frozen=True)
class Cut:
    """A place in the graph: the last block before it, every tensor that crosses it, and the last node before it."""

    block: str
    tensors: tuple[str, ...]
    end: int = 0


def cuts(graph: ir.Graph, nodes: range | None = None) -> list[Cut]:
    """A cut behind every block, in the order of the nodes; what is wrong before a cut shows in what crosses it.

    One tensor would not do where a network has several streams: the other may be the wrong one. With `nodes` there is
    one behind each of these instead. There is none between QuantizeLinear and what reads it, which runtimes compute as
    one, and none that only sizes cross.
    """
    listed = list(graph)
    position = {inner: index for index, node in enumerate(listed) for inner in (node, *_inside(node))}
    last_use: dict[ir.Value, int] = {}
    integers: set[ir.Value] = set()
    of_data = set(graph.inputs)
    for node in listed:
        read = {value for inner in (node, *_inside(node)) for value in inner.inputs}
        if node.op_type in _SIZES or of_data.isdisjoint(read):
            continue
        of_data.update(node.outputs)
        for out in node.outputs:
            if out.dtype in NUMBERS:
                uses = max((position[use.node] for use in out.uses()), default=-1)
                last_use[out] = len(listed) if out.is_graph_output() else uses
                if node.op_type == "QuantizeLinear":
                    integers.add(out)
    if nodes is None:
        ends = {block_of(str(node.name)): index for index, node in enumerate(listed)}
        places = sorted((end, block) for block, end in ends.items())
    else:
        places = [(index, block_of(str(listed[index].name))) for index in nodes]
    found: list[Cut] = []
    for end, block in places:
        crossing = [value for node in listed[: end + 1] for value in node.outputs if last_use.get(value, -1) > end]
        names = tuple(str(value.name) for value in crossing)
        new = end + 1 < len(listed) and (not found or names != found[-1].tensors)
        if names and new and integers.isdisjoint(crossing):
            found.append(Cut(block, names, end))
    return found


def first_divergence(
    model: bytes, trusted: Runner, suspect: Runner, same: Same, nodes: range | None = None
) -> Divergence | None:
    """The first block of `model` whose result `suspect` gets wrong; None where its outputs are right.

    `same(name, expected, found)` judges one tensor. Assumes that what is wrong at a cut stays wrong behind it. A cut
    with which the suspect does not take the graph is passed over. `nodes` are looked at one by one, see `cuts`; what
    is before them is known to be right.
    """
    graph = read_graph(model, strict=False).graph
    places, outputs = cuts(graph, nodes), {str(value.name) for value in graph.outputs if value.dtype in NUMBERS}
    producers = {str(value.name): str(node.name) for node in graph for value in node.outputs}
    expected, found = trusted(model), suspect(model)
    builds, differing = (
        1,
        [name for name in expected if name in outputs and not same(name, expected[name], found[name])],
    )
    if not differing:
        return None

    def wrong(cut: Cut) -> tuple[list[str], bool] | None:
        """The tensors of the cut that differ, and whether the outputs are right meanwhile; None for no answer."""
        nonlocal builds
        builds += 1
        marked = with_outputs(model, cut.tensors)
        expected = trusted(marked)
        try:
            found = suspect(marked)
        except BackendError as error:
            log.info("behind %s: not taken: %s", cut.block, error.why or error.what)
            return None
        differing = [name for name in cut.tensors if not same(name, expected[name], found[name])]
        right = all(same(name, expected[name], found[name]) for name in outputs)
        log.info("behind %s: %s", cut.block, f"{', '.join(differing)} differ" if differing else "as it should be")
        return differing, right

    start, stop = (0, len(list(graph))) if nodes is None else (nodes.start, len(list(graph)))
    left = places  # before `start` all is right; before `stop`, or at the outputs, `differing` are wrong
    while left:
        middle = len(left) // 2
        answer = wrong(left[middle])
        if answer is None:
            left = left[:middle] + left[middle + 1 :]
        elif answer[0]:
            differing, stop, left = answer[0], left[middle].end + 1, left[:middle]
        elif answer[1]:
            tensor = left[middle].tensors[-1]
            stop = next((cut.end + 1 for cut in left[middle + 1 :]), stop)
            start = left[middle - 1].end + 1 if middle else start
            return Divergence(block_of(producers[tensor]), tensor, True, builds, start, stop)
        else:
            start, left = left[middle].end + 1, left[middle + 1 :]
    tensor = differing[0]
    return Divergence(block_of(producers.get(tensor, "")), tensor, False, builds, start, stop)


def closest_divergence(model: bytes, trusted: Runner, suspect: Runner, same: Same) -> Divergence | None:
    """As `first_divergence`, to the node: one more search inside of the block that is the first to differ.

    Where looking into the block makes it right, what it gives is the tensor, and all its nodes may be the culprit.
    """
    block = first_divergence(model, trusted, suspect, same)
    if block is None or block.healed or block.stop - block.start < 2:
        return block
    node = first_divergence(model, trusted, suspect, same, range(block.start, block.stop))
    if node is None or node.healed or node.stop > block.stop:
        return replace(block, builds=block.builds + (node.builds if node else 1))
    return replace(node, builds=block.builds + node.builds)


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """The same model, with these tensors among its outputs."""
    graph = read_graph(model, strict=False)
    wanted = set(names) - {str(value.name) for value in graph.graph.outputs}
    for node in graph.graph:
        graph.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    return write_graph(graph)


def same_within(bounds: Bounds) -> Same:
    """Judges every tensor by the same bounds, see `agreement`."""

    def same(name: str, expected: Array, found: Array) -> bool:
        return agreement(name, expected, found, bounds).passed

    return same


def _inside(node: ir.Node) -> list[ir.Node]:
    """The nodes of the graphs inside of a node."""
    graphs = [
        graph
        for attribute in node.attributes.values()
        for graph in (
            [attribute.value]
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.value
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
    ]
    return [inner for graph in graphs for inner in RecursiveGraphIterator(graph)]

"""Names in a graph: the block that the name of a node tells, and names that nothing has yet."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a device without the package onnx_ir asks for blocks too
    import onnx_ir as ir

BLOCK_PARTS = 3


def block_of(name: str) -> str:
    """The block of the network that a node belongs to: at most three parts of the module path in its name.

    `stages.3.0.attn.proj/MatMul_1` belongs to `stages.3.0`, a node without a path to `graph`.
    """
    path = name.rpartition("/")[0]
    return ".".join(path.split(".")[:BLOCK_PARTS]) or "graph"


def names_in(graph: ir.Graph) -> set[str]:
    """The names of all inputs, initializers, nodes and values of `graph`."""
    nodes = list(graph)
    values = {value.name for node in nodes for value in node.outputs} | {value.name for value in graph.inputs}
    return {name for name in values | {node.name for node in nodes} if name is not None}.union(graph.initializers)


def unused_name(name: str, *taken: Container[str]) -> str:
    """`name`, or `name_1`, `name_2`, … where one of `taken`, such as `names_in(graph)`, has it already."""
    candidate, count = name, 0
    while any(candidate in names for names in taken):
        count += 1
        candidate = f"{name}_{count}"
    return candidate

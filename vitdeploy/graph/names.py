"""Names in a graph: the block that the name of a node tells, and names that nothing has yet."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a device without the package onnx_ir asks for blocks too
    import onnx_ir as ir

BLOCK_PARTS = 3


def module_of(name: str) -> str:
    """The path of the module that a node belongs to, as its name tells it; empty where it tells none."""
    return name.rpartition("/")[0]


def block_of(name: str) -> str:
    """The block of the network that a node belongs to: at most three parts of the module path in its name.

    `stages.3.0.attn.proj/MatMul_1` belongs to `stages.3.0`, a node without a path to `graph`.
    """
    path = module_of(name)
    return ".".join(path.split(".")[:BLOCK_PARTS]) or "graph"


def names_in(graph: ir.Graph) -> set[str]:
    """The names of all inputs, initializers, nodes and values of `graph`."""
    nodes = list(graph)
    values = {value.name for node in nodes for value in node.outputs} | {value.name for value in graph.inputs}
    return {name for name in values | {node.name for node in nodes} if name is not None}.union(graph.initializers)


def fresh_name(graph: ir.Graph, name: str) -> str:
    """`name`, numbered where anything in `graph` is called so already."""
    return unused_name(name, names_in(graph))


def make_unique(graph: ir.Graph) -> None:
    """Number the names that two values or two nodes of `graph` share, and name what has none.

    Inputs and outputs keep their names, and initializers theirs before what nodes make.
    """
    values: dict[ir.Value, None] = dict.fromkeys((*graph.inputs, *graph.outputs))
    taken = {str(value.name) for value in values if value.name}
    for value in [value for value in graph.initializers.values() if value not in values]:
        name = unused_name(str(value.name), taken)
        if name != value.name:
            del graph.initializers[str(value.name)]
            value.name = name
            graph.register_initializer(value)
        taken.add(name)
    named: set[str] = set()
    for node in graph:
        node.name = unused_name(node.name or f"graph/{node.op_type}", named)
        named.add(node.name)
        for value in node.outputs:
            if value not in values and value.name != "":
                value.name = unused_name(value.name or f"{node.name}.out", taken)
                taken.add(value.name)


def unused_name(name: str, *taken: Container[str]) -> str:
    """`name`, or `name_1`, `name_2`, … where one of `taken`, such as `names_in(graph)`, has it already."""
    candidate, count = name, 0
    while any(candidate in names for names in taken):
        count += 1
        candidate = f"{name}_{count}"
    return candidate

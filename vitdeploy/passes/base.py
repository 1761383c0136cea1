"""What every graph pass is: an object that rewrites, and says what it changed."""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from vitdeploy.graph.edit import remove_unused
from vitdeploy.targets import Target


class GraphPass(ir.passes.InPlacePass, abc.ABC):
    """A rewrite of the graph that changes no output beyond rounding.

    A pass leaves one line for each change in `changes`, keeps the graph's outputs and their names, and gives no name to
    two values or two nodes. One that does not suit its target leaves the graph alone (`applies`), and so it does with a
    part of the graph that it does not understand. What it cannot do without is checked in `requires(model)`, what holds
    afterwards in `ensures(model)`, the hooks of onnx-ir, where that costs little: both run at every export, and raise
    `PreconditionError` and `PostconditionError`.

    Ours run in the order of `exporter.optimize.PASSES`. An installed package adds one by an entry point of the group
    `vitdeploy.passes`:

        [project.entry-points."vitdeploy.passes"]
        mine = "my_package.passes:MyPass"

    It is made with the target, runs after ours, by name, and gets what they leave: opset 20, standard operators, every
    value annotated with its shape and type. After it the graph is restated in the target's opset.
    """

    name: ClassVar[str]

    def __init__(self, target: Target) -> None:
        self.target = target
        self.changes: list[str] = []

    def applies(self) -> bool:
        """Whether the target wants this pass."""
        return True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on `model` in place."""
        before = [(value.name, value.dtype) for value in model.graph.outputs]
        self.changes = self.rewrite(model) if self.applies() else []
        if self.changes:
            remove_unused(model)
            _check(model.graph, before)
        return ir.passes.PassResult(model, modified=bool(self.changes))

    @abc.abstractmethod
    def rewrite(self, model: ir.Model) -> list[str]:
        """Change `model` and return one line for each change, naming the node."""


def _check(graph: ir.Graph, before: Sequence[tuple[str | None, ir.DataType | None]]) -> None:
    """What holds after every pass: the outputs are those of `before`, and names are unique among values and nodes."""
    after = [value.name for value in graph.outputs]
    if after != [name for name, _ in before]:
        raise ir.passes.PostconditionError(f"the outputs became {after}")
    for value, (name, dtype) in zip(graph.outputs, before, strict=True):
        if dtype is not None and value.dtype != dtype:
            raise ir.passes.PostconditionError(f"the output {name} was {dtype} and became {value.dtype}")
    made = (value for node in graph for value in node.outputs)
    values = dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made))
    for things, names in (("values", [value.name for value in values]), ("nodes", [node.name for node in graph])):
        for name, count in Counter(name for name in names if name).most_common(1):
            if count > 1:
                raise ir.passes.PostconditionError(f"{count} {things} are called {name}")

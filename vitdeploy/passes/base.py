"""What every graph pass is: an object that rewrites, and says what it changed."""

from __future__ import annotations

import abc
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.targets import Target


class GraphPass(ir.passes.InPlacePass, abc.ABC):
    """A rewrite of the graph that changes no output beyond rounding.

    A pass states in `expects` what it needs of the graph and in `guarantees` what holds afterwards, and leaves one line
    for each change in `changes`. A pass that does not suit its target leaves the graph alone (`applies`).
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    guarantees: ClassVar[str]

    def __init__(self, target: Target) -> None:
        self.target = target
        self.changes: list[str] = []

    def applies(self) -> bool:
        """Whether the target wants this pass."""
        return True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on `model` in place."""
        self.changes = self.rewrite(model) if self.applies() else []
        if self.changes:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(self.changes))

    @abc.abstractmethod
    def rewrite(self, model: ir.Model) -> list[str]:
        """Change `model` and return one line for each change, naming the node."""

"""Which module of the network a graph computes wrongly: its values are compared with what PyTorch's modules give.

The names of nodes carry the module path, so the values that enter and leave the nodes of a module are known. A module's
input or output is right if one of them equals it. In an optimized graph it may be laid out in another order, so where
the shape is another one, the sorted numbers are compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import TopologicalSortPass
from torch import Tensor, nn

from vitdeploy.exporter.module_calls import Event, Labels, module_names, relative_error, watching
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.graph.run import Inputs, Runner

Array = NDArray[Any]

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # the bound of FP32 outputs
AT_ONCE = 32  # modules whose values are in memory together


def wrong_modules(graph: ir.Model, network: TorchNetwork, inputs: Inputs) -> Iterator[nn.Module]:
    """The modules whose inputs the graph has and whose output it has not, in the order in which they end.

    `inputs` are one batch. The first is the culprit: a module around it follows, and one behind it has other inputs.
    """
    labels, names = Labels(network.module), module_names(network.module)
    scopes = _scopes(graph)
    modules = [module for module in _in_order(network, inputs) if any(name in scopes for name in names.get(module, ()))]
    for start in range(0, len(modules), AT_ONCE):
        part = {
            module: [scopes[name] for name in names[module] if name in scopes]
            for module in modules[start : start + AT_ONCE]
        }
        wanted = {name for found in part.values() for scope in found for name in (*scope.entering, *scope.leaving)}
        runner = Runner(showing(graph, wanted), "as_written")
        values = {**inputs, **next(runner.batches(inputs))}
        comparison = _Comparison(part, values)
        with watching(comparison.look):
            network.run(inputs)
        for module in part:
            verdicts = comparison.verdicts(module)
            for taken, given in verdicts:
                log.debug("%s: inputs %s, outputs %s", labels(module), _WORDS[taken], _WORDS[given])
            if (True, False) in verdicts:
                yield module


_WORDS = {True: "agree", False: "differ", None: "unknown"}


@dataclass
class _Scope:
    """The names of the values that enter and leave the nodes of a module."""

    entering: dict[str, None] = field(default_factory=dict)
    leaving: dict[str, None] = field(default_factory=dict)


def _scopes(graph: ir.Model) -> dict[str, _Scope]:
    """The scope of every module path in `graph`, the empty path being that of the network."""
    found: dict[str, _Scope] = {}
    inputs = set(graph.graph.inputs)
    for node in graph.graph:
        for path in _around(node):
            scope = found.setdefault(path, _Scope())
            for value in node.inputs:
                source = None if value is None else value.producer()
                if value is not None and (value in inputs if source is None else path not in _around(source)):
                    scope.entering[str(value.name)] = None
            for value in node.outputs:
                if value.is_graph_output() or any(path not in _around(user) for user, _ in value.uses()):
                    scope.leaving[str(value.name)] = None
    return found


def _around(node: ir.Node) -> list[str]:
    """The paths of the modules that a node belongs to, from the network, the empty one, to the innermost."""
    parts = str(node.name or "").rpartition("/")[0].split(".")
    return ["", *(".".join(parts[: index + 1]) for index in range(len(parts)))]


def showing(graph: ir.Model, names: Container[str]) -> ir.Model:
    """A copy of `graph` in executable order that gives the values of these names too."""
    shown = graph.clone()
    TopologicalSortPass()(shown)
    values = [value for node in shown.graph for value in node.outputs if value.name in names]
    shown.graph.outputs.extend(value for value in values if not value.is_graph_output())
    return shown


def _in_order(network: TorchNetwork, inputs: Inputs) -> list[nn.Module]:
    """The modules that a call runs, in the order in which each ends for the first time."""
    seen: dict[nn.Module, None] = {}

    def note(event: Event) -> None:
        if not event.enters:
            seen.setdefault(event.module)

    with watching(note):
        network.run(inputs)
    return list(seen)


class _Comparison:
    """Holds what modules take and give against the values of the graph that enter and leave them."""

    def __init__(self, scopes: Mapping[nn.Module, Sequence[_Scope]], values: Mapping[str, Array]) -> None:
        self._sides: dict[nn.Module, tuple[_Side, _Side]] = {}
        for module, several in scopes.items():
            entering = {name: values[name] for scope in several for name in scope.entering}
            leaving = {name: values[name] for scope in several for name in scope.leaving}
            self._sides[module] = _Side(entering), _Side(leaving)
        self._running: list[int] = []

    def look(self, event: Event) -> None:
        """Compare now, for what runs next may change the tensors in place."""
        if event.module not in self._sides:
            return
        inputs, outputs = self._sides[event.module]
        if event.enters:
            self._running.append(inputs.add(event.tensors))
        else:
            outputs.add(event.tensors, self._running.pop())

    def verdicts(self, module: nn.Module) -> list[tuple[bool | None, bool | None]]:
        """For each call whether the inputs and whether the outputs agree."""
        inputs, outputs = self._sides[module]
        agree = {call: inputs.verdict(call) for call in outputs.calls}
        misled = [call for call, right in agree.items() if not right]
        return [(right, outputs.verdict(call, misled)) for call, right in agree.items()]


class _Side:
    """The tensors that the calls of a module take, or that they give, and the values among which they should be."""

    def __init__(self, values: Mapping[str, Array]) -> None:
        self.calls: dict[int, list[tuple[int, bool]]] = {}
        self._values = values
        self._equalled: set[str] = set()

    def add(self, tensors: Sequence[Tensor], call: int | None = None) -> int:
        """Note of each tensor of a call its size, and whether a value equals it. Returns the number of the call."""
        call = len(self.calls) if call is None else call
        arrays = [tensor.detach().numpy() for tensor in tensors if not tensor.is_complex()]
        self.calls[call] = []
        for array in arrays:
            equal = {name for name, value in self._values.items() if same_numbers(array, value)}
            self._equalled |= equal
            self.calls[call].append((array.size, bool(equal)))
        return call

    def verdict(self, call: int, misled: Collection[int] = ()) -> bool | None:
        """Whether the tensors of a call are in the graph; None where it has nothing to compare them with.

        A module may be given, or return, what nobody uses. So a tensor that is missing counts only where a value of
        its size is left that no tensor equals; and next to others that are there, only where more such values are left
        than the calls `misled` by other inputs account for.
        """
        left = Counter(value.size for name, value in self._values.items() if name not in self._equalled)
        owed = Counter(size for other in misled for size, known in self.calls[other] if not known)
        known = [known for _, known in self.calls[call] if known]
        missing = [size for size, found in self.calls[call] if not found and left[size] > (owed[size] if known else 0)]
        return False if missing else True if known else None


def same_numbers(array: Array, value: Array) -> bool:
    """Whether a value of the graph holds a tensor, in whatever layout."""
    if array.size != value.size:
        return False
    if array.shape != value.shape:
        array, value = np.sort(array, axis=None), np.sort(value, axis=None)
    return relative_error(array, value) <= TOLERANCE

"""Which operator in the code of a module a graph computes wrongly.

The result of every operator that PyTorch runs there is looked for among the values of the graph. Even a right graph
lacks some, for it may be decomposed in another way. But what follows from such a result is there again, and what
follows from a wrong one is not.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitdeploy.exporter.diagnosis.localize import same_numbers, showing
from vitdeploy.exporter.module_calls import Event, module_names, tensors_in, watching
from vitdeploy.exporter.torch_network import TorchNetwork, place
from vitdeploy.graph.run import Inputs, Runner

Array = NDArray[Any]


def wrong_operator(graph: ir.Model, network: TorchNetwork, inputs: Inputs, module: nn.Module) -> str | None:
    """The operator, with its place in the user's code, from whose result on `graph` has nothing that PyTorch has.

    `inputs` are one batch, and `module` one whose inputs are right. None where no operator of its own code is found.
    """
    paths = {path or "graph" for path in module_names(network.module).get(module, ())}
    own = [node for node in graph.graph if str(node.name).rpartition("/")[0] in paths]
    names = {str(value.name) for node in own for value in node.outputs}
    values = next(Runner(showing(graph, names), "as_written").batches(inputs))
    with watching(lambda event: operators.visit(event)) as running:
        operators = _Operators(module, running, [values[name] for name in names if name in values])
        with operators:
            network.run(inputs)
    return operators.first_lost()


@dataclass
class _Result:
    """What an operator gave.

    made_of  the results that it was computed from
    found    whether the graph has it; None inside of submodules, where nobody looks
    view     whether it is another view of what the operator was given
    """

    operator: str
    made_of: set[int]
    found: bool | None
    view: bool


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the operators from the inputs of a module on."""

    def __init__(self, module: nn.Module, running: Sequence[nn.Module], values: Sequence[Array]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module, self._running, self._values = module, running, values
        self._results: list[_Result] = []
        self._inputs: set[int] = set()
        self._made: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the id of one that is noted

    def visit(self, event: Event) -> None:
        """Note what the module is given."""
        if event.enters and event.module is self._module:
            self._alive.extend(event.tensors)
            self._inputs.update(map(id, event.tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tensors_in((args, kwargs))
        given = [id(tensor) for tensor in inputs]
        result = func(*args, **(kwargs or {}))
        made_of = {self._made[one] for one in given if one in self._made}
        if self._module in self._running and (made_of or not self._inputs.isdisjoint(given)):
            tensors = tensors_in(result)
            found = any(map(self._has, tensors)) if self._running[-1] is self._module else None
            name = func.overloadpacket.__name__.strip("_") + place(traceback.extract_stack())
            self._made.update((id(tensor), len(self._results)) for tensor in tensors)
            self._results.append(_Result(name, made_of, found, any(_is_view(one, inputs) for one in tensors)))
            self._alive.extend(tensors)
        return result

    def first_lost(self) -> str | None:
        """The first result from which nothing follows that the graph has."""
        kept: set[int] = set()
        for index in reversed(range(len(self._results))):
            result = self._results[index]
            if result.found or index in kept:
                kept |= {index, *result.made_of}
        lost = [one for i, one in enumerate(self._results) if i not in kept and one.found is False]
        return next((one.operator for one in sorted(lost, key=lambda one: one.view)), None)

    def _has(self, tensor: Tensor) -> bool:
        if tensor.is_complex() or tensor.numel() < 2:
            return False
        array = tensor.detach().numpy()
        return bool((array != array.flat[0]).any()) and any(same_numbers(array, value) for value in self._values)


def _is_view(tensor: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether a result is a new tensor over the numbers of an input."""
    storage = tensor.untyped_storage().data_ptr()
    return all(tensor is not one for one in inputs) and any(
        one.untyped_storage().data_ptr() == storage for one in inputs
    )

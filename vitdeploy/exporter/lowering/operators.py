"""ATen operators that are written in others when the graph is translated, so that every target has a form for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from vitdeploy.errors import ExportError, VitDeployError
from vitdeploy.exporter.lowering import (
    complex_numbers,
    elementary,
    fourier,
    grid_sample,
    pooling,
    resampling,
    scatter,
)
from vitdeploy.exporter.lowering.sizes import where_fixed

Forms = Mapping[Any, Callable[..., Any]]
_OWN = ("onnx_symbolic", "onnx")  # namespaces of operators that are ONNX already


def translate(
    program: ExportedProgram, composites: Forms, opset: int, done: Callable[[], None] = lambda: None
) -> torch.onnx.ONNXProgram:
    """`program`, which this uses up, in ONNX, with those operators, and the `composites`, in their forms.

    `done` is called once they are written in their forms.

    PyTorch's exporter asks the program to write what it cannot translate in other operators. That traces the whole
    network anew, so our forms are put in there, and it is traced once for both.

    Raises ExportError, which names the module and its line, for an operator that has no translation to ONNX.
    """
    forms = {**decompositions(program), **composites}
    for node in program.graph.nodes:
        node.meta.pop("from_node", None)  # what PyTorch made it of: copied with every node of every further step
    rewrite = program.run_decompositions
    rewritten: list[ExportedProgram] = []
    refused: list[VitDeployError] = []

    def with_ours(table: Forms) -> ExportedProgram:
        try:
            ours = {target: _first_of(form, table.get(target)) for target, form in forms.items()}
            rewritten.append(rewrite({**table, **ours}))
        except VitDeployError as error:
            refused.append(error)
            raise
        done()
        return rewritten[-1]

    program.run_decompositions = with_ours
    try:
        made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=opset)
    except Exception as error:  # among them what the exporter makes of ours
        if refused:
            raise refused[0] from error
        for node in (node for one in rewritten for node in one.graph.nodes):
            if missing := _missing(node.target):
                raise _no_form(node, missing) from error
        raise
    assert made is not None, "torch gives None for other exporters than dynamo only"
    return made


def _first_of(form: Callable[..., Any], theirs: Callable[..., Any] | None) -> Callable[..., Any]:
    """Our form of an operator, and where it has none, for free axes for instance, the one of PyTorch's exporter."""
    if theirs is None:
        return form

    def either(*args: Any, **kwargs: Any) -> Any:
        found = form(*args, **kwargs)
        return theirs(*args, **kwargs) if found is NotImplemented else found

    return either


def decompositions(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """The form of each such operator in other ATen operators and standard ONNX, for those that `program` may have."""
    table: dict[Any, Callable[..., Any]] = {}
    for module in (resampling, pooling, scatter, grid_sample, elementary):
        table.update(where_fixed(module.decompositions()))
    if any(complex_numbers.has_complex(node.meta.get("val")) for node in program.graph.nodes):
        table.update(complex_numbers.decompositions())
        table.update(where_fixed(fourier.decompositions()))
    return table


def _missing(target: Any) -> str | None:
    """The name of an operator that PyTorch's exporter neither translates nor knows how to write in others."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace in _OWN:
        return None
    known = _known_operators()
    return None if not known or target in known else str(target)


def _known_operators() -> frozenset[Any]:
    """What PyTorch's exporter takes; empty where this version of it does not say."""
    if not _KNOWN:
        with contextlib.suppress(ImportError, AttributeError):
            _KNOWN.append(frozenset(_exporter_operators()))
    return _KNOWN[0] if _KNOWN else frozenset()


_KNOWN: list[frozenset[Any]] = []


def _exporter_operators() -> Iterator[Any]:
    from torch.onnx._internal.exporter import _decomp, _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=20)
    translated = set(_decomp.get_onnx_implemented_overloads(registry))
    yield from translated
    yield from _decomp.create_onnx_friendly_decomposition_table(translated)
    aten = torch.ops.aten  # checks, which the exporter removes
    yield from (aten._assert_scalar.default, aten._assert_async.msg, aten._assert_async.default)
    yield from (aten._assert_tensor_metadata.default, aten.sym_constrain_range_for_size.default)


def _no_form(node: torch.fx.Node, name: str) -> ExportError:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]).removeprefix("model").removeprefix(".") if stack else ""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    return ExportError(
        f"{name} in {f'module {path}' if path else 'the network'} has no form in ONNX",
        why=" ".join(lines[-2:]) or "PyTorch's exporter neither translates it nor writes it in other operators",
        fix="write that line with other PyTorch operations, or move it behind the network",
    )

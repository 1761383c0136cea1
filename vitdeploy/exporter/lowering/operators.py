"""ATen operators that are written in others before the graph is captured, so that every target has a form for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from vitdeploy.errors import ExportError
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


def decomposed(program: ExportedProgram, composites: Forms) -> ExportedProgram:
    """`program` with those operators, and the `composites`, in their forms.

    Raises ExportError, which names the module and its line, for an operator that then has no translation to ONNX.
    """
    rewritten: ExportedProgram = program.run_decompositions({**decompositions(program), **composites})
    for node in rewritten.graph.nodes:
        missing = _missing(node.target)
        if missing:
            raise _no_form(node, missing)
    return rewritten


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

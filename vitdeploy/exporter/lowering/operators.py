"""ATen operators that are written in others before the graph is captured, so that every target has a form for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.export import ExportedProgram

from vitdeploy.exporter.lowering import complex_numbers, elementary, fourier, grid_sample, pooling, resampling, scatter


def decompositions(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """The form of each such operator in other ATen operators and standard ONNX, for those that `program` may have."""
    table: dict[Any, Callable[..., Any]] = {}
    for module in (resampling, pooling, scatter, grid_sample, elementary):
        table.update(module.decompositions())
    if any(complex_numbers.has_complex(node.meta.get("val")) for node in program.graph.nodes):
        table.update(complex_numbers.decompositions())
        table.update(fourier.decompositions())
    return table

"""How many operator forms each version converter restates right from opset 20 to 17.

    python benchmarks/opset_converters.py

Every row of tests/exporter/lowering/forms.py is captured twice: as vitdeploy captures it, with the operators written in
others first, and as PyTorch's exporter does alone. The second graph goes to each converter. A form counts as right
where the result is valid at opset 17 by onnx.checker and within 1e-4 of PyTorch in float64 in ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnxscript.version_converter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.exporter.lowering.forms import FORMS
from tests.exporter.lowering.test_forms import Exported, on_onnxruntime, require_right
from vitdeploy.exporter.lowering import operators
from vitdeploy.exporter.optimize import lower, optimize
from vitdeploy.targets import Target, find_target

OPSET = 17
PORTABLE = find_target("portable")
NEWEST = dataclasses.replace(PORTABLE, opset=20)


def optimized(graph: ir.Model, target: Target) -> ir.Model:
    """A copy of a captured graph after all rewrites for `target`."""
    copy = graph.clone()
    lower(copy, target)
    optimize(copy, target)
    return copy


def by_rows(graph: ir.Model) -> ir.Model:
    """The rows of `opset_rules`."""
    return optimized(graph, PORTABLE)


def by_onnx(graph: ir.Model) -> ir.Model:
    """The converter of the onnx package."""
    proto = ir.to_proto(optimized(graph, NEWEST))
    return ir.from_proto(onnx.version_converter.convert_version(proto, OPSET))


def by_onnxscript(graph: ir.Model) -> ir.Model:
    """The converter of onnxscript, which falls back to that of onnx."""
    model = optimized(graph, NEWEST)
    onnxscript.version_converter.convert_version(model, OPSET, fallback=True)
    return model


WAYS: dict[str, Callable[[ir.Model], ir.Model]] = {
    "rows of opset_rules": by_rows,
    "onnx": by_onnx,
    "onnxscript": by_onnxscript,
}


def verdict(way: Callable[[ir.Model], ir.Model], exported: Exported) -> str:
    """`right`, `wrong numbers`, `another opset` or `refused or invalid`."""
    try:
        model = way(exported.captured)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        if model.graph.opset_imports[""] != OPSET:
            return "another opset"
        require_right(exported, on_onnxruntime(model), "")
    except AssertionError:
        return "wrong numbers"
    except Exception:  # converters raise whatever they like
        return "refused or invalid"
    return "right"


def main() -> None:
    """Print one line for each way."""
    logging.disable(logging.CRITICAL)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("vitdeploy", *WAYS)}
    for row in FORMS:
        counts["vitdeploy"][verdict(by_rows, Exported(row, 2))] += 1
        with mock.patch.object(operators, "decompositions", return_value={}):
            try:
                plain = Exported(row, 2)
            except Exception:
                plain = None
        for name, way in WAYS.items():
            counts[name]["not captured" if plain is None else verdict(way, plain)] += 1
    for name, counter in counts.items():
        print(f"{name}: {', '.join(f'{kind} {count}' for kind, count in counter.most_common())}")


if __name__ == "__main__":
    main()

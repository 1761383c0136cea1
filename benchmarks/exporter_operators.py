"""Every operator of the standard domain that an export can hold: this package's own, and those of torch's exporters.

    python benchmarks/exporter_operators.py

The source text is read, and every name of an ONNX operator in it counts, whether it is written as text or as an
attribute (`op.Relu`). This finds more than is ever emitted, and nothing that is emitted escapes it.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

PACKAGE = Path(__file__).resolve().parent.parent / "vitdeploy"
# What writes or rewrites a graph, by exporter; paths inside the installed packages.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "vitdeploy": ("exporter", "passes", "quantize", "tensorrt", "graph"),
    "torch.onnx, TorchScript": ("torch/onnx/_internal/torchscript_exporter", "torch/onnx/symbolic_*.py"),
    "torch.onnx, dynamo": (
        "torch/onnx/ops",
        "torch/onnx/_internal/exporter",
        "onnxscript/function_libs",
        "onnxscript/optimizer",
        "onnxscript/rewriter",
    ),
}


def standard_operators() -> dict[str, onnx.defs.OpSchema]:
    """The newest schema of every operator that the standard domain ever had."""
    newest: dict[str, onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        known = newest.get(schema.name)
        if not schema.domain and (known is None or known.since_version < schema.since_version):
            newest[schema.name] = schema
    return newest


def emitted() -> dict[str, set[str]]:
    """Operators by exporter."""
    names = set(standard_operators())
    return {exporter: {name for file in _files(exporter) for name in _named(file, names)} for exporter in SOURCES}


def left_out(schema: onnx.defs.OpSchema) -> str | None:
    """Why an operator is not asked for: it takes or gives no tensors of numbers alone. None for all the others."""
    allowed = {row.type_param_str: set(map(str, row.allowed_type_strs)) for row in schema.type_constraints}

    def kinds(formal: str) -> set[str]:
        return {kind.partition("(")[0] for kind in allowed.get(formal, {formal})} - {"tensor"}

    sides = [*schema.inputs, *schema.outputs]
    # If, Loop, Scan and Identity take tensors too.
    if any(kinds(side.type_str) and not _tensors(side.type_str, allowed) for side in sides):
        return "sequences and optional values"
    if schema.name.startswith(("Sequence", "Optional", "SplitToSequence")):
        return "sequences and optional values"
    if any(allowed.get(side.type_str, {side.type_str}) == {"tensor(string)"} for side in schema.inputs):
        return "strings"
    return None


def _tensors(formal: str, allowed: Mapping[str, set[str]]) -> bool:
    return any(kind.startswith("tensor(") for kind in allowed.get(formal, {formal}))


def _files(exporter: str) -> Iterator[Path]:
    for place in SOURCES[exporter]:
        if exporter == "vitdeploy":
            yield from (PACKAGE / place).rglob("*.py")
            continue
        module, _, rest = place.partition("/")
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise SystemExit(f"{module} is not installed: bash scripts/test.sh makes an environment that has it")
        folder = Path(found.origin).parent
        yield from folder.glob(rest) if rest.endswith(".py") else (folder / rest).rglob("*.py")


def _named(file: Path, names: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from names & set(node.value.replace("onnx::", "").split())
        elif isinstance(node, ast.Attribute) and node.attr in names:
            yield node.attr


if __name__ == "__main__":
    found = emitted()
    for exporter, operators in found.items():
        print(f"{exporter}: {len(operators)} operators")
    together = set().union(*found.values())
    print(f"together {len(together)} of {len(standard_operators())} of the standard domain")
    for name, schema in sorted(standard_operators().items()):
        if (why := left_out(schema)) is not None:
            print(f"left out: {name} ({why}){'' if name in together else ', which no exporter emits'}")
    sys.exit(0)

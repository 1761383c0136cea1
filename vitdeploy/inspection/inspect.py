"""Inspecting a bundle: its manifest, its graph, and what the installed runtimes execute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.bundle.manifest import PYTORCH
from vitdeploy.errors import BackendError
from vitdeploy.graph.names import block_of
from vitdeploy.inspection.report import GraphStatistics, InspectionReport, KeptNode
from vitdeploy.proof.prove import proven_against
from vitdeploy.runtime import isolated
from vitdeploy.runtime.backends import Backend, backends
from vitdeploy.runtime.executed import ExecutedGraph

_PRECISION_OF = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}
_CONVERSIONS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})


@checked_arguments
def inspect(bundle: Bundle | str | Path) -> InspectionReport:
    """Read a bundle, check its files against the manifest, and ask the installed runtimes what they execute.

    Needs no torch; without onnx and onnx-ir the statistics of the graph are left out.

    Args:
        bundle: A bundle, or its folder.

    Returns:
        The contents of the bundle, and what each runtime executes.

    Raises:
        BundleError: The bundle is damaged or altered.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_files()
    manifest = opened.manifest
    model = _load_onnx(opened)
    notes = []
    if manifest.model.weights.kind == "random":
        notes.append(f"SEEDED RANDOM WEIGHTS ({manifest.model.weights.detail}): the predictions mean nothing")
    if manifest.against != PYTORCH:
        notes.append(proven_against(manifest.against))
    if model is None:
        notes.append("graph statistics and attention blocks need onnx and onnx-ir: pip install onnx onnx-ir")
    notes += [
        f"{report.get('runtime', 'a runtime')} did not reproduce {manifest.against} when this bundle was checked"
        for report in _objects(manifest.parity)
        if report.get("passed") is False
    ]
    return InspectionReport(
        bundle=str(opened.path),
        manifest=manifest.to_dict(),
        graph=graph_statistics(model) if model is not None else None,
        rewrites=rewrites(manifest.graph),
        kept_fp32=kept_nodes(manifest.precision_report),
        runtimes=tuple(executed(backend, opened) for backend in backends() if backend.tells_graph),
        notes=tuple(notes),
        signed=opened.is_signed,
    )


def graph_statistics(model: Any) -> GraphStatistics:
    """The numbers of an onnx.ModelProto; types that the file does not state are inferred."""
    import onnx
    import onnx_ir

    from vitdeploy.graph.attention import find_attentions

    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)
    } | {tensor.name: tensor.data_type for tensor in graph.initializer}
    name_of = {number: name for name, number in onnx.TensorProto.DataType.items()}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    weights: Counter[str] = Counter()
    for tensor in graph.initializer:
        weights[name_of[tensor.data_type].lower()] += len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
    blocks: dict[str, Counter[str]] = {}
    for node in nodes:
        blocks.setdefault(block_of(node.name), Counter())[_precision(node, types, name_of, dequantized)] += 1
    return GraphStatistics(
        nodes=len(nodes),
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        weights=dict(weights.most_common()),
        precision=dict(sum(blocks.values(), Counter()).most_common()),
        blocks={name: dict(counts.most_common()) for name, counts in blocks.items()},
        attention=len(find_attentions(onnx_ir.from_proto(model).graph, operators=True)),
    )


def executed(backend: type[Backend], bundle: Bundle) -> ExecutedGraph:
    """What a runtime makes of the bundle; one that is not installed or does not load it says so in `skipped`."""
    missing = backend.available()
    if missing:
        return ExecutedGraph(backend.name, skipped=missing)
    try:
        return isolated.executed(backend, bundle)
    except BackendError as error:
        return ExecutedGraph(backend.name, skipped=error.what)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return ExecutedGraph(backend.name, skipped=f"{backend.name} cannot load the model: {lines[-1].strip()}")


def _load_onnx(bundle: Bundle) -> Any | None:
    """The parsed model, or None where the packages onnx and onnx-ir are not installed."""
    try:
        import onnx
        import onnx_ir  # noqa: F401
    except ImportError:
        return None
    return onnx.load_model_from_string(bundle.read(MODEL))


def _precision(node: Any, types: Mapping[str, int], name_of: Mapping[int, str], dequantized: set[str]) -> str:
    """The precision that a node computes in, from the graph's types; INT8 where its operands are dequantized."""
    if node.op_type in _CONVERSIONS:
        return "conversion"
    operands = [name for name in node.input[:2] if _PRECISION_OF.get(name_of.get(types.get(name, 0), ""))]
    if operands and all(name in dequantized for name in operands):
        return "int8"
    found = (_PRECISION_OF.get(name_of.get(types.get(name, 0), "")) for name in node.output)
    return next((precision for precision in found if precision), "integer")


def rewrites(graph: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The lines of each pass; parts of the manifest's free-form record that have another form are ignored."""
    found: dict[str, tuple[str, ...]] = {}
    for record in _objects(graph.get("passes")):
        changes = record.get("changes")
        lines = tuple(str(line) for line in changes) if isinstance(changes, list) else ()
        name = str(record.get("pass"))
        found[name] = found.get(name, ()) + lines
    return found


def kept_nodes(report: Mapping[str, Any]) -> tuple[KeptNode, ...]:
    """The nodes that a precision report says stayed in float, each with the reason."""
    records = _objects(report.get("kept_fp32"))
    products = report.get("float")  # of an INT8 bundle
    reasons = products.items() if isinstance(products, dict) else ()
    return tuple(KeptNode(str(record.get("node")), str(record.get("reason"))) for record in records) + tuple(
        KeptNode(str(node), str(reason)) for node, reason in reasons
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

"""What OpenVINO's CPU plugin executes, read from its runtime model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.runtime.executed import ExecutedGraph, count

if TYPE_CHECKING:
    from vitdeploy.graph.attention import Attention


def read_graph(compiled: Any, shipped: bytes) -> ExecutedGraph:
    """The layers of a compiled model, held against the shipped ONNX file."""
    import openvino

    layers = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(operation, key) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
        if facts["layerType"] not in ("Const", "Input", "Output"):
            layers.append(facts)
    of_node = {name: layer for layer in layers for name in layer["originalLayersNames"].split(",") if name}
    multiple = [layer for layer in layers if layer["originalLayersNames"].strip(",").count(",")]
    return ExecutedGraph(
        "openvino",
        openvino.get_version().partition("-")[0],
        operators=count(layer["layerType"] for layer in layers),
        precision=count(layer["runtimePrecision"] for layer in layers),
        fused=count(layer["layerType"] for layer in multiple),
        attention=tuple(_in_openvino(found, of_node) for found in _attentions(shipped)),
    )


def _in_openvino(found: Attention, of_node: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    parts = [of_node.get(str(node.name)) for node in (found.first, found.softmax, found.second)]
    kinds = list(dict.fromkeys(part["layerType"] if part else "nothing of that name" for part in parts))
    fused = parts[0] is not None and all(part is parts[0] for part in parts)
    return {"block": found.name, "fused": fused, "runs_as": kinds[0] if fused else ", ".join(kinds) + " apart"}


def _text(operation: Any, key: str) -> str:
    value = operation.rt_info[key]
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _attentions(data: bytes) -> list[Attention]:
    """Those of an ONNX file; none where the packages onnx and onnx-ir are not installed."""
    try:
        import onnx
        import onnx_ir
    except ImportError:
        return []
    from vitdeploy.graph.attention import find_attentions

    return find_attentions(onnx_ir.from_proto(onnx.load_model_from_string(data)).graph, operators=True)

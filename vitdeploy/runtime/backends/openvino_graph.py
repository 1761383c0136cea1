"""What OpenVINO's CPU plugin executes, read from its runtime model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.graph.attention import AttentionBlock, attention_blocks
from vitdeploy.runtime.executed import ExecutedGraph, count


def read_graph(model: bytes, weights: bytes, shipped: bytes) -> ExecutedGraph:
    """The layers of the compiled model, computing in FP32 as sessions do, held against the shipped ONNX file."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model, weights), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(operation, key) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
        if facts["layerType"] not in ("Const", "Input", "Output"):
            layers.append(facts)
    known = _load_onnx(shipped)
    of_node = {name: layer for layer in layers for name in layer["originalLayersNames"].split(",") if name}
    multiple = [layer for layer in layers if layer["originalLayersNames"].strip(",").count(",")]
    return ExecutedGraph(
        "openvino",
        openvino.get_version().partition("-")[0],
        operators=count(layer["layerType"] for layer in layers),
        precision=count(layer["runtimePrecision"] for layer in layers),
        fused=count(layer["layerType"] for layer in multiple),
        attention=tuple(_in_openvino(block, of_node) for block in attention_blocks(known)) if known else (),
    )


def _in_openvino(block: AttentionBlock, of_node: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    parts = [of_node.get(name) for name in (block.first, block.softmax, block.second)]
    kinds = list(dict.fromkeys(part["layerType"] if part else "nothing of that name" for part in parts))
    fused = parts[0] is not None and all(part is parts[0] for part in parts)
    return {"block": block.name, "fused": fused, "runs_as": kinds[0] if fused else ", ".join(kinds) + " apart"}


def _text(operation: Any, key: str) -> str:
    value = operation.rt_info[key]
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _load_onnx(data: bytes) -> Any | None:
    """The parsed model, or None where the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    return onnx.load_model_from_string(data)

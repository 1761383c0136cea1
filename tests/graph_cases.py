"""Run, count and build the small graphs that the proofs of the graph passes use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime
import onnxsim
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import nn

from tests.rows import TARGETS
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.attention import lower_attention
from vitdeploy.exporter.lowering.deconvolution import lower_deconvolution
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.simplify import SKIPPED
from vitdeploy.passes.static_shapes import StaticShapes
from vitdeploy.targets import Target

PORTABLE = TARGETS["portable"]


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the graph exactly as written: ONNX Runtime with every optimization off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    proto = ir.serde.serialize_model(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def ops(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator the graph has."""
    return Counter(node.op_type for node in model.graph)


def parsed(text: str, **weights: np.ndarray) -> ir.Model:
    """A model of opset 20 from the ONNX text of its graph, `weights` its initializers, shapes inferred."""
    proto = onnx.parser.parse_model(
        text if text.startswith("<") else f'<ir_version: 10, opset_import: ["": 20]> {text}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return inferred(ir.serde.deserialize_model(proto))


def captured(module: nn.Module, example: torch.Tensor, *, dynamic_batch: bool = False) -> ir.Model:
    """A captured module, composites lowered for the portable target; its input is `images`, its output `y`."""
    model = capture(module.eval(), example, dynamic_batch=dynamic_batch, output_names=["y"])
    lower_attention(model)
    lower_deconvolution(model, PORTABLE)
    model.functions.clear()
    return model


def inferred(model: ir.Model) -> ir.Model:
    """The model with the shapes that ONNX shape inference finds."""
    return ShapeInferencePass()(model).model


def assert_same(before: list[np.ndarray], after: list[np.ndarray], tolerance: float = 1e-5) -> None:
    """Outputs equal to `tolerance` of the largest magnitude, shapes and types exactly."""
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
        assert np.abs(old - new).max(initial=0.0) <= tolerance * max(np.abs(old).max(initial=0.0), 1e-6)


def prove(
    kind: type[GraphPass], model: ir.Model, *batches: np.ndarray, tolerance: float = 1e-5, target: Target | None = None
) -> GraphPass:
    """Apply the pass in place: every output agrees on every batch of inputs, and a second run finds nothing to do."""
    feeds = [{model.graph.inputs[0].name: batch} for batch in batches]
    before = [run(model, feed) for feed in feeds]
    names, complete = [value.name for value in model.graph.outputs], annotated(model)
    first, second = kind(target or PORTABLE), kind(target or PORTABLE)
    first(model)
    for feed, outputs in zip(feeds, before, strict=True):
        assert_same(outputs, run(model, feed), tolerance)
    assert [value.name for value in model.graph.outputs] == names
    assert complete <= annotated(model)
    second(model)
    assert second.changes == []
    return first


def annotated(model: ir.Model) -> bool:
    """Whether every value has a shape and a type."""
    return all(value.shape is not None and value.type is not None for node in model.graph for value in node.outputs)


def batch(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def folded(module: nn.Module, example: torch.Tensor, *, dynamic_batch: bool = False) -> ir.Model:
    """A captured module as the structural passes get it: static shapes, constants folded, linear layers left alone."""
    model = captured(module, example, dynamic_batch=dynamic_batch)
    StaticShapes(PORTABLE)(model)
    proto, _ = onnxsim.simplify(ir.serde.serialize_model(model), skipped_optimizers=list(SKIPPED))
    return inferred(ir.serde.deserialize_model(proto))

"""A package as others write them: a runtime, a target and a pass of its own, and not a line of vitdeploy changed.

The runtime computes with the reference evaluator of the package onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import MODEL, Bundle, TensorSpec
from vitdeploy.passes.base import GraphPass
from vitdeploy.runtime.backends.base import Array, Backend
from vitdeploy.runtime.executed import ExecutedGraph, count
from vitdeploy.runtime.options import Options
from vitdeploy.targets import Int8Rules, Target

NOTES = "sample.txt"


class SampleBackend(Backend):
    """Runs a bundle by the definitions of the ONNX standard."""

    name = "sample"
    package = "onnx"
    extra = "export"
    auto_rank = 1
    auto_reason = "it is the standard itself"
    tells_graph = True

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        return ("CPU", "ABACUS")

    @classmethod
    def convert(cls, model: bytes) -> dict[str, bytes]:
        return {NOTES: f"{len(model)} bytes of ONNX".encode()}

    @classmethod
    def throughput_options(cls, cores: int) -> dict[str, Any]:
        return {"num_requests": 1}

    @classmethod
    def executed(cls, bundle: Bundle) -> ExecutedGraph:
        import onnx

        graph = onnx.load_model_from_string(bundle.read(MODEL)).graph
        return ExecutedGraph(cls.name, onnx.__version__, operators=count(node.op_type for node in graph.node))

    @classmethod
    def _load(cls, model: bytes, weights: bytes, options: Options) -> Backend:
        import onnx
        from onnx.reference import ReferenceEvaluator

        proto = onnx.load_model_from_string(model)
        return cls(ReferenceEvaluator(proto), _specs(proto.graph.input), _specs(proto.graph.output))

    def _run(self, native: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, map(np.asarray, native.run(names, dict(inputs))), strict=True))

    def _facts(self) -> dict[str, Any]:
        import onnx

        return {"version": onnx.__version__, "device": "CPU", "compute_precision": "types of the graph", "threads": 1}


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    import onnx

    return tuple(
        TensorSpec(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


TARGET = Target(
    "sample-board",
    opset=19,
    runtimes=("sample", "onnxruntime"),
    native="sample",
    int8=Int8Rules(min_channels=4, source="made up"),
    description="a board that runs the standard",
)


class NameNodes(GraphPass):
    """Counts the nodes of a graph; only for the sample's own target."""

    name = "sample_count"

    def applies(self) -> bool:
        return self.target.name == TARGET.name

    def rewrite(self, model: ir.Model) -> list[str]:
        return [f"{sum(1 for _ in model.graph)} nodes seen"]

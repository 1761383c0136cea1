"""From a finished graph to the files that ship and the manifest that describes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import MODEL, BundleWriter, FileRecord, Manifest, ModelRecord, TensorSpec, WeightsRecord
from vitdeploy.bundle.sbom import SBOM, bill_of_materials
from vitdeploy.errors import REPORT, ExportError
from vitdeploy.exporter.network import Network
from vitdeploy.exporter.optimize import node_count
from vitdeploy.exporter.request import ExportRequest
from vitdeploy.files import hash_file
from vitdeploy.models.registry import ModelCard
from vitdeploy.runtime.backends import find_backend
from vitdeploy.targets import Target

if TYPE_CHECKING:
    import onnx

# The newest ONNX file format that every target reads.
IR_VERSION = 10
TOOLS = ("vitdeploy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "openvino", "numpy", "pillow")
# Libraries of networks, which take part where they are imported.
SOURCES = ("timm", "transformers")


def standard_onnx(graph: ir.Model) -> onnx.ModelProto:
    """A finished graph as the file that ships; ExportError unless it is valid ONNX of standard operators."""
    import onnx

    graph.ir_version = min(graph.ir_version, IR_VERSION)
    graph.producer_name, graph.producer_version = "vitdeploy", metadata.version("vitdeploy")
    for node in graph.graph:
        node.metadata_props.clear()
    proto = ir.to_proto(graph)
    foreign = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    if foreign or proto.functions:
        what = f"the graph still has operators of {', '.join(sorted(foreign)) or 'local functions'}"
        raise ExportError(what, why="a bundle has standard ONNX operators only", fix=REPORT)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError("the exported graph is not valid ONNX", why=str(error).splitlines()[0], fix=REPORT) from error
    return proto


def write_model(graph: ir.Model, writer: BundleWriter, target: Target) -> None:
    """Write model.onnx and the files of the target's native runtime, if it has one."""
    model = standard_onnx(graph).SerializeToString()
    writer.write_bytes(MODEL, model)
    if target.native is not None:
        for name, data in find_backend(target.native).convert(model).items():
            writer.write_bytes(name, data)


def write_bill(manifest: Manifest, writer: BundleWriter) -> None:
    """Write the bill of materials beside the files that are there; the manifest is complete but for its hashes."""
    found = sorted(path for path in writer.path.rglob("*") if path.is_file())
    files = {path.relative_to(writer.path).as_posix(): FileRecord(*hash_file(path)) for path in found}
    writer.write_bytes(SBOM, bill_of_materials(manifest, files))


def describe(
    graph: ir.Model, card: ModelCard, network: Network, images: Sequence[str], request: ExportRequest
) -> Manifest:
    """The manifest of a finished graph, without the results that come after it; `images` are its inputs of images."""
    labels = () if network.strides else card.labels
    inputs = tuple(_spec(value) for value in graph.graph.inputs)
    declared = {"strides": dict(network.strides), "selections": list(network.selections)}
    return Manifest(
        model=ModelRecord(
            name=card.name,
            family=card.family,
            image_size=card.image_size if images else None,
            num_classes=card.num_classes,
            weights=WeightsRecord(**asdict(card.weights)),
            hyperparameters=card.hyperparameters,
        ),
        precision=request.precision,
        target=request.row.name,
        platform=None if request.platform is None else request.platform.name,
        opset=graph.opset_imports[""],
        preprocessing=card.preprocessing if images else None,
        image_inputs=tuple(images),
        labels=labels,
        preprocessing_in_graph=bool(images) and inputs[0].dtype == "uint8",
        inputs=inputs,
        outputs=tuple(_spec(value) for value in graph.graph.outputs),
        tools=_tool_versions(),
        graph={"nodes": node_count(graph), **{key: value for key, value in declared.items() if value}},
    )


def _spec(value: ir.Value) -> TensorSpec:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=str(value.name), dtype=str(np.dtype(value.dtype.numpy())), shape=shape)


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in (*TOOLS, *(source for source in SOURCES if source in sys.modules)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[tool] = metadata.version(tool)
    return versions

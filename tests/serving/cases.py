"""Small classifiers whose logits depend on every pixel, with any recipe, in every form that a bundle has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import in_precision
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, Manifest, ModelRecord, TensorSpec, WeightsRecord
from vitdeploy.passes.bake_preprocessing import BakePreprocessing
from vitdeploy.preprocess import Preprocessing, normalise
from vitdeploy.runtime.backends.openvino import IR_MODEL, IR_WEIGHTS
from vitdeploy.targets import find_target

DESTINATIONS = ("triton", "openvino-model-server", "deepstream", "dlstreamer", "trtexec", "cpp")
LABELS = ("tench; Tinca tinca", 'the "great" white', "Ä ö", "back\\slash", "two\nlines")
SIZE = (9, 12)


def recipe(**changes: Any) -> Preprocessing:
    """ImageNet's recipe at a small size."""
    return Preprocessing(**{"size": SIZE, **changes})


def weights(depth: int, size: tuple[int, int]) -> np.ndarray:
    """One column for each class; the logits stay around 1."""
    count = depth * size[0] * size[1]
    drawn = np.random.default_rng(0).normal(size=(count, len(LABELS))) / np.sqrt(count)
    return drawn.astype(np.float32)


def linear(given: Preprocessing, batch: int | str, precision: str = "fp32", output: str = "logits") -> bytes:
    """All values of the input through one linear layer."""
    shape = [batch, given.depth, *given.size]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "weight"], [output], name="head/MatMul"),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, len(LABELS)])],
        [numpy_helper.from_array(weights(given.depth, given.size), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return in_precision(model.SerializeToString(), precision)


def write_linear(
    path: Path,
    given: Preprocessing | None = None,
    *,
    batch: int | str = "batch",
    precision: str = "fp32",
    baked: bool = False,
    native: bool = False,
    labels: tuple[str, ...] = LABELS,
    name: str = "linear",
    output: str = "logits",
) -> Bundle:
    """The bundle of that network; `baked` takes pixels, and `native` has the files of OpenVINO too."""
    given = given or recipe()
    model = linear(given, batch, precision, output)
    count = 6 if isinstance(batch, str) else 2 * batch
    pixels = np.random.default_rng(1).integers(0, 256, (count, *given.size, given.depth)).astype(np.uint8)
    images = normalise(pixels, given)
    outputs = (images.reshape(count, -1).astype(np.float64) @ weights(given.depth, given.size)).astype(np.float32)
    if baked:
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_from_string(model)))
        BakePreprocessing(find_target("portable"), given)(graph)
        model = ir.to_proto(graph).SerializeToString()
    height, width = given.size
    shape = (batch, height, width, 3) if baked else (batch, given.depth, height, width)
    manifest = Manifest(
        model=ModelRecord(name, "tests", given.size, len(LABELS), WeightsRecord("random", "seed 0")),
        precision=precision,
        target="portable",
        opset=17,
        preprocessing=given,
        preprocessing_in_graph=baked,
        inputs=(TensorSpec("images", "uint8" if baked else "float32", shape),),
        outputs=(TensorSpec(output, "float32", (batch, len(LABELS))),),
        labels=labels,
        precision_report={"reference_snr_db": 40.0} if precision == "int8" else {},
    )
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, model)
        if native:
            writer.write_bytes(IR_MODEL, b"<net/>")
            writer.write_bytes(IR_WEIGHTS, b"\0" * 8)
        writer.write_reference({"images": pixels if baked else images}, {output: outputs}, preprocessing=given)
        writer.seal(manifest)
        return writer.commit()

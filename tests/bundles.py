"""A bundle of a few kilobytes whose outputs are known by hand, for tests that need any bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.bundle import MANIFEST, MODEL, Bundle, BundleWriter, Manifest, ModelRecord, TensorSpec, WeightsRecord
from vitdeploy.bundle.manifest import dump
from vitdeploy.preprocess import Preprocessing

SIZE = 8
LABELS = ("ant", "bee", "cat", "dog")
WEIGHT = np.random.default_rng(0).normal(size=(3, len(LABELS))).astype(np.float32)


def tiny_logits(images: np.ndarray) -> np.ndarray:
    """What the tiny model computes: mean of each channel, then one linear layer."""
    return (images.astype(np.float64).mean(axis=(2, 3)) @ WEIGHT.astype(np.float64)).astype(np.float32)


def tiny_model(batch: int | str = "batch", *, pyramid: bool = False) -> bytes:
    """The same as an ONNX file; with `pyramid` two outputs, `fine` and `coarse`, instead of `logits`."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
    if pyramid:
        nodes = [
            helper.make_node("AveragePool", ["images"], ["fine"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("AveragePool", ["images"], ["coarse"], kernel_shape=[4, 4], strides=[4, 4]),
        ]
        outputs = [
            helper.make_tensor_value_info("fine", TensorProto.FLOAT, [batch, 3, 4, 4]),
            helper.make_tensor_value_info("coarse", TensorProto.FLOAT, [batch, 3, 2, 2]),
        ]
    else:
        nodes = [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(LABELS)])]
    weights = [] if pyramid else [numpy_helper.from_array(WEIGHT, "weight")]
    graph = helper.make_graph(nodes, "tiny", [images], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def in_precision(model: bytes, precision: str) -> bytes:
    """A model with the initializer `weight` that has the types of a precision, and computes exactly what it did."""
    if precision == "fp32":
        return model
    proto = onnx.load_from_string(model)
    (reader,) = [node for node in proto.graph.node if "weight" in node.input]
    reader.input[:] = ["typed_weight" if name == "weight" else name for name in reader.input]
    if precision == "fp16":
        constants = {"half": np.zeros(1, np.float16)}
        zero = helper.make_node("Cast", ["half"], ["zero"], to=TensorProto.FLOAT)
    else:
        constants = {"code": np.zeros(1, np.int8), "step": np.array(0.5, np.float32)}
        zero = helper.make_node("DequantizeLinear", ["code", "step"], ["zero"])
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    for place, node in enumerate((zero, helper.make_node("Add", ["weight", "zero"], ["typed_weight"]))):
        proto.graph.node.insert(place, node)
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def tiny_images(count: int = 6) -> np.ndarray:
    """Normalised images [count, 3, 8, 8]."""
    return np.random.default_rng(1).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def tiny_manifest(batch: int | str = "batch", *, pyramid: bool = False, precision: str = "fp32") -> Manifest:
    """A manifest that fits `tiny_model`."""
    outputs = (TensorSpec("logits", "float32", (batch, len(LABELS))),)
    if pyramid:
        outputs = (
            TensorSpec("fine", "float32", (batch, 3, 4, 4)),
            TensorSpec("coarse", "float32", (batch, 3, 2, 2)),
        )
    return Manifest(
        model=ModelRecord("tiny", "tests", (SIZE, SIZE), len(LABELS), WeightsRecord("random", "seed 0")),
        precision=precision,
        target="portable",
        opset=17,
        preprocessing=Preprocessing(size=(SIZE, SIZE), mode="stretch", crop_ratio=1.0),
        inputs=(TensorSpec("images", "float32", (batch, 3, SIZE, SIZE)),),
        outputs=outputs,
        labels=LABELS,
        tools={"onnx": onnx.__version__},
        graph={"nodes_before": 5, "nodes_after": 3, "passes": []},
        precision_report={"reference_snr_db": 40.0} if precision == "int8" else {},
    )


def fill(
    writer: BundleWriter,
    batch: int | str = "batch",
    *,
    error: float = 0.0,
    pyramid: bool = False,
    precision: str = "fp32",
) -> None:
    """The files of the tiny bundle; `error` is added to the reference logits, so that parity breaks."""
    images = tiny_images(6 if isinstance(batch, str) else batch * -(-6 // batch))
    outputs = {"logits": tiny_logits(images) + np.float32(error)}
    if pyramid:
        blocks = {name: images.reshape(-1, 3, SIZE // k, k, SIZE // k, k) for name, k in (("fine", 2), ("coarse", 4))}
        outputs = {name: block.mean(axis=(3, 5)) for name, block in blocks.items()}
    writer.write_bytes(MODEL, in_precision(tiny_model(batch, pyramid=pyramid), precision))
    writer.write_reference({"images": images}, outputs, preprocessing=tiny_manifest().preprocessing)


def write_tiny_bundle(
    path: Path,
    batch: int | str = "batch",
    *,
    error: float = 0.0,
    pyramid: bool = False,
    precision: str = "fp32",
    force: bool = False,
) -> Bundle:
    """The tiny bundle, committed at `path`."""
    with BundleWriter(path, force=force) as writer:
        fill(writer, batch, error=error, pyramid=pyramid, precision=precision)
        writer.seal(tiny_manifest(batch, pyramid=pyramid, precision=precision))
        return writer.commit()


def forge(bundle: Bundle, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest on disk and signs it again, as somebody with intent would."""
    document = json.loads((bundle.path / MANIFEST).read_text())
    edit(document)
    (bundle.path / MANIFEST).write_bytes(dump(document))


def forge_file(bundle: Bundle, name: str, data: bytes) -> None:
    """Replaces a file, with its hash in the manifest."""
    (bundle.path / name).write_bytes(data)
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    forge(bundle, lambda document: document["files"].update({name: record}))


def append_to(path: Path, data: bytes = b"\0") -> None:
    """Makes a file longer."""
    path.write_bytes(path.read_bytes() + data)


def failing_after(calls: int, error: BaseException) -> Callable[..., None]:
    """A function that raises `error` at its call number `calls`, counted from zero."""
    remaining = [calls]

    def fail(*args: Any, **kwargs: Any) -> None:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise error

    return fail

"""The transformer of two streams in INT8 as `vitdeploy export` writes it, and a bundle of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tests.bundles import tiny_images, tiny_manifest
from tests.rows import RULES
from tests.transformer import compute, transformer
from vitdeploy.bundle import MODEL, Bundle, BundleWriter
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.placement import place, tensors


def int8_transformer(*, attention: bool = True) -> bytes:
    """Convolutions, linear layers and, with `attention`, its products in INT8, the rest in FP32."""
    model = read_graph(transformer(batch=2))
    rules = RULES["portable"] if attention else RULES["tensorrt10"]
    plan = place(model.graph, rules)
    wide = {str(value.name): 6.0 for node in model.graph for value in node.outputs} | {"images": 4.0}
    ranges = {
        name: (layers[0].scheme or rules.activation if layers else rules.activation).params(-wide[name], wide[name])
        for name, layers in tensors(model.graph, plan).items()
    }
    made = insert(model, plan, ranges, {}, rules)
    data: bytes = ir.to_proto(made).SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    return data


def write_int8_bundle(path: Path, *, target: str = "tensorrt10") -> Bundle:
    """A bundle of it, whose reference is what the FP32 form computes, and which records what INT8 keeps of that."""
    images, model = tiny_images(), int8_transformer()
    expected = {"logits": np.concatenate([compute(transformer(), images[i : i + 2])["logits"] for i in (0, 2, 4)])}
    actual = np.concatenate([compute(model, images[i : i + 2])["logits"] for i in (0, 2, 4)])
    noise = np.square(actual - expected["logits"]).sum()
    kept = 10 * np.log10(np.square(expected["logits"]).sum() / noise)
    manifest = replace(
        tiny_manifest(2, precision="int8"), target=target, precision_report={"reference_snr_db": float(kept)}
    )
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, model)
        writer.write_reference(inputs={"images": images}, outputs=expected)
        writer.seal(manifest)
        return writer.commit()

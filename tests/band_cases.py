"""Images of 13 bands, as Sentinel-2 delivers them, and a tiny bundle that takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import LABELS, tiny_manifest
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, TensorSpec
from vitdeploy.preprocess import Preprocessing

BANDS = 13
MEAN = tuple(round(0.05 + 0.01 * band, 2) for band in range(BANDS))
STD = tuple(round(0.1 + 0.005 * band, 3) for band in range(BANDS))
# Reflectance: 10000 is white.
RECIPE = Preprocessing((8, 8), "stretch", 1.0, mean=MEAN, std=STD, channels="bands", scale=10000)
WEIGHT = np.random.default_rng(7).normal(size=(BANDS, len(LABELS))).astype(np.float32)


def scenes(count: int, size: tuple[int, int] = (9, 7), dtype: str = "uint16", bands: int = BANDS) -> np.ndarray:
    """Noise [count, H, W, bands] of up to 10000, of 8-bit types over their whole range."""
    random = np.random.default_rng(3)
    if dtype == "uint8":
        return random.integers(0, 256, (count, *size, bands), dtype=np.uint8)
    return random.integers(0, 10001, (count, *size, bands)).astype(dtype)


def normalised(pixels: np.ndarray, recipe: Preprocessing) -> np.ndarray:
    """The formula in double precision, band by band: [N, H, W, C] to [N, C, H, W]."""
    planes = [
        (pixels[..., band].astype(np.float64) / recipe.scale - recipe.mean[band]) / recipe.std[band]
        for band in range(recipe.depth)
    ]
    return np.stack(planes, axis=1)


def band_logits(images: np.ndarray) -> np.ndarray:
    """What the bundle computes: the mean of each band, then one linear layer."""
    return (images.astype(np.float64).mean(axis=(2, 3)) @ WEIGHT.astype(np.float64)).astype(np.float32)


def write_band_bundle(path: Path) -> Bundle:
    """A bundle of a network that takes `RECIPE`."""
    shape = ("batch", BANDS, *RECIPE.size)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "bands",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    images = np.random.default_rng(1).normal(size=(4, BANDS, *RECIPE.size)).astype(np.float32)
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, model.SerializeToString())
        writer.write_reference({"images": images}, {"logits": band_logits(images)}, preprocessing=RECIPE)
        writer.seal(replace(tiny_manifest(), preprocessing=RECIPE, inputs=(TensorSpec("images", "float32", shape),)))
        return writer.commit()

"""Bundles of the tiny network with chosen weights, and labelled images on which its answers are known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.bundles import LABELS, SIZE, WEIGHT, fill, in_precision, tiny_manifest, tiny_model, write_tiny_bundle
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, TensorSpec
from vitdeploy.preprocess import Preprocessing, preprocess_batch

RECIPE = Preprocessing(size=(SIZE, SIZE), mode="stretch", crop_ratio=1.0)
CLASSES = len(LABELS)


def write_variant(
    path: Path, weight: np.ndarray = WEIGHT, *, precision: str = "fp16", batch: int | str = "batch"
) -> Bundle:
    """The tiny bundle, its model with other weights than its reference outputs: quantization, in the large."""
    model = onnx.load_from_string(tiny_model(batch))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "weight"))
    with BundleWriter(path) as writer:
        fill(writer, batch)
        writer.write_bytes(MODEL, in_precision(model.SerializeToString(), precision))
        writer.seal(tiny_manifest(batch, precision=precision))
        return writer.commit()


def noisy(seed: int = 1, scale: float = 0.3) -> np.ndarray:
    """The weights with noise, so that some answers change."""
    return WEIGHT + np.random.default_rng(seed).normal(scale=scale, size=WEIGHT.shape).astype(np.float32)


def photos(count: int = 120, seed: int = 0) -> np.ndarray:
    """One colour each, uint8 [count, 8, 8, 3]; every class of the tiny network is the best of some."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.broadcast_to(colours, (count, SIZE, SIZE, 3)).copy()


def logits_of(images: np.ndarray, weight: np.ndarray = WEIGHT) -> np.ndarray:
    """What the network with these weights says of images, in double precision."""
    return preprocess_batch(list(images), RECIPE).astype(np.float64).mean(axis=(2, 3)) @ weight.astype(np.float64)


def labels_of(images: np.ndarray, wrong: float = 0.1) -> np.ndarray:
    """Class numbers with which the FP32 network is right, but for a part of the images."""
    targets = logits_of(images).argmax(axis=1)
    targets[: int(wrong * len(targets))] += 1
    return targets % CLASSES


def write_folder(root: Path, images: np.ndarray, targets: np.ndarray, labels: tuple[str, ...] = LABELS) -> Path:
    """Class folders of these images: `ant/007.png`."""
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        folder = root / labels[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return root


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> Path:
    """`folder` as the working folder, with bundles `fp32` and `int8`, `data`, and the user's cache in it."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write_tiny_bundle(folder / "fp32")
    write_variant(folder / "int8", noisy(), precision="int8")
    write_folder(folder / "data", images, labels_of(images))
    return folder


def write_baked(path: Path) -> Bundle:
    """The tiny network as a graph that takes uint8 pixels [N, 8, 8, 3] and normalises them itself."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    constants = {
        "scale": 255 * np.array(RECIPE.std, np.float32),
        "offset": np.array(RECIPE.mean, np.float32) / np.array(RECIPE.std, np.float32),
        "weight": WEIGHT,
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["means", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], ["normalised"]),
        helper.make_node("MatMul", ["normalised", "weight"], ["logits"]),
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "baked", [pixels], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    images = photos(6)
    spec = TensorSpec("pixels", "uint8", ("batch", SIZE, SIZE, 3))
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, in_precision(model.SerializeToString(), "fp16"))
        writer.write_reference({"pixels": images}, {"logits": logits_of(images).astype(np.float32)})
        writer.seal(replace(tiny_manifest(precision="fp16"), inputs=(spec,), preprocessing_in_graph=True))
        return writer.commit()

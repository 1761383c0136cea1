"""Bundles of small networks with maps, features or several inputs, whose answers numpy computes by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.bundles import in_precision
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, Manifest, ModelRecord, TensorSpec, WeightsRecord
from vitdeploy.graph.run import run
from vitdeploy.preprocess import Preprocessing, preprocess_batch

SIZE, CLASSES = 16, 4
LABELS = ("water", "forest", "field", "town")
RECIPE = Preprocessing(size=(SIZE, SIZE), mode="stretch", crop_ratio=1.0)
# Colours, one a class, that lie far apart, and the linear layer that tells them from each other.
COLOURS = np.array([[30, 30, 220], [20, 150, 20], [220, 200, 40], [150, 150, 150]], np.uint8)


def colour_weight() -> np.ndarray:
    """[classes, 3] and a bias [classes]: the negative distance to the colours, up to what is the same for all."""
    centres = preprocess_batch([np.tile(colour, (SIZE, SIZE, 1)) for colour in COLOURS], RECIPE)[:, :, 0, 0]
    return np.concatenate([2 * centres, -np.square(centres).sum(axis=1, keepdims=True)], axis=1).astype(np.float32)


def scenes(count: int = 12, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, H, W, 3] of four blocks of a class's colour each with noise, and masks [count, H, W]."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, CLASSES, (count, 2, 2))
    masks = kinds.repeat(size[0] // 2, axis=1).repeat(size[1] // 2, axis=2)
    noisy = COLOURS[masks] + rng.normal(0, 25, (*masks.shape, 3))
    return noisy.clip(0, 255).astype(np.uint8), masks.astype(np.uint8)


def write_data(root: Path, images: np.ndarray, masks: np.ndarray, *, palette: bool = False) -> Path:
    """`images/003.png` and `masks/003.png`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        Image.fromarray(image).save(root / "images" / f"{number:03}.png")
        drawn = Image.fromarray(mask)
        if palette:
            drawn.putpalette(list(range(255, -1, -1)) * 3)
        drawn.save(root / "masks" / f"{number:03}.png")
    return root


def write_network(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Mapping[str, tuple[Any, ...]],
    weights: Mapping[str, np.ndarray],
    *,
    precision: str = "fp32",
    reference: Mapping[str, np.ndarray] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    batch: int | str = "batch",
    graph_facts: Mapping[str, Any] | None = None,
    whole: str | None = None,
    **fields: Any,
) -> Bundle:
    """A bundle of a graph; `reference` are the weights that its reference outputs come from, `weights` by default.

    outputs  by name, a type and a shape without the batch
    inputs   samples by name; images where none are given
    whole    the name of an output that is a single number, whatever the batch
    """
    given = inputs or {"images": np.random.default_rng(1).normal(size=(6, 3, SIZE, SIZE)).astype(np.float32)}
    given = {name: array[: 6 if isinstance(batch, str) else batch] for name, array in given.items()}

    def model(chosen: Mapping[str, np.ndarray]) -> bytes:
        shown = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [batch, *array.shape[1:]])
            for name, array in given.items()
        ]
        made = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [batch, *shape])
            for name, (kind, *shape) in outputs.items()
        ]
        if whole is not None:
            made.append(helper.make_tensor_value_info(whole, TensorProto.FLOAT, []))
        kept = [numpy_helper.from_array(array, name) for name, array in chosen.items()]
        graph = helper.make_graph(list(nodes), "net", shown, made, kept)
        found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(found, full_check=True)
        data: bytes = found.SerializeToString()
        return data

    expected = run(model(reference or weights), given)
    manifest = Manifest(
        model=ModelRecord("net", "tests", (SIZE, SIZE), CLASSES, WeightsRecord("module", "made by hand")),
        precision=precision,
        target="portable",
        opset=17,
        preprocessing=RECIPE if "images" in given else None,
        image_inputs=("images",) if "images" in given else (),
        inputs=tuple(TensorSpec(name, str(array.dtype), (batch, *array.shape[1:])) for name, array in given.items()),
        outputs=(
            *(TensorSpec(name, kind, (batch, *shape)) for name, (kind, *shape) in outputs.items()),
            *(() if whole is None else (TensorSpec(whole, "float32", ()),)),
        ),
        labels=LABELS if "labels" not in fields else (),
        graph=dict(graph_facts or {}),
        precision_report={"reference_snr_db": 40.0} if precision == "int8" else {},
    )
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, in_precision(model(weights), precision))
        recipe = RECIPE if "images" in given else None
        writer.write_reference(given, expected, preprocessing=recipe)
        writer.seal(replace(manifest, **fields))
        return writer.commit()


def write_segmenter(
    path: Path, *, noise: float = 0.0, stride: int = 4, kind: str = "scores", precision: str = "", **options: Any
) -> Bundle:
    """Scores [N, classes, 16 / stride, 16 / stride] of each pixel's colour, or with `kind="classes"` their best class.

    With `noise` the weights of the model are not those of its reference outputs, as after quantization.
    """
    exact = colour_weight()
    moved = (
        exact + np.random.default_rng(5).normal(scale=noise, size=exact.shape).astype(np.float32) if noise else exact
    )
    side = SIZE // stride
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("Conv", ["pooled", "weight", "bias"], ["logits"]),
    ]
    outputs: dict[str, tuple[Any, ...]] = {"logits": ("float32", CLASSES, side, side)}
    if kind == "classes":
        nodes[1].output[:] = ["scores"]
        nodes.append(helper.make_node("ArgMax", ["scores"], ["classes"], axis=1, keepdims=0))
        outputs = {"classes": ("int64", side, side)}
    both = (moved, exact)
    first, second = ({"weight": one[:, :3, None, None], "bias": one[:, 3]} for one in both)
    precision = precision or ("fp16" if noise else "fp32")
    return write_network(path, nodes, outputs, first, reference=second, precision=precision, **options)


def scores_of(images: np.ndarray, weight: np.ndarray, stride: int = 4) -> np.ndarray:
    """What the segmenter computes, in double precision."""
    pixels = preprocess_batch(list(images), RECIPE).astype(np.float64)
    count, side = len(pixels), SIZE // stride
    pooled = pixels.reshape(count, 3, side, stride, side, stride).mean(axis=(3, 5))
    return np.einsum("kc,nchw->nkhw", weight[:, :3], pooled) + weight[:, 3][None, :, None, None]


def write_pyramid(path: Path, *, noise: float = 0.0, declared: bool = True) -> Bundle:
    """Features `stride4` and `stride8` of 5 channels."""
    exact = np.random.default_rng(3).normal(size=(5, 3, 1, 1)).astype(np.float32)
    moved = exact + np.random.default_rng(4).normal(scale=noise, size=exact.shape).astype(np.float32)
    nodes = []
    for stride in (4, 8):
        pooled = f"pooled{stride}"
        nodes.append(
            helper.make_node("AveragePool", ["images"], [pooled], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        nodes.append(helper.make_node("Conv", [pooled, "weight" if stride == 4 else "fixed"], [f"stride{stride}"]))
    return write_network(
        path,
        nodes,
        {f"stride{stride}": ("float32", 5, SIZE // stride, SIZE // stride) for stride in (4, 8)},
        {"weight": moved, "fixed": exact},
        reference={"weight": exact, "fixed": exact},
        precision="fp16" if noise else "fp32",
        graph_facts={"strides": {"stride4": 4, "stride8": 8}} if declared else None,
        labels=(),
    )


def write_pair(path: Path, *, noise: float = 0.0) -> Bundle:
    """A network of two inputs, `left` [N, 6] and `ids` int64 [N, 2]: `score` [N, 1] and `embedding` [N, 6]."""
    exact = np.random.default_rng(3).normal(size=(6, 6)).astype(np.float32)
    moved = exact + np.random.default_rng(4).normal(scale=noise, size=exact.shape).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["left", "weight"], ["embedding"]),
        helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axis"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["embedding", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "total"], ["score"]),
    ]
    rng = np.random.default_rng(7)
    inputs = {"left": rng.normal(size=(6, 6)).astype(np.float32), "ids": rng.integers(0, 9, (6, 2))}
    axis = np.array([1], np.int64)
    return write_network(
        path,
        nodes,
        {"score": ("float32", 1), "embedding": ("float32", 6)},
        {"weight": moved, "axis": axis},
        reference={"weight": exact, "axis": axis},
        inputs=inputs,
        precision="fp16" if noise else "fp32",
        labels=(),
        model=ModelRecord("pair", "tests", None, 0, WeightsRecord("module", "made by hand")),
    )

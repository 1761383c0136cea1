"""Small FP32 graphs with tensors to observe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
CHANNELS = 4
CLASSES = 5


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32),
        "linear": rng.normal(size=(CHANNELS, CLASSES)).astype(np.float32),
        "shape": np.array([0, CHANNELS, -1], dtype=np.int64),
    }


def network(batch: int | str = "batch", *, outputs: Sequence[str] = ("logits",)) -> onnx.ModelProto:
    """images [n, 3, 8, 8] -> conv -> relu -> flat [n, 4, 64] -> rows [n, 64, 4] -> logits [n, 64, 5].

    `scores` [n, 64, 64] is a product of two activations.
    """
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["conv"], pads=[1, 1, 1, 1], name="Conv"),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Reshape", ["relu", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "flat"], ["scores"], name="Scores"),
        helper.make_node("MatMul", ["rows", "linear"], ["logits"], name="Linear"),
    ]
    tokens = SIDE * SIDE
    sizes = {"logits": (tokens, CLASSES), "scores": (tokens, tokens)}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *sizes[name]]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def photos(count: int, seed: int = 0) -> np.ndarray:
    """Normalised images [count, 3, 8, 8], the later the brighter."""
    values = np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE))
    return (values * np.linspace(0.5, 2, count).reshape(-1, 1, 1, 1)).astype(np.float32)


def activations(images: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of `network`, by numpy."""
    made = weights()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, made["kernel"], optimize=True)
    relu = np.maximum(conv, 0)
    flat = relu.reshape(len(images), CHANNELS, -1)
    rows = flat.transpose(0, 2, 1)
    return {
        "images": images,
        "conv": conv,
        "relu": relu,
        "flat": flat,
        "rows": rows,
        "scores": rows @ flat,
        "logits": rows @ made["linear"],
    }

"""A small network of four layers, of which the third can be made costly in INT8 on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, SIDE, CLASSES = 48, 8, 5
OUTLIER = "channel"
COSTLY = {OUTLIER: "channel spread", "side": "one-sided", "few": "few channels"}


def network(
    costly: str | None = None, *, outputs: Sequence[str] = ("logits",), batch: int | str = 1
) -> onnx.ModelProto:
    """images [batch, 3, 8, 8] -> stem -> before -> bad -> after, something between each two -> logits [batch, 5].

    costly  what is wrong with the layer `bad`: its input has an outlier channel that its weights make up for, lies on
            one side of zero while its weights cancel the mean, or has a single channel, whose error all that follows
            adds up while those of 48 channels average out
    outputs `logits`, and perhaps `map`, what stands before the pool: [batch, 64, 48] of linear layers
    """
    rng = np.random.default_rng(0)
    convolutions = costly == "few"
    middle = 1 if convolutions else WIDTH

    def normal(into: int, out: int) -> np.ndarray:
        return (rng.standard_normal((into, out)) / np.sqrt(into)).astype(np.float32)

    weights = {"before": normal(WIDTH, middle), "bad": normal(middle, WIDTH), "after": normal(WIDTH, WIDTH)}
    if costly == OUTLIER:
        weights["before"][:, 3] *= 60.0
        weights["bad"][3] /= 60.0
    if costly == "side":
        weights["bad"] -= weights["bad"].mean(axis=0)
    if costly == "few":
        weights = {name: np.abs(weight) for name, weight in weights.items()}
    between = {None: "Tanh", OUTLIER: "Relu", "side": "Sigmoid", "few": "Tanh"}[costly]
    initializers = {"stem_weight": normal(3, WIDTH).T.reshape(WIDTH, 3, 1, 1), "head_weight": normal(WIDTH, CLASSES)}
    nodes = [
        helper.make_node("Conv", ["images", "stem_weight"], ["s0"], name="stem"),
        helper.make_node("Tanh", ["s0"], ["s1"], name="act0"),
    ]
    value = "s1"
    if not convolutions:
        initializers["rows"] = np.array([0, WIDTH, -1])
        nodes += [
            helper.make_node("Reshape", [value, "rows"], ["flat"], name="flat"),
            helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1], name="tokens"),
        ]
        value = "tokens"
    for name, function in (("before", between), ("bad", "Tanh"), ("after", None)):
        weight, made = weights[name], "map" if function is None else f"{name}_made"
        initializers[f"{name}_weight"] = weight.T.reshape(*weight.T.shape, 1, 1).copy() if convolutions else weight
        operator = "Conv" if convolutions else "MatMul"
        nodes.append(helper.make_node(operator, [value, f"{name}_weight"], [made], name=name))
        value = made
        if function is not None:
            value = f"{name}_act"
            nodes.append(helper.make_node(function, [made], [value], name=value))
    axes = [2, 3] if convolutions else [1]
    nodes += [
        helper.make_node("ReduceMean", ["map"], ["pooled"], axes=axes, keepdims=0, name="pool"),
        helper.make_node("MatMul", ["pooled", "head_weight"], ["logits"], name="head"),
    ]
    shapes = {"logits": [batch, CLASSES], "map": [batch, WIDTH, SIDE, SIDE] if convolutions else [batch, 64, WIDTH]}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_network(path: Path, costly: str | None = None, **options: object) -> Path:
    """The network as a file."""
    onnx.save(network(costly, **options), path)  # type: ignore[arg-type]
    return path


def write_data(path: Path, count: int = 80, *, labels: bool = True, classes: int = CLASSES, side: int = SIDE) -> Path:
    """An `.npz` of random images, uint8 [count, side, side, 3], with class numbers in turn."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    known = {"labels": np.arange(count) % classes} if labels else {}
    np.savez(path, images=images, **known)
    return path

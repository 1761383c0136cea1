"""Graphs of several kinds of tensors, and ways in which a runtime gets them wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import BackendError

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
CHANNELS = 8


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, list[int | str]]],
    outputs: Sequence[tuple[str, int, list[int | str]]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> bytes:
    """An ONNX file that is checked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def several() -> bytes:
    """Three inputs and three outputs of three types: a choice of rows by number, a mask, and what they leave."""
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], name="one/Relu"),
        helper.make_node("ArgMax", ["positive"], ["best"], name="two/ArgMax", axis=-1, keepdims=0),
        helper.make_node("Greater", ["x", "zero"], ["above"], name="three/Greater"),
        helper.make_node("And", ["above", "mask"], ["kept"], name="three/And"),
        helper.make_node("Gather", ["table", "best"], ["rows"], name="four/Gather"),
        helper.make_node("Gather", ["table", "ids"], ["more"], name="four/Gather_1"),
        helper.make_node("Add", ["rows", "more"], ["sum"], name="five/Add"),
        helper.make_node("Where", ["kept", "x", "sum"], ["y"], name="six/Where"),
        helper.make_node("Identity", ["best"], ["chosen"], name="seven/Identity"),
        helper.make_node("Not", ["kept"], ["left"], name="seven/Not"),
    ]
    shape: list[int | str] = ["batch", CHANNELS]
    return build(
        nodes,
        [("x", FLOAT, shape), ("ids", INT64, ["batch"]), ("mask", BOOL, shape)],
        [("y", FLOAT, shape), ("chosen", INT64, ["batch"]), ("left", BOOL, shape)],
        {"zero": np.zeros((), np.float32), "table": normal(CHANNELS, CHANNELS)},
    )


def quantized() -> bytes:
    """Two linear layers of INT8, each with Q/DQ in front, under the names of two blocks."""
    scale, zero, nodes, weights, value = np.float32(0.03), np.int8(0), [], {}, "x"
    for index in range(2):
        at = f"blocks.{index}.0.linear"
        weights |= {f"{at}.scale": scale, f"{at}.zero": zero, f"{at}.steps": np.full(CHANNELS, 0.01, np.float32)}
        weights |= {f"{at}.zeros": np.zeros(CHANNELS, np.int8)}
        weights[f"{at}.weight"] = np.clip(np.rint(normal(CHANNELS, CHANNELS, seed=index) * 40), -127, 127).astype(
            np.int8
        )
        steps, real = [f"{at}.scale", f"{at}.zero"], [f"{at}.weight", f"{at}.steps", f"{at}.zeros"]
        nodes += [
            helper.make_node("QuantizeLinear", [value, *steps], [f"{at}.q"], name=f"{at}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [f"{at}.q", *steps], [f"{at}.dq"], name=f"{at}/DequantizeLinear"),
            helper.make_node("DequantizeLinear", real, [f"{at}.w"], name=f"{at}/DequantizeLinear_1", axis=1),
            helper.make_node("MatMul", [f"{at}.dq", f"{at}.w"], [f"{at}.out"], name=f"{at}/MatMul"),
        ]
        value = f"{at}.out"
    nodes.append(helper.make_node("Relu", [value], ["y"], name="head/Relu"))
    shape: list[int | str] = ["batch", 16, CHANNELS]
    return build(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], weights)


def strided() -> bytes:
    """A 1x1 convolution of stride 2 with integer weights, between two Transposes: OpenVINO 2026.4 forgets it."""
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], name="stem/Relu"),
        helper.make_node("Transpose", ["positive"], ["first"], name="down/Transpose", perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["real"], name="down/DequantizeLinear", axis=0),
        helper.make_node("Conv", ["first", "real"], ["c"], name="down/Conv", strides=[2, 2]),
        helper.make_node("Transpose", ["c"], ["last"], name="down/Transpose_1", perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["last"], ["y"], name="head/Relu"),
    ]
    weight = np.clip(np.rint(normal(CHANNELS, CHANNELS, 1, 1) * 40), -127, 127).astype(np.int8)
    scales = {"s": np.full(CHANNELS, 0.01, np.float32), "z": np.zeros(CHANNELS, np.int8)}
    return build(
        nodes, [("x", FLOAT, [1, 8, 8, CHANNELS])], [("y", FLOAT, [1, 4, 4, CHANNELS])], {"w": weight, **scales}
    )


def of_node(name: str, kind: str) -> Callable[[bytes], bytes]:
    """A runtime that computes another operator than the file has at the node of that name."""

    def damage(model: bytes) -> bytes:
        proto = onnx.load_from_string(model)
        for node in proto.graph.node:
            if node.name == name:
                node.op_type = kind
        return proto.SerializeToString()

    return damage


def only_whole(kind: str, *names: str) -> Callable[[bytes], bytes]:
    """A runtime that makes Tanh of the first Relu, but only where the nodes called so are all in the graph."""

    def damage(model: bytes) -> bytes:
        proto = onnx.load_from_string(model)
        if set(names) <= {node.name for node in proto.graph.node}:
            next(node for node in proto.graph.node if node.op_type == "Relu").op_type = kind
        return proto.SerializeToString()

    return damage


def refuses(name: str, kind: str, *outputs: str) -> Callable[[bytes], bytes]:
    """As `of_node`, and it takes no graph that gives one of `outputs`."""

    def damage(model: bytes) -> bytes:
        found = {port.name for port in onnx.load_from_string(model).graph.output}
        if found & set(outputs):
            raise BackendError("onnxruntime cannot load the model", why="no kernel", fix="another runtime")
        return of_node(name, kind)(model)

    return damage

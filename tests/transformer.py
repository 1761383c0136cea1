"""A transformer of two streams, as an ONNX file named like vitdeploy's, and ways in which runtimes get it wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import LABELS, SIZE, tiny_images, tiny_manifest
from vitdeploy.bundle import MODEL, Bundle, BundleWriter

BLOCKS, TOKENS, META, WIDTH, HEADS = 3, 16, 4, 32, 2
HEAD = WIDTH // HEADS


class _Writer:
    """Collects nodes and weights; `kind` is the type that everything but layer norms and the ends computes in."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int, scale: float = 0.2) -> str:
        array = (scale * self.random.normal(size=shape)).astype(np.float32)
        self.weights[name] = array.astype(np.float16) if self.kind == TensorProto.FLOAT16 else array
        return name

    def constant(self, name: str, values: list[int]) -> str:
        self.weights[name] = np.array(values, np.int64)
        return name

    def op(self, path: str, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{path}/{kind}"
        count = sum(node.name.startswith(name) for node in self.nodes)
        name = f"{name}_{count}" if count else name
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def linear(self, path: str, value: str, width: int) -> str:
        product = self.op(path, "MatMul", value, self.weight(f"{path}.weight", WIDTH, width))
        return self.op(path, "Add", product, self.weight(f"{path}.bias", width))

    def heads(self, path: str, value: str, order: list[int]) -> str:
        shaped = self.op(path, "Reshape", value, self.constant(f"{path}.heads", [0, -1, HEADS, HEAD]))
        return self.op(path, "Transpose", shaped, perm=order)

    def block(self, path: str, x: str, meta: str) -> tuple[str, str]:
        """Tokens attend to the other stream and back; then each has a linear layer of its own."""
        normal = self.op(
            f"{path}.norm1",
            "LayerNormalization",
            x,
            self.weight(f"{path}.gamma", WIDTH, scale=1.0),
            self.weight(f"{path}.beta", WIDTH),
        )
        query = self.heads(f"{path}.attn.q", self.linear(f"{path}.attn.q", normal, WIDTH), [0, 2, 1, 3])
        key = self.heads(f"{path}.attn.k", self.linear(f"{path}.attn.k", meta, WIDTH), [0, 2, 3, 1])
        value = self.heads(f"{path}.attn.v", self.linear(f"{path}.attn.v", meta, WIDTH), [0, 2, 1, 3])
        weights = self.op(f"{path}.attn", "Softmax", self.op(f"{path}.attn", "MatMul", query, key), axis=-1)
        mixed = self.op(
            f"{path}.attn", "Transpose", self.op(f"{path}.attn", "MatMul", weights, value), perm=[0, 2, 1, 3]
        )
        flat = self.op(f"{path}.attn", "Reshape", mixed, self.constant(f"{path}.flat", [0, -1, WIDTH]))
        x = self.op(path, "Add", x, flat)
        meta = self.op(path, "Add", meta, self.op(f"{path}.mlp", "Relu", self.linear(f"{path}.mlp", meta, WIDTH)))
        return x, meta


def transformer(*, half: bool = False, batch: int | str = "batch") -> bytes:
    """images [batch, 3, 8, 8] → logits [batch, 4], all in one precision but for its ends."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    write = _Writer(kind)
    images = write.op("stem", "Cast", "images", to=kind)
    patches = write.op("stem", "Conv", images, write.weight("stem.weight", WIDTH, 3, 2, 2), strides=[2, 2])
    flat = write.op("stem", "Reshape", patches, write.constant("stem.flat", [0, WIDTH, TOKENS]))
    x = write.op("stem", "Transpose", flat, perm=[0, 2, 1])
    groups = write.op("meta", "Reshape", x, write.constant("meta.groups", [0, META, -1, WIDTH]))
    meta = write.op("meta", "ReduceMean", groups, axes=[2], keepdims=0)
    for index in range(BLOCKS):
        x, meta = write.block(f"blocks.{index}.0", x, meta)
    joined = write.op(
        "head",
        "Add",
        write.op("head", "ReduceMean", x, axes=[1], keepdims=0),
        write.op("head", "ReduceMean", meta, axes=[1], keepdims=0),
    )
    logits = write.linear("head", joined, len(LABELS))
    write.nodes.append(helper.make_node("Cast", [logits], ["logits"], name="head/Cast", to=TensorProto.FLOAT))
    graph = helper.make_graph(
        write.nodes,
        "transformer",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(LABELS)])],
        [numpy_helper.from_array(array, name) for name, array in write.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def compute(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs, as ONNX Runtime computes them."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def write_bundle(path: Path, *, half: bool = False, batch: int | str = "batch") -> Bundle:
    """A bundle of it, whose reference is what its FP32 form computes."""
    images = tiny_images()
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, transformer(half=half, batch=batch))
        writer.write_reference(inputs={"images": images}, outputs=compute(transformer(), images))
        writer.seal(tiny_manifest(batch, precision="fp16" if half else "fp32"))
        return writer.commit()


def damaged_weight(name: str) -> Callable[[bytes], bytes]:
    """A runtime that computes with another weight than the file holds."""

    def damage(model: bytes) -> bytes:
        proto = onnx.load_from_string(model)
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.startswith(name))
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((1.3 * array).astype(array.dtype), tensor.name))
        return proto.SerializeToString()

    return damage


def wrong_fused_attention(model: bytes) -> bytes:
    """A runtime whose fused attention is wrong: MatMul, Softmax, MatMul with nothing between and no other reader."""
    proto = onnx.load_from_string(model)
    producer = {output: node for node in proto.graph.node for output in node.output}
    outputs = {value.name for value in proto.graph.output}
    for node in list(proto.graph.node):
        if node.op_type != "Softmax":
            continue
        consumers = [other for other in proto.graph.node if node.output[0] in other.input]
        before = producer.get(node.input[0])
        seen = {node.input[0], node.output[0]} & outputs
        if before is None or before.op_type != "MatMul" or [r.op_type for r in consumers] != ["MatMul"] or seen:
            continue
        spoiled = f"{node.output[0]}.spoiled"
        consumers[0].input[list(consumers[0].input).index(node.output[0])] = spoiled
        at = list(proto.graph.node).index(node) + 1
        proto.graph.node.insert(at, helper.make_node("Mul", [node.output[0], node.output[0]], [spoiled]))
    return proto.SerializeToString()

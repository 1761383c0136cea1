"""What `inspect` reads out of bundles whose graphs are known node by node."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import fill, tiny_manifest, write_tiny_bundle
from vitdeploy.bundle import MODEL, Bundle, BundleWriter
from vitdeploy.errors import BundleError
from vitdeploy.graph.attention import Attention
from vitdeploy.inspection.inspect import executed, graph_statistics, inspect
from vitdeploy.runtime.backends import find_backend, onnxruntime_graph, openvino_graph

_NODES = [
    ir.node(kind, [ir.Value(name="x")], name=f"b.attn/{name}", outputs=[ir.Value(name=output)])
    for kind, name, output in (("MatMul", "MatMul", "p"), ("Softmax", "Softmax", "s"), ("MatMul", "MatMul_1", "o"))
]
_NODES.append(ir.node("Transpose", [_NODES[-1].outputs[0]], outputs=[ir.Value(name="o.t")]))
ATTENTION = Attention(*_NODES[:3])


def node(op: str, inputs: str, output: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=name, **attributes)


def attention_model(*, half: bool = False, mask: bool = False) -> onnx.ModelProto:
    """Attention over [1, 2, 12, 8], an erf GELU and a linear layer to four logits; `half` types the block FP16."""
    dtype = np.float16 if half else np.float32
    block = "stages.0.1.attn/"
    nodes = [node("Reshape", "images heads", "x32", "stem.0/Reshape")]
    nodes.append(node("Cast", "x32", "x", "stem.0/Cast", to=TensorProto.FLOAT16 if half else TensorProto.FLOAT))
    nodes += [
        node("Transpose", "x", "k", f"{block}Transpose", perm=[0, 1, 3, 2]),
        node("MatMul", "x k", "scores", f"{block}MatMul"),
    ]
    if mask:
        nodes.append(node("Add", "bias scores", "masked", f"{block}Add"))
    nodes += [
        node("Softmax", "masked" if mask else "scores", "weights", f"{block}Softmax", axis=-1),
        node("MatMul", "weights x", "mixed", f"{block}MatMul_1"),
        node("Transpose", "mixed", "merged", f"{block}Transpose_1", perm=[0, 2, 1, 3]),
        node("Div", "merged root", "g1", "stages.0.1.mlp/Div"),
        node("Erf", "g1", "g2", "stages.0.1.mlp/Erf"),
        node("Add", "g2 one", "g3", "stages.0.1.mlp/Add"),
        node("Mul", "merged g3", "g4", "stages.0.1.mlp/Mul"),
        node("Mul", "g4 half", "g5", "stages.0.1.mlp/Mul_1"),
        node("Cast", "g5", "g6", "head/Cast", to=TensorProto.FLOAT),
        node("Reshape", "g6 flat", "f", "head/Reshape"),
        node("MatMul", "f w", "logits", "head/MatMul"),
    ]
    weights = {
        "heads": np.array([1, 2, 12, 8]),
        "flat": np.array([1, 192]),
        "root": np.array(2**0.5, dtype),
        "one": np.array(1, dtype),
        "half": np.array(0.5, dtype),
        "bias": np.zeros((1, 1, 12, 12), dtype),
        "w": np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32),
    }
    if not mask:
        del weights["bias"]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_bundle(path: Path, model: onnx.ModelProto, **manifest: Any) -> Bundle:
    """A bundle with this model; what PyTorch would say of it is not looked at here."""
    with BundleWriter(path) as writer:
        fill(writer, 1)
        writer.write_bytes(MODEL, model.SerializeToString())
        writer.seal(dataclasses.replace(tiny_manifest(1), **manifest))
        return writer.commit()


def test_statistics_count_what_is_in_the_graph() -> None:
    found = graph_statistics(attention_model())
    assert found.nodes == 15
    assert found.operators["MatMul"] == 3
    assert found.weights == {"float": 4 * (192 * 4 + 3), "int64": 8 * 6}
    assert found.attention == 1
    assert found.precision == {"fp32": 13, "conversion": 2}
    assert found.blocks["stages.0.1"] == {"fp32": 10}


def test_half_precision_is_told_block_by_block() -> None:
    found = graph_statistics(attention_model(half=True))
    assert found.blocks == {
        "stem.0": {"fp32": 1, "conversion": 1},
        "stages.0.1": {"fp16": 10},
        "head": {"conversion": 1, "fp32": 2},
    }
    assert found.weights["float16"] == 3 * 2


def test_nodes_between_quantization_pairs_count_as_int8() -> None:
    nodes = [
        node("QuantizeLinear", "x scale zero", "q", "fc/Q"),
        node("DequantizeLinear", "q scale zero", "d", "fc/DQ"),
        node("DequantizeLinear", "w8 scale zero", "w", "fc/DQ_1"),
        node("MatMul", "d w", "y", "fc/MatMul"),
        node("Add", "y b", "z", "fc/Add"),
        node("Shape", "z", "s", "fc/Shape"),
    ]
    weights = {
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "w8": np.ones((4, 4), np.int8),
        "b": np.zeros(4, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    found = graph_statistics(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert found.blocks == {"fc": {"conversion": 3, "int8": 1, "fp32": 1, "integer": 1}}
    assert found.weights == {"float": 20, "int8": 17}


def test_onnxruntimes_graph_shows_its_fusions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = executed(find_backend("onnxruntime"), write_bundle(tmp_path / "b", attention_model()))
    assert found.skipped is None
    assert found.fused["com.microsoft.Gelu"] == 1
    assert "Erf" not in found.operators
    assert found.operators["Softmax"] == 1
    assert found.attention == (
        {"block": "stages.0.1.attn/Softmax", "fused": False, "runs_as": "products and softmax apart"},
    )


@pytest.mark.parametrize(
    ("produced", "fused", "runs_as"),
    [
        ({"o.t": "MultiHeadAttention"}, True, "com.microsoft.MultiHeadAttention"),
        ({"o": "MatMul", "s": "Softmax"}, False, "products and softmax apart"),
        ({"o": "MatMul", "s": "Div"}, False, "products apart, softmax split into primitives"),
    ],
)
def test_an_attention_is_recognised_in_onnxruntimes_graph(produced: dict[str, str], fused: bool, runs_as: str) -> None:
    producer = {
        name: helper.make_node(op, ["x"], [name], domain="com.microsoft" if op == "MultiHeadAttention" else "")
        for name, op in produced.items()
    }
    assert onnxruntime_graph._in_onnxruntime(ATTENTION, producer) == {
        "block": "b.attn/Softmax",
        "fused": fused,
        "runs_as": runs_as,
    }


def test_openvinos_runtime_model_is_read_layer_by_layer(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = executed(find_backend("openvino"), write_bundle(tmp_path / "b", attention_model()))
    assert found.skipped is None
    assert set(found.precision) == {"f32"}
    assert sum(found.precision.values()) == sum(found.operators.values())
    assert not {"Const", "Input", "Output"} & found.operators.keys()
    assert [block["block"] for block in found.attention] == ["stages.0.1.attn/Softmax"]
    assert "nothing" not in found.attention[0]["runs_as"]


def test_an_attention_is_fused_in_openvino_when_one_layer_stands_for_all_of_it() -> None:
    whole = {"layerType": "Subgraph"}
    parts = {str(node.name): whole for node in (ATTENTION.first, ATTENTION.softmax, ATTENTION.second)}
    assert openvino_graph._in_openvino(ATTENTION, parts)["fused"] is True
    parts[ATTENTION.name] = {"layerType": "Softmax"}
    assert openvino_graph._in_openvino(ATTENTION, parts) == {
        "block": "b.attn/Softmax",
        "fused": False,
        "runs_as": "Subgraph, Softmax apart",
    }
    assert openvino_graph._in_openvino(ATTENTION, {})["fused"] is False


def test_random_weights_and_failed_parity_are_called_out(tmp_path: Path) -> None:
    report = {"runtime": "onnxruntime", "passed": False, "outputs": []}
    notes = inspect(write_bundle(tmp_path / "b", attention_model(), parity=[report])).notes
    assert notes[0].startswith("SEEDED RANDOM WEIGHTS")
    assert notes[1].startswith("onnxruntime did not reproduce PyTorch")


def test_rewrites_and_reasons_come_from_the_manifest(tmp_path: Path) -> None:
    graph = {"passes": [{"pass": "fold", "changes": ["a: into b"]}, {"pass": "none", "changes": []}]}
    report = {"kept_fp32": [{"node": "stages.0.1.attn/Softmax", "reason": "overflow: 7e4 > 65504"}]}
    found = inspect(write_bundle(tmp_path / "b", attention_model(), graph=graph, precision_report=report))
    assert found.rewrites == {"fold": ("a: into b",), "none": ()}
    assert [(node.node, node.kind) for node in found.kept_fp32] == [("stages.0.1.attn/Softmax", "overflow")]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rewrites"]["fold"] == ["a: into b"]


@pytest.mark.parametrize("value", [None, 3, "x", [1, "a"], [{"pass": 1, "changes": {"a": 1}}], {"a": 1}])
def test_a_strange_manifest_is_no_obstacle(value: Any, tmp_path: Path) -> None:
    found = inspect(
        write_bundle(tmp_path / "b", attention_model(), graph={"passes": value}, precision_report={"kept_fp32": value})
    )
    assert all(isinstance(lines, tuple) for lines in found.rewrites.values())


def test_an_altered_bundle_is_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.path / MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        inspect(bundle.path)


def test_without_onnx_the_rest_is_still_told(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", attention_model())
    code = f"""
import sys
for name in ("onnx", "torch"):
    sys.modules[name] = None
from vitdeploy.inspection.inspect import inspect
found = inspect({str(bundle.path)!r})
print(found.graph, any("pip install onnx" in note for note in found.notes))
for runtime in found.runtimes:
    print(runtime.runtime, bool(runtime.operators), runtime.skipped)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "None True"
    assert lines[1].startswith("onnxruntime False")
    assert "pip install onnx" in lines[1]
    assert lines[2].startswith("openvino")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_runtime_that_cannot_load_the_model_is_a_line_and_no_end(name: str, tmp_path: Path) -> None:
    model = attention_model()
    model.graph.node[3].op_type = "NoSuchOperator"
    found = executed(find_backend(name), write_bundle(tmp_path / "b", model))
    assert found.skipped
    assert not found.operators

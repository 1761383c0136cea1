"""The first tensor and block that a runtime computes wrongly, and the smallest model that shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.bundles import write_tiny_bundle
from tests.divergence import damages
from tests.divergence.conftest import Break
from tests.divergence.damages import CHANNELS, FLOAT, build, normal, of_node, only_whole, quantized, refuses, several
from tests.transformer import damaged_weight, transformer, write_bundle, wrong_fused_attention
from vitdeploy import bisect
from vitdeploy.divergence.report import BisectReport
from vitdeploy.errors import BackendError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

ORT = "onnxruntime"


def written(tmp_path: Path, model: bytes) -> Path:
    (tmp_path / "model.onnx").write_bytes(model)
    return tmp_path / "model.onnx"


def part_of(report: BisectReport) -> onnx.ModelProto:
    """The block of a reproducer, which holds together; its program ends with 1 when it is run once more."""
    assert report.reproducer is not None
    folder = report.reproducer.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "block.onnx",
        "expected.npz",
        "inputs.npz",
        "reproduce.py",
    ]
    block = onnx.load(folder / "block.onnx")
    onnx.checker.check_model(block, full_check=True)
    assert set(np.load(folder / "inputs.npz").files) == {port.name for port in block.graph.input}
    assert list(np.load(folder / "expected.npz").files) == [port.name for port in block.graph.output]
    ended = subprocess.run([sys.executable, folder / "reproduce.py"], capture_output=True, text=True, check=False)
    assert report.reproducer.reproduces is (ended.returncode == 1), ended.stderr
    return block


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("weight", "block", "node"),
    [
        ("stem.weight", "stem", "stem/Conv (Conv)"),
        ("blocks.1.0.mlp.weight", "blocks.1.0", "blocks.1.0.mlp/MatMul (MatMul)"),
        ("blocks.1.0.attn.v.bias", "blocks.1.0", "blocks.1.0.attn.v/Add (Add)"),
        ("head.weight", "head", "head/MatMul (MatMul)"),
    ],
)
def test_the_first_tensor_and_its_node_are_found_and_written_alone(
    weight: str, block: str, node: str, half: bool, broken: Break, tmp_path: Path
) -> None:
    broken(damaged_weight, weight)
    report = bisect(written(tmp_path, transformer(half=half)), runtime=ORT, output=tmp_path / "out")
    assert not report.passed
    assert report.divergence is not None
    assert (report.divergence.block, report.node) == (block, node)
    assert report.difference is not None
    assert report.difference.failures
    assert [one.name for one in part_of(report).graph.node] == [node.partition(" ")[0]]
    assert report.reproducer is not None
    assert (report.reproducer.whole, report.reproducer.reproduces) == (False, True)
    assert f"first block: {block}" in str(report)


def test_a_runtime_that_is_right_leaves_nothing_behind(tmp_path: Path) -> None:
    report = bisect(written(tmp_path, transformer()), runtime=ORT, output=tmp_path / "out")
    assert report.passed
    assert report.divergence is report.difference is report.reproducer is None
    assert not (tmp_path / "out").exists()
    assert str(report).endswith("onnxruntime gives the numbers of the file by the ONNX standard")


def test_a_fusion_that_is_wrong_grows_until_all_of_it_is_there(broken: Break, tmp_path: Path) -> None:
    """No node of it is wrong alone, and an output inside of it makes it right."""
    broken(wrong_fused_attention)
    report = bisect(written(tmp_path, transformer()), runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.block == "blocks.0.0"
    assert [node.op_type for node in part_of(report).graph.node] == ["MatMul", "Softmax", "MatMul"]
    assert report.reproducer is not None
    assert report.reproducer.reproduces


def test_what_only_the_whole_model_shows_is_said_and_written_whole(broken: Break, tmp_path: Path) -> None:
    names = [node.name for node in onnx.load_from_string(transformer()).graph.node]
    broken(only_whole, "Tanh", *names)
    report = bisect(written(tmp_path, transformer()), runtime=ORT, output=tmp_path / "out")
    assert report.reproducer is not None
    assert report.reproducer.whole
    assert report.reproducer.reproduces
    assert [node.name for node in part_of(report).graph.node] == names
    assert "nothing smaller than the whole model" in str(report)


def test_a_program_that_does_not_show_it_is_not_called_a_reproducer(
    broken: Break, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(damaged_weight, "head.weight")
    program = "import onnxruntime\n\ndef run(model, inputs):\n"
    program += "    return onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider']).run(None, inputs)\n"
    monkeypatch.setattr(
        "vitdeploy.runtime.backends.onnxruntime.OnnxRuntimeBackend.stand_alone", classmethod(lambda *_: program)
    )
    report = bisect(written(tmp_path, transformer()), runtime=ORT, output=tmp_path / "out")
    assert report.reproducer is not None
    assert (report.reproducer.reproduces, report.reproducer.exit_code) == (False, 0)
    assert "no reproducer: " in str(report)


# Tensors of every kind


@pytest.mark.parametrize(
    ("node", "kind", "first"),
    [
        ("two/ArgMax", "ArgMin", "best"),
        ("three/And", "Or", "kept"),
        ("five/Add", "Sub", "sum"),
        ("seven/Not", "Identity", "left"),
    ],
)
def test_whole_numbers_and_flags_cross_the_cuts_too(
    node: str, kind: str, first: str, broken: Break, tmp_path: Path
) -> None:
    broken(of_node, node, kind)
    report = bisect(written(tmp_path, several()), runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.tensor == first
    assert [one.name for one in part_of(report).graph.node] == [node]


@pytest.mark.parametrize("index", [0, 1])
def test_a_layer_of_int8_is_found(index: int, broken: Break, tmp_path: Path) -> None:
    at = f"blocks.{index}.0.linear"
    broken(damaged_weight, f"{at}.weight")
    report = bisect(written(tmp_path, quantized()), runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert (report.divergence.block, report.divergence.tensor) == (f"blocks.{index}.0", f"{at}.out")
    assert "INT8" in report.judged
    assert [node.name for node in part_of(report).graph.node] == [f"{at}/DequantizeLinear_1"], "which reads the weight"


def test_what_becomes_infinite_is_found_where_it_does(broken: Break, tmp_path: Path) -> None:
    broken(of_node, "c/Abs", "Log")  # of zero
    names = ["x", "a", "b", "c", "y"]
    kinds = ["Relu", "Relu", "Abs", "Sigmoid"]
    nodes = [
        helper.make_node(kind, [old], [new], name=f"{new}/{kind}")
        for kind, old, new in zip(kinds, names, names[1:], strict=False)
    ]
    path = written(tmp_path, build(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], {}))
    report = bisect(path, runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.tensor == "c"
    assert report.difference is not None
    assert "NaN or Inf" in report.difference.failures[0]
    assert [one.name for one in part_of(report).graph.node] == ["c/Abs"]
    assert report.to_dict()["difference"]["max_abs"] is None


def test_a_mask_of_infinities_and_a_reference_that_is_nan_agree_with_themselves(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Where", ["m", "x", "low"], ["masked"], name="a/Where"),
        helper.make_node("Sub", ["masked", "masked"], ["y"], name="b/Sub"),
    ]
    weights = {"m": np.array([True, False]), "low": np.float32(-np.inf)}
    report = bisect(
        written(tmp_path, build(nodes, [("x", FLOAT, [3, 2])], [("y", FLOAT, [3, 2])], weights)), runtime=ORT
    )
    assert report.passed
    assert report.notes == ("y holds NaN or Inf in the file by the ONNX standard too",)


def test_a_part_leaves_large_constants_behind(broken: Break, tmp_path: Path) -> None:
    broken(of_node, "b/Relu", "Abs")
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"], name="a/MatMul"),
        helper.make_node("Relu", ["a"], ["b"], name="b/Relu"),
        helper.make_node("MatMul", ["b", "back"], ["y"], name="c/MatMul"),
    ]
    weights = {"large": normal(16, 1 << 18), "back": normal(1 << 18, 2)}
    path = written(tmp_path, build(nodes, [("x", FLOAT, [1, 16])], [("y", FLOAT, [1, 2])], weights))
    report = bisect(path, runtime=ORT, output=tmp_path / "out")
    assert path.stat().st_size > 16 << 20
    assert [one.name for one in part_of(report).graph.node] == ["b/Relu"]
    assert (tmp_path / "out" / "block.onnx").stat().st_size < 1000


def test_constant_nodes_and_names_that_are_missing_or_given_twice(broken: Break, tmp_path: Path) -> None:
    broken(of_node, "Relu#2", "Abs")
    proto = onnx.load_from_string(
        build(
            [
                helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
                helper.make_node("Mul", ["x", "two"], ["a"], name="twice"),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("Tanh", ["b"], ["y"], name="twice"),
            ],
            [("x", FLOAT, ["n", CHANNELS])],
            [("y", FLOAT, ["n", CHANNELS])],
            {},
        )
    )
    report = bisect(written(tmp_path, proto.SerializeToString()), runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.tensor == "b"
    assert [node.op_type for node in part_of(report).graph.node] == ["Relu"]


# What runtimes take and what not


def test_a_runtime_that_refuses_the_model_says_so(broken: Break, tmp_path: Path) -> None:
    broken(refuses, "head/MatMul", "Add", "logits")
    with pytest.raises(BackendError, match="cannot load"):
        bisect(written(tmp_path, transformer()), runtime=ORT)


def test_a_cut_that_a_runtime_refuses_is_passed_over(broken: Break, tmp_path: Path) -> None:
    names = ["x", "a", "b", "c", "d", "e", "y"]
    nodes = [
        helper.make_node(kind, [old], [new], name=f"{new}/{kind}")
        for kind, old, new in zip(["Tanh", "Relu", "Tanh", "Abs", "Tanh", "Sin"], names, names[1:], strict=False)
    ]
    model = build(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], {})
    asked = broken(refuses, "b/Relu", "Sigmoid", "c", "b")
    report = bisect(written(tmp_path, model), runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.tensor == "d", "the first that the runtime shows"
    assert {"b", "c"} & {port.name for one in asked for port in onnx.load_from_string(one).graph.output}
    assert "b/Relu" in [node.name for node in part_of(report).graph.node]


def test_another_runtime_can_be_what_is_trusted(broken: Break, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    broken(damaged_weight, "blocks.1.0.mlp.weight")
    path = written(tmp_path, transformer())
    found = bisect(path, runtime=ORT, against="openvino")
    assert found.against == "openvino"
    assert found.divergence is not None
    assert found.divergence.block == "blocks.1.0"
    turned = bisect(path, runtime="ov", against="ort")
    assert turned.divergence is not None
    assert turned.divergence.block == "blocks.1.0"
    assert bisect(path, runtime="ov").passed


# Bundles


@pytest.mark.parametrize("batch", ["batch", 2])
def test_a_bundle_is_asked_with_its_reference(batch: int | str, broken: Break, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", batch=batch)
    assert bisect(bundle, runtime=ORT).passed
    broken(damaged_weight, "blocks.2.0.gamma")
    report = bisect(bundle.path, runtime=ORT, output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.block == "blocks.2.0"
    assert "the reference inputs of the bundle" in report.inputs
    assert f"{1 if batch == 'batch' else 2} of 6 samples" in report.inputs, "as few as show it"
    assert report.notes == ()
    assert len(part_of(report).graph.node) == 1


def test_a_bundle_that_is_not_its_network_is_told(tmp_path: Path) -> None:
    report = bisect(write_tiny_bundle(tmp_path / "bundle", error=0.5), runtime=ORT)
    assert report.passed, "the runtime computes the file"
    assert "it is the bundle" in report.notes[0]


def test_the_damages_are_of_graphs_that_run() -> None:
    for make in (several, quantized, damages.strided):
        onnx.checker.check_model(onnx.load_from_string(make()), full_check=True)

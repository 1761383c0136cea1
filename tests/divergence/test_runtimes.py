"""OpenVINO as it is, PyTorch, and TensorRT played by stand-ins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.bundles import write_tiny_bundle
from tests.divergence.damages import quantized, strided
from tests.tensorrt.fake_tensorrt import World
from tests.transformer import damaged_weight, transformer, write_bundle, wrong_fused_attention
from vitdeploy import bisect
from vitdeploy.bundle import MODEL, Bundle, BundleWriter
from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.runtime.backends import find_backend
from vitdeploy.runtime.backends import openvino as openvino_backend

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")


def written(tmp_path: Path, model: bytes) -> Path:
    (tmp_path / "model.onnx").write_bytes(model)
    return tmp_path / "model.onnx"


# OpenVINO


@pytest.fixture
def by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO with its own settings for INT8, as a program has them that opens the file itself."""
    openvino = pytest.importorskip("openvino")
    if not openvino.get_version().startswith("2026.4."):
        pytest.skip("another version may be right")
    monkeypatch.setattr(openvino_backend, "exact_settings", dict)


def test_a_convolution_whose_stride_openvino_forgets(by_default: None, tmp_path: Path) -> None:
    path = written(tmp_path, strided())
    report = bisect(path, runtime="openvino", output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.block == "down"
    assert report.reproducer is not None
    assert report.reproducer.reproduces, report.reproducer.said
    kinds = [node.op_type for node in onnx.load(tmp_path / "out" / "block.onnx").graph.node]
    assert "Conv" in kinds
    assert len(kinds) < 6, "the ends are not needed"
    assert bisect(path, runtime="onnxruntime").passed


@pytest.mark.skipif(not read_cpu().saturates, reason="no pair of INT8 products overflows on this processor")
def test_int8_products_that_overflow_in_openvino(by_default: None, tmp_path: Path) -> None:
    """A row of `known_bad`: a CPU without VNNI, in programs that open the file themselves."""
    proto = onnx.load_from_string(quantized())
    for tensor in proto.graph.initializer:
        if tensor.name.endswith(".weight"):
            large = np.where(numpy_helper.to_array(tensor) < 0, -127, 127).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(large, tensor.name))
    np.savez(tmp_path / "inputs.npz", x=np.full((1, 16, 8), 4, np.float32))
    path = written(tmp_path, proto.SerializeToString())
    report = bisect(path, runtime="openvino", inputs=tmp_path / "inputs.npz", output=tmp_path / "out")
    assert report.divergence is not None
    assert report.reproducer is not None
    assert report.reproducer.reproduces, report.reproducer.said
    assert any("MatMul" in node for node in report.reproducer.nodes)


def test_openvino_as_vitdeploy_sets_it_is_right(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    for model in (quantized(), transformer(half=True), transformer()):
        assert bisect(written(tmp_path, model), runtime="openvino").passed


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_hint_has_bounds_of_its_own_where_it_is_followed(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    report = bisect(written(tmp_path, transformer()), runtime="openvino", compute_precision=precision)
    computed = report.runtime["compute_precision"]
    assert computed in (precision, "bf16", "fp32")  # a processor with bf16 alone takes it for fp16
    assert report.passed
    assert (f"computed in {computed}" in report.judged) is (computed != "fp32")
    assert ("error of 1e-04" in report.judged) is (computed == "fp32")


def test_a_hint_that_a_runtime_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not support the option compute_precision"):
        bisect(written(tmp_path, transformer()), runtime="onnxruntime", compute_precision="bf16")


# PyTorch


def test_a_network_in_pytorch_against_a_file_of_another_one(tmp_path: Path, tiny_in_the_zoo: None) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    assert bisect(bundle, runtime="torch").passed
    bundle.manifest = replace(bundle.manifest, model=replace(bundle.manifest.model, hyperparameters={"factor": 3.0}))
    report = bisect(bundle, runtime="torch")
    assert report.divergence is not None
    assert report.divergence.tensor == "logits"
    assert report.runtime["backend"] == "torch"
    with pytest.raises(UsageError, match="no reproducer for the runtime torch"):
        bisect(bundle, runtime="torch", output=tmp_path / "out")


@pytest.mark.slow
def test_the_module_of_pytorch_that_the_file_does_not_compute(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    zoo = tmp_path / "zoo"
    assert main(["export", "saevit_xs", "--image-size", "32", "--num-classes", "4", "-o", str(zoo)]) == 0
    assert bisect(zoo, runtime="torch").passed
    bundle = Bundle.open(zoo)
    proto = onnx.load_from_string(bundle.read(MODEL))
    node = next(node for node in proto.graph.node if node.name == "stages.0.0.local.pw/Conv")
    damaged = damaged_weight(node.input[1])(bundle.read(MODEL))
    with BundleWriter(tmp_path / "other") as writer:
        writer.write_bytes(MODEL, damaged)
        reference = bundle.reference()
        writer.write_reference(inputs=reference.inputs, outputs=reference.outputs)
        writer.seal(bundle.manifest)
        other = writer.commit()
    report = bisect(other, runtime="torch")
    assert report.divergence is not None
    assert report.divergence.block.startswith("stages.0.0.local.pw")


def test_what_torch_cannot_be_asked(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="torch cannot compute"):
        bisect(written(tmp_path, transformer()), runtime="torch")
    with pytest.raises(UsageError, match="differs from its network in every module"):
        bisect(write_bundle(tmp_path / "b", half=True), runtime="torch")
    with pytest.raises(UsageError, match="torch cannot be what is trusted"):
        bisect(written(tmp_path, transformer()), runtime="onnxruntime", against="torch")


# TensorRT


@pytest.mark.parametrize("half", [False, True])
def test_an_engine_that_is_wrong(half: bool, world: World, tmp_path: Path) -> None:
    world.miscompile = damaged_weight("blocks.1.0.mlp.weight")
    bundle = write_bundle(tmp_path / "b", half=half)
    report = bisect(bundle, runtime="tensorrt", output=tmp_path / "out")
    assert report.divergence is not None
    assert (report.divergence.block, report.node) == ("blocks.1.0", "blocks.1.0.mlp/MatMul (MatMul)")
    assert [node.op_type for node in onnx.load(tmp_path / "out" / "block.onnx").graph.node] == ["MatMul"]
    assert "TrtRunner" in (tmp_path / "out" / "reproduce.py").read_text()
    assert report.reproducer is not None
    assert report.reproducer.exit_code == 2, "there is no TensorRT in a process of its own"
    assert not report.reproducer.reproduces
    assert "polygraphy" in report.reproducer.said
    assert world.driver.leaks == 0


def test_attention_that_an_engine_fuses_wrongly_is_written_whole(world: World, tmp_path: Path) -> None:
    world.miscompile = wrong_fused_attention
    report = bisect(write_bundle(tmp_path / "b"), runtime="trt", output=tmp_path / "out")
    assert report.divergence is not None
    assert report.divergence.block == "blocks.0.0"
    kinds = [node.op_type for node in onnx.load(tmp_path / "out" / "block.onnx").graph.node]
    assert kinds == ["MatMul", "Softmax", "MatMul"]


def test_an_engine_that_is_right(world: World, tmp_path: Path) -> None:
    report = bisect(write_bundle(tmp_path / "b"), runtime="tensorrt")
    assert report.passed
    assert report.runtime["backend"] == "tensorrt"


def test_the_programs_compile() -> None:
    from vitdeploy.divergence.reproducer import script_of
    from vitdeploy.proof.parity import BOUNDS
    from vitdeploy.runtime.options import Options

    for name in ("onnxruntime", "openvino", "tensorrt", "torch"):
        kind = find_backend(name)
        if name in ("onnxruntime", "openvino") and kind.available() is not None:
            continue
        for bounds in (BOUNDS["fp32"], BOUNDS["fp16"]):
            if name == "tensorrt" and kind.available() is not None:
                continue
            program = compile(script_of("A title.", "one", kind.stand_alone(Options()), bounds), "reproduce.py", "exec")
            assert "run" in program.co_names, name

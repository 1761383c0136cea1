"""`check --compile`: what NVIDIA's compiler says, as a report; its stand-in plays what the real one said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.tensorrt.rtx.conftest import Play, recorded
from tests.transformer import transformer, write_bundle
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, MissingDependencyError, UsageError
from vitdeploy.tensorrt.rtx.compile import compile_check
from vitdeploy.tensorrt.rtx.compiler import without_driver
from vitdeploy.tensorrt.rtx.model_file import free_shapes
from vitdeploy.tensorrt.rtx.requirements import COMPUTE_CAPABILITIES, read_sm, require

SOFTMAXES = [f"blocks.{index}.0.attn/Softmax" for index in range(3)]
NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/dispatch/"
    "checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    path.write_bytes(transformer(half=True, batch=1))
    return path


def refusal(node: str, operator: str, why: str, code: str = "UNSUPPORTED_NODE") -> dict[str, str]:
    return {"node_name": node, "node_operator": operator, "desc": why, "code": code}


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_recorded_engine_is_read_with_its_fused_blocks_and_moving_layers(model: Path, play: Play) -> None:
    play(log=recorded("transformer_fp16")["log"])
    report = compile_check(model)
    assert (report.passed, report.state, report.version, report.sm) == (True, "built", "1.7.1.116", 86)
    assert report.fusion is not None
    assert [(block.name, block.fused) for block in report.fusion.attention] == [(name, True) for name in SOFTMAXES]
    assert [block.fused for block in report.fusion.layer_norms] == [True] * 3
    assert report.fusion.layers == 28
    (first, *heads) = report.fusion.movements
    assert (first.operations, dict(first.nodes)) == (
        ("cast", "concatenate"),
        {"stem/Cast": "Cast", "stem/Conv": "Conv"},
    )
    assert {operation for head in heads for operation in head.operations} == {"reshape", "transpose", "copy"}
    assert (report.weights_bytes, report.activation_bytes) == (28672, 8196608)
    assert "attention: 3 fused" in str(report)
    assert "and not the TensorRT of a board" in str(report)


def test_blocks_that_did_not_fuse_have_the_rules_that_say_why(tmp_path: Path, play: Play) -> None:
    path = tmp_path / "single.onnx"
    path.write_bytes(transformer(half=False, batch=1))
    play(log=recorded("transformer_fp32")["log"])
    report = compile_check(path)
    assert report.fusion is not None
    assert [block.fused for block in report.fusion.attention] == [False] * 3
    assert report.fusion.attention[0].why == ("types: fp32",)


def test_the_command_prints_the_report_and_the_rules_beside_it(
    tmp_path: Path, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    play(log=recorded("transformer_fp32")["log"])
    assert main(["check", str(bundle.path), "--compile", "--json"]) == 0
    document = told(capsys)
    assert document["passed"]
    assert document["compiled"]["fusion"]["attention_fused"] == 0
    assert main(["check", str(bundle.path), "--compile", "--target", "tensorrt10", "--json"]) == 0
    both = told(capsys)
    assert both["compiled"]["compiler"] == "TensorRT for RTX"
    assert len(both["attentions"]) == len(both["compiled"]["fusion"]["attention"]) == 3
    assert main(["check", str(bundle.path), "--compile", "--target", "tensorrt10"]) == 0
    text = capsys.readouterr().out
    assert "attention by the rules: 3 not fused" in text
    assert "attention: 3 not fused" in text


def test_what_the_parser_refuses_has_its_node_module_and_advice(
    model: Path, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    node = "blocks.1.0.attn/Softmax"
    play(
        parsed=False,
        errors=[
            refusal(node, "Softmax", f"input has type Int32 but must have type Float\n{NO_DRIVER}"),
            refusal("", "", "x"),
        ],
    )
    assert main(["check", str(model), "--compile", "--json"]) == 1
    document = told(capsys)["compiled"]
    first, second = document["refused"]
    assert (first["node"], first["operator"], first["module"]) == (node, "Softmax", "blocks.1.0.attn")
    assert "element type: Int32" in first["why"]
    assert "driver" not in first["why"], "a machine without a GPU is no fault of the model"
    assert second["node"] == "the model"
    assert main(["check", str(model), "--compile"]) == 1
    text = capsys.readouterr().out
    assert f"refused Softmax {node}, of module blocks.1.0.attn" in text
    assert text.rstrip().endswith("REFUSED")


def test_an_unnamed_node_is_called_after_its_operator_and_place(tmp_path: Path, play: Play) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Erf", ["h"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:])), tmp_path / "m.onnx")
    play(fail_on="Erf#1")
    report = compile_check(tmp_path / "m.onnx", keep=tmp_path / "part.onnx")
    assert report.failure is not None
    assert report.failure.nodes == ("Erf Erf#1",)


@pytest.mark.parametrize(("how", "state"), [("crash_on", "crashed"), ("fail_on", "failed")])
def test_a_failing_compiler_leaves_the_smallest_part_that_fails_too(
    how: str, state: str, model: Path, tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    culprit = "blocks.1.0.norm1/LayerNormalization"
    play(**{how: culprit}, log=[["INTERNAL_ERROR", f"Error Code 9: the moon is in the way\n{NO_DRIVER}"]])
    report = compile_check(model)
    assert (report.state, report.passed) == (state, False)
    failure = report.failure
    assert failure is not None
    assert "the moon is in the way" in failure.message
    assert "driver" not in failure.message
    assert ("SIGSEGV" in failure.message) == (state == "crashed")
    assert failure.nodes == (f"LayerNormalization {culprit}",)
    assert failure.modules == ("blocks.1.0.norm1",)
    assert failure.subgraph == "network-fails.onnx"
    part = onnx.load(tmp_path / "network-fails.onnx")
    onnx.checker.check_model(part, full_check=True)
    assert [node.name for node in part.graph.node] == [culprit]
    assert compile_check(model).failure is not None
    assert (tmp_path / "network-fails-1.onnx").exists(), "no file is written over"


def test_a_compiler_that_takes_too_long_is_stopped(model: Path, play: Play) -> None:
    play(sleep=60)
    report = compile_check(model, time_limit=2)
    assert (report.state, report.passed) == ("timed out", False)
    assert report.failure is not None
    assert "longer than 2 s" in report.failure.message
    assert "--time-limit" in report.failure.fix
    assert report.failure.subgraph is None


def test_wheels_that_do_not_load_are_an_error_in_words(
    model: Path, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play(unusable="libc.so.6: version GLIBC_2.28 not found")
    assert main(["check", str(model), "--compile"]) == 2
    said = capsys.readouterr().err
    assert "cannot be imported" in said
    assert "GLIBC_2.28 not found" in said


def test_a_free_batch_gets_a_profile_and_another_free_axis_an_error(tmp_path: Path, play: Play) -> None:
    play(log=recorded("transformer_fp16")["log"])
    path = tmp_path / "network.onnx"
    path.write_bytes(transformer(half=True))
    assert compile_check(path).passed
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(proto, path)
    with pytest.raises(UsageError, match="images has a free axis"):
        compile_check(path)


def test_the_lengths_of_other_free_axes_are_those_of_a_bundles_reference() -> None:
    proto = onnx.load_model_from_string(transformer(half=True))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    shapes = free_shapes(proto, {"images": (4, 3, 8, 8)})
    assert shapes == {"images": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["network.onnx", "--compile", "--sm", "87"], "Orin is 87, and the nearest here is 86"),
        (["network.onnx", "--compile", "--sm", "90"], "--sm 89"),
        (["network.onnx", "--compile", "--sm", "ampere"], "75, 80, 86, 89, 120, 121"),
        (["network.onnx", "--compile", "--time-limit", "0"], "--time-limit 600"),
        (["network.onnx", "--compile", "--keep", "network.onnx"], "network.onnx exists"),
        (["network.onnx", "--compile", "--target", "tensorrt10"], "--compile alone"),
        (["network.onnx", "--target", "tensorrt10", "--sm", "86"], "--sm without --compile"),
        (["network.onnx"], "is a file, and the rules judge a bundle"),
        (["nowhere.onnx", "--compile"], "nowhere.onnx cannot be read"),
        (["nowhere", "--compile"], "there is no bundle at nowhere"),
        (["text.onnx", "--compile"], "text.onnx is not a valid ONNX model"),
    ],
)
def test_bad_input_is_refused_in_words(
    arguments: list[str],
    hint: str,
    model: Path,
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(model.parent)
    Path("text.onnx").write_text("this is no protobuf, and no model either")
    before = sorted(Path().rglob("*.onnx"))
    assert main(["check", *arguments]) == 2
    assert hint in capsys.readouterr().err
    assert sorted(Path().rglob("*.onnx")) == before


@pytest.mark.parametrize("text", ["86", "8.6", "sm_86", "SM86", 86])
def test_compute_capabilities_are_read_as_people_write_them(text: str | int) -> None:
    assert read_sm(text) == 86


def test_every_compute_capability_reads_as_itself() -> None:
    assert [read_sm(sm) for sm in COMPUTE_CAPABILITIES] == list(COMPUTE_CAPABILITIES)
    assert read_sm("12.1") == 121


@pytest.mark.parametrize(
    ("system", "machine", "hint"),
    [("linux", "aarch64", "vitdeploy build"), ("darwin", "arm64", "x86-64 Linux"), ("win32", "AMD64", "container")],
)
def test_other_machines_are_told_where_to_go(
    system: str, machine: str, hint: str, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(BackendError, match="x86-64 Linux only") as raised:
        require()
    assert hint in str(raised.value.fix)
    assert machine in str(raised.value.why)


@pytest.mark.parametrize("missing", ["tensorrt_rtx_libs", "tensorrt_rtx_bindings", "onnx_ir"])
def test_a_missing_package_has_its_pip_line(missing: str, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(MissingDependencyError) as raised:
        require()
    assert raised.value.fix == "pip install 'vitdeploy[nvidia]'"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("Invalid Node - n\n" + NO_DRIVER, "Invalid Node - n"),
        (NO_DRIVER, ""),
        ("Error Code 4: [a] (b)", "Error Code 4: [a] (b)"),
    ],
)
def test_only_the_words_about_the_driver_are_left_out(said: str, left: str) -> None:
    assert without_driver(said) == left

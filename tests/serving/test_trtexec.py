"""The command lines of trtexec: the words of each generation, and what a shell makes of the scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vitdeploy
from tests.serving.cases import write_linear
from vitdeploy.serving.trtexec import Facts, command, facts_of

BASE = ["trtexec", "--onnx=model.onnx", "--saveEngine=model.plan"]
PROFILE = ["--minShapes=images:1x3x9x12", "--optShapes=images:8x3x9x12", "--maxShapes=images:32x3x9x12"]


def run(script: Path, tmp_path: Path, *more: str) -> list[str]:
    """The words that trtexec gets, called from anywhere."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    fake = tmp_path / "bin" / "trtexec"
    fake.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))\n")
    fake.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run([script, *more], env={**os.environ, "PATH": path}, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, *words = json.loads(done.stdout)
    assert Path(where).samefile(script.parent)
    return ["trtexec", *words]


@pytest.mark.parametrize(
    ("precision", "old"),
    [("fp32", []), ("fp16", ["--fp16", "--precisionConstraints=obey"]), ("int8", [])],
)
def test_each_generation_is_told_the_types_in_its_way(precision: str, old: list[str], tmp_path: Path) -> None:
    out = tmp_path / "the 'out'"
    vitdeploy.handoff(write_linear(tmp_path / "b", precision=precision), out, to="trtexec")
    first = [*BASE, *PROFILE, "--noTF32"]
    assert run(out / "trtexec-11.sh", tmp_path) == [*first, "--skipInference"]
    assert run(out / "trtexec-10.sh", tmp_path, "--verbose") == [
        *first,
        "--stronglyTyped",
        "--skipInference",
        "--verbose",
    ]
    if precision == "int8":
        assert not (out / "trtexec-8.sh").exists()
        assert "does not read weights that are stored in INT8" in (out / "README.md").read_text()
        return
    words = run(out / "trtexec-8.sh", tmp_path)
    held = [word for word in words if word.startswith(("--layerPrecisions=", "--layerOutputTypes="))]
    assert [word for word in words if word not in held] == [*first, *old, "--buildOnly"]
    assert len(held) == (2 if precision == "fp16" else 0)
    assert all(word.endswith("=flatten:fp32,head/MatMul:fp32") for word in held)


def test_a_fixed_batch_has_no_profile(tmp_path: Path) -> None:
    vitdeploy.handoff(write_linear(tmp_path / "b", batch=2), tmp_path / "out", to="trtexec")
    assert run(tmp_path / "out" / "trtexec-11.sh", tmp_path) == [*BASE, "--noTF32", "--skipInference"]


def test_the_largest_batch_bounds_the_profile(tmp_path: Path) -> None:
    vitdeploy.handoff(write_linear(tmp_path / "b"), tmp_path / "out", to="trtexec", max_batch=4)
    words = run(tmp_path / "out" / "trtexec-10.sh", tmp_path)
    assert words[3:6] == [
        f"--{name}Shapes=images:{count}x3x9x12" for name, count in (("min", 1), ("opt", 4), ("max", 4))
    ]


def mixed() -> bytes:
    """FP16 and FP32 nodes of every kind: named, nameless, behind Q/DQ, integer, and such as state their own type."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"], name="single"),
            helper.make_node("Neg", ["a"], ["b"], name="a,b"),
            helper.make_node("Abs", ["b"], ["c"]),
            helper.make_node("Cast", ["c"], ["h"], name="cast", to=TensorProto.FLOAT16),
            helper.make_node("Relu", ["h"], ["k"], name="half"),
            helper.make_node("Cast", ["k"], ["s"], name="back", to=TensorProto.FLOAT),
            helper.make_node("QuantizeLinear", ["s", "step", "zero"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"], name="dq"),
            helper.make_node("Relu", ["d"], ["y"], name="quantized"),
            helper.make_node("Shape", ["y"], ["shape"], name="shape"),
        ],
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [numpy_helper.from_array(np.float32(0.1), "step"), numpy_helper.from_array(np.int8(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def test_what_is_held_in_fp32_is_what_computes_in_it_and_reads_nothing_dequantized() -> None:
    facts = facts_of(mixed())
    assert facts == Facts(half=True, quantized=True, single=("single",), nameless=2, packed=False, free=(("x", (2,)),))
    words = command(facts, 8, 32)
    assert words is not None
    assert words[-5:] == [
        *("--int8", "--precisionConstraints=obey", "--layerPrecisions=single:fp32", "--layerOutputTypes=single:fp32"),
        "--buildOnly",
    ]


def test_a_list_that_no_command_line_takes_is_no_command() -> None:
    facts = Facts(
        half=True, quantized=False, single=tuple(f"node{i}" for i in range(20000)), nameless=0, packed=False, free=()
    )
    assert command(facts, 8, 32) is None
    assert command(facts, 10, 32) is not None


def test_the_name_of_an_input_that_has_a_colon_stands_in_quotes() -> None:
    words = command(
        Facts(half=False, quantized=False, single=(), nameless=0, packed=False, free=(("x:0", (3,)),)), 11, 8
    )
    assert words is not None
    assert "--maxShapes='x:0':8x3" in words

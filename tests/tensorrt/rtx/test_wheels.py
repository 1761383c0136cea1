"""NVIDIA's parser and compiler themselves: what the stand-ins play has to be what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.bundles import write_tiny_bundle
from tests.tensorrt.rtx.conftest import recorded
from tests.transformer import transformer
from vitdeploy import build
from vitdeploy.errors import BackendError
from vitdeploy.graph.flop import flop_by_node
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.machine.gpus import read_gpus
from vitdeploy.runtime.session import load
from vitdeploy.tensorrt.rtx.compile import compile_check
from vitdeploy.tensorrt.rtx.compiler import run_compiler
from vitdeploy.tensorrt.rtx.requirements import COMPUTE_CAPABILITIES, unavailable
from vitdeploy.tensorrt.rtx.roofline import read_roofline

MISSING = unavailable()
pytestmark = [
    pytest.mark.nvidia,
    pytest.mark.skipif(MISSING is not None, reason="; ".join(MISSING.lines()) if MISSING else "it is there"),
]


@pytest.mark.parametrize(("name", "half"), [("transformer_fp16", True), ("transformer_fp32", False)])
def test_the_recorded_layers_are_still_what_it_makes(name: str, half: bool) -> None:
    def names(log: list[list[str]]) -> list[str]:
        lines = [line for _, text in log for line in text.splitlines() if "LayerType: " in line]
        return [line.partition(", LayerType")[0] for line in lines]

    outcome = run_compiler(transformer(half=half, batch=1), 86, {})
    assert names([list(pair) for pair in outcome.log]) == names(recorded(name)["log"])


@pytest.mark.parametrize("half", [True, False])
def test_every_tensor_that_it_lists_has_a_size(half: bool) -> None:
    model = transformer(half=half, batch=1)
    outcome = run_compiler(model, 86, {})
    lines = [line for _, text in outcome.log for line in text.splitlines() if "LayerType: " in line]
    layers = json.loads(outcome.engine)["Layers"]
    sides = [side for layer in layers for side in (layer["Inputs"], layer["Constants"], layer["Outputs"])]
    assert len(layers) == len(lines)
    assert sum(map(len, sides)) == sum(line.count("Datatype: ") for line in lines)
    found = read_roofline(outcome.engine, model)
    assert found.flop == sum(count or 0 for count in flop_by_node(read_graph(model).graph).values())


@pytest.mark.parametrize("sm", COMPUTE_CAPABILITIES)
def test_it_compiles_for_every_compute_capability_that_is_listed(sm: int) -> None:
    assert run_compiler(transformer(half=True, batch=1), sm, {}).state == "built"


def test_no_compute_capability_is_left_out() -> None:
    import re

    import tensorrt_rtx_libs  # noqa: F401
    import tensorrt_rtx_bindings as trt  # isort: skip

    known = {int(name[2:]) for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)}
    assert known == set(COMPUTE_CAPABILITIES)


def test_half_precision_attention_fuses_and_single_precision_does_not(tmp_path: Path) -> None:
    for half, fused in ((True, 3), (False, 0)):
        path = tmp_path / f"{half}.onnx"
        path.write_bytes(transformer(half=half))  # with a free batch
        report = compile_check(path)
        assert report.fusion is not None
        assert sum(bool(block.fused) for block in report.fusion.attention) == fused
        assert report.weights_bytes


def test_a_refusal_names_every_node(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8, 8]) for name in "xy"]
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="stages.1.attn/Det"),
        helper.make_node("Unique", ["d"], ["y"], name="stages.2/Unique"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))
    onnx.save(model, tmp_path / "m.onnx")
    report = compile_check(tmp_path / "m.onnx")
    assert [(one.operator, one.module) for one in report.refused] == [("Det", "stages.1.attn"), ("Unique", "stages.2")]


def test_a_crash_of_the_real_compiler_is_a_message(tmp_path: Path) -> None:
    """Version 1.7.1 has no kernel for this and ends in an internal error or a segmentation fault."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 32, 16]) for name in ("x", "h", "y")]
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="stem/Relu"),
        helper.make_node("Attention", ["h", "h", "h"], ["y"], name="blocks.0.attn/Attention"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    report = compile_check(tmp_path / "m.onnx", keep=tmp_path / "part.onnx")
    assert report.state in ("failed", "crashed")
    assert report.failure is not None
    assert report.failure.nodes == ("Attention blocks.0.attn/Attention",)


# The runtime. Without a GPU it ends at the first call of CUDA: in words, and never in a crash.

needs_no_gpu = pytest.mark.skipif(bool(read_gpus()), reason="there is a GPU, on which the engine would load")

LOAD = """
import sys
from tests.tensorrt.fake_cuda import FakeDriver
from vitdeploy.tensorrt import cuda, engine
from vitdeploy.errors import BackendError
from vitdeploy.tensorrt.rtx.backend import RtxLibrary
played = cuda.Cuda(FakeDriver())
engine.open_cuda = lambda: played
try:
    engine.Engine(open(sys.argv[1], "rb").read(), RtxLibrary())
except BackendError as error:
    print("\\n".join(error.lines()))
"""


def deserialized(path: Path) -> str:
    """What loading the file with the real libraries ends in, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def built(tmp_path: Path, **options: Any) -> Path:
    bundle = write_tiny_bundle(tmp_path / "b", force=True)
    return Path(str(build(bundle, runtime="tensorrt_rtx", cache=tmp_path / "engines", **options).engine))


@needs_no_gpu
def test_an_engine_that_was_built_ahead_loads_up_to_the_first_call_of_cuda(tmp_path: Path) -> None:
    engine = built(tmp_path, profile="1,2,4", workspace="2G")
    assert engine.read_bytes().startswith(b"vtrt")
    said = deserialized(engine)
    assert said.startswith("the engine cannot be loaded")
    assert "CUDA driver version is insufficient" in said
    assert "vitdeploy build BUNDLE --runtime tensorrt_rtx --rebuild" in said
    with pytest.raises(BackendError, match="no NVIDIA GPU that a driver serves"):
        load(tmp_path / "b", runtime="tensorrt_rtx", cache=tmp_path / "engines")


@needs_no_gpu
@pytest.mark.parametrize("damage", ["rubbish", "empty", "cut", "changed"])
def test_bytes_that_are_no_engine_are_refused_in_words(tmp_path: Path, damage: str) -> None:
    data = built(tmp_path).read_bytes()
    wrong = {"rubbish": b"no engine at all" * 64, "empty": b"", "cut": data[:5000], "changed": data[:64] + data[128:]}
    (tmp_path / "wrong").write_bytes(wrong[damage])
    assert deserialized(tmp_path / "wrong").startswith("the engine cannot be loaded")


def test_engines_are_built_for_several_kinds_and_turing_takes_no_fp32(tmp_path: Path) -> None:
    one, all_but_turing = built(tmp_path, sm="86"), built(tmp_path)
    assert one != all_but_turing
    assert 0 < all_but_turing.stat().st_size - one.stat().st_size < 100, "a kind more takes a few bytes"
    with pytest.raises(BackendError, match=r"Turing(.|\n)*leave 75 out of"):
        built(tmp_path, sm="75")
    with pytest.raises(BackendError, match="workspace"):
        built(tmp_path, workspace="1M")

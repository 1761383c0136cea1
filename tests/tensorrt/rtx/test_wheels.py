"""NVIDIA's parser and compiler themselves: what the stand-ins play has to be what they say."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.tensorrt.rtx.conftest import recorded
from tests.transformer import transformer
from vitdeploy.tensorrt.rtx.compile import compile_check
from vitdeploy.tensorrt.rtx.compiler import run_compiler
from vitdeploy.tensorrt.rtx.requirements import COMPUTE_CAPABILITIES, unavailable

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

"""From a bundle to a proven engine: what is kept, refused and repaired. TensorRT is played by stand-ins."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.bundles import tiny_images, write_tiny_bundle
from tests.tensorrt.fake_tensorrt import EIGHT, PREFIX, World
from tests.transformer import (
    BLOCKS,
    compute,
    damaged_weight,
    transformer,
    write_bundle,
    wrong_fused_attention,
)
from vitdeploy import build, load
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.graph.onnx_file import read_graph
from vitdeploy.tensorrt import prove as engine_module


def spoil_half_of(block: str) -> object:
    """A runtime that computes this block's linear layers wrongly where they are in half precision."""
    damage = damaged_weight(f"{block}.mlp.weight")

    def miscompile(model: bytes) -> bytes:
        product = next(node for node in onnx.load_from_string(model).graph.node if node.name == f"{block}.mlp/MatMul")
        weights = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}
        return damage(model) if weights[product.input[1]] == onnx.TensorProto.FLOAT16 else model

    return miscompile


def attempts(report: object) -> list[tuple[str, bool | None]]:
    return [(one["workaround"], one.get("passed")) for one in report.to_dict()["attempts"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("half", [False, True])
def test_a_right_engine_is_kept_with_its_log_and_report(world: World, tmp_path: Path, half: bool) -> None:
    bundle = write_bundle(tmp_path / "b", half=half)
    log = tmp_path / "builder.log"
    report = build(bundle, workspace="1G", log_file=log)
    assert report.passed
    assert report.engine is not None
    assert Path(report.engine).read_bytes() == PREFIX + transformer(half=half)
    assert attempts(report) == [("as it is", True)]
    assert json.loads(Path(report.report).read_text()) == {
        key: value for key, value in report.to_dict().items() if key != "cached"
    }
    assert "choosing kernels" in log.read_text()
    assert report.to_dict()["options"]["workspace"] == 2**30
    again = build(bundle, workspace="1G")
    assert (again.cached, len(world.builds)) == (True, 1)
    assert build(bundle, workspace="1G", rebuild=True).cached is False
    assert world.driver.leaks == 0


def test_attention_that_is_fused_wrongly_is_found_and_kept_from_being_fused(world: World, tmp_path: Path) -> None:
    world.miscompile = wrong_fused_attention
    bundle = write_bundle(tmp_path / "b", half=True)
    report = build(bundle)
    assert report.passed
    found = report.to_dict()
    assert attempts(report) == [("as it is", False), ("defuse", True)]
    assert found["workaround"] == "defuse"
    assert found["diverges"]["block"] == "blocks.0.0"
    assert "first block that diverges: blocks.0.0" in str(report)
    images = tiny_images(2)
    with load(bundle, runtime="tensorrt") as session:
        assert session.describe()["workaround"] == "defuse"
        np.testing.assert_allclose(session(images), compute(transformer(), images)["logits"], rtol=0, atol=0.02)
    assert world.driver.leaks == 0


def test_a_block_that_is_wrong_in_half_precision_gets_single_precision(world: World, tmp_path: Path) -> None:
    world.miscompile = spoil_half_of("blocks.1.0")  # type: ignore[assignment]
    report = build(write_bundle(tmp_path / "b", half=True))
    assert attempts(report) == [("as it is", False), ("defuse", False), ("fp32", True)]
    assert report.to_dict()["diverges"]["block"] == "blocks.1.0"
    built = read_graph(world.models[-1]).graph
    kinds = {
        block: node.outputs[0].dtype.name
        for block in ("0", "1", "2")
        for node in built
        if node.name == f"blocks.{block}.0.mlp/MatMul" and node.outputs[0].dtype
    }
    assert kinds == {"0": "FLOAT16", "1": "FLOAT", "2": "FLOAT16"}


def test_eight_gets_the_repair_as_precision_of_its_layers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.version = EIGHT
    world.install(monkeypatch)
    world.miscompile = damaged_weight("head.weight")
    report = build(write_bundle(tmp_path / "b", half=True))
    assert not report.passed
    told = {one["workaround"]: one.get("skipped") for one in report.to_dict()["attempts"]}
    assert told == {"as it is": None, "defuse": None, "fp32": None, "bf16": "it takes TensorRT 10 or newer"}
    assert world.parsed == [{}] * len(world.parsed), "weakly typed: the Casts of the graph become layer precisions"


def test_what_nothing_repairs_fails_and_names_the_block(world: World, tmp_path: Path) -> None:
    world.miscompile = damaged_weight("blocks.2.0.attn.v.weight")
    bundle = write_bundle(tmp_path / "b")
    report = build(bundle)
    assert not report.passed
    assert report.engine is None
    assert report.to_dict()["diverges"]["block"] == "blocks.2.0"
    told = {one["workaround"]: one.get("skipped") for one in report.to_dict()["attempts"]}
    assert told["fp32"] == told["bf16"] == "there is nothing for it to change"
    assert not list(Path(report.report).parent.glob("*.engine"))
    assert json.loads(Path(report.report).read_text())["passed"] is False
    assert str(report).endswith("FAILED")
    with pytest.raises(BackendError, match="no proven TensorRT engine"):
        load(bundle, runtime="tensorrt")
    assert world.driver.leaks == 0


def test_a_workaround_that_tensorrt_does_not_build_is_noted_and_the_next_is_tried(world: World, tmp_path: Path) -> None:
    """The stand-in computes with ONNX Runtime, whose CPU kernels refuse bfloat16."""
    world.miscompile = damaged_weight("blocks.0.0.attn.q.weight")
    report = build(write_bundle(tmp_path / "b", half=True), workarounds="bf16")
    (first, second) = report.to_dict()["attempts"]
    assert (first["workaround"], second["workaround"], second["passed"]) == ("as it is", "bf16", False)
    assert "does not build this model" in second["failures"][0]


def test_auto_takes_another_runtime_where_no_engine_holds(world: World, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    world.miscompile = damaged_weight("head.weight")
    assert not build(bundle).passed
    with load(bundle) as session:
        assert session.backend.name != "tensorrt"
        assert "tensorrt (there is no proven TensorRT engine" in session.reason
    world.miscompile = lambda model: model
    assert build(bundle).passed
    with load(bundle) as session:
        assert session.backend.name == "tensorrt"


def test_an_engine_that_needed_a_workaround_is_not_taken_where_none_is_allowed(world: World, tmp_path: Path) -> None:
    world.miscompile = wrong_fused_attention
    bundle = write_bundle(tmp_path / "b", half=True)
    assert build(bundle).to_dict()["workaround"] == "defuse"
    assert build(bundle).cached
    report = build(bundle, workarounds="none")
    assert (report.cached, report.passed) == (False, False)
    assert build(bundle).cached, "the engine that holds is still there"


def test_without_leave_nothing_is_tried_but_the_block_is_named(world: World, tmp_path: Path) -> None:
    world.miscompile = wrong_fused_attention
    report = build(write_bundle(tmp_path / "b"), workarounds="none")
    assert not report.passed
    assert attempts(report) == [("as it is", False)]
    assert report.to_dict()["diverges"]["block"] == "blocks.0.0"


def test_without_the_packages_the_report_says_what_brings_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        engine_module.importlib.util, "find_spec", lambda name: None if name == "onnx_ir" else find(name)
    )
    world.miscompile = wrong_fused_attention
    report = build(write_bundle(tmp_path / "b"))
    assert not report.passed
    assert "pip install onnx-ir" in str(report)


def test_a_reference_that_onnxruntime_misses_too_is_the_bundles_fault(world: World, tmp_path: Path) -> None:
    report = build(write_tiny_bundle(tmp_path / "b", error=0.5))
    assert not report.passed
    assert "it is the bundle, not TensorRT" in str(report)
    assert report.to_dict()["diverges"] is None


def test_the_fusion_report_is_read_from_the_engine_that_holds(world: World, tmp_path: Path) -> None:
    attention = "\x1f".join(f"[ONNX Layer: blocks.0.0.attn/{kind}]" for kind in ("MatMul", "Softmax", "MatMul_1"))
    layers = [
        {
            "Name": "_gemm_mha_v2_myl0_1",
            "LayerType": "kgen",
            "TacticName": "_gemm_mha_v2_0x1",
            "Metadata": attention,
            "Inputs": [{"Format/Datatype": "Half"}],
            "Outputs": [],
        }
    ]
    world.inspection = json.dumps({"Layers": layers, "Bindings": []})
    report = build(write_bundle(tmp_path / "b", half=True))
    fusion = report.to_dict()["fusion"]
    assert fusion["attention_fused"] == 1
    assert len(fusion["attention"]) == BLOCKS
    assert fusion["precision"] == {"fp16": 1}


def test_an_inspector_that_speaks_another_language_is_no_reason_to_fail(world: World, tmp_path: Path) -> None:
    world.inspection = "no JSON at all"
    report = build(write_bundle(tmp_path / "b"))
    assert report.passed
    assert report.to_dict()["fusion"] is None


def test_a_fixed_batch_takes_no_profile(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exactly 2"):
        build(write_tiny_bundle(tmp_path / "b", 2), profile="1,2,4")


def test_a_fixed_batch_is_diagnosed_with_as_many_images(world: World, tmp_path: Path) -> None:
    world.miscompile = damaged_weight("blocks.1.0.mlp.weight")
    report = build(write_bundle(tmp_path / "b", batch=2), workarounds="none")
    assert report.to_dict()["diverges"]["block"] == "blocks.1.0"


def test_the_command_builds_and_tells(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", half=True)
    arguments = [
        "build",
        str(bundle.path),
        "--workspace",
        "512M",
        "--profile",
        "1,2,4",
        "--workaround",
        "none",
        "--no-tf32",
    ]
    places = ["--cache", str(tmp_path / "e"), "--timing-cache", str(tmp_path / "t"), "--log", str(tmp_path / "l")]
    assert main([*arguments, *places, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["options"] == {"workspace": 2**29, "profile": [1, 2, 4], "dla": None, "tf32": False}
    assert Path(report["engine"]).parent == tmp_path / "e"
    assert (tmp_path / "t").exists()
    assert (tmp_path / "l").exists()
    world.miscompile = damaged_weight("head.weight")
    assert main(["build", str(bundle.path), "--workaround", "none"]) == 1
    assert "first block that diverges: head" in capsys.readouterr().out
    world.complaint = "out of memory"
    assert main(["build", str(bundle.path)]) == 2
    assert "--workspace" in capsys.readouterr().err

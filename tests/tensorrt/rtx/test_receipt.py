"""What a manifest keeps of NVIDIA's compiler, and how `inspect` shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt.rtx.conftest import Play, recorded
from tests.transformer import transformer, write_bundle
from vitdeploy.bundle.manifest import SELF_HASH, dump
from vitdeploy.inspection.inspect import inspect
from vitdeploy.inspection.report import sections
from vitdeploy.targets import targets
from vitdeploy.tensorrt.rtx.compile import fusion_receipt

ROWS = {row.name: row for row in targets()}
TITLE = "compiled when exported"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(transformer(half=True, batch=1))
    return path


def with_receipt(folder: Path, compiled: Any) -> Path:
    """A bundle whose manifest has this under `graph.compiled`."""
    bundle = write_bundle(folder)
    file = bundle.path / "manifest.json"
    document = json.loads(file.read_text())
    document.pop(SELF_HASH)
    document["graph"]["compiled"] = compiled
    file.write_bytes(dump(document))
    return bundle.path


def test_a_bundle_for_tensorrt_alone_gets_the_counts_and_the_version(model: Path, play: Play, tmp_path: Path) -> None:
    play(log=recorded("transformer_fp16")["log"])
    for name, row in ROWS.items():
        assert bool(fusion_receipt(model, row)) == name.startswith("tensorrt"), name
    compiled = fusion_receipt(model, ROWS["tensorrt10"])["compiled"]
    assert compiled == {
        "compiler": "TensorRT for RTX",
        "version": "1.7.1.116",
        "sm": 86,
        "state": "built",
        "layers": 28,
        "moving_layers": 4,
        "attention": {"fused": 3, "of": 3},
        "layer_norm": {"fused": 3, "of": 3},
        "GELU": {"fused": 0, "of": 0},
        "moved_bytes": 71880,
        "flop": 217252,
        "weights_bytes": 28672,
        "activation_bytes": 8196608,
    }
    shown = sections(inspect(with_receipt(tmp_path / "b", compiled)))[TITLE]
    assert shown["compiler"] == "TensorRT for RTX 1.7.1.116, sm 86"
    assert shown["attention fused"] == "3 of 3"
    assert shown["layers"] == "28, of which 4 only move or convert data"
    assert shown["work of a run"] == "0.1 MiB moved, 0.000217 GFLOP"
    assert "state" not in shown


def test_without_the_compiler_there_is_no_receipt(model: Path, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert fusion_receipt(model, ROWS["tensorrt10"]) == {}


@pytest.mark.parametrize(
    ("behaviour", "state", "why"),
    [
        (
            {
                "parsed": False,
                "errors": [{"node_name": "a/Det", "node_operator": "Det", "desc": "no", "code": "INVALID_NODE"}],
            },
            "refused",
            "Det a/Det: ",
        ),
        ({"built": False, "log": [["ERROR", "the moon is in the way"]]}, "failed", "the moon is in the way"),
        ({"crash_on": "blocks.0.0.attn/Softmax"}, "crashed", "SIGSEGV"),
    ],
)
def test_a_model_that_does_not_compile_is_recorded_and_no_obstacle(
    behaviour: dict[str, Any], state: str, why: str, model: Path, play: Play, tmp_path: Path
) -> None:
    play(**behaviour)
    compiled = fusion_receipt(model, ROWS["tensorrt10"])["compiled"]
    assert compiled["state"] == state
    assert why in compiled["why"]
    shown = sections(inspect(with_receipt(tmp_path / "b", compiled)))[TITLE]
    assert shown["state"].startswith(f"{state}: ")


@pytest.mark.parametrize("strange", [None, 3, [], "x", {}, {"attention": 3, "weights_bytes": "many"}])
def test_a_bundle_without_a_receipt_or_with_a_strange_one_is_shown_all_the_same(strange: Any, tmp_path: Path) -> None:
    shown = sections(inspect(with_receipt(tmp_path / "b", strange)))
    assert "attention fused" not in shown[TITLE]


def test_an_export_writes_it(tmp_path: Path, play: Play) -> None:
    torch = pytest.importorskip("torch")
    from vitdeploy.exporter.api import export

    play(log=[["INFO", "Total Weights Memory: 5 bytes"]])
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    bundle = export(module.eval(), tmp_path / "b", image_size=8, target="tensorrt10")
    assert bundle.manifest.graph["compiled"]["weights_bytes"] == 5
    assert bundle.manifest.graph["nodes_captured"]

"""A board as the target: its generation of TensorRT, and its rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from vitdeploy import Bundle, check
from vitdeploy.bundle.manifest import MANIFEST, dump
from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.exporter import pipeline
from vitdeploy.platforms.report import BLOCKS, CheckReport, Finding

MODELS = """
import torch
from torch import nn


def small():
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))

"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "row", "platform"),
    [
        ("jetson-orin-nano-jp6", "tensorrt10", "jetson-orin-nano-jp6"),
        ("jetson-orin-nx", "tensorrt10", "jetson-orin-nx-jp7.2"),
        ("tensorrt8.6", "tensorrt8", "tensorrt8.6"),
        ("trt11", "tensorrt11", None),
    ],
)
def test_a_board_is_its_generation_and_its_rules(
    target: str, row: str, platform: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "models.py:small", "--image-size", "32", "--fp16", "--target", target]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["target"], told["platform"]) == (row, platform)
    folder = here / f"models-{platform or row}-fp16"
    manifest = Bundle.open(folder).manifest
    assert (manifest.target, manifest.platform) == (row, platform)
    assert (f"builds on {platform}, by the rules" in err) == (platform is not None)

    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"builds on {platform or row}, by the rules;")
    assert check(folder) == check(folder, platform or row)


def test_what_would_not_build_on_the_board_is_no_bundle(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lowering avoids what a generation does not take, so that a rule has to be invented for the board."""

    def refusing(bundle: Bundle, target: str) -> CheckReport:
        report = check(bundle, target)
        found = Finding(BLOCKS, "Conv", "this board takes no convolutions", "another board", "a test")
        return replace(report, findings=(*report.findings, found))

    monkeypatch.setattr(pipeline, "check", refusing)
    words = ["export", "models.py:small", "--image-size", "32", "-o", "b"]
    assert main([*words, "--target", "jetson-orin-nano-jp6", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "would not build on jetson-orin-nano-jp6" in told["error"]
    assert (told["why"], told["try"]) == ("Conv: this board takes no convolutions", "another board")
    assert [path.name for path in here.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []
    assert main([*words, "--target", "tensorrt10"]) == 0  # a target names no board, and `check` is asked afterwards


def _bundle(folder: Path, target: str) -> Path:
    """The tiny bundle as one that was exported for a target."""
    path = write_tiny_bundle(folder).path
    document = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_bytes(dump({**document, "target": target}))
    return path


@pytest.mark.parametrize(("target", "platform"), [("portable", "tensorrt10"), ("tensorrt8", "tensorrt8")])
def test_a_bundle_is_judged_for_what_it_was_exported_for(target: str, platform: str, here: Path) -> None:
    bundle = _bundle(here / "b", target)
    assert check(bundle).platform.name == platform


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_bundle_that_tensorrt_does_not_read_has_no_rules_of_its_own(target: str, here: Path) -> None:
    bundle = _bundle(here / "b", target)
    with pytest.raises(UsageError, match=f"exported for {target}, which TensorRT does not read"):
        check(bundle)
    assert check(bundle, "tensorrt10").passed


@pytest.mark.parametrize(
    ("name", "offer"),
    [
        ("tensorrt", "tensorrt10"),
        ("trt", "tensorrt10"),
        ("portabel", "portable"),
        ("onnx-runtime", "onnxruntime"),
        ("orin", "jetson-orin-nano"),
        ("jetson-orin-nano-jp6.3", "jetson-orin-nano-jp6"),
    ],
)
def test_a_target_that_is_none_gets_the_closest(name: str, offer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "models.py:small", "--target", name]) == 2
    err = capsys.readouterr().err
    assert f"error: there is no target called {name!r}" in err
    assert f"  try: --target {offer}" in err

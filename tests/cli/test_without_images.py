"""Every command that reads a bundle, on one of a network that takes no images but numbers of words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.test_onnx_source import proto
from vitdeploy.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` and `words-fp16`, two bundles of it, and `data.npz`, sixteen inputs."""
    folder = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    model = proto(
        "e = Gather (table, ids) h = MatMul (e, w) g = Relu (h) logits = ReduceMean <axes=[1], keepdims=0> (g)",
        inputs="int64[N, 8] ids",
        output="float[N, 32] logits",
        table=rng.normal(size=(16, 32)).astype(np.float32),
        w=rng.normal(size=(32, 32)).astype(np.float32),
    )
    onnx.save(model, folder / "words.onnx")
    np.savez(folder / "data.npz", ids=rng.integers(0, 16, (16, 8)))
    for name, options in (("words", []), ("words-fp16", ["--fp16"])):
        assert main(["export", str(folder / "words.onnx"), *options, "-o", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("inspect words", "image size      -"),
        ("inspect words words-fp16", "precision"),
        ("inspect words --json", '"image_size": null'),
        ("verify words", "passed"),
        ("check words --target tensorrt10", "builds on tensorrt10"),
        ("bisect words-fp16 --runtime onnxruntime", "onnxruntime gives the numbers"),
        ("benchmark words words-fp16 --runtime onnxruntime --rounds 2", "words-fp16"),
        ("validate words words-fp16 --task features --data data.npz", "words-fp16"),
        ("sensitivity words --data data.npz --no-latency", "all together keep"),
        ("handoff words --to triton -o triton", "wrote triton"),
        ("handoff words --to openvino-model-server -o server", "wrote server"),
        ("handoff words --to trtexec -o trtexec", "wrote trtexec"),
        ("report words words-fp16 -o report.html", "wrote report.html"),
    ],
)
def test_what_reads_a_bundle_reads_one_without_images(
    folder: Path, command: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(command.split()) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("predict words data.npz", "takes no images"),
        ("validate words --data data.npz", "cannot be validated as a classifier of images"),
        ("handoff words --to cpp -o refused", "takes networks of one image"),
        ("handoff words --to deepstream -o refused", "takes networks of one image"),
        ("handoff words --to dlstreamer -o refused", "takes networks of one image"),
    ],
)
def test_what_needs_images_says_so(
    folder: Path, command: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert (captured.out, (folder / "refused").exists()) == ("", False)
    assert why in captured.err
    assert "\n  try: " in captured.err

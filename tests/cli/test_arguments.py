"""What several commands share: the options of `vitdeploy.load` reach the runtime from each of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import write_tiny_bundle
from vitdeploy.cli import benchmark, export, main
from vitdeploy.cli.arguments import positive

OPTIONS = ["--threads", "1", "--num-requests", "2", "--device", "CPU", "--compute-precision", "fp32"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "b").path)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "p.png"
    Image.fromarray(np.full((20, 30, 3), 7, np.uint8)).save(path)
    return str(path)


def test_verify_passes_them_on(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    for runtime in ("openvino", "auto"):
        cache = tmp_path / runtime
        assert main(["verify", bundle, "--runtime", runtime, *OPTIONS, "--cache", str(cache), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["runtime"]
        assert {key: told[key] for key in ("backend", "threads", "num_requests", "device", "compute_precision")} == {
            "backend": "openvino",
            "threads": 1,
            "num_requests": 2,
            "device": "CPU",
            "compute_precision": "fp32",
        }
        assert any(path.is_file() for path in cache.rglob("*"))


def test_predict_passes_them_on(bundle: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    command = ["predict", bundle, image, "--runtime", "openvino", "--json"]
    assert main([*command, *OPTIONS, "--cache", str(tmp_path / "c")]) == 0
    given = json.loads(capsys.readouterr().out)
    assert any(path.is_file() for path in (tmp_path / "c").rglob("*"))
    assert main(command) == 0
    assert given == json.loads(capsys.readouterr().out)


def test_benchmark_passes_them_on(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    command = ["benchmark", bundle, "--runtime", "openvino", "--rounds", "1", "--warmup", "0", "--json", *OPTIONS]
    assert main([*command, "--cache", str(tmp_path / "c")]) == 0
    (candidate,) = json.loads(capsys.readouterr().out)["candidates"]
    assert (candidate["settings"]["threads"], candidate["settings"]["callers"]) == (1, 2)
    assert any(path.is_file() for path in (tmp_path / "c").rglob("*"))


@pytest.mark.parametrize("command", ["verify", "predict", "benchmark"])
@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--checkpoint", "weights.pth", "does not support the option checkpoint"),
        ("--compute-precision", "bf16", "does not support the option compute_precision"),
        ("--cache", "folder", "does not support the option cache"),
        ("--device", "TPU", "no device TPU"),
        ("--threads", "0", "invalid threads: 0"),
        ("--streams", "0", "invalid num_requests: 0"),
        ("--compute-precision", "fp8", "fp32 or bf16 or fp16"),
    ],
)
def test_what_a_runtime_cannot_follow_is_refused_by_every_command(
    command: str, option: str, value: str, complaint: str, bundle: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    images = [image] if command == "predict" else []
    assert main([command, bundle, *images, "--runtime", "onnxruntime", option, value]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("text", "number"), [("1", 1), (" 8 ", 8), ("0", None), ("-1", None), ("²", None), ("", None)])
def test_commands_agree_on_what_a_number_is(text: str, number: int | None) -> None:
    for parse, value in ((positive, number), (export.batch, number), (benchmark.numbers, [number])):
        if number is None:
            with pytest.raises((ValueError, argparse.ArgumentTypeError)):
                parse(text)  # type: ignore[operator]
        else:
            assert parse(text) == value  # type: ignore[operator]

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
from vitdeploy.cli.arguments import add_preprocessing, positive, preprocessing
from vitdeploy.errors import UsageError
from vitdeploy.preprocess import Preprocessing

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


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("mode=stretch", [("mode", "stretch")]),
        ("mean=0.4,0.5,0.6", [("mean", (0.4, 0.5, 0.6))]),
        ("mean=0.5", [("mean", 0.5)]),
        (
            "channels=bands,scale=10000,mean=0.1,0.2,std=0.3,0.4",
            [("channels", "bands"), ("scale", 10000), ("mean", (0.1, 0.2)), ("std", (0.3, 0.4))],
        ),
        ("channels=L, mean=1e-1, crop_ratio=1", [("channels", "L"), ("mean", 0.1), ("crop_ratio", 1)]),
        ("mean=-0.5,-1", [("mean", (-0.5, -1))]),
    ],
)
def test_fields_of_the_preprocessing_may_be_joined(text: str, fields: list[tuple[str, object]]) -> None:
    assert preprocessing(text) == fields


@pytest.mark.parametrize("text", ["", "mode", "mode=", "=stretch", "channels=L,mean=", "mode=stretch,,mean=0.5", ","])
def test_a_field_without_a_name_or_a_value_is_refused(text: str) -> None:
    try:
        found = preprocessing(text)
    except argparse.ArgumentTypeError as error:
        assert "mode=stretch" in str(error)  # noqa: PT017
    else:  # a comma too many stays in the value, which the recipe refuses
        with pytest.raises(UsageError):
            Preprocessing().changed(dict(found))


def test_the_option_may_be_given_several_times() -> None:
    parser = argparse.ArgumentParser()
    add_preprocessing(parser)
    assert parser.parse_args([]).preprocessing == []
    given = ["--preprocessing", "mode=stretch", "--preprocessing", "channels=L,mean=0.5,std=0.25"]
    changes = dict(parser.parse_args(given).preprocessing)
    recipe = Preprocessing().changed(changes)
    assert recipe == Preprocessing(mode="stretch", channels="L", mean=(0.5,), std=(0.25,))

"""`vitdeploy sensitivity` as it is typed: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.costs.networks import write_data, write_network
from vitdeploy.cli import main
from vitdeploy.costs import sensitivity as module

pytest.importorskip("onnxruntime")

FAST = ("--samples", "20", "--images", "20", "--no-latency", "--preprocessing", "mode=stretch")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("source") / "net.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.npz", 40)


def run(*words: object) -> int:
    return main(["sensitivity", *map(str, words)])


def test_a_table_and_a_csv(source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "layers.csv"
    assert run(source, "--data", data, *FAST, "--top", "2", "--csv", table) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["layer", "kind", "SNR", "dB", "noise", "points", "(95", "%)", "why"]
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [line.split()[0] for line in out[1:3]] == [row["name"] for row in rows[:2]]
    assert out[3] == "… and 2 more layers, which --json and --csv have"
    assert any(line.startswith("all together keep ") and "adds up to" in line for line in out)
    assert list(tmp_path.iterdir()) == [table]


def test_json_is_one_object_with_every_layer(source: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, "--data", data, *FAST, "--json", "--top", "1", "--sort", "order") == 0
    document = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in document["parts"]] == [
        *("graph/Conv", "graph/MatMul", "graph/MatMul_1", "graph/MatMul_2")
    ]
    assert document["total"] == 4
    assert document["left"] == {"graph/MatMul_3": "fewer than 16 channels"}


def test_a_function_with_its_options_and_a_folder_of_images_without_labels(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(24):
        picture = Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8))
        picture.save(tmp_path / "images" / f"{number}.png")
    words = (f"{model_file}:build", "--image-size", "16x24", "--data", tmp_path / "images", "--by", "block")
    assert run(*words, "--samples", "12", "--images", "12", "--no-latency", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {"stem", "qkv"} <= {part["name"] for part in document["parts"]}
    assert all(part["drop"] is None and part["snr_db"] > 20 for part in document["parts"])
    assert any("has no labels" in note for note in document["notes"])
    assert run(*words, "--precision", "fp16", "--images", "12", "--no-latency") == 0
    assert "each block alone in FP16" in capsys.readouterr().out


def test_milliseconds_are_printed_with_their_interval(
    source: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in FAST if word != "--no-latency"]
    assert run(source, "--data", data, *words, "--runtime", "ort", "--threads", "1") == 0
    out = capsys.readouterr().out
    assert "ms (95 %)" in out.splitlines()[0]
    assert "ms: saved of a call on onnxruntime" in out


def test_an_interrupted_run_prints_what_it_has_and_exits_with_130(
    source: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = module._Measuring._cost
    calls: list[str] = []

    def stopped(self: module._Measuring, part: object) -> object:
        if calls:
            raise KeyboardInterrupt
        calls.append("one")
        return measured(self, part)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Measuring, "_cost", stopped)
    assert run(source, "--data", data, *FAST, "--json") == 130
    document = json.loads(capsys.readouterr().out)
    assert document["interrupted"]
    assert len(document["parts"]) == 1
    assert run(source, "--data", data, *FAST) == 130
    assert "interrupted before anything was measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--precision", "int4"], "--precision int8 or fp16"),
        (["--by", "node"], "--by layer or block"),
        (["--sort", "size"], "--sort snr"),
        (["--top", "0"], "--top"),
        (["--images", "0"], "--images 200"),
        (["--samples", "-1"], "--samples 300"),
        (["--runtime", "tensorrt"], "--runtime onnxruntime"),
        (["--target", "tensorrt10", "--runtime", "openvino"], "bundles for tensorrt10 are not run by openvino"),
        (["--csv", "nowhere/x.csv"], "give --csv another path"),
        (["--method", "magic"], "--method auto"),
        (["--data", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2_and_a_hint(
    words: list[str], hint: str, source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "--data", data, "--samples", "20", "--images", "20", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert "Traceback" not in err


def test_no_data_is_wrong_usage(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source) == 2
    assert "--data" in capsys.readouterr().err

"""The example that segments: scenes whose masks are right, and a network that keeps its mIoU in every precision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.example_scripts import imported
from vitdeploy.cli import main
from vitdeploy.data.masks import open_masks

torch = pytest.importorskip("torch")

SCRIPT = ROOT / "examples" / "segment.py"
COLOURS = {"field": (200, 190, 60), "forest": (20, 90, 30), "lake": (30, 50, 160)}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with imported("segment") as module:
        yield module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs of one colour a class, of different sizes."""
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, size in enumerate(((16, 16), (24, 20))):
            Image.new("RGB", size, colour).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_mask_is_the_class_of_what_its_scene_shows(script: ModuleType, photographs: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    assert script.main(["scenes", str(photographs), str(scenes), "--count", "6", "--size", "40"]) == 0
    assert (scenes / "labels.txt").read_text().split() == list(COLOURS)
    found = open_masks(scenes)
    assert len(found) == 6
    colours = np.array(list(COLOURS.values()))
    masks = [found.mask(index) for index in range(6)]
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(np.asarray(found.images.read(index)), colours[mask])
    assert len(np.unique(np.stack(masks))) == 3
    assert len({mask.tobytes() for mask in masks}) == 6


def test_the_same_seed_makes_the_same_scenes(script: ModuleType, photographs: Path, tmp_path: Path) -> None:
    for name, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        words = ["scenes", str(photographs), str(tmp_path / name), "--count", "3", "--size", "32", "--seed", seed]
        assert script.main(words) == 0
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name / "images").iterdir())]
             for name in ("one", "same", "other")}  # fmt: skip
    assert files["one"] == files["same"]
    assert files["one"] != files["other"]


def test_wrong_usage_says_what_to_type(
    script: ModuleType, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken" / "images").mkdir(parents=True)
    for words, told in (
        (["scenes", str(photographs), str(tmp_path / "taken")], "has images already"),
        (["scenes", str(photographs / "field"), str(tmp_path / "new")], "have no classes"),
        (["scenes", str(tmp_path / "gone"), str(tmp_path / "new")], "there is no file or folder"),
        (["train", str(photographs), "-o", "weights.pth"], "-o weights.safetensors"),
        (["train", str(photographs), "-o", str(tmp_path / "x.safetensors")], "have no masks"),
    ):
        assert script.main(words) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def validated(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["validate", *map(str, words), "--runtime", "onnxruntime", "--json"])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, told


@pytest.mark.slow
def test_a_trained_decoder_keeps_its_iou_in_every_precision(
    script: ModuleType,
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real photographs, a few steps of training, and the bundles as a user makes them."""
    monkeypatch.chdir(tmp_path)
    eurosat = shared / "data" / "eurosat" / "eurosat_val.zip"
    for name, count, seed in (("train", 200, 0), ("val", 60, 1)):
        words = ["scenes", str(eurosat), name, "--count", str(count), "--size", "64", "--seed", str(seed)]
        assert script.main(words) == 0
    training = ["train", "train", "-o", "weights.safetensors", "--steps", "60", "--batch", "8", "--lr", "4e-3"]
    assert script.main(training) == 0
    network = ["export", f"{SCRIPT}:build", "--set", "checkpoint=weights.safetensors", "--set", "image_size=64"]
    network += ["--image-size", "64", "--batch", "dynamic", "--labels", "train/labels.txt"]
    network += ["--preprocessing", "mode=stretch,crop_ratio=1"]
    int8 = ["--int8", "--calibration", "train/images", "--samples", "100", "--goal", "logits=25"]
    for name, form in (("fp32", []), ("fp16", ["--fp16"]), ("int8", int8)):
        assert main([*network, *form, "-o", name]) == 0, capsys.readouterr().err
    code, told = validated(capsys, "fp16", "int8", "fp32", "--data", "val", "--max-drop", "2")
    assert code == 0, told["failures"]
    assert told["task"] == "segmentation"
    assert told["baseline"]["mean_iou"] > 20  # ten classes: guessing has 5
    half, small = told["runs"]
    assert abs(half["drop"]) < 0.5
    assert half["snr_db"] > 45
    assert abs(small["drop"]) < 2
    assert small["agreement"] > 90
    code, told = validated(capsys, "int8", "fp32", "--data", "val/images", "--task", "features", "--max-drop", "1")
    assert code == 0, told["failures"]
    assert told["runs"][0]["cosine"] > 0.99

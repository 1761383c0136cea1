"""`vitdeploy validate` for segmentation, features and a figure of the user's own, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.task_cases import scenes, write_data, write_pair, write_pyramid, write_segmenter
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main

pytest.importorskip("onnxruntime")

IMAGES, MASKS = scenes()

FIGURES = """
def mean(outputs, targets):
    return outputs["logits"].mean()

def pixels(outputs, targets):
    chosen = outputs["logits"].argmax(axis=1).repeat(4, axis=1).repeat(4, axis=2)
    return {"pixels": 100 * (chosen == targets["masks"]).mean(axis=(1, 2)), "count": len(chosen)}

def fails(outputs, targets):
    return outputs["depth"]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with bundles, `data` with masks, and `figures.py`; the user's cache is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_segmenter(tmp_path / "fp32")
    write_segmenter(tmp_path / "int8", noise=0.8)
    write_pyramid(tmp_path / "pyramid32")
    write_pyramid(tmp_path / "pyramid16", noise=0.3)
    write_pair(tmp_path / "pair32")
    write_pair(tmp_path / "pair16", noise=0.3)
    write_data(tmp_path / "data", IMAGES, MASKS)
    (tmp_path / "figures.py").write_text(FIGURES)
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of `vitdeploy validate` with ONNX Runtime."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["validate", *words, "--runtime", "onnxruntime"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def test_a_segmentation_is_measured_and_gated(run: Callable[..., tuple[int, str, str]], place: Path) -> None:
    code, out, _ = run("int8", "fp32", "--data", "data", "--report", "report")
    assert code == 0
    assert out.splitlines()[1].startswith("baseline  FP32 bundle, fp32 on onnxruntime: mIoU ")
    assert "most lost: " in out
    assert {path.name for path in (place / "report").iterdir()} == {"report.json", "report.txt", "pixels.npz"}
    kept = np.load(place / "report" / "pixels.npz")
    assert kept["counts"].shape == (2, len(IMAGES), 3, 4)
    code, out, _ = run("int8", "fp32", "--data", "data", "--max-drop", "0.5", "--json")
    told = json.loads(out)
    assert code == 1
    assert told["runs"][0]["mean_iou"] < told["baseline"]["mean_iou"]
    assert Bundle.open(place / "int8").manifest.accuracy[0]["mean_iou"] == told["runs"][0]["mean_iou"]
    assert main(["inspect", "int8"]) == 0


def test_features_are_measured_and_gated(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("pyramid16", "pyramid32", "--data", "data")
    assert code == 0
    assert "stride4" in out
    assert "stride8" in out
    code, out, _ = run("pyramid16", "pyramid32", "--data", "data", "--max-drop", "0.001")
    assert code == 1
    assert "% of cosine similarity, allowed are 0.001" in out


def test_a_figure_of_the_users_own(run: Callable[..., tuple[int, str, str]], place: Path) -> None:
    write_segmenter(place / "worse", noise=4.0)
    code, out, _ = run("worse", "fp32", "--data", "data", "--metric", "figures.py:pixels", "--max-drop", "0.1")
    assert code == 1
    assert "worse on onnxruntime drops" in out
    assert "count" in out
    rng = np.random.default_rng(0)
    np.savez(
        "pair.npz", left=rng.normal(size=(9, 6)).astype(np.float32), ids=np.ones((9, 2), np.int64), truth=np.ones(9)
    )
    (place / "pair.py").write_text("def f(o, t): return -abs(o['score'][:, 0] - t['truth'])\n")
    code, out, _ = run("pair16", "pair32", "--data", "pair.npz", "--metric", "pair.py:f", "--report", "report")
    assert code == 0
    assert "figures.npz" in {path.name for path in (place / "report").iterdir()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("int8", "--data", "data/images"), "it is not certain what int8 is to be validated for"),
        (("int8", "--data", "data/images", "--task", "segmentation"), "have no masks"),
        (("int8", "--data", "gone", "--task", "segmentation"), "there is no file or folder gone"),
        (("int8", "--data", "figures.py", "--task", "segmentation"), "figures.py"),
        (("int8", "--data", "data", "--task", "detection"), "there is no task called 'detection'"),
        (("int8", "--data", "data", "--task", "classification"), "is not a classifier"),
        (("int8", "--data", "data", "--output", "boxes"), "has no output 'boxes'"),
        (("int8", "--data", "data", "--ignore-index", "1", "--task", "features"), "--ignore-index is for masks"),
        (("int8", "--data", "data", "--metric", "figures.py:fails"), "raises KeyError: 'depth'"),
        (("int8", "--data", "data", "--metric", "figures.py:nothing"), "has no function 'nothing'"),
        (("int8", "--data", "data", "--metric", "gone.py:f"), "there is no file gone.py"),
        (("int8", "--data", "data", "--max-drop", "101"), "expected 0 to 100 points of mIoU"),
        (("int8", "--data", "data", "--max-drop", "nan"), "expected 0 to 100 points of mIoU"),
        (("int8", "--data", "bad.zip"), "bad.zip"),
        (("int8", "--data", "bad.npz", "--task", "segmentation"), "bad.npz"),
        (("int8", "--data", "odd.npz", "--task", "segmentation"), "the masks of odd.npz do not fit its images"),
        (("pair16", "--data", "data", "--task", "features", "--baseline", "pair32"), "cannot feed the network"),
        (("pair16", "--data", "odd.npz", "--task", "features", "--baseline", "pair32"), "no array for the input left"),
    ],
)
def test_wrong_input_says_what_to_type_and_exits_with_2(
    run: Callable[..., tuple[int, str, str]], place: Path, words: tuple[str, ...], told: str
) -> None:
    for name in ("bad.zip", "bad.npz"):
        (place / name).write_bytes(b"PK\x03\x04 and nothing else")
    np.savez("odd.npz", images=IMAGES, masks=MASKS[:5])
    code, out, err = run(*words, *(() if "--baseline" in words else ("--baseline", "fp32")))
    assert (code, out) == (2, "")
    assert told in err
    assert "try: " in err or "fix" in err


def test_a_mask_that_is_too_large_for_its_image_is_named(run: Callable[..., tuple[int, str, str]], place: Path) -> None:
    Image.new("L", (40, 40)).save(place / "data" / "masks" / "002.png")
    code, _, err = run("int8", "fp32", "--data", "data")
    assert code == 2
    assert "masks/002.png of data is 40x40 pixels" in err
    assert "its image is 16x16" in err

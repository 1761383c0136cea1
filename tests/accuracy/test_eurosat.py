"""A real network on real images: what a user of `lemevit_tiny.eurosat` sees."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.preprocess import preprocess_batch

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

SAMPLES = 120


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all tests; only what its manifest says about accuracy changes."""
    return vitdeploy.export("lemevit_tiny.eurosat", tmp_path_factory.mktemp("eurosat") / "fp16", precision="fp16").path


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where logits are kept between the tests."""
    return tmp_path_factory.mktemp("logits")


def validate(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main(["validate", *map(str, words), "--runtime", "onnxruntime", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_half_precision_loses_nothing_against_pytorch(
    fp16: Path, logits: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared / "data" / "eurosat" / "eurosat_val.zip"
    words = (fp16, "--data", data, "--samples", SAMPLES, "--max-drop", 1, "--report", tmp_path / "report")
    code, told = validate(capsys, *words, "--logits", logits)
    assert code == 0
    assert told["baseline"]["kind"].startswith("PyTorch FP32")
    assert told["data"]["images"] == SAMPLES
    (run,) = told["runs"]
    assert run["snr_db"] > 45
    assert run["agreement"] >= 99
    assert run["top1"] == pytest.approx(93.6, abs=5)
    assert run["top5"] > 98

    kept = np.load(tmp_path / "report" / "logits.npz")
    with zipfile.ZipFile(data) as archive:
        photos = [Image.open(io.BytesIO(archive.read(str(name)))).convert("RGB") for name in kept["images"]]
    model = vitdeploy.create_model("lemevit_tiny.eurosat")
    with torch.inference_mode():
        images = preprocess_batch(photos, model.card.preprocessing)  # type: ignore[union-attr]
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(kept["logits"][0], expected, atol=1e-4)
    labels = [str(kept["classes"][number]) for number in kept["labels"]]
    assert labels == [str(name).partition("/")[0] for name in kept["images"]]
    assert told["baseline"]["top1"] == pytest.approx(100 * np.mean(expected.argmax(1) == kept["labels"]))
    assert Bundle.open(fp16).manifest.accuracy[0]["snr_db"] == run["snr_db"]


def test_pytorch_says_of_the_first_image_what_the_training_recorded(
    fp16: Path, logits: Path, shared: Path, tmp_path: Path
) -> None:
    recorded = json.loads((shared / "weights" / "lemevit_tiny_eurosat.json").read_text())["first_val_logits"]
    with zipfile.ZipFile(shared / "data" / "eurosat" / "eurosat_val.zip") as archive:
        archive.extract(recorded["file"], tmp_path)
    report = vitdeploy.validate(fp16, tmp_path, runtime="onnxruntime", logits=logits, record=False)
    np.testing.assert_allclose(report.baseline.logits[0], recorded["logits"], atol=1e-3)


def test_folders_under_each_others_names_are_called_out(
    fp16: Path, logits: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(shared / "data" / "eurosat" / "eurosat_val.zip") as archive:
        names = archive.namelist()
        kinds = sorted({name.partition("/")[0] for name in names})
        moved = dict(zip(kinds, kinds[1:] + kinds[:1], strict=True))
        with zipfile.ZipFile(tmp_path / "shifted.zip", "w") as shifted:
            for kind in kinds:
                for name in [name for name in names if name.startswith(kind)][:8]:
                    shifted.writestr(f"val/{moved[kind]}/{Path(name).name}", archive.read(name))
    code, told = validate(capsys, fp16, "--data", tmp_path / "shifted.zip", "--logits", logits, "--no-record")
    assert code == 1
    (problem,) = told["baseline"]["problems"]
    assert "shifted: class number k is called k - 1 (AnnualCrop is called SeaLake; Forest is called Annual" in problem

"""Networks of timm and transformers, where these packages are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vitdeploy import load
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.exporter.sources.stand_in import without_torchvision


def exported(source: str, tmp_path: Path, *options: str) -> Bundle:
    out = tmp_path / "bundle"
    assert main(["export", source, *options, "-o", str(out)]) == 0
    return Bundle.open(out)


def refused(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["export", source, *options, "-o", str(tmp_path / "bundle")]) == 2
    assert not (tmp_path / "bundle").exists()
    return capsys.readouterr().err


def test_torchvision_is_stood_in_for_only_meanwhile() -> None:
    if "torchvision" in sys.modules:
        pytest.skip("torchvision is here")
    with without_torchvision():
        from torchvision.transforms.functional import InterpolationMode, resize  # type: ignore[import-not-found]

        assert InterpolationMode.BICUBIC == "bicubic"
        assert resize("anything", size=3) is not None
    assert not any(name.partition(".")[0] == "torchvision" for name in sys.modules)
    assert not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path)


@pytest.mark.parametrize(("source", "extra"), [("timm:deit_tiny_patch16_224", "timm"), ("hf:somewhere", "hf")])
def test_a_missing_package_is_named_with_its_extra(
    source: str, extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, {"timm": "timm", "hf": "transformers"}[extra], None)
    assert f"pip install 'vitdeploy[{extra}]'" in refused(source, tmp_path, capsys)


@pytest.fixture
def timm() -> None:
    with without_torchvision():
        pytest.importorskip("timm")


@pytest.mark.usefixtures("timm")
def test_a_network_of_timm_with_arguments(tmp_path: Path) -> None:
    options = ("--set", "pretrained=False", "--set", "depth=2", "--num-classes", "7", "--image-size", "64")
    manifest = exported("timm:vit_tiny_patch16_224", tmp_path, *options).manifest
    assert manifest.inputs[0].shape == (1, 3, 64, 64)
    assert manifest.model.num_classes == 7
    assert manifest.model.weights.kind == "random"
    recipe = manifest.recipe
    assert (recipe.mean, recipe.crop_ratio, recipe.mode) == ((0.5, 0.5, 0.5), 0.9, "resize_crop")


@pytest.mark.usefixtures("timm")
def test_a_checkpoint_of_timm(tmp_path: Path) -> None:
    with without_torchvision():
        import timm as library

        torch.manual_seed(5)
        model = library.create_model("deit_tiny_patch16_224", depth=1, num_classes=4, img_size=32).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = ("--checkpoint", str(tmp_path / "weights.pth"), "--num-classes", "4", "--set", "depth=1")
    bundle = exported("timm:deit_tiny_patch16_224", tmp_path, *options, "--image-size", "32")
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with load(bundle, runtime="onnxruntime") as session, torch.no_grad():
        np.testing.assert_allclose(session(images), model(torch.from_numpy(images)).numpy(), atol=1e-4)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tinny_patch16", (), ["no network called", "timm:vit_tiny_patch16"]),
        ("vit_tiny_patch16_224.nothing", (), ["no weights", "timm:vit_tiny_patch16_224."]),
        ("deit_tiny_patch16_224", ("--set", "pretrained=False", "--set", "nothing=3"), ["cannot make", "nothing"]),
    ],
)
def test_what_timm_does_not_know(
    name: str, options: tuple[str, ...], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(f"timm:{name}", tmp_path, capsys, *options)
    assert [word for word in words if word not in said] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    size = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    config = transformers.ViTConfig(
        **size, num_hidden_layers=1, num_attention_heads=2, id2label={0: "cat", 1: "dog", 2: "fox"}
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 3,
    }
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "model"


def test_a_folder_of_transformers(folder: Path, tmp_path: Path) -> None:
    manifest = exported(f"hf:{folder}", tmp_path).manifest
    assert manifest.labels == ("cat", "dog", "fox")
    assert [spec.name for spec in manifest.inputs] == ["pixel_values"]
    assert [spec.name for spec in manifest.outputs] == ["logits"]
    recipe = manifest.recipe
    assert (recipe.mean, recipe.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert (recipe.size, recipe.mode, recipe.interpolation) == ((32, 32), "stretch", "bicubic")


def test_a_folder_that_holds_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(f"hf:{tmp_path / 'empty'}", tmp_path, capsys)

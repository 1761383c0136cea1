"""`vitdeploy export --preprocessing` and `--bake-preprocessing`, down to what the bundle makes of images."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import vitdeploy
from tests.cli.test_export import load_source
from tests.rows import TARGETS
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.platforms.check import check
from vitdeploy.preprocess import Preprocessing, normalise

SIZE = (16, 24)
OWN = ["--preprocessing", "mode=stretch", "--preprocessing", "mean=0.4,0.5,0.6", "--preprocessing", "channels=BGR"]

Export = Callable[..., Bundle]


@pytest.fixture(scope="module")
def export(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports the small network of the user's own with further arguments."""
    folder = tmp_path_factory.mktemp("bundles")

    def make(*arguments: str) -> Bundle:
        out = folder / str(len(list(folder.iterdir())))
        command = ["export", f"{model_file}:build", "--image-size", "16x24", "--batch", "dynamic", "-o", str(out)]
        assert main([*command, *arguments]) == 0
        return Bundle.open(out)

    return make


@pytest.fixture(scope="module")
def plain(export: Export) -> Bundle:
    return export(*OWN)


@pytest.fixture(scope="module")
def baked(export: Export) -> Bundle:
    return export(*OWN, "--bake-preprocessing")


def photos() -> list[Any]:
    """A photograph and noise, upright and lying, of the network's size and not."""
    random = np.random.default_rng(5)
    noise = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((16, 24), (50, 31), (31, 50), (7, 9))]
    return [Path(__file__).resolve().parents[2] / "examples" / "water.png", *noise]


def test_what_is_given_is_what_the_bundle_records(plain: Bundle) -> None:
    recipe = Preprocessing(size=SIZE, mode="stretch", mean=(0.4, 0.5, 0.6), channels="BGR")
    assert plain.manifest.preprocessing == recipe
    assert not plain.manifest.preprocessing_in_graph


def test_the_network_sees_images_by_that_recipe(plain: Bundle, model_file: Path) -> None:
    photo = photos()[2]
    stretched = np.asarray(Image.fromarray(photo).resize((24, 50), 3).resize((24, 16), 3))[:, :, ::-1]
    images = (stretched / 255 - (0.4, 0.5, 0.6)) / (0.229, 0.224, 0.225)
    expected = run_torch(model_file, images.transpose(2, 0, 1)[None])
    with vitdeploy.load(plain) as session:
        (found,) = session.map([photo])
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-5)


def run_torch(model_file: Path, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        result: np.ndarray = load_source(model_file)(torch.from_numpy(images.astype(np.float32))).numpy()
    return result


def test_a_baked_bundle_takes_pixels_and_gives_the_same_on_images(plain: Bundle, baked: Bundle) -> None:
    (spec,) = baked.manifest.inputs
    assert str(spec) == "images uint8 [batch, 16, 24, 3]"
    assert baked.manifest.preprocessing_in_graph
    assert baked.manifest.preprocessing == plain.manifest.preprocessing
    for runtime in ("onnxruntime", "openvino"):
        with vitdeploy.load(plain, runtime=runtime) as one, vitdeploy.load(baked, runtime=runtime) as other:
            assert [len(row) for row in other.predict(photos(), top_k=3)] == [3] * 5
            for old, new in zip(one.map(photos()), other.map(photos()), strict=True):
                np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)


def test_inspect_says_where_images_are_normalised(
    plain: Bundle, baked: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(plain.path), str(baked.path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "normalised" in line)
    assert line.split() == ["normalised", "by", "the", "runtime", "in", "the", "graph"]


def test_its_proof_are_pixels_and_what_pytorch_makes_of_them(baked: Bundle, model_file: Path) -> None:
    reference = baked.reference()
    pixels = reference.inputs["images"]
    assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (*SIZE, 3))
    expected = run_torch(model_file, normalise(pixels, baked.manifest.preprocessing))
    np.testing.assert_allclose(reference.outputs["logits"], expected, rtol=0, atol=1e-6)
    assert baked.manifest.parity[0]["passed"]
    assert baked.manifest.graph["passes"][-1]["pass"] == "bake_preprocessing"


@pytest.mark.usefixtures("one_capture")
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_in_half_precision_takes_pixels(target: str, export: Export) -> None:
    bundle = export("--bake-preprocessing", "--fp16", "--target", target)
    model = onnx.load(bundle.path / "model.onnx")
    assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]
    for runtime in TARGETS[target].runtimes:
        if runtime.startswith("tensorrt"):
            platform = target if target.startswith("tensorrt") else "tensorrt10"
            assert check(bundle, platform).passed
        else:
            assert vitdeploy.verify(bundle, runtime=runtime).passed


def test_images_can_be_the_reference_of_a_baked_bundle(export: Export) -> None:
    photo = photos()[0]
    bundle = export("--bake-preprocessing", "--preprocessing", "mode=stretch", "--reference", str(photo))
    with Image.open(photo) as image:
        rows = image.convert("RGB").resize((24, image.height), 3).resize((24, 16), 3)
    np.testing.assert_array_equal(bundle.reference().inputs["images"][0], np.asarray(rows))


def test_a_users_own_module_is_told_what_is_taken(export: Export, capsys: pytest.CaptureFixture[str]) -> None:
    export()
    assert "Tiny does not say how its images were preprocessed" in capsys.readouterr().err


def test_the_summary_tells_what_the_input_is(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", f"{model_file}:build", "--image-size", "16", "--bake-preprocessing", "-o"]
    assert main([*command, str(tmp_path / "a"), "--preprocessing", "crop_ratio=1"]) == 0
    out, err = capsys.readouterr()
    assert "images uint8 [1, 16, 16, 3], normalised in the graph" in out
    assert "does not say" not in err
    assert main([*command, str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == "images uint8 [1, 16, 16, 3]"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("stretch", "mode=stretch"),
        ("mode=", "mode=stretch"),
        ("mode=fold", "resize_crop or crop_resize or stretch"),
        ("interpolation=nearest", "bicubic"),
        ("channels=CMYK", "RGB or BGR"),
        ("crop=0.9", "crop_ratio"),
        ("size=64", "--image-size"),
        ("crop_ratio=2", "at most 1"),
        ("crop_ratio=much", "a number"),
        ("mean=0.5", "three numbers"),
        ("mean=0.5,0.5", "three finite numbers"),
        ("std=0,1,1", "above 0"),
        ("std=1e999,1,1", "three finite numbers"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused_with_what_does(
    given: str, hint: str, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", f"{model_file}:build", "--image-size", "16", "-o", str(tmp_path / "b"), "--preprocessing"]
    try:
        code: Any = main([*command, given])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    err = capsys.readouterr().err
    assert hint in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_from_python_a_whole_recipe_gets_the_networks_size(model_file: Path, tmp_path: Path) -> None:
    recipe = Preprocessing(mode="stretch", interpolation="bilinear")
    bundle = vitdeploy.export(f"{model_file}:build", tmp_path / "b", image_size=16, preprocessing=recipe)
    assert bundle.manifest.preprocessing == Preprocessing((16, 16), mode="stretch", interpolation="bilinear")


def test_normalised_images_cannot_prove_a_graph_that_normalises(model_file: Path, tmp_path: Path) -> None:
    images = np.zeros((2, 3, 16, 16), np.float32)
    with pytest.raises(UsageError, match="cannot be proven on these inputs"):
        vitdeploy.export(
            f"{model_file}:build", tmp_path / "b", image_size=16, reference=images, bake_preprocessing=True
        )


@pytest.mark.slow
def test_a_checkpoint_that_says_nothing_scores_what_it_should_with_its_preprocessing(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = shared / "weights" / "dualvit_s_eurosat.safetensors", tmp_path / "b"
    command = ["export", "dualvit_s", "--checkpoint", str(weights), "--batch", "dynamic", "-o", str(out)]
    assert main([*command, "--preprocessing", "mode=stretch", "--bake-preprocessing"]) == 0
    facts = json.loads(weights.with_suffix(".json").read_text())
    with zipfile.ZipFile(shared / "data/eurosat/eurosat_val.zip") as archive, vitdeploy.load(out) as session:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        images = (Image.open(io.BytesIO(archive.read(name))) for name in names)
        best = [int(row.argmax()) for row in session.map(images, batch_size=32)]
    right = sum(facts["labels"][index] == name.split("/")[-2] for index, name in zip(best, names, strict=True))
    assert (right, len(names)) == (facts["val_top1"]["correct"], facts["val_top1"]["images"])

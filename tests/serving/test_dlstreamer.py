"""The model-proc of gvaclassify: documented keys and values, and its arithmetic played with numpy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from tests.serving.cases import LABELS, SIZE, recipe, write_linear
from vitdeploy.bundle import Bundle
from vitdeploy.preprocess import normalise, to_pixels
from vitdeploy.serving.content import one_line
from vitdeploy.serving.wording import FRAME

# The page "Model-proc File", version 2.2.0; `softmax` is a method of the converter `label` in its source.
PARAMS: dict[str, Any] = {
    "resize": ("no", "no-aspect-ratio", "aspect-ratio"),
    "crop": ("central", "top_left", "top_right", "bottom_left", "bottom_right"),
    "color_space": ("RGB", "BGR", "GRAYSCALE"),
    "range": None,
    "mean": None,
    "std": None,
    "padding": None,
}
PREPROC = {"layer_name", "format", "precision", "params"}
POSTPROC = {"layer_name", "layer_names", "attribute_name", "converter", "method", "labels"}
METHODS = ("max", "softmax", "compound", "index")


def written(folder: Path, bundle: Bundle) -> dict[str, Any]:
    vitdeploy.handoff(bundle, folder, to="dlstreamer")
    document: dict[str, Any] = json.loads((folder / "model-proc.json").read_text())
    return document


@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("mode", ["stretch", "resize_crop", "crop_resize", "border"])
@pytest.mark.parametrize("baked", [False, True])
def test_every_key_is_documented(channels: str, mode: str, baked: bool, tmp_path: Path) -> None:
    if channels == "L" and baked:
        pytest.skip("only colours are baked")
    grey = {"mean": (0.4,), "std": (0.2,)} if channels == "L" else {}
    document = written(
        tmp_path / "out", write_linear(tmp_path / "b", recipe(channels=channels, mode=mode, **grey), baked=baked)
    )
    assert list(document) == ["json_schema_version", "input_preproc", "output_postproc"]
    assert document["json_schema_version"] == "2.2.0"
    (before,), (after,) = document["input_preproc"], document["output_postproc"]
    assert set(before) <= PREPROC
    assert (before["layer_name"], before["format"]) == ("images", "image")
    for key, value in before["params"].items():
        allowed = PARAMS[key]
        assert allowed is None or value in allowed
    assert before["params"]["resize"] == ("aspect-ratio" if mode == "border" else "no-aspect-ratio")
    assert set(after) <= POSTPROC
    assert (after["layer_name"], after["converter"]) == ("logits", "label")
    assert after["method"] in METHODS
    assert after["labels"] == [one_line(label) for label in LABELS]


@pytest.mark.parametrize("scale", [255.0, 100.0, 1.0])
def test_range_mean_and_deviation_are_the_normalisation(scale: float, tmp_path: Path) -> None:
    given = recipe(scale=scale)
    params = written(tmp_path / "out", write_linear(tmp_path / "b", given))["input_preproc"][0]["params"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    low, high = params["range"]
    scaled = pixels.astype(np.float64) / 255 * (high - low) + low
    found = np.moveaxis((scaled - params["mean"]) / params["std"], -1, 1)
    np.testing.assert_allclose(found, normalise(pixels, given), rtol=1e-5, atol=1e-4)


def test_a_graph_that_takes_pixels_is_not_normalised_twice(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle = write_linear(tmp_path / "b", recipe(channels="BGR"), baked=True)
    params = written(tmp_path / "out", bundle)["input_preproc"][0]["params"]
    assert set(params) == {"resize", "color_space"}
    assert params["color_space"] == "RGB", "the graph turns the colours round"
    pixels = bundle.reference().inputs["images"]
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 1)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (found,) = session.run(None, {"images": planes})
    np.testing.assert_allclose(found, bundle.reference().outputs["logits"], rtol=1e-5, atol=1e-5)


def test_the_elements_in_front_crop_as_the_recipe_does(tmp_path: Path) -> None:
    written(tmp_path / "out", write_linear(tmp_path / "b", recipe(size=(224, 224))))
    page = (tmp_path / "out" / "README.md").read_text()
    assert "aspectratiocrop aspect-ratio=256/256 !" in page
    assert "videoscale ! video/x-raw,width=256,height=256 !" in page
    assert "videocrop left=16 right=16 top=16 bottom=16 !" in page
    written(tmp_path / "stretch", write_linear(tmp_path / "c", recipe(mode="stretch")))
    assert "videocrop" not in (tmp_path / "stretch" / "README.md").read_text()


def test_openvinos_own_file_is_what_the_element_loads(tmp_path: Path) -> None:
    written(tmp_path / "out", write_linear(tmp_path / "b", native=True))
    assert "gvaclassify model=model.xml " in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "model.bin").exists()


def test_the_element_computes_in_fp32_as_a_session_does(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    bundle = write_linear(tmp_path / "b")
    written(tmp_path / "out", bundle)
    (told,) = re.findall(r" ie-config=(\S+)", (tmp_path / "out" / "README.md").read_text())
    settings = dict(one.split("=") for one in told.split(","))
    compiled = openvino.Core().compile_model(tmp_path / "out" / "model.onnx", "CPU", settings)
    images = bundle.reference().inputs["images"]
    with vitdeploy.load(bundle, runtime="openvino") as session:
        np.testing.assert_array_equal(compiled(images)["logits"], session(images))


@pytest.mark.parametrize("mode", ["resize_crop", "crop_resize"])
def test_gstreamer_crops_a_frame_as_the_recipe_does(mode: str, tmp_path: Path) -> None:
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("gst-launch-1.0 is not installed: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good")
    given = recipe(size=(96, 128), mode=mode, crop_ratio=0.8)
    written(tmp_path / "out", write_linear(tmp_path / "b", given))
    page = (tmp_path / "out" / "README.md").read_text()
    (front,) = re.findall(r"decodebin3 ! \\\n(.*?)  gvaclassify", page, re.DOTALL)
    # A smooth frame, on which the interpolations agree.
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]
    frame = np.stack([columns / 8, rows / 5, 128 + 100 * np.sin(rows / 90 + columns / 140)], axis=2).astype(np.uint8)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    caps = "video/x-raw,format=RGB"
    words = f"filesrc location={tmp_path}/frame.png ! pngdec ! videoconvert ! {caps} ! {front} videoconvert ! {caps}"
    sized = f"videoscale ! {caps},width=128,height=96" if mode == "crop_resize" else "identity"
    command = f"gst-launch-1.0 -q {words} ! {sized} ! filesink location={tmp_path}/made.raw"
    subprocess.run(command.replace("\\\n", " ").split(), check=True, timeout=60)
    made = np.fromfile(tmp_path / "made.raw", np.uint8).reshape(96, 128, 3)
    expected = to_pixels(frame, given)
    assert np.abs(made.astype(int) - expected).mean() < 1.5

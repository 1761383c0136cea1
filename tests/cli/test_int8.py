"""`vitdeploy export --int8` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.image_cases import reference_pixels
from vitdeploy import load, verify
from vitdeploy.bundle import Bundle, BundleWriter
from vitdeploy.cli import main

SIZE = ["--image-size", "16x24"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 images in two classes."""
    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(reference_pixels(60, (24, 32))):
        place = folder / ("cats", "dogs")[index % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(model_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    arguments = ["--int8", "--calibration", str(images), "--samples", "40"]
    assert main(["export", f"{model_file}:build", *SIZE, *arguments, "-o", str(out)]) == 0
    return out


def test_the_bundle_holds_integers_and_verifies_on_both_runtimes(bundle: Path) -> None:
    kinds = [node.op_type for node in onnx.load(bundle / "model.onnx").graph.node]
    assert kinds.count("QuantizeLinear") >= 2
    for runtime in ("onnxruntime", "openvino"):
        report = verify(bundle, runtime=runtime)
        assert report.passed
        assert report.parity.outputs[0].snr_db > 30


def test_the_manifest_tells_what_was_quantized_and_on_what(bundle: Path, images: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    report = manifest.precision_report
    assert manifest.precision == "int8"
    assert report["calibration"]["images"] == 40
    assert len(set(report["calibration"]["sha256"])) == 40
    assert str(images) in report["data"]
    assert report["layers"]["linear"]["int8"] == 1
    assert "fewer than 16 channels" in report["float"].values()
    assert all(found["scale"] > 0 for found in report["ranges"].values())


def test_a_runtime_that_computes_something_else_does_not_verify(bundle: Path, tmp_path: Path) -> None:
    """The same file with one scale four times as large: finite numbers, of the right shape, and wrong."""
    opened = Bundle.open(bundle)
    model = onnx.load(bundle / "model.onnx")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("scale") and not tensor.dims)
    scale.CopyFrom(onnx.numpy_helper.from_array(4 * onnx.numpy_helper.to_array(scale), scale.name))
    reference = opened.reference()
    with BundleWriter(tmp_path / "wrong") as writer:
        writer.write_bytes("model.onnx", model.SerializeToString())
        writer.write_reference(inputs=reference.inputs, outputs=reference.outputs)
        writer.seal(opened.manifest)
        writer.commit()
    report = verify(tmp_path / "wrong", runtime="onnxruntime")
    assert not report.passed
    assert "signal-to-noise" in report.failures[0]


def test_int8_takes_baked_preprocessing(model_file: Path, images: Path, tmp_path: Path, bundle: Path) -> None:
    out = tmp_path / "baked"
    arguments = ["--int8", "--calibration", str(images), "--samples", "40", "--bake-preprocessing"]
    assert main(["export", f"{model_file}:build", *SIZE, *arguments, "-o", str(out)]) == 0
    paths = sorted(images.glob("*/*.png"))[:4]
    with load(out, runtime="onnxruntime") as baked, load(bundle, runtime="onnxruntime") as plain:
        for ours, theirs in zip(baked.predict(paths, top_k=7), plain.predict(paths, top_k=7), strict=True):
            found = {p.index: p.probability for p in ours}
            assert all(abs(found[p.index] - p.probability) < 1e-3 for p in theirs)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt8", "tensorrt10"])
def test_every_target_takes_int8(target: str, model_file: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / target
    arguments = ["--int8", "--calibration", str(images), "--samples", "40", "--target", target, "--batch", "2"]
    assert main(["export", f"{model_file}:build", *SIZE, *arguments, "-o", str(out)]) == 0
    assert Bundle.open(out).manifest.precision_report["snr_db"] > 30


def test_json_says_what_a_user_wants_to_know(
    model_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--int8", "--calibration", str(images), "--samples", "40", "--min-snr", "20", "--json"]
    assert main(["export", f"{model_file}:build", *SIZE, *arguments, "-o", str(tmp_path / "b")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["precision"] == "int8"
    assert summary["snr_db"] > 20
    assert 0 < summary["int8_macs"] <= 1
    assert summary["reverted"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "INT8 needs images to calibrate on"),
        (["--int8", "--calibration", "{missing}"], "there is no"),
        (["--int8", "--calibration", "{images}", "--method", "guess"], "no range method called 'guess'"),
        (["--int8", "--calibration", "{images}", "--method", "entropy"], "there are auto, minmax, percentile, mse"),
        (["--int8", "--calibration", "{images}", "--samples", "0"], "at least 1 calibration sample"),
        (["--int8", "--calibration", "{flat}", "--max-drop", "1"], "--max-drop needs labels"),
        (["--int8", "--calibration", "{black}"], "flat, for example all black"),
        (["--int8", "--calibration", "{images}", "--samples", "40", "--ignore", "nothing.*"], "matches no layer"),
        (["--int8", "--calibration", "{images}", "--ignored-scope", "nothing.*"], "--ignored-scope nothing.*"),
        (["--int8", "--calibration", "{images}", "--tune-latency", "cuda"], "cannot be timed on 'cuda'"),
        (
            ["--int8", "--calibration", "{images}", "--target", "tensorrt10", "--tune-latency", "openvino"],
            "bundles for tensorrt10 are not run by openvino",
        ),
        (["--int8", "--calibration", "{images}", "--features", "--max-drop", "1"], "needs class scores"),
        (["--fp16", "--calibration", "{images}"], "fp16 needs no calibration"),
        (["--samples", "5"], "--samples is for INT8"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    arguments: list[str],
    message: str,
    model_file: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    black, flat = tmp_path / "black", tmp_path / "flat"
    for folder, value in ((black, 0), (flat, None)):
        folder.mkdir()
        for index in range(3):
            pixels = reference_pixels(1, (24, 32), seed=index)[0] if value is None else np.zeros((24, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    places = {"missing": tmp_path / "missing", "images": images, "flat": flat, "black": black}
    given = [argument.format(**places) for argument in arguments]
    out = tmp_path / "out"
    assert main(["export", f"{model_file}:build", *SIZE, *given, "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()

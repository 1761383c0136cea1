"""The configuration of nvinfer: documented keys, its arithmetic played with numpy, and the model behind it."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitdeploy
from tests.serving.cases import LABELS, SIZE, recipe, write_linear
from vitdeploy.bundle import Bundle
from vitdeploy.preprocess import normalise
from vitdeploy.serving.deepstream import _arithmetic
from vitdeploy.serving.wording import window

pytest.importorskip("onnxruntime")

# "Gst-nvinfer Property Group Supported Keys" of the page on the plugin.
_TABLE = """
    num-detected-classes net-scale-factor model-file proto-file int8-calib-file batch-size tlt-model-key onnx-file
    model-engine-file uff-file input-dims enable-dla use-dla-core uff-input-blob-name network-mode offsets mean-file
    labelfile-path gpu-id gie-unique-id operate-on-gie-id operate-on-class-ids interval input-object-min-width
    input-object-min-height input-object-max-width input-object-max-height network-type model-color-format
    classifier-threshold segmentation-threshold custom-network-config maintain-aspect-ratio symmetric-padding
    parse-bbox-func-name parse-bbox-instance-mask-func-name custom-lib-path output-blob-names infer-dims
    force-implicit-batch-dim classifier-async-mode process-mode secondary-reinfer-interval output-tensor-meta
    network-input-order scaling-filter scaling-compute-hw output-io-formats layer-device-precision
    tlt-encoded-model cluster-mode filter-out-class-ids crop-objects-to-roi-boundary workspace-size
"""
KEYS = _TABLE.split()

RECIPES = {
    "apart": recipe(),
    "shared": recipe(mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5)),
    "BGR": recipe(channels="BGR"),
    "shared BGR": recipe(channels="BGR", mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25), scale=128.0),
    "grey": recipe(channels="L", mean=(0.4,), std=(0.2,), mode="border", crop_ratio=1.0),
}


def written(folder: Path, bundle: Bundle, **options: Any) -> configparser.SectionProxy:
    vitdeploy.handoff(bundle, folder, to="deepstream", **options)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(folder / "config_infer.txt")
    assert parser.sections() == ["property"]
    return parser["property"]


def played(properties: configparser.SectionProxy, folder: Path, pixels: np.ndarray) -> np.ndarray:
    """What nvinfer computes for uint8 pixels [N, H, W, C] in R, G, B: y = factor * (x - offset), then the network."""
    import onnxruntime

    if properties["model-color-format"] == "1":
        pixels = pixels[..., ::-1]
    planes = np.moveaxis(pixels, -1, 1).astype(np.float32)
    offsets = np.array([float(one) for one in properties.get("offsets", "0").split(";")], np.float32)
    planes = np.float32(properties["net-scale-factor"]) * (planes - offsets.reshape(1, -1, 1, 1))
    session = onnxruntime.InferenceSession(folder / properties["onnx-file"])
    (found,) = session.run([properties["output-blob-names"]], {"images": planes})
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_arithmetic_of_nvinfer_gives_the_probabilities_of_the_bundle(
    name: str, precision: str, tmp_path: Path
) -> None:
    import onnxruntime

    given = RECIPES[name]
    bundle = write_linear(tmp_path / "b", given, precision=precision)
    properties = written(tmp_path / "out", bundle)
    pixels = np.random.default_rng(5).integers(0, 256, (4, *SIZE, given.depth)).astype(np.uint8)
    session = onnxruntime.InferenceSession(bundle.read("model.onnx"))
    (logits,) = session.run(None, {"images": normalise(pixels, given)})
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(played(properties, tmp_path / "out", pixels), expected, rtol=0, atol=1e-6)
    assert (properties["net-scale-factor"] == "1.0") == (len(set(given.std)) > 1)


def test_a_graph_that_takes_pixels_gets_them_as_planes(tmp_path: Path) -> None:
    for name in ("apart", "BGR"):
        plain = write_linear(tmp_path / f"plain {name}", RECIPES[name])
        baked = write_linear(tmp_path / f"baked {name}", RECIPES[name], baked=True)
        pixels = np.random.default_rng(5).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
        found = [
            played(written(tmp_path / f"out {bundle.path.name}", bundle), tmp_path / f"out {bundle.path.name}", pixels)
            for bundle in (plain, baked)
        ]
        np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
        model = onnx.load(tmp_path / f"out baked {name}" / "model.onnx")
        assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:] == [3, *SIZE]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_every_key_is_documented_and_says_what_the_bundle_is(precision: str, batch: int | str, tmp_path: Path) -> None:
    properties = written(tmp_path / "out", write_linear(tmp_path / "b", precision=precision, batch=batch))
    assert set(properties) <= set(KEYS)
    assert properties["network-type"] == "1"
    assert properties["network-mode"] == {"fp32": "0", "int8": "1", "fp16": "2"}[precision]
    assert properties["infer-dims"] == ";".join(map(str, (3, *SIZE)))
    assert properties["batch-size"] == ("8" if batch == "batch" else "2")
    assert properties["labelfile-path"] == "labels.txt"
    labels = (tmp_path / "out" / "labels.txt").read_text().removesuffix("\n").split(";")
    assert len(labels) == len(LABELS), "a semicolon parts two labels"
    assert labels[0] == "tench, Tinca tinca"
    script = (tmp_path / "out" / "trtexec-10.sh").read_text()
    assert f"--saveEngine={properties['model-engine-file']}" in script
    assert ("--maxShapes=images:8x3x9x12" in script) == (batch == "batch")


def test_an_output_that_is_called_like_ours_keeps_its_name(tmp_path: Path) -> None:
    properties = written(tmp_path / "out", write_linear(tmp_path / "b", output="probabilities"))
    assert properties["output-blob-names"] == "probabilities_1"
    pixels = np.zeros((2, *SIZE, 3), np.uint8)
    np.testing.assert_allclose(played(properties, tmp_path / "out", pixels).sum(axis=1), 1, rtol=1e-5)


def test_the_largest_batch_is_that_of_the_engine(tmp_path: Path) -> None:
    properties = written(tmp_path / "out", write_linear(tmp_path / "b"), max_batch=5)
    assert properties["batch-size"] == "5"
    assert "--maxShapes=images:5x3x9x12" in (tmp_path / "out" / "trtexec-8.sh").read_text()


@pytest.mark.parametrize(("mode", "ratio"), [("stretch", "0"), ("resize_crop", "0"), ("border", "1")])
def test_what_cannot_be_framed_there_is_said(mode: str, ratio: str, tmp_path: Path) -> None:
    properties = written(tmp_path / "out", write_linear(tmp_path / "b", recipe(mode=mode)))
    page = (tmp_path / "out" / "README.md").read_text()
    assert properties["maintain-aspect-ratio"] == properties["symmetric-padding"] == ratio
    assert ("nvvideoconvert src-crop=" in page) == (mode == "resize_crop")
    assert ("fills the border with black" in page) == (mode == "border")
    assert "without antialiasing" in page


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.floats(0.01, 2),
    st.sampled_from([1.0, 255.0, 100.0]),
)
def test_one_factor_and_offsets_are_the_normalisation(mean: list[float], deviation: float, scale: float) -> None:
    given = recipe(mean=tuple(mean), std=(deviation,) * 3, scale=scale)
    factor, offsets = _arithmetic(given)
    pixels = np.arange(256)[:, None]
    expected = (pixels / scale - np.array(mean)) / deviation
    np.testing.assert_allclose(factor * (pixels - np.array(offsets)), expected, rtol=1e-9, atol=1e-9 * 256 / deviation)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(["resize_crop", "crop_resize"]),
    st.floats(0.3, 1),
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
)
def test_the_window_lies_in_the_middle_of_the_frame_and_has_the_shape_of_the_input(
    height: int, width: int, mode: str, ratio: float, size: tuple[int, int]
) -> None:
    given = recipe(mode=mode, crop_ratio=ratio, size=size)
    kept = window(given, (height, width))
    assert kept is not None
    assert 0 <= kept.left <= kept.left + kept.width <= width
    assert 0 <= kept.top <= kept.top + kept.height <= height
    assert abs(2 * kept.left + kept.width - width) <= 1
    assert abs(2 * kept.top + kept.height - height) <= 1
    if mode == "crop_resize":
        assert kept.width == kept.height == max(1, int(ratio * min(height, width)))
    else:
        scale = max(int(size[0] / ratio) / height, int(size[1] / ratio) / width)
        assert abs(kept.height * scale - size[0]) <= max(scale, 1)
        assert abs(kept.width * scale - size[1]) <= max(scale, 1)

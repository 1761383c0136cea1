"""A bundle whose graph normalises: pixels in, and every way of asking gives what the plain bundle gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from tests.bundles import LABELS, SIZE, WEIGHT, tiny_manifest, tiny_model
from tests.runtime.conftest import installed
from vitdeploy.bundle import MODEL, Bundle, BundleWriter, TensorSpec
from vitdeploy.bundle.manifest import Manifest
from vitdeploy.errors import InputError
from vitdeploy.passes.bake_preprocessing import BakePreprocessing
from vitdeploy.preprocess import Preprocessing
from vitdeploy.runtime.session import Session, load
from vitdeploy.runtime.verify import verify
from vitdeploy.targets import find_target

# Every channel, and the order of them, counts.
RECIPE = Preprocessing(size=(SIZE, SIZE), crop_ratio=0.8, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4), channels="BGR")


def pixels(count: int = 6, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def logits(images: np.ndarray) -> np.ndarray:
    """What the tiny network makes of RGB pixels [n, H, W, 3]: its means, one after the other by the recipe."""
    means = images.astype(np.float64).mean(axis=(1, 2))[:, ::-1] / 255
    return ((means - RECIPE.mean) / RECIPE.std @ WEIGHT.astype(np.float64)).astype(np.float32)


def write(path: Path, batch: int | str = "batch") -> Bundle:
    """The tiny bundle with RECIPE in its graph."""
    model = ir.serde.deserialize_model(onnx.load_from_string(tiny_model(batch)))
    BakePreprocessing(find_target("portable"), RECIPE)(model)
    with BundleWriter(path) as writer:
        writer.write_bytes(MODEL, ir.serde.serialize_model(model).SerializeToString())
        writer.write_reference(inputs={"images": pixels()}, outputs={"logits": logits(pixels())})
        signature = (TensorSpec("images", "uint8", (batch, SIZE, SIZE, 3)),)
        writer.seal(replace(tiny_manifest(batch), preprocessing=RECIPE, preprocessing_in_graph=True, inputs=signature))
        return writer.commit()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write(tmp_path_factory.mktemp("baked") / "b")


@pytest.fixture
def session(bundle: Bundle) -> Iterator[Session]:
    with load(bundle, runtime=installed("onnxruntime")) as session:
        yield session


def test_every_runtime_reproduces_the_reference(bundle: Bundle, any_runtime: str) -> None:
    report = verify(bundle, runtime=any_runtime)
    assert report.passed, report
    with load(bundle, runtime=any_runtime) as session:
        np.testing.assert_allclose(session(pixels(3)), logits(pixels(3)), rtol=0, atol=1e-5)


def test_the_signature_says_what_a_call_takes(session: Session) -> None:
    swapped = pixels().transpose(0, 2, 1, 3)  # strided
    np.testing.assert_allclose(session(swapped), logits(swapped), rtol=0, atol=1e-5)
    with pytest.raises(
        InputError, match=r"images is float32, but the model takes uint8\n  try: RGB pixels as they are"
    ):
        session(np.zeros((1, SIZE, SIZE, 3), np.float32))
    with pytest.raises(InputError, match=r"takes images uint8 \[batch, 8, 8, 3\]"):
        session(np.zeros((1, 3, SIZE, SIZE), np.uint8))


def test_images_are_cut_by_the_runtime_and_normalised_by_the_graph(session: Session, tmp_path: Path) -> None:
    (image,) = pixels(1, (40, 60))
    Image.fromarray(image).save(tmp_path / "p.png")
    short = 10  # 8 / 0.8
    resized = np.asarray(Image.fromarray(image).resize((15, 40), 3).resize((15, short), 3))
    top, left = (short - SIZE) // 2, round((15 - SIZE) / 2)
    expected = logits(resized[None, top : top + SIZE, left : left + SIZE])[0]
    shares = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    for form in (tmp_path / "p.png", image, Image.fromarray(image)):
        (row,) = session.map([form])
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
        (best,) = session.predict(form, top_k=1)
        assert best[0].label == LABELS[int(expected.argmax())]
        assert best[0].probability == pytest.approx(float(shares.max()), abs=1e-5)


def test_a_stream_takes_batches_as_they_are_and_single_arrays_as_images(session: Session) -> None:
    cut, whole = pixels(2), pixels(1, (40, 60))[0]
    rows = list(session.map([whole, cut, whole]))
    np.testing.assert_allclose(rows[1], logits(cut), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(rows[0], rows[2])
    bad = list(session.map([np.zeros((3, SIZE, SIZE), np.float32), whole], on_error="return"))
    assert isinstance(bad[0], InputError)
    np.testing.assert_array_equal(bad[1], rows[0])


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    with load(write(tmp_path / "fixed", batch=2), runtime=installed("onnxruntime")) as session:
        assert len(session.predict(list(pixels(3, (20, 20))))) == 3
        assert verify(session.bundle, runtime="onnxruntime").passed


def test_manifests_from_before_mean_that_the_runtime_normalises() -> None:
    document = tiny_manifest().to_dict()
    assert document.pop("preprocessing_in_graph") is False
    assert Manifest.from_dict(document, where="here").preprocessing_in_graph is False
    assert document["schema_version"] == 1


@pytest.mark.parametrize("shape", [("batch", 3, SIZE, SIZE), ("batch", SIZE, SIZE, 4)])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_graph_that_normalises_takes_pixels_and_nothing_else(dtype: str, shape: tuple[int | str, ...]) -> None:
    with pytest.raises(ValueError, match="needs a uint8 input"):
        replace(tiny_manifest(), preprocessing_in_graph=True, inputs=(TensorSpec("images", dtype, shape),))

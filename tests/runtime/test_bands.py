"""A network of 13 bands: verified, run on files and arrays, and validated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.band_cases import BANDS, RECIPE, band_logits, scenes, write_band_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.errors import InputError
from vitdeploy.preprocess import preprocess_batch
from vitdeploy.runtime.session import load
from vitdeploy.runtime.verify import verify


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_band_bundle(tmp_path_factory.mktemp("bundles") / "bands")


def test_the_manifest_says_what_the_network_takes(bundle: Bundle) -> None:
    assert Bundle.open(bundle.path).manifest.preprocessing == RECIPE
    assert verify(bundle, runtime="onnxruntime").passed


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint8"])
def test_a_session_takes_bands_of_any_type(bundle: Bundle, dtype: str) -> None:
    images = scenes(3, dtype=dtype)
    ready = preprocess_batch(list(images), RECIPE)
    expected = band_logits(ready)
    with load(bundle, runtime="onnxruntime") as session:
        np.testing.assert_allclose(session(ready), expected, rtol=0, atol=1e-4)
        for given in (images, [*images[:2], ready[2]]):
            found = list(session.map(list(given)))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        best = session.predict(list(images), top_k=1)
    assert [one[0].index for one in best] == expected.argmax(axis=1).tolist()


def test_a_session_takes_tiffs_of_bands(bundle: Bundle, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    images = scenes(2)
    for number, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"{number}.tif", image, photometric="minisblack", planarconfig="contig")
    with load(bundle, runtime="onnxruntime") as session:
        found = list(session.map([tmp_path / "0.tif", tmp_path / "1.tif"]))
    np.testing.assert_allclose(found, band_logits(preprocess_batch(list(images), RECIPE)), rtol=0, atol=1e-4)


def test_another_number_of_bands_is_refused(bundle: Bundle) -> None:
    with load(bundle, runtime="onnxruntime") as session:
        with pytest.raises(InputError, match="has 12 channels, and the network takes 13"):
            session.predict(scenes(1, bands=12)[0])
        with pytest.raises(InputError, match="array of float64"):
            list(session.map([scenes(1)[0].astype(float)]))


def test_labelled_bands_are_validated(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    gains = np.random.default_rng(2).uniform(0, 1, (40, 1, 1, BANDS))
    images = (scenes(40) * gains).astype(np.uint16)
    labels = band_logits(preprocess_batch(list(images), RECIPE)).argmax(axis=1)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    command = ["validate", str(bundle.path), "--data", str(tmp_path / "data.npz"), "--json"]
    code = main([*command, "--runtime", "onnxruntime,openvino"])
    out, err = capsys.readouterr()
    assert code == 0, err
    told = json.loads(out)
    assert told["baseline"]["top1"] == told["runs"][0]["top1"] == 100

"""Bundles that an earlier state of 0.1.0 wrote (commit 125f2f5) still load, verify, predict and can be looked into.

Both are of the network in tests/cli/conftest.py at 16x24 pixels: `--fp16`, with one entry of `validate` in its
manifest, and `--int8 --calibration` on 32 images of noise. `expected.npz` holds images and the logits that this
state's ONNX Runtime sessions gave for them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from vitdeploy.accuracy.validate import _key
from vitdeploy.cli import main

OLD = Path(__file__).parent / "written_by_0_1"
NAMES = ("fp16", "int8")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bundle(name: str, tmp_path: Path) -> Path:
    """A copy, so that a test cannot change what the old version wrote."""
    return Path(shutil.copytree(OLD / name, tmp_path / name))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "auto"])
def test_it_verifies(bundle: Path, runtime: str) -> None:
    if runtime != "auto":
        pytest.importorskip(runtime)
    report = vitdeploy.verify(bundle, runtime=runtime)
    assert report.passed, report.failures


def test_it_gives_the_logits_that_it_gave_then(bundle: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    with np.load(OLD / "expected.npz") as kept:
        images, expected = list(kept["pixels"]), kept[name]
    with vitdeploy.load(bundle, runtime="onnxruntime") as session:
        found = np.stack(list(session.map(images)))
        best = [row[0].index for row in session.predict(images, top_k=1)]
    # Integer kernels differ a little from processor to processor.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    assert best == expected.argmax(axis=1).tolist()


def test_it_can_be_looked_into_and_measured(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert f"precision       {name}" in shown
    if name == "int8":
        stayed = vitdeploy.Bundle.open(bundle).manifest.precision_report["float"]
        assert stayed
        assert all(reason in shown for reason in stayed.values()), "why layers stayed in float"
    assert main(["check", str(bundle), "--target", "tensorrt10"]) == 0
    capsys.readouterr()
    assert main(["benchmark", str(bundle), "--runtime", "onnxruntime", "--rounds", "1", "--warmup", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["precision"] == name


def test_a_new_validation_takes_the_place_of_the_old_entry(tmp_path: Path) -> None:
    """The old entry calls the precision in which a runtime computes `precision`; it is about the same thing."""
    pytest.importorskip("onnxruntime")
    bundle = Path(shutil.copytree(OLD / "fp16", tmp_path / "fp16"))
    (old,) = vitdeploy.Bundle.open(bundle).manifest.accuracy
    assert "compute_precision" not in old
    assert _key({**old, "compute_precision": old["precision"]}) == _key(old)
    assert _key({**old, "runtime": "openvino"}) != _key(old)

"""Features: cosine similarity and SNR are those of an independent computation, for images and for several inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitdeploy
from tests.conftest import examples
from tests.tasks.task_cases import scenes, write_data, write_pair, write_pyramid, write_segmenter
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.bundle import Bundle
from vitdeploy.data import open_data
from vitdeploy.errors import InputError, UsageError
from vitdeploy.tasks.features import cosine

pytest.importorskip("onnxruntime")

IMAGES, MASKS = scenes()


def validate(tmp_path: Path, bundle: Bundle, data: Any, twin: Bundle, **options: Any) -> AccuracyReport:
    options = {"runtime": "onnxruntime", "baseline": twin, "logits": tmp_path / "rows", **options}
    return vitdeploy.validate(bundle, data, **options)


def outputs_of(bundle: Bundle, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with vitdeploy.load(bundle, runtime="onnxruntime") as session:
        return session.run(inputs)


def test_every_figure_of_every_level_is_what_the_outputs_say(tmp_path: Path) -> None:
    twin, bundle = write_pyramid(tmp_path / "fp32"), write_pyramid(tmp_path / "fp16", noise=0.3)
    report = validate(tmp_path, bundle, IMAGES, twin)
    data = open_data(IMAGES)
    inputs = {"images": np.stack([data.tensor(i, bundle.manifest.recipe) for i in range(len(IMAGES))])}
    before, after = outputs_of(twin, inputs), outputs_of(bundle, inputs)
    (run,) = report.runs
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))["runs"][0]
    assert [one["output"] for one in told["outputs"]] == ["stride4", "stride8"]
    for one, name in zip(told["outputs"], before, strict=True):
        flat = [outputs[name].reshape(len(IMAGES), -1).astype(float) for outputs in (before, after)]
        rows = list(zip(*flat, strict=True))
        similar = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows]
        assert one["cosine"] == pytest.approx(np.mean(similar), abs=1e-6)
        assert one["drop"] == pytest.approx(100 * (1 - np.mean(similar)), abs=1e-4)
        noise = float(np.square(after[name] - before[name]).sum())
        if noise:
            snr_db = 10 * np.log10(float(np.square(before[name]).sum()) / noise)
            assert one["snr_db"] == pytest.approx(snr_db, abs=1e-3)
    assert told["outputs"][1]["drop"] == 0
    assert told["outputs"][1]["snr_db"] is None  # without any noise
    assert run.drop == told["outputs"][0]["drop"] > 0.1
    low, high = run.interval()
    assert low <= run.drop <= high
    assert "stride8" in str(report)


def test_the_gate_judges_the_worst_output(tmp_path: Path) -> None:
    twin, bundle = write_pyramid(tmp_path / "fp32"), write_pyramid(tmp_path / "fp16", noise=0.3)
    drop = validate(tmp_path, bundle, IMAGES, twin).runs[0].drop
    assert validate(tmp_path, bundle, IMAGES, twin, max_drop=drop * 1.01).passed
    failed = validate(tmp_path, bundle, IMAGES, twin, max_drop=drop * 0.99)
    assert "% of cosine similarity, allowed are" in failed.failures[0]
    assert validate(tmp_path, bundle, IMAGES, twin, max_drop=drop * 0.99, output="stride8").passed
    (entry,) = Bundle.open(bundle.path).manifest.accuracy[-1:]
    assert entry["task"] == "features"


def test_labels_and_masks_do_not_count(tmp_path: Path) -> None:
    twin, bundle = write_pyramid(tmp_path / "fp32"), write_pyramid(tmp_path / "fp16", noise=0.3)
    expected = validate(tmp_path, bundle, list(IMAGES), twin).runs[0].drop
    folder = write_data(tmp_path / "data", IMAGES, MASKS)
    np.savez(tmp_path / "data.npz", images=IMAGES, masks=MASKS, labels=np.zeros(len(IMAGES), int))
    for data in (folder, folder / "images", tmp_path / "data.npz"):
        assert validate(tmp_path, bundle, data, twin).runs[0].drop == pytest.approx(expected)


def test_a_network_of_several_inputs_takes_arrays_by_name(tmp_path: Path) -> None:
    twin, bundle = write_pair(tmp_path / "fp32"), write_pair(tmp_path / "fp16", noise=0.3)
    rng = np.random.default_rng(0)
    inputs = {"left": rng.normal(size=(20, 6)).astype(np.float32), "ids": rng.integers(0, 9, (20, 2))}
    np.savez(tmp_path / "data.npz", **inputs)
    report = validate(tmp_path, bundle, tmp_path / "data.npz", twin, task="features")
    before, after = outputs_of(twin, inputs), outputs_of(bundle, inputs)
    rows = zip(before["embedding"].astype(float), after["embedding"].astype(float), strict=True)
    expected = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows])
    assert report.to_dict()["runs"][0]["outputs"][1]["cosine"] == pytest.approx(expected, abs=1e-6)
    assert validate(tmp_path, bundle, inputs, twin, task="features", samples=7).to_dict()["data"]["images"] == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ids": None}, "has no array for the input ids"),
        ({"left": np.zeros((4, 6), np.float32)}, "different numbers of samples\n  why: left has 4, ids has 20"),
        ({"left": np.zeros((20, 5), np.float32)}, r"the array left of .* is float32 \[20, 5\]"),
        ({"ids": np.zeros((20, 2), np.float32)}, r"the array ids of .* is float32 \[20, 2\]"),
        ({"left": np.full((20, 6), np.nan, np.float32)}, "holds NaN or Inf"),
    ],
)
def test_arrays_that_do_not_fit_the_inputs_are_named(
    tmp_path: Path, change: dict[str, np.ndarray | None], told: str
) -> None:
    twin, bundle = write_pair(tmp_path / "fp32"), write_pair(tmp_path / "fp16", noise=0.3)
    arrays = {"left": np.zeros((20, 6), np.float32), "ids": np.zeros((20, 2), np.int64), **change}
    np.savez(tmp_path / "data.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=told):
        validate(tmp_path, bundle, tmp_path / "data.npz", twin, task="features")
    with pytest.raises(InputError, match="it has images alone, and the inputs are left float32"):
        validate(tmp_path, bundle, tmp_path, twin, task="features")


def test_an_output_that_is_not_there_is_refused(tmp_path: Path) -> None:
    twin = write_pyramid(tmp_path / "fp32")
    with pytest.raises(UsageError, match="has no output 'stride16' to compare") as caught:
        validate(tmp_path, write_pyramid(tmp_path / "fp16", noise=0.1), IMAGES, twin, output="stride16")
    assert "--output stride4 or stride8" in str(caught.value)
    bundle = write_segmenter(tmp_path / "numbers", kind="classes", noise=0.1)
    with pytest.raises(UsageError, match="no output of features to compare"):
        validate(tmp_path, bundle, IMAGES, write_segmenter(tmp_path / "fp32n", kind="classes"), task="features")


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
@settings(max_examples=examples(60))
def test_the_cosine_is_that_of_the_angle_whatever_the_length(seed: int, scale: float) -> None:
    one, other = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    angle = np.dot(one.ravel().astype(float), other.ravel().astype(float))
    expected = angle / np.linalg.norm(one.astype(float)) / np.linalg.norm(other.astype(float))
    assert cosine(one, other) == pytest.approx(expected)
    assert cosine(one, np.float32(scale) * one) == pytest.approx(1.0, abs=1e-9)
    assert cosine(one, -one) == pytest.approx(-1.0)


def test_the_cosine_of_nothing() -> None:
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert (cosine(zero, zero), cosine(zero, one), cosine(one, zero)) == (1.0, 0.0, 0.0)
    assert cosine(one, np.array([1, np.nan, 1], np.float32)) == 0.0


def test_images_may_have_the_name_of_the_input(tmp_path: Path) -> None:
    twin, bundle = write_pyramid(tmp_path / "fp32"), write_pyramid(tmp_path / "fp16", noise=0.3)
    expected = validate(tmp_path, bundle, IMAGES, twin).runs[0].drop
    assert validate(tmp_path, bundle, {"images": IMAGES}, twin).runs[0].drop == pytest.approx(expected)

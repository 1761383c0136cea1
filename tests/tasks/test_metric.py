"""A figure of the user's own: what it is called with, what it may return, and whose errors are whose."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import vitdeploy
from tests.accuracy.accuracy_cases import labels_of, logits_of, noisy, photos, write_folder, write_variant
from tests.bundles import WEIGHT, write_tiny_bundle
from tests.conftest import ROOT
from tests.tasks.task_cases import (
    SIZE,
    colour_weight,
    scenes,
    scores_of,
    write_data,
    write_network,
    write_pair,
    write_segmenter,
)
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.bundle import Bundle, ModelRecord, WeightsRecord
from vitdeploy.errors import InputError, UsageError
from vitdeploy.user_code import own_frames

pytest.importorskip("onnxruntime")

PHOTOS = photos(40)
CLASSES_OF = labels_of(PHOTOS)


def validate(tmp_path: Path, data: Any, metric: Any, **options: Any) -> AccuracyReport:
    """Of the noisy variant of the tiny classifier, unless another bundle is given."""
    if "bundle" not in options:
        options["baseline"] = write_tiny_bundle(tmp_path / "fp32", force=True)
        path = tmp_path / "fp16"
        options["bundle"] = Bundle.open(path) if path.exists() else write_variant(path, noisy())
    options = {"runtime": "onnxruntime", "logits": tmp_path / "rows", **options}
    return vitdeploy.validate(options.pop("bundle"), data, metric=metric, **options)


def test_the_function_gets_all_outputs_and_targets_by_name(tmp_path: Path) -> None:
    calls: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    def top1(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
        calls.append((outputs, targets))
        return float((outputs["logits"].argmax(axis=1) == targets["labels"]).mean())

    folder = write_folder(tmp_path / "data", PHOTOS, CLASSES_OF)
    report = validate(tmp_path, folder, top1)
    (run,) = report.runs
    right, still = (float((logits_of(PHOTOS, w).argmax(1) == CLASSES_OF).mean()) for w in (WEIGHT, noisy()))
    assert len(calls) == 2
    assert [set(outputs) for outputs, _ in calls] == [{"logits"}] * 2
    assert run.answers.values == {"top1": pytest.approx(still)}
    assert run.drop == pytest.approx(right - still)
    assert run.drop > 0
    assert run.interval() is None
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["task"] == "metric"
    assert told["runs"][0]["figures"] == {"top1": pytest.approx(still)}
    assert told["runs"][0]["drop_low"] is None
    assert "top1" in str(report)


def test_a_figure_of_each_sample_has_an_interval(tmp_path: Path) -> None:
    def right(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(outputs["logits"].argmax(axis=1) == targets["targets"])

    (run,) = validate(tmp_path, PHOTOS, right, targets=CLASSES_OF).runs
    low, high = run.interval() or (0.0, 0.0)
    assert low < run.drop < high
    assert run.answers.values["right"] == pytest.approx(
        float((logits_of(PHOTOS, noisy()).argmax(1) == CLASSES_OF).mean())
    )


def test_the_first_of_several_figures_is_judged(tmp_path: Path) -> None:
    def two(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"first": outputs["logits"].mean(), "second": np.float32(7)}

    drop = validate(tmp_path, PHOTOS, two).runs[0].drop
    assert drop != 0
    report = validate(tmp_path, PHOTOS, two, max_drop=1e3)
    assert report.passed
    assert list(report.runs[0].answers.values) == ["first", "second"]
    assert report.to_dict()["runs"][0]["drops"]["second"] == 0


def test_the_arrays_of_an_npz_are_the_targets(tmp_path: Path) -> None:
    heights = np.arange(40, dtype=np.float32)
    np.savez(tmp_path / "data.npz", images=PHOTOS, heights=heights, labels=CLASSES_OF)
    seen: dict[str, np.ndarray] = {}

    def figure(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> int:
        seen.update(targets)
        return 1

    report = validate(tmp_path, tmp_path / "data.npz", figure, samples=10)
    assert set(seen) == {"heights", "labels"}
    np.testing.assert_array_equal(seen["heights"], heights[list(report.images.indices)])
    np.savez(tmp_path / "data.npz", images=PHOTOS, heights=heights[:7])
    with pytest.raises(InputError, match=r"the array heights of .* is float32 \[7\]"):
        validate(tmp_path, tmp_path / "data.npz", figure)


def test_masks_come_in_the_frame_of_the_network(tmp_path: Path) -> None:
    images, masks = scenes()
    larger = images.repeat(2, axis=1).repeat(2, axis=2), masks.repeat(2, axis=1).repeat(2, axis=2)
    folder = write_data(tmp_path / "data", *larger)

    def pixels(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
        assert targets["masks"].shape == (len(images), SIZE, SIZE)
        np.testing.assert_array_equal(targets["masks"], masks)
        chosen = outputs["logits"].argmax(axis=1).repeat(4, axis=1).repeat(4, axis=2)
        return 100 * float((chosen == targets["masks"]).mean())

    report = validate(
        tmp_path,
        folder,
        pixels,
        bundle=write_segmenter(tmp_path / "fp16", noise=0.8),
        baseline=write_segmenter(tmp_path / "fp32"),
    )
    chosen = scores_of(images, colour_weight()).argmax(axis=1).repeat(4, axis=1).repeat(4, axis=2)
    assert next(iter(report.baseline.values.values())) == pytest.approx(100 * (chosen == masks).mean(), abs=0.5)


def test_a_network_of_several_inputs_has_the_other_arrays_as_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"left": rng.normal(size=(20, 6)).astype(np.float32), "ids": rng.integers(0, 9, (20, 2))}
    np.savez(tmp_path / "data.npz", **arrays, distance=np.arange(20.0))

    def error(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
        assert set(outputs) == {"score", "embedding"}
        assert set(targets) == {"distance"}
        return -float(np.abs(outputs["score"][:, 0] - targets["distance"]).mean())

    bundle, twin = write_pair(tmp_path / "fp16", noise=0.3), write_pair(tmp_path / "fp32")
    report = validate(tmp_path, tmp_path / "data.npz", error, bundle=bundle, baseline=twin)
    assert report.runs[0].drop != 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def f(outputs, targets):\n    return outputs['nothing']", ["raises KeyError: 'nothing'", "figures.py:2"]),
        ("import nothing_at_all\ndef f(outputs, targets): return 1", ["raises ModuleNotFoundError", "figures.py:1"]),
        ("def f(outputs, targets):\n  return 1 +", ["raises SyntaxError", "figures.py:2"]),
        ("def g(outputs, targets): return 1", ["has no function 'f'", "it has g"]),
        ("def f(outputs): return 1", ["cannot be called", "def figure(outputs, targets)"]),
        ("def f(outputs, targets): pass", ["returns a NoneType as f"]),
        ("def f(outputs, targets): return {}", ["returns no figure"]),
        ("def f(outputs, targets): return {'a': [1, 2]}", ["returns an array [2] as a", "there are 40 samples"]),
        ("import sys\ndef f(outputs, targets):\n    sys.exit(3)", ["raises SystemExit", "figures.py:3"]),
        (
            "seen = []\ndef f(outputs, targets):\n    seen.append(1)\n    return {str(len(seen)): 1}",
            ["returns other figures for fp16 on onnxruntime than for the baseline"],
        ),
    ],
)
def test_the_errors_of_the_function_are_the_users(tmp_path: Path, code: str, told: list[str]) -> None:
    (tmp_path / "figures.py").write_text(code + "\n")
    with pytest.raises(UsageError) as caught:
        validate(tmp_path, PHOTOS, f"{tmp_path}/figures.py:f")
    for words in told:
        assert words in str(caught.value)


def test_what_the_function_changes_stays_its_own(tmp_path: Path) -> None:
    def spoil(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
        assert targets["targets"].max() < 9
        targets["targets"][:] = 9
        outputs["logits"][:] = 0
        return 1.0

    assert validate(tmp_path, PHOTOS, spoil, targets=CLASSES_OF).passed


def test_a_figure_that_is_no_number_fails(tmp_path: Path) -> None:
    def broken(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
        return float("nan")

    report = validate(tmp_path, PHOTOS, broken, max_drop=1)
    assert not report.passed
    json.dumps(report.to_dict(), allow_nan=False)


def test_outputs_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.tasks.metric.LARGEST_BYTES", 160)
    with pytest.raises(UsageError, match=r"take 0\.0 GB of memory") as caught:
        validate(tmp_path, PHOTOS, lambda outputs, targets: 1)
    assert "--samples 10" in str(caught.value)


def test_a_file_beside_the_package_with_its_name_is_the_users() -> None:
    theirs = traceback.FrameSummary(f"{ROOT}/vitdeploy_figures.py", 2, "f")
    ours = traceback.FrameSummary(f"{ROOT}/vitdeploy/tasks/metric.py", 2, "f")
    assert list(own_frames(traceback.StackSummary.from_list([theirs, ours]))) == [theirs]


def test_an_output_that_does_not_count_samples_is_named_where_it_is_needed(tmp_path: Path) -> None:
    """A classification needs the class scores alone, whatever else the network returns."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Add", ["flat", "weight"], ["scores"]),
        helper.make_node("ReduceMean", ["images"], ["total"], keepdims=0),
    ]
    model = ModelRecord("net", "tests", (SIZE, SIZE), 3, WeightsRecord("module", "made by hand"))
    facts: dict[str, Any] = {"labels": (), "model": model, "whole": "total"}
    weights = {"weight": np.zeros(3, np.float32)}
    twin, bundle = (
        write_network(tmp_path / form, nodes, {"scores": ("float32", 3)}, weights, precision=form, **facts)
        for form in ("fp32", "fp16")
    )
    images = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    options: dict[str, Any] = {"bundle": bundle, "baseline": twin, "targets": np.arange(40) % 3}
    assert validate(tmp_path, images, None, **options).runs[0].agreement == 100
    with pytest.raises(UsageError, match=r"the output total of .* for 8 samples"):
        validate(tmp_path, images, lambda outputs, targets: 1, **options)

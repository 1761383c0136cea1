"""The accuracy of bundles whose every answer is known by hand: the numbers, the gate, resuming, broken baselines."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitdeploy
from tests.accuracy.accuracy_cases import (
    CLASSES,
    labels_of,
    logits_of,
    noisy,
    photos,
    write_baked,
    write_folder,
    write_variant,
)
from tests.bundles import LABELS, SIZE, WEIGHT, write_tiny_bundle
from tests.conftest import ROOT
from vitdeploy.accuracy.compute import BATCH
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.bundle import Bundle
from vitdeploy.errors import InputError, MissingDependencyError, UsageError, VitDeployError
from vitdeploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

ort = pytest.importorskip("onnxruntime")

IMAGES = photos()
TARGETS = labels_of(IMAGES)


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., AccuracyReport]:
    """`validate` with an FP32 twin, ONNX Runtime and a store of its own."""
    twin = write_tiny_bundle(tmp_path / "fp32")

    def call(*bundles: Any, data: Any = IMAGES, **options: Any) -> AccuracyReport:
        options = {"runtime": "onnxruntime", "baseline": twin, "logits": tmp_path / "logits", **options}
        if isinstance(data, np.ndarray):
            options = {"targets": TARGETS, **options}
        return vitdeploy.validate(list(bundles), data, **options)

    return call


class Counting:
    """Counts the images that ONNX Runtime computes, and stops it by an error after `limit`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: float = math.inf, error: BaseException | None = None):
        self.images = 0
        original = OnnxRuntimeBackend._run

        def run(backend: OnnxRuntimeBackend, native: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            images = len(next(iter(inputs.values())))
            if self.images + images > limit and error is not None:
                raise error
            self.images += images
            return original(backend, native, inputs)

        monkeypatch.setattr(OnnxRuntimeBackend, "_run", run)


# The numbers


def test_every_number_is_what_the_weights_say(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    report = check(write_variant(tmp_path / "fp16", noisy()))
    before, after = logits_of(IMAGES), logits_of(IMAGES, noisy())
    right, still = before.argmax(1) == TARGETS, after.argmax(1) == TARGETS
    (run,) = report.runs
    assert report.baseline.top1 == pytest.approx(100 * right.mean())
    assert run.answers.top1 == pytest.approx(100 * still.mean())
    assert run.paired.drop == pytest.approx(100 * (right.mean() - still.mean()))
    assert (run.paired.lost, run.paired.won) == ((right & ~still).sum(), (still & ~right).sum())
    assert run.paired.lost > 0
    assert run.agreement == pytest.approx(100 * (before.argmax(1) == after.argmax(1)).mean())
    assert run.snr_db == pytest.approx(10 * np.log10((before**2).sum() / ((after - before) ** 2).sum()), abs=1e-3)
    assert run.flipped == np.flatnonzero(before.argmax(1) != after.argmax(1)).tolist()
    for one in run.per_class(LABELS):
        mine = LABELS.index(one["class"]) == TARGETS
        assert one["images"] == mine.sum()
        assert one["drop"] == pytest.approx(100 * (right[mine].mean() - still[mine].mean()))
    assert run.answers.top5 is None  # of four classes the best five are all
    np.testing.assert_allclose(report.baseline.logits, before, atol=1e-5)


def test_flipped_images_are_named_with_their_logits(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    folder = write_folder(tmp_path / "data", IMAGES, TARGETS)
    report = check(write_variant(tmp_path / "fp16", noisy()), data=folder)
    before, after = logits_of(IMAGES), logits_of(IMAGES, noisy())
    flipped = report.to_dict()["runs"][0]["flipped"]
    expected = {f"{LABELS[TARGETS[i]]}/{i:03}.png" for i in np.flatnonzero(before.argmax(1) != after.argmax(1))}
    assert {one["image"] for one in flipped} == expected
    for one in flipped:
        number = int(one["image"][-7:-4])
        chosen = [LABELS[logits[number].argmax()] for logits in (before, after)]
        assert [one["label"], one["baseline"], one["run"]] == [LABELS[TARGETS[number]], *chosen]
        for name, (first, second) in one["logits"].items():
            kind = LABELS.index(name)
            assert (first, second) == pytest.approx((before[number, kind], after[number, kind]), abs=1e-5)


def test_several_bundles_and_runtimes_are_compared_on_the_same_images_decoded_once(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from vitdeploy.data import Dataset

    decoded: list[int] = []
    original = Dataset.tensor
    monkeypatch.setattr(Dataset, "tensor", lambda *a, **k: decoded.append(a[1]) or original(*a, **k))  # type: ignore[func-returns-value]
    bundles = [write_variant(tmp_path / name, noisy(scale=s)) for name, s in (("a", 0.0), ("b", 0.3))]
    report = check(*bundles, runtime=["onnxruntime", "openvino"])
    names = ["a on onnxruntime", "a on openvino", "b on onnxruntime", "b on openvino"]
    assert [run.answers.name for run in report.runs] == names
    assert [run.paired.lost > 0 for run in report.runs] == [False, False, True, True]
    assert sorted(decoded) == list(range(len(IMAGES)))


@pytest.mark.parametrize("batch", ["batch", 1, 7])
def test_any_batch_gives_the_same_answers(
    tmp_path: Path, check: Callable[..., AccuracyReport], batch: int | str
) -> None:
    twin = write_tiny_bundle(tmp_path / "same-batch", batch)
    report = check(write_variant(tmp_path / "fp16", noisy(), batch=batch), baseline=twin)
    np.testing.assert_allclose(report.runs[0].answers.logits, logits_of(IMAGES, noisy()), atol=1e-5)
    np.testing.assert_allclose(report.baseline.logits, logits_of(IMAGES), atol=1e-5)


def test_a_graph_that_normalises_and_one_that_does_not_see_the_same_images(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    report = check(write_baked(tmp_path / "baked"), write_variant(tmp_path / "plain"))
    for run in report.runs:
        np.testing.assert_allclose(run.answers.logits, logits_of(IMAGES), atol=1e-4)


def test_a_sample_is_drawn_from_every_class(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    report = check(write_variant(tmp_path / "fp16", noisy()), samples=40, seed=3)
    assert len(report.images.indices) == 40
    share = np.bincount(report.images.targets, minlength=CLASSES) / np.bincount(TARGETS, minlength=CLASSES)
    assert np.abs(share - 1 / 3).max() < 0.05
    indices = list(report.images.indices)
    np.testing.assert_allclose(report.baseline.logits, logits_of(IMAGES[indices]), atol=1e-5)


# The gate


def test_a_drop_beyond_the_gate_fails(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    bundle = write_variant(tmp_path / "fp16", noisy())
    drop = check(bundle).runs[0].paired.drop
    assert drop > 1
    assert check(bundle).passed
    assert check(bundle, max_drop=drop + 0.01).passed
    failed = check(bundle, max_drop=drop - 0.01)
    assert not failed.passed
    assert f"fp16 on onnxruntime drops {drop:.2f} points" in failed.failures[0]
    assert f"FAILED: {failed.failures[0]}" in str(failed)
    with pytest.raises(UsageError, match="invalid max_drop -1"):
        check(bundle, max_drop=-1)


def test_a_gate_that_holds_by_chance_only_is_said_so(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    report = check(write_variant(tmp_path / "fp16"), max_drop=0.5)
    assert report.passed
    assert "the drop may be up to 3.10 points: more images would tell" in str(report)
    assert "passed: no drop is above 0.5 points" in str(report)


def test_logits_that_are_not_finite_fail(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    weight = WEIGHT.copy()
    weight[0, 0] = np.inf
    report = check(write_variant(tmp_path / "fp16", weight))
    assert report.failures == (f"fp16 on onnxruntime gives NaN or Inf on {len(IMAGES)} images",)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["runs"][0]["top1"] == 0
    assert document["runs"][0]["snr_db"] is None
    assert document["runs"][0]["flipped"][0]["run"] == "not finite"


# The baseline


def test_an_fp32_bundle_among_the_others_is_the_baseline_where_pytorch_cannot_be(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    twin, other = write_tiny_bundle(tmp_path / "twin"), write_variant(tmp_path / "fp16", noisy())
    report = check(other, twin, baseline=None)
    assert report.kind == "FP32 bundle, twin on onnxruntime"
    assert [run.answers.name for run in report.runs] == ["fp16 on onnxruntime"]
    with pytest.raises(UsageError, match="there is no FP32 baseline to compare with") as caught:
        check(other, baseline=None)
    assert "tiny" in str(caught.value)
    assert "--baseline" in str(caught.value)
    with pytest.raises(UsageError, match="is the baseline"):
        check(twin, baseline=None)


def test_without_torch_the_reason_says_so(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="torch is not installed"):
        check(write_variant(tmp_path / "fp16"), baseline=None)
    with pytest.raises(MissingDependencyError):
        check(write_variant(tmp_path / "other"), baseline=None, checkpoint="weights.safetensors")


def test_a_bundle_that_lost_something_is_no_baseline(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    bundle = write_variant(tmp_path / "fp16")
    with pytest.raises(UsageError, match="cannot be the baseline\n  why: it is fp16"):
        check(bundle, baseline=bundle.path)


def test_bundles_of_different_networks_are_refused(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    other = write_tiny_bundle(tmp_path / "other", error=1.0)
    with pytest.raises(UsageError, match="not the same network\n  why: PyTorch gave other outputs"):
        check(write_variant(tmp_path / "fp16"), other)
    with pytest.raises(UsageError, match="not the same network"):
        check(write_variant(tmp_path / "second"), baseline=other)
    with pytest.raises(UsageError, match="nothing to validate"):
        check()


def test_shifted_labels_are_called_out_and_fail_whatever_the_drop(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    report = check(write_variant(tmp_path / "fp16"), targets=(TARGETS + 1) % CLASSES, max_drop=5)
    assert not report.passed
    assert "BASELINE BROKEN: the labels look shifted" in str(report)
    assert report.to_dict()["baseline"]["problems"]
    assert "FAILED: the baseline is broken, see above" in str(report)
    assert report.runs[0].paired.drop == 0


def test_class_folders_with_exchanged_names_are_called_out(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    folder = write_folder(tmp_path / "data", IMAGES, TARGETS, labels=("ant", "cat", "bee", "dog"))
    told = str(check(write_variant(tmp_path / "fp16"), data=folder))
    assert "bee is called cat; cat is called bee" in told
    assert "names in the bundle in another order" in told


# DATA that does not fit


def test_data_without_labels_or_with_other_classes_is_refused(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    bundle = write_variant(tmp_path / "fp16")
    with pytest.raises(InputError, match="have no labels"):
        check(bundle, targets=None)
    with pytest.raises(InputError, match="has images of elk"):
        check(bundle, data=write_folder(tmp_path / "data", IMAGES, TARGETS, labels=("ant", "bee", "cat", "elk")))
    with pytest.raises(InputError, match="go from 1 to 4"):
        check(bundle, targets=TARGETS + 1)


def test_a_network_without_class_names_takes_datas_order_if_their_number_is_right(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    paths = [write_variant(tmp_path / "fp16", noisy()).path, write_tiny_bundle(tmp_path / "twin").path]
    bundle, twin = map(without_labels, paths)
    folder = write_folder(tmp_path / "data", IMAGES, TARGETS, labels=("elk", "fox", "gnu", "hen"))
    report = check(bundle, data=folder, baseline=twin)
    assert report.baseline.top1 == pytest.approx(100 * (logits_of(IMAGES).argmax(1) == TARGETS).mean())
    assert report.images.classes == ("elk", "fox", "gnu", "hen")
    for path in (folder / "hen").iterdir():
        path.unlink()
    (folder / "hen").rmdir()
    with pytest.raises(InputError, match="has 3 classes, the network 4"):
        check(bundle, data=folder, baseline=twin)
    (folder / "labels.txt").write_text("elk\nfox\ngnu\nhen\n")
    assert check(bundle, data=folder, baseline=twin).passed
    assert check(bundle, baseline=twin).images.classes[3] == "class 3"
    with pytest.raises(InputError, match="has class number 4"):
        check(bundle, targets=TARGETS + 1, baseline=twin)


def without_labels(path: Path) -> Path:
    from vitdeploy.bundle.manifest import dump

    document = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_bytes(dump({**document, "labels": []}))
    return path


def test_a_damaged_image_is_named(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    folder = write_folder(tmp_path / "data", IMAGES, TARGETS)
    path = sorted((folder / "cat").iterdir())[3]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=f"cat/{path.name} of .* cannot be read"):
        check(write_variant(tmp_path / "fp16"), data=folder)


# The manifest


def test_the_result_is_in_the_manifest_and_a_newer_one_takes_its_place(
    tmp_path: Path, check: Callable[..., AccuracyReport]
) -> None:
    pytest.importorskip("openvino")
    bundle = write_variant(tmp_path / "fp16", noisy())

    def entries() -> list[dict[str, Any]]:
        found = Bundle.open(bundle.path)
        found.check_files()
        return found.manifest.accuracy

    check(bundle, record=False)
    assert entries() == []
    report = check(bundle, runtime=["onnxruntime", "openvino"])
    assert [one["runtime"] for one in entries()] == ["onnxruntime", "openvino"]
    assert entries()[0]["drop"] == report.runs[0].paired.drop
    assert entries()[0]["data"]["sha256"] == report.images.sha256
    check(bundle)
    assert sorted(one["runtime"] for one in entries()) == ["onnxruntime", "openvino"]
    check(bundle, samples=50)
    assert sorted(one["data"]["images"] for one in entries()) == [50, 120, 120]


def test_a_bundle_that_cannot_be_written_to_is_still_judged(
    tmp_path: Path,
    check: Callable[..., AccuracyReport],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = write_variant(tmp_path / "fp16", noisy())
    monkeypatch.setattr("vitdeploy.bundle.bundle.write_atomically", _no_space)
    assert check(bundle).runs[0].paired.drop > 0
    assert "could not be written to the manifest" in caplog.text
    assert Bundle.open(bundle.path).manifest.accuracy == []


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


# Side by side


@pytest.mark.parametrize("task", ["classification", "features"])  # rows of the latter need the baseline's outputs
@pytest.mark.parametrize("cores", [2, 3, 16])
def test_side_by_side_the_answers_are_those_of_one_after_another(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch, task: str, cores: int
) -> None:
    bundles = [write_variant(tmp_path / name, noisy(seed)) for seed, name in enumerate(("fp16", "int8"))]
    data = write_folder(tmp_path / "data", IMAGES, TARGETS)
    reports = []
    for number in (1, cores):
        monkeypatch.setattr("vitdeploy.accuracy.compute.usable_cores", lambda number=number: number)
        logits = tmp_path / f"logits{number}"
        check(bundles[1], data=data, task=task, samples=50, logits=logits)  # which are known when all are asked for
        reports.append(check(*bundles, data=data, task=task, logits=logits).to_dict())
    assert reports[0] == reports[1]


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2)])
def test_runs_are_under_way_at_once_where_there_are_cores(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
) -> None:
    under_way, most, original = Counter[int](), [0], OnnxRuntimeBackend._run

    def run(backend: OnnxRuntimeBackend, native: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        under_way[id(backend)] += 1
        most.append(sum(count > 0 for count in list(under_way.values())))
        time.sleep(0.02)  # a network that takes longer than to hand it a batch
        under_way[id(backend)] -= 1
        return original(backend, native, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "_run", run)
    monkeypatch.setattr("vitdeploy.accuracy.compute.usable_cores", lambda: cores)
    check(write_variant(tmp_path / "fp16", noisy()), num_requests=1, threads=1)
    assert max(most) == expected


# Going on after an interruption


def test_an_interrupted_check_goes_on_where_it_was(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_variant(tmp_path / "fp16", noisy())
    expected = check(bundle, logits=tmp_path / "other").to_dict()
    total = 2 * len(IMAGES)
    with monkeypatch.context() as patch:
        first = Counting(patch, 100, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            check(bundle)
        assert 0 < first.images <= 100
    second = Counting(monkeypatch)
    assert check(bundle).to_dict() == expected
    assert second.images < total - first.images + 32  # batches that were computed but not yet handed over
    again = second.images
    assert check(bundle).to_dict() == expected
    assert second.images == again
    assert not list((tmp_path / "logits").rglob(".*"))


def test_a_check_that_is_killed_goes_on_where_it_was(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    bundle = write_variant(tmp_path / "fp16", noisy())
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=TARGETS)
    script = f"""
import os, vitdeploy
from vitdeploy.accuracy import rows
rows.FLUSH_SECONDS = 0
take, left = rows._Keeper.take, iter(range(70))
def dying(self, key, row):
    take(self, key, row)
    next(left, None) is not None or os._exit(9)
rows._Keeper.take = dying
vitdeploy.validate({str(bundle.path)!r}, {str(tmp_path / "data.npz")!r}, baseline={str(tmp_path / "fp32")!r},
                   runtime="onnxruntime", logits={str(tmp_path / "logits")!r})
"""
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": "."}
    )
    assert killed.returncode == 9
    with pytest.MonkeyPatch.context() as patch:
        rest = Counting(patch)
        report = check(bundle, data=tmp_path / "data.npz")
    assert 0 <= rest.images - (2 * len(IMAGES) - 71) < 2 * BATCH, "incomplete batches are filled"
    np.testing.assert_allclose(report.runs[0].answers.logits, logits_of(IMAGES, noisy()), atol=1e-5)


def test_nothing_stale_is_used(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data", IMAGES, TARGETS)
    check(write_variant(tmp_path / "fp16", noisy()), data=folder)
    counting = Counting(monkeypatch)
    # Another model at the same place; the baseline stays as it is.
    (tmp_path / "fp16").rename(tmp_path / "old")
    check(write_variant(tmp_path / "fp16", noisy(2)), data=folder)
    assert counting.images == len(IMAGES)
    # Another image under the same name.
    changed = sorted((folder / "ant").iterdir())[0]
    changed.write_bytes(sorted((folder / "bee").iterdir())[0].read_bytes())
    check(tmp_path / "fp16", data=folder)
    assert counting.images == len(IMAGES)  # these pixels were there already, under the other name
    from PIL import Image

    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(changed)
    check(tmp_path / "fp16", data=folder)
    assert counting.images == len(IMAGES) + 2 * BATCH, "a call for each run"
    # Another setting of the runtime.
    check(tmp_path / "fp16", data=folder, threads=2)
    assert counting.images == 3 * len(IMAGES) + 2 * BATCH


def test_damaged_logits_do_not_count(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_variant(tmp_path / "fp16", noisy())
    expected = check(bundle).to_dict()
    chunks = sorted((tmp_path / "logits").rglob("*.npz"))
    assert len(chunks) == 2
    content = bytearray(chunks[0].read_bytes())
    content[len(content) // 2] ^= 255
    chunks[0].write_bytes(content)
    np.savez(chunks[1], hashes=np.array(["a" * 64]), logits=np.zeros((1, CLASSES + 1), np.float32))
    counting = Counting(monkeypatch)
    assert check(bundle).to_dict() == expected
    assert counting.images == 2 * len(IMAGES)


def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot keep logits in .*file"):
        check(write_variant(tmp_path / "fp16"), logits=tmp_path / "file")


def test_an_error_of_the_runtime_reaches_the_user(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    Counting(monkeypatch, 10, RuntimeError("no more"))
    with pytest.raises(VitDeployError, match="onnxruntime failed while it ran the model\n  why: no more"):
        check(write_variant(tmp_path / "fp16"))

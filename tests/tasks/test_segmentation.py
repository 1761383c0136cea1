"""Segmentation: the figures are those of an independent computation, masks follow their images, and errors say what."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitdeploy
from tests.conftest import examples
from tests.tasks.task_cases import (
    CLASSES,
    LABELS,
    RECIPE,
    SIZE,
    colour_weight,
    scenes,
    scores_of,
    write_data,
    write_pyramid,
    write_segmenter,
)
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.bundle import Bundle
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import Preprocessing, to_mask, to_pixels
from vitdeploy.tasks.resize import bilinear, nearest
from vitdeploy.tasks.segmentation.comparison import class_iou, kappa, mean_iou

pytest.importorskip("onnxruntime")

IMAGES, MASKS = scenes()
NOISE = 0.8


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., AccuracyReport]:
    """`validate` of a noisy segmenter against its exact twin."""
    twin = write_segmenter(tmp_path / "fp32")

    def call(*bundles: Bundle, data: Any = IMAGES, **options: Any) -> AccuracyReport:
        if isinstance(data, np.ndarray):
            options = {"targets": list(MASKS), **options}
        options = {"runtime": "onnxruntime", "baseline": twin, "logits": tmp_path / "rows", **options}
        return vitdeploy.validate(list(bundles), data, **options)

    return call


def noisy_weight() -> np.ndarray:
    exact = colour_weight()
    return exact + np.random.default_rng(5).normal(scale=NOISE, size=exact.shape).astype(np.float32)


def figures(weight: np.ndarray, masks: np.ndarray = MASKS) -> tuple[np.ndarray, np.ndarray, float]:
    """Answers, IoU of each class and pixel accuracy, by torch's resize and by counting sets of pixels."""
    scores = F.interpolate(torch.from_numpy(scores_of(IMAGES, weight)), size=(SIZE, SIZE), mode="bilinear")
    chosen, judged = scores.argmax(dim=1).numpy(), masks != 255
    iou = np.full(CLASSES, np.nan)
    for kind in range(CLASSES):
        mine, right = (chosen == kind) & judged, masks == kind
        if right.any():
            iou[kind] = 100 * (mine & right).sum() / (mine | right).sum()
    return chosen, iou, 100 * float((chosen == masks)[judged].mean())


def test_every_figure_is_what_the_weights_say(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    report = check(write_segmenter(tmp_path / "fp16", noise=NOISE))
    (before, iou_before, right_before), (after, iou_after, right_after) = map(
        figures, (colour_weight(), noisy_weight())
    )
    (run,) = report.runs
    assert report.baseline.mean_iou == pytest.approx(iou_before.mean(), abs=1e-9)
    assert report.baseline.pixel_accuracy == pytest.approx(right_before)
    np.testing.assert_allclose(run.answers.iou, iou_after)
    assert run.answers.pixel_accuracy == pytest.approx(right_after)
    assert run.drop == pytest.approx(iou_before.mean() - iou_after.mean())
    assert run.drop > 1
    assert run.agreement == pytest.approx(100 * (before == after).mean())
    ours, theirs = scores_of(IMAGES, noisy_weight()), scores_of(IMAGES, colour_weight())
    assert run.snr_db == pytest.approx(10 * np.log10((theirs**2).sum() / ((ours - theirs) ** 2).sum()), abs=1e-2)
    low, high = run.interval()
    assert low < run.drop < high
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["task"] == "segmentation"
    assert [one["class"] for one in told["runs"][0]["per_class"]] == list(LABELS)
    assert told["runs"][0]["mean_iou"] == pytest.approx(iou_after.mean())
    assert "drop, points of mIoU" in str(report)


def test_the_interval_is_a_bootstrap_over_whole_images(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    (run,) = check(write_segmenter(tmp_path / "fp16", noise=NOISE)).runs
    one, other = run.baseline.rows["counts"], run.answers.rows["counts"]
    rng = np.random.default_rng(9)
    drops = []
    for _ in range(4000):
        drawn = rng.integers(0, len(one), len(one))
        drops.append(float(mean_iou(one[drawn].sum(0)) - mean_iou(other[drawn].sum(0))))
    assert run.interval() == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=0.15 * np.std(drops) + 0.1)


def test_pixels_of_the_ignored_number_are_not_judged(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    masks = MASKS.copy()
    masks[:, :3] = 255
    bundle = write_segmenter(tmp_path / "fp16", noise=NOISE)
    (run,) = check(bundle, targets=list(masks)).runs
    _, iou, right = figures(noisy_weight(), masks)
    np.testing.assert_allclose(run.answers.iou, iou)
    assert run.answers.pixel_accuracy == pytest.approx(right)
    other = masks.astype(np.int64)
    other[other == 255] = -1
    assert check(bundle, targets=list(other), ignore_index=-1).runs[0].drop == run.drop
    with pytest.raises(InputError, match="has class number 255"):
        check(bundle, targets=list(masks), ignore_index=254)
    with pytest.raises(InputError, match="no pixel of the masks of the data has a class"):
        check(bundle, targets=[np.full((SIZE, SIZE), 255)] * len(IMAGES))


@pytest.mark.parametrize("form", ["folder", "palette", "zip", "wrapped zip", "npz"])
def test_every_form_of_data_is_the_same_data(tmp_path: Path, check: Callable[..., AccuracyReport], form: str) -> None:
    folder = write_data(tmp_path / "data", IMAGES, MASKS, palette=form == "palette")
    data = folder
    if "zip" in form:
        data = tmp_path / "data.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for path in sorted(folder.rglob("*.png")):
                archive.write(path, path.relative_to(folder if form == "zip" else tmp_path))
    if form == "npz":
        data = tmp_path / "data.npz"
        np.savez(data, images=IMAGES, masks=MASKS)
    report = check(write_segmenter(tmp_path / "fp16", noise=NOISE), data=data)
    assert report.runs[0].answers.mean_iou == pytest.approx(np.nanmean(figures(noisy_weight())[1]))


def test_a_map_of_class_numbers_is_taken_as_it_is(tmp_path: Path) -> None:
    twin = write_segmenter(tmp_path / "fp32", kind="classes")
    bundle = write_segmenter(tmp_path / "fp16", kind="classes", noise=NOISE)
    report = vitdeploy.validate(
        bundle, IMAGES, targets=list(MASKS), baseline=twin, runtime="onnxruntime", logits=tmp_path / "rows"
    )
    coarse = scores_of(IMAGES, noisy_weight()).argmax(axis=1)
    chosen = coarse.repeat(4, axis=1).repeat(4, axis=2)
    (run,) = report.runs
    assert run.answers.pixel_accuracy == pytest.approx(100 * (chosen == MASKS).mean())
    assert run.snr_db is None
    assert report.to_dict()["runs"][0]["snr_db"] is None


@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch_gives_the_same_figures(tmp_path: Path, batch: int) -> None:
    twin = write_segmenter(tmp_path / "fp32", batch=batch)
    bundle = write_segmenter(tmp_path / "fp16", noise=NOISE, batch=batch)
    report = vitdeploy.validate(
        bundle, IMAGES, targets=list(MASKS), baseline=twin, runtime="onnxruntime", logits=tmp_path / "rows"
    )
    np.testing.assert_allclose(report.runs[0].answers.iou, figures(noisy_weight())[1])


def test_the_gate_judges_the_mean_iou(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    bundle = write_segmenter(tmp_path / "fp16", noise=NOISE)
    drop = check(bundle).runs[0].drop
    assert check(bundle, max_drop=drop + 0.01).passed
    failed = check(bundle, max_drop=drop - 0.01)
    assert failed.failures == (f"fp16 on onnxruntime drops {drop:.2f} points, allowed are {drop - 0.01:g}",)
    (entry,) = Bundle.open(bundle.path).manifest.accuracy
    assert (entry["task"], entry["drop"]) == ("segmentation", drop)
    assert entry["baseline"]["mean_iou"] == failed.baseline.mean_iou


def test_what_was_computed_is_not_computed_again_unless_a_mask_changes(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.tasks.segmentation.task import Segmentation

    made: list[int] = []
    original = Segmentation.row
    monkeypatch.setattr(Segmentation, "row", lambda *words: made.append(1) or original(*words))  # type: ignore[func-returns-value]
    folder = write_data(tmp_path / "data", IMAGES, MASKS)
    bundle = write_segmenter(tmp_path / "fp16", noise=NOISE)
    expected = check(bundle, data=folder).to_dict()
    assert len(made) == 2 * len(IMAGES)
    assert check(bundle, data=folder).to_dict() == expected
    assert len(made) == 2 * len(IMAGES)
    Image.fromarray(np.full((SIZE, SIZE), 1, np.uint8)).save(folder / "masks" / "000.png")
    assert check(bundle, data=folder).to_dict() != expected
    assert len(made) == 2 * len(IMAGES) + 2


def test_an_interrupted_check_goes_on_where_it_was(
    tmp_path: Path, check: Callable[..., AccuracyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.tasks.segmentation.task import Segmentation

    bundle, original = write_segmenter(tmp_path / "fp16", noise=NOISE), Segmentation.row
    expected = check(bundle, logits=tmp_path / "other").to_dict()
    made: list[int] = []

    def row(*words: Any) -> Any:
        if len(made) == 17:
            raise KeyboardInterrupt
        made.append(1)
        return original(*words)

    with monkeypatch.context() as patch:
        patch.setattr(Segmentation, "row", row)
        with pytest.raises(KeyboardInterrupt):
            check(bundle)
    more: list[int] = []
    monkeypatch.setattr(Segmentation, "row", lambda *words: more.append(1) or original(*words))  # type: ignore[func-returns-value]
    assert check(bundle).to_dict() == expected
    assert len(made) + len(more) == 2 * len(IMAGES)


def test_a_baseline_that_guesses_fails(tmp_path: Path) -> None:
    twin = write_segmenter(tmp_path / "fp32")
    bundle = write_segmenter(tmp_path / "fp16", noise=0.01)
    rng = np.random.default_rng(0)
    report = vitdeploy.validate(
        bundle,
        IMAGES,
        targets=list(MASKS[rng.permutation(len(MASKS))]),
        baseline=twin,
        runtime="onnxruntime",
        logits=tmp_path / "rows",
    )
    assert "it guesses" in report.problems[0]
    assert not report.passed


def test_scores_that_are_not_finite_fail(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    bundle = write_segmenter(tmp_path / "fp16", noise=float("inf"))
    report = check(bundle)
    assert report.failures == (f"fp16 on onnxruntime gives NaN or Inf on {len(IMAGES)} images",)
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["runs"][0]["pixel_accuracy"] == 0


# Masks follow their images


@given(
    mode=st.sampled_from(["resize_crop", "crop_resize", "stretch", "border"]),
    ratio=st.sampled_from([0.5, 0.875, 1.0]),
    height=st.integers(5, 70),
    width=st.integers(5, 70),
    target=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(60))
def test_a_mask_is_cut_as_its_image_is(
    mode: str, ratio: float, height: int, width: int, target: tuple[int, int], seed: int
) -> None:
    """An image whose pixel is its own place says where each pixel of the frame comes from; so does the mask."""
    recipe = Preprocessing(size=target, mode=mode, crop_ratio=ratio, interpolation="bilinear", channels="bands",
                           mean=(0.0, 0.0), std=(1.0, 1.0), scale=1.0)  # fmt: skip
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    pixels = to_pixels(np.stack([rows, columns], axis=2) + 1000, recipe)
    for place, axis in enumerate((rows, columns)):
        mask = to_mask(axis.astype(np.int64), recipe, -1)
        assert mask.shape == target
        inside = pixels[..., place] > 500
        assert ((mask >= 0) == inside).all()
        step = max(1.0, (height, width)[place] / target[place]) / min(ratio, 1.0) + 1
        # Bilinear weights are cut off at the border of an image, where they move the mean by less than one step.
        assert np.abs(mask - (pixels[..., place] - 1000))[inside].max(initial=0) <= step


def test_a_mask_is_resized_by_its_nearest_pixels_only() -> None:
    mask = np.random.default_rng(seed=2).choice([0, 7, 200, 1000], (33, 47))
    for mode in ("resize_crop", "stretch", "crop_resize"):
        found = to_mask(mask, Preprocessing(size=(20, 24), mode=mode), -1)
        assert set(np.unique(found)) <= {0, 7, 200, 1000}
    np.testing.assert_array_equal(to_mask(mask, Preprocessing(size=(33, 47), mode="stretch"), -1), mask)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(60))
def test_scores_are_resized_as_torch_does(shape: tuple[int, int, int], size: tuple[int, int], seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(scores)[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(bilinear(scores, size), expected.numpy(), atol=1e-5)
    numbers = scores[0].astype(np.float64)
    exact = F.interpolate(torch.from_numpy(numbers)[None, None], size=size, mode="nearest-exact")[0, 0]
    np.testing.assert_array_equal(nearest(numbers, size), exact.numpy())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=examples(60))
def test_counts_give_the_figures_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    truth, chosen = rng.integers(0, classes, (2, 50))
    truth[rng.random(50) < 0.5] = 0
    counts = np.stack(
        [np.bincount(numbers, minlength=classes) for numbers in (truth[truth == chosen], chosen, truth)]
    ).astype(float)
    present = sorted(set(truth.tolist()))
    expected = [100 * ((truth == k) & (chosen == k)).sum() / ((truth == k) | (chosen == k)).sum() for k in present]
    np.testing.assert_allclose(class_iou(counts)[present], expected)
    assert float(mean_iou(counts)) == pytest.approx(np.mean(expected))
    if len(present) > 1:
        share = [np.bincount(one, minlength=classes) / 50 for one in (truth, chosen)]
        chance, right = float(share[0] @ share[1]), float((truth == chosen).mean())
        assert float(kappa(counts)) == pytest.approx((right - chance) / (1 - chance))


# Errors


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "masks" / "003.png").unlink(), "images/003.png has no mask masks/003.png"),
        (lambda root: [path.unlink() for path in (root / "masks").iterdir()], "it has no folder masks/"),
        (
            lambda root: Image.new("L", (SIZE, SIZE + 1)).save(root / "masks" / "003.png"),
            "masks/003.png of .* is 16x17 pixels\n  why: its image is 16x16",
        ),
        (
            lambda root: Image.new("L", (SIZE, SIZE), CLASSES).save(root / "masks" / "003.png"),
            f"has class number {CLASSES}\n  why: the network has classes 0 to {CLASSES - 1}",
        ),
        (lambda root: Image.new("RGB", (SIZE, SIZE)).save(root / "masks" / "003.png"), "003.png of .* is no mask"),
        (lambda root: Image.new("L", (SIZE, SIZE)).save(root / "masks" / "003.jpg"), "cannot be a mask"),
        (lambda root: (root / "masks" / "003.png").write_bytes(b"\x89PNG"), "masks/003.png of .* cannot be read"),
        (
            lambda root: [Image.new("L", (SIZE, SIZE), 255).save(path) for path in (root / "masks").iterdir()],
            "no pixel of the masks of .* has a class",
        ),
    ],
)
def test_masks_that_do_not_fit_are_named(
    tmp_path: Path, check: Callable[..., AccuracyReport], spoil: Callable[[Path], Any], told: str
) -> None:
    folder = write_data(tmp_path / "data", IMAGES, MASKS)
    spoil(folder)
    with pytest.raises(InputError, match=told):
        check(write_segmenter(tmp_path / "fp16", noise=NOISE), data=folder, task="segmentation")


def test_a_turned_image_has_the_mask_of_the_upright_one(tmp_path: Path, check: Callable[..., AccuracyReport]) -> None:
    images, masks = scenes(4, size=(20, 32))
    folder = write_data(tmp_path / "data", images, masks)
    bundle = write_segmenter(tmp_path / "fp16", noise=NOISE)
    expected = check(bundle, data=folder).runs[0].answers.mean_iou
    for path in (folder / "images").iterdir():
        upright = Image.open(path)
        exif = upright.getexif()
        exif[274] = 6  # shown turned by 90 degrees to the right
        upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert check(bundle, data=folder).runs[0].answers.mean_iou == expected


def test_an_output_that_is_no_map_is_refused(tmp_path: Path) -> None:
    from tests.bundles import write_tiny_bundle

    for bundle in (write_tiny_bundle(tmp_path / "classes"), write_pyramid(tmp_path / "features")):
        with pytest.raises(UsageError, match="is not a segmentation network"):
            vitdeploy.validate(bundle, IMAGES, targets=list(MASKS), task="segmentation", runtime="onnxruntime")


def test_masks_in_other_frames_are_not_compared(tmp_path: Path) -> None:
    twin = write_segmenter(tmp_path / "fp32")
    other = Preprocessing(size=RECIPE.size, mode="resize_crop", crop_ratio=0.5)
    bundle = write_segmenter(tmp_path / "fp16", noise=NOISE, preprocessing=other)
    with pytest.raises(UsageError, match="see different parts of an image"):
        vitdeploy.validate(
            bundle, IMAGES, targets=list(MASKS), baseline=twin, runtime="onnxruntime", logits=tmp_path / "rows"
        )

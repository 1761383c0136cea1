"""Which task it is: what bundle and DATA leave, or an error that names what there is; never a wrong guess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.accuracy.accuracy_cases import labels_of, photos, write_folder
from tests.bundles import write_tiny_bundle
from tests.tasks.task_cases import (
    CLASSES,
    SIZE,
    scenes,
    write_data,
    write_network,
    write_pair,
    write_pyramid,
    write_segmenter,
)
from vitdeploy.bundle import Bundle
from vitdeploy.errors import InputError, UsageError, VitDeployError
from vitdeploy.tasks.choose import Asked, find_task, open_task

IMAGES, MASKS = scenes()


def write_both(path: Path) -> Bundle:
    """Class scores `logits` [N, 4] and maps `scores` and `aux` [N, 4, 8, 8]."""
    weight = np.random.default_rng(0).normal(size=(CLASSES, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "weight"], ["scores"]),
        helper.make_node("Relu", ["scores"], ["aux"]),
        helper.make_node("GlobalAveragePool", ["scores"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    side = SIZE // 2
    maps: dict[str, tuple[Any, ...]] = dict.fromkeys(("scores", "aux"), ("float32", CLASSES, side, side))
    return write_network(path, nodes, {"logits": ("float32", CLASSES), **maps}, {"weight": weight})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    place = tmp_path_factory.mktemp("bundles")
    return {
        "classes": write_tiny_bundle(place / "classes"),
        "maps": write_segmenter(place / "maps"),
        "features": write_pyramid(place / "features"),
        "both": write_both(place / "both"),
        "pair": write_pair(place / "pair"),
        "unclear": write_pyramid(place / "unclear", declared=False),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("data")
    pictures = photos(12)
    write_folder(place / "labels", pictures, labels_of(pictures))
    write_data(place / "masks", IMAGES, MASKS)
    np.savez(place / "labels.npz", images=pictures, labels=labels_of(pictures))
    np.savez(place / "masks.npz", images=IMAGES, masks=MASKS)
    np.savez(place / "all.npz", images=IMAGES, masks=MASKS, labels=np.arange(12) % CLASSES)
    np.savez(place / "none.npz", images=IMAGES)
    return {
        "labels": [place / "labels", place / "labels.npz"],
        "masks": [place / "masks", place / "masks.npz"],
        "all": [place / "all.npz"],
        "none": [place / "masks" / "images", place / "none.npz", list(IMAGES)],
    }


CLEAR = {
    ("classes", "labels"): "classification",
    ("classes", "all"): "classification",
    ("classes", "none"): "classification",
    ("maps", "masks"): "segmentation",
    ("maps", "all"): "segmentation",
    ("both", "labels"): "classification",
    ("both", "masks"): "segmentation",
    ("features", "labels"): "features",
    ("features", "masks"): "features",
    ("features", "all"): "features",
    ("features", "none"): "features",
    ("unclear", "masks"): "segmentation",
    ("unclear", "all"): "segmentation",
}


@pytest.mark.parametrize("kind", ["labels", "masks", "all", "none"])
@pytest.mark.parametrize("name", ["classes", "maps", "features", "both", "unclear"])
def test_the_task_is_certain_or_asked_for(
    bundles: dict[str, Bundle], data: dict[str, Any], name: str, kind: str
) -> None:
    for one in data[kind]:
        if (name, kind) in CLEAR:
            assert find_task(bundles[name], one) == CLEAR[name, kind]
            continue
        with pytest.raises(UsageError, match="it is not certain what") as caught:
            find_task(bundles[name], one)
        assert "--task " in str(caught.value)
        assert "--metric" in str(caught.value)


def test_what_the_task_lacks_is_said_with_what_there_is(bundles: dict[str, Bundle], data: dict[str, Any]) -> None:
    for one in data["none"]:
        with pytest.raises(InputError, match="have no labels") as caught:
            open_task(bundles["classes"], one, Asked())
        assert "--task features" in str(caught.value)
        with pytest.raises(InputError, match="have no masks"):
            open_task(bundles["maps"], one, Asked(task="segmentation"))
        assert open_task(bundles["maps"], one, Asked(task="features")).name == "features"


def test_of_several_maps_the_one_that_was_asked_for_is_judged(bundles: dict[str, Bundle], data: dict[str, Any]) -> None:
    (folder, *_) = data["masks"]
    with pytest.raises(UsageError, match="several outputs that may be") as caught:
        open_task(bundles["both"], folder, Asked())
    assert "--output scores or --output aux" in str(caught.value)
    assert open_task(bundles["both"], folder, Asked(output="aux")).identity()["output"] == "aux"


@pytest.mark.parametrize(
    ("name", "kind", "asked", "told"),
    [
        ("classes", "labels", Asked(task="detection"), "there is no task called 'detection'"),
        ("classes", "labels", Asked(task="segmentation"), "have no masks"),
        ("classes", "masks", Asked(task="segmentation"), "is not a segmentation network"),
        ("maps", "labels", Asked(task="classification"), "is not a classifier"),
        ("features", "labels", Asked(task="classification"), "is not a classifier"),
        ("classes", "labels", Asked(task="classification", output="scores"), "has no output 'scores'"),
        ("both", "labels", Asked(task="classification", output="aux"), "is not that of a classifier"),
        ("classes", "labels", Asked(task="features", metric=lambda a, b: 1), "exclude each other"),
        ("classes", "labels", Asked(metric=lambda a, b: 1, output="logits"), "gets all outputs by name"),
        ("classes", "labels", Asked(ignore=3), "--ignore-index is for masks"),
        ("features", "none", Asked(targets=[1] * 12), "targets are of no use for features"),
        ("classes", "none", Asked(targets={"a": np.zeros(12)}), "named targets are for a metric"),
        ("maps", "none", Asked(task="segmentation", targets=[1] * 12), "the targets are no masks"),
        ("pair", "none", Asked(task="classification"), "cannot be validated as a classifier of images"),
        ("classes", "labels", Asked(metric="figures"), "names no function"),
        ("classes", "labels", Asked(metric="gone.py:f"), "there is no file gone.py"),
    ],
)
def test_what_does_not_fit_is_refused(
    bundles: dict[str, Bundle], data: dict[str, Any], name: str, kind: str, asked: Asked, told: str
) -> None:
    with pytest.raises(VitDeployError, match=told):
        open_task(bundles[name], data[kind][-1], asked)


def test_nothing_is_decoded_to_find_the_task(
    bundles: dict[str, Bundle], data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.data import Dataset
    from vitdeploy.data.masks import MaskedImages

    def refuse(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Dataset, "read", refuse)
    monkeypatch.setattr(MaskedImages, "mask", refuse)
    calls: list[Callable[[], str]] = [
        lambda: find_task(bundles["maps"], data["masks"][0]),
        lambda: find_task(bundles["classes"], data["labels"][0]),
    ]
    assert [call() for call in calls] == ["segmentation", "classification"]

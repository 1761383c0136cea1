"""What a layer or a block costs alone: that the costly one is found with its reason, and that noise adds up."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.costs.networks import CLASSES, COSTLY, OUTLIER, SIDE, WIDTH, write_data, write_network
from vitdeploy import Int8Options, UsageError, export, sensitivity
from vitdeploy.costs import sensitivity as module
from vitdeploy.costs.origin import open_source
from vitdeploy.costs.report import SensitivityReport, ranked
from vitdeploy.costs.trials import Int8Trial
from vitdeploy.errors import ExportError, InputError
from vitdeploy.graph.run import run
from vitdeploy.preprocess import Preprocessing
from vitdeploy.statistics import snr_db

pytest.importorskip("onnxruntime")

FAST: dict[str, Any] = {"latency": False, "samples": 40, "images": 40, "preprocessing": {"mode": "stretch"}}
# Of a bottleneck both sides.
BAD = {OUTLIER: ("graph/MatMul_1",), "side": ("graph/MatMul_1",), "few": ("graph/Conv_1", "graph/Conv_2")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("source") / "net.onnx", outputs=("logits", "map"))


@pytest.fixture(scope="module")
def report(source: Path, data: Path) -> SensitivityReport:
    return sensitivity(source, data, **FAST)


@pytest.mark.parametrize("costly", COSTLY)
def test_a_layer_that_was_made_costly_comes_first_with_the_reason(costly: str, data: Path, tmp_path: Path) -> None:
    found = sensitivity(write_network(tmp_path / "net.onnx", costly), data, **FAST)
    first = found.parts[0]
    assert first.part.name in BAD[costly]
    assert first.reasons[0].kind == COSTLY[costly]
    assert {cost.part.name: cost.share for cost in found.parts}[first.part.name] == max(
        cost.share or 0 for cost in found.parts
    )


def test_a_reason_tells_the_figures_that_make_it_so(data: Path, tmp_path: Path) -> None:
    found = sensitivity(write_network(tmp_path / "net.onnx", OUTLIER), data, **FAST)
    text = found.parts[0].reasons[0].text
    channel, reach, median = (float(word.strip(",")) for word in (text.split()[i] for i in (1, 3, 5)))
    assert channel == 3
    assert reach > 40 * median
    sided = next(reason for reason in found.parts[0].reasons if reason.kind == "one-sided")
    assert "uses 127 of 255 steps" in sided.text
    assert sided.db == pytest.approx(20 * math.log10(2), abs=0.1)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("costly", [None, *COSTLY])
def test_the_noise_of_the_parts_adds_up(costly: str | None, precision: str, data: Path, tmp_path: Path) -> None:
    found = sensitivity(write_network(tmp_path / "net.onnx", costly), data, precision=precision, **FAST)
    assert found.sum_db == pytest.approx(found.snr_db, abs=1.5 if precision == "int8" else 3.0)
    assert sum(cost.share or 0 for cost in found.parts) == pytest.approx(1)


def test_the_ratio_is_that_of_the_graph_with_one_layer_in_integers(source: Path, data: Path) -> None:
    """Against a run of the two graphs, without the code that measures."""
    options = Int8Options(samples=40)
    origin = open_source(data, options, 40, {"source": source, "precision": "int8", "target": "portable"})
    trial = Int8Trial(origin, options)
    part = trial.parts("layer")[1]
    images = np.concatenate(list(origin.samples.evaluation()))
    exact, found = (run(model, {"images": images}, "qdq", 1) for model in (origin.graph, trial.build(part.nodes)))
    measured = {cost.part.name: cost for cost in sensitivity(source, data, **FAST | {"preprocessing": None}).parts}
    for name, ratio in measured[part.name].outputs.items():
        assert ratio == pytest.approx(snr_db(exact[name], found[name]), abs=0.01)


def test_the_worst_of_several_outputs_counts(report: SensitivityReport) -> None:
    for cost in report.parts:
        assert set(cost.outputs) == {"logits", "map"}
        assert cost.snr_db == min(cost.outputs.values())
    assert [cost.snr_db for cost in report.parts] == sorted(cost.snr_db or 0 for cost in report.parts)


def test_points_are_paired_on_labelled_images(report: SensitivityReport) -> None:
    assert report.fp32_top1 is not None
    assert report.images == {"calibrate": 40, "noise": 40, "judge": 40}
    for cost in report.parts:
        assert cost.drop is not None
        low, high = cost.drop.interval()
        assert low < cost.drop.drop < high
        assert cost.drop.total == 40


def test_the_images_that_judge_do_not_calibrate(source: Path, data: Path) -> None:
    origin = open_source(
        data, Int8Options(samples=40), 40, {"source": source, "precision": "int8", "target": "portable"}
    )
    assert len(origin.samples.calibrate) == len(origin.samples.evaluate) == 40
    assert not set(origin.samples.calibrate) & set(origin.samples.evaluate)


def test_a_block_has_all_its_layers_in_the_precision(data: Path, source: Path, report: SensitivityReport) -> None:
    found = sensitivity(source, data, by="block", **FAST)
    (block,) = found.parts
    assert block.part.name == "graph"
    assert set(block.part.nodes) == {cost.part.name for cost in report.parts}
    assert block.snr_db == pytest.approx(report.snr_db)
    assert any(name.removeprefix("graph/") in block.reasons[0].text for name in block.part.nodes)


@pytest.mark.parametrize("sort", ["snr", "points", "order"])
def test_the_order_is_the_one_that_was_asked_for(sort: str, report: SensitivityReport) -> None:
    names = [cost.part.name for cost in ranked(report.parts, sort)]
    assert sorted(names) == sorted(cost.part.name for cost in report.parts)
    drops = [cost.drop.drop for cost in ranked(report.parts, "points") if cost.drop]
    assert drops == sorted(drops, reverse=True)


def test_milliseconds_belong_to_every_layer(source: Path, data: Path) -> None:
    found = sensitivity(source, data, **FAST | {"latency": True, "runtime": "onnxruntime", "sort": "ms"})
    assert found.runtime == "onnxruntime"
    saved = [cost.saving.ms for cost in found.parts if cost.saving is not None]
    assert len(saved) == len(found.parts)
    assert saved == sorted(saved, reverse=True)


def test_what_half_precision_would_break_says_so(data: Path, tmp_path: Path) -> None:
    model = onnx.load(write_network(tmp_path / "net.onnx", OUTLIER))
    for tensor in model.graph.initializer:
        if tensor.name in ("before_weight", "bad_weight"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            where = (slice(None), 3) if tensor.name == "before_weight" else (3,)
            array[where] *= 1000.0 if tensor.name == "before_weight" else 0.001
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    found = sensitivity(tmp_path / "large.onnx", data, precision="fp16", **FAST)
    kinds = {cost.part.name: cost for cost in found.parts}
    cost = kinds["graph/MatMul_1"]
    assert cost.reasons[0].kind == "overflow"
    assert "half precision ends at 65504" in cost.reasons[0].text
    assert cost.snr_db is None
    assert cost.part.name in found.left


def test_without_labels_there_are_no_points_and_the_noise_stands(source: Path, tmp_path: Path) -> None:
    found = sensitivity(source, write_data(tmp_path / "data.npz", labels=False), **FAST)
    assert found.fp32_top1 is None
    assert all(cost.drop is None and cost.snr_db is not None for cost in found.parts)
    assert any("has no labels" in note for note in found.notes)
    assert "points" not in str(found).splitlines()[0]


@pytest.mark.parametrize(
    ("classes", "words"), [(1, "are of one class"), (CLASSES + 3, "the network classes 0 to 4")], ids=["one", "more"]
)
def test_classes_that_tell_little_or_nothing_are_named(classes: int, words: str, source: Path, tmp_path: Path) -> None:
    found = sensitivity(source, write_data(tmp_path / "data.npz", classes=classes), **FAST)
    assert any(words in note for note in found.notes)
    assert (found.fp32_top1 is None) == (classes > CLASSES)


def test_images_of_another_size_are_resized(source: Path, tmp_path: Path) -> None:
    found = sensitivity(source, write_data(tmp_path / "data.npz", side=3 * SIDE), **FAST)
    assert all(cost.snr_db is not None for cost in found.parts)


def test_a_network_without_class_scores_has_no_points(data: Path, tmp_path: Path) -> None:
    found = sensitivity(write_network(tmp_path / "map.onnx", outputs=("map",)), data, **FAST)
    assert found.fp32_top1 is None
    assert found.notes == ("no points: the network has no output of class scores [N, classes]",)


def test_a_network_without_products_has_nothing_to_measure(data: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["images"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, SIDE, SIDE]) for name in ("images", "y")]
    graph = onnx.helper.make_graph([node], "relu", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "relu.onnx")
    with pytest.raises(ExportError, match="nothing in this network can be quantized"):
        sensitivity(tmp_path / "relu.onnx", data, **FAST)
    found = sensitivity(tmp_path / "relu.onnx", data, precision="fp16", by="block", **FAST)
    assert [cost.part.macs for cost in found.parts] == [0]


def test_a_bundle_gives_what_its_source_gives(
    source: Path, data: Path, report: SensitivityReport, tmp_path: Path
) -> None:
    bundle = export(source, tmp_path / "bundle", preprocessing={"mode": "stretch"})
    found = sensitivity(bundle.path, data, **FAST | {"preprocessing": None})
    assert {cost.part.name for cost in found.parts} == {cost.part.name for cost in report.parts}
    for cost in found.parts:
        same = next(one for one in report.parts if one.part.name == cost.part.name)
        assert cost.snr_db == pytest.approx(same.snr_db, abs=0.1)
    half = sensitivity(bundle.path, data, precision="fp16", by="block", **FAST | {"preprocessing": None})
    assert half.parts[0].snr_db == pytest.approx(half.snr_db)


def test_a_bundle_that_is_not_of_fp32_or_takes_pixels_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    small = FAST | {"preprocessing": None}
    half = export(source, tmp_path / "half", precision="fp16")
    with pytest.raises(UsageError, match="is a bundle in FP16") as caught:
        sensitivity(half.path, data, **small)
    assert "FP32 bundle" in str(caught.value.fix)
    baked = export(source, tmp_path / "baked", bake_preprocessing=True)
    with pytest.raises(UsageError, match="preprocessing in the graph"):
        sensitivity(baked.path, data, **small)
    for wrong, words in (
        ({"target": "tensorrt10"}, "is for the target portable"),
        ({"image_size": 8}, "--image-size does not belong"),
        ({"preprocessing": Preprocessing(size=(8, 8))}, "--preprocessing does not belong"),
    ):
        plain = export(source, tmp_path / "plain", force=True)
        with pytest.raises(UsageError, match=words):
            sensitivity(plain.path, data, **small | wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"precision": "int4"}, "--precision cannot be 'int4'"),
        ({"by": "node"}, "--by cannot be 'node'"),
        ({"sort": "size"}, "sorted by 'size'"),
        ({"images": 0}, "at least 1 image"),
        ({"samples": 0}, "at least 1 calibration sample"),
        ({"runtime": "onnxruntime"}, "--runtime is what milliseconds are measured on"),
        ({"runtime": "nonsense", "latency": True}, "nonsense"),
        ({"target": "tensorrt9"}, "tensorrt9"),
    ],
    ids=str,
)
def test_words_that_nothing_has_are_refused(wrong: dict[str, Any], words: str, source: Path, data: Path) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        sensitivity(source, data, **FAST | wrong)
    assert caught.value.fix


def test_an_empty_folder_is_no_data(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        sensitivity(source, tmp_path / "empty", **FAST)


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_run_gives_what_it_has(
    after: int, source: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = module._Measuring._cost
    seen: list[str] = []

    def stopped(self: Any, part: Any) -> Any:
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(part.name)
        return measured(self, part)

    monkeypatch.setattr(module._Measuring, "_cost", stopped)
    if not after:
        with pytest.raises(KeyboardInterrupt):
            sensitivity(source, data, on_interrupt="report", **FAST)
        return
    found = sensitivity(source, data, on_interrupt="report", **FAST)
    assert found.interrupted
    assert {cost.part.name for cost in found.parts} == set(seen)
    assert found.sum_db is None
    assert all(cost.share is None for cost in found.parts)
    assert f"INTERRUPTED: 2 of {found.total} layers were measured" in str(found)


def test_the_csv_and_the_table_have_every_layer(report: SensitivityReport) -> None:
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == [cost.part.name for cost in report.parts]
    assert [float(row["snr_db"]) for row in rows] == [round(cost.snr_db or 0, 2) for cost in report.parts]
    table = report.table(2).splitlines()
    assert [line.split()[0] for line in table[1:3]] == [cost.part.name for cost in report.parts[:2]]
    assert table[3] == f"… and {len(report.parts) - 2} more layers, which --json and --csv have"
    assert WIDTH * CLASSES not in [cost.part.macs for cost in report.parts], "the head is too narrow"

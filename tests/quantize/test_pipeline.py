from __future__ import annotations

import itertools
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph_cases import run
from tests.quantize.blocks import evaluate, network, photos
from tests.quantize.test_insert import kernels, ranges_of
from tests.rows import RULES
from vitdeploy import progress
from vitdeploy.errors import ExportError, GateError, UsageError
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.evaluator import Evaluator
from vitdeploy.quantize.insert import insert, violations
from vitdeploy.quantize.mixed_precision import Reverted
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.pipeline import Int8Report, quantize
from vitdeploy.quantize.placement import place
from vitdeploy.quantize.samples import Images
from vitdeploy.statistics import Paired

RECIPE = Preprocessing(size=(16, 16))
OTHERS = photos(32, seed=7)


def pixels(images: np.ndarray) -> np.ndarray:
    """The nearest images that real images give: whole numbers 0..255 before the normalisation."""
    mean, std = (np.reshape(part, (3, 1, 1)) for part in (RECIPE.mean, RECIPE.std))
    whole = np.clip(np.rint((images * std + mean) * 255), 0, 255)
    return ((whole / 255 - mean) / std).astype(np.float32)


def quantized(target: str = "portable", *, batch: int | str = "batch", pinned: dict[str, str] | None = None, **options):
    model = network(batch)
    images = pixels(photos(48))
    evaluator = Evaluator(model, [pixels(OTHERS)])
    small, report = quantize(
        model, RULES[target], RECIPE, Images([images]), evaluator, Int8Options(**options), pinned or {}
    )
    return model, small, report


def quantized_names(report: Int8Report) -> set[str]:
    return {layer.node for layer in report.plan if layer.quantized}


@pytest.mark.parametrize("target", list(RULES))
def test_every_target_gets_a_graph_that_keeps_its_rules_and_35_db(target: str) -> None:
    _, small, report = quantized(target)
    assert violations(small.graph, RULES[target]) == []
    assert report.snr_db > 35
    assert len(quantized_names(report)) == (6 if target == "onnxruntime" else 7)  # its stem is faster in float


def test_the_repairs_are_worth_their_while() -> None:
    """Plain min-max and rounding to nearest, on the same graph and images."""
    model, small, report = quantized()
    rules = RULES["portable"]
    plan = place(model.graph, rules)
    plain = insert(model, plan, ranges_of(model, plan, rules, pixels(photos(48))), {}, rules)
    evaluator = Evaluator(model, [pixels(OTHERS)])
    assert evaluator.snr_db(small) == pytest.approx(report.snr_db)
    assert report.snr_db > evaluator.snr_db(plain) + 1


@pytest.mark.parametrize("target", ["portable", "onnxruntime"])
def test_correcting_biases_leaves_no_layer_without_its_integer_kernel(target: str, tmp_path: Path) -> None:
    """q and k have no bias: a correction must not come as an Add that ONNX Runtime makes a float Gemm of."""
    _, small, _ = quantized(target)
    found = kernels(small, tmp_path)
    assert found["MatMulIntegerToFloat"] + found["QGemm"] == (4 if target == "portable" else 5)
    keys = next(node for node in small.graph if node.name == "k_MatMul").outputs[0]
    assert [use.node.op_type for use in keys.uses()] == ["Transpose"]


def test_the_input_of_the_first_convolution_loses_nothing() -> None:
    names = [layer.node for layer in quantized()[2].plan if layer.node != "stem_Conv"]
    model, small, report = quantized(ignored_scope=tuple(names))
    assert quantized_names(report) == {"stem_Conv"}
    exact = [name for name, found in report.ranges.items() if found.method == "exact"]
    assert len(exact) == 1
    weight_only = report.snr_db
    images = pixels(OTHERS)
    # Images off the grid of pixels meet the rounding of the input as well.
    off = images + np.float32(0.4 / 255 / 0.226)
    found = [run(one, {"images": off})[0] for one in (model, small)]
    assert 10 * np.log10(np.square(found[0]).sum() / np.square(found[1] - found[0]).sum()) < weight_only


def test_the_same_images_give_the_same_graph() -> None:
    first, second = (ir.to_proto(quantized()[1]).SerializeToString() for _ in range(2))
    assert first == second


def test_a_graph_of_fixed_batch_is_calibrated_like_one_of_any_batch() -> None:
    dynamic, fixed = quantized()[2], quantized(batch=4)[2]
    assert {name: found.params for name, found in dynamic.ranges.items()}.keys() == fixed.ranges.keys()
    assert fixed.snr_db == pytest.approx(dynamic.snr_db, abs=1)


def test_min_snr_reverts_layers_until_it_holds_and_says_which() -> None:
    whole = quantized()[2]
    goal = whole.snr_db + 3
    _, small, report = quantized(min_snr=goal)
    assert report.snr_db >= goal
    assert 0 < len(report.reverted) < 7
    assert quantized_names(report) == quantized_names(whole) - {one.node for one in report.reverted}
    assert all(one.bytes > 0 for one in report.reverted)
    assert Evaluator(network(), [pixels(OTHERS)]).snr_db(small) == pytest.approx(report.snr_db)


def test_max_drop_is_measured_on_labels() -> None:
    model = network()
    images = pixels(OTHERS)
    labels = evaluate(model, images)["logits"].argmax(axis=1)
    evaluator = Evaluator(model, [images], labels.tolist())
    calibration = Images([pixels(photos(48))])
    _, report = quantize(model, RULES["portable"], RECIPE, calibration, evaluator, Int8Options(max_drop=11), {})
    assert report.drop == Paired(32, 0, 0)
    assert report.drop.interval()[1] < 11
    assert report.fp32_top1 == 100
    record = report.to_dict()
    assert (record["drop"], record["drop_images"]) == (0, 32)
    assert (record["drop_low"], record["drop_high"]) == report.drop.interval()


def test_a_goal_out_of_reach_is_an_error_unless_the_loss_is_accepted() -> None:
    with pytest.raises(GateError, match="no mixture of INT8 and float keeps --min-snr 150"):
        quantized(min_snr=150)
    whole, accepted = quantized()[2], quantized(min_snr=150, accept_loss=True)[2]
    assert quantized_names(accepted) == quantized_names(whole)
    assert accepted.snr_db == whole.snr_db


def test_ignored_and_pinned_nodes_stay_in_float_with_the_reason() -> None:
    _, _, report = quantized(ignored_scope=("fc*",), pinned={"head_Gemm": "the network says so"})
    reasons = {layer.node: layer.obstacle for layer in report.plan}
    assert reasons["fc_MatMul"] == "--ignored-scope fc*"
    assert reasons["head_Gemm"] == "the network says so"


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"stages\.9.* matches no layer"):
        quantized(ignored_scope=("stages.9*",))


def test_a_network_in_which_nothing_is_left_is_an_error() -> None:
    with pytest.raises(ExportError, match="nothing in this network can be quantized"):
        quantized(ignored_scope=("*",))


def test_a_layer_that_reads_nothing_but_zeros_stays_in_float() -> None:
    model = network()
    images = pixels(photos(48))
    bias = model.graph.initializers["stem_bias"]
    bias.const_value = ir.tensor(np.full(16, -100, np.float32))  # ReLU lets nothing through
    evaluator = Evaluator(model, [images[:8]])
    _, report = quantize(model, RULES["portable"], RECIPE, Images([images]), evaluator, Int8Options(), {})
    assert "zero on every" in str({layer.node: layer.obstacle for layer in report.plan}["down_Conv"])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "best"},
        {"samples": 0},
        *({"max_drop": points} for points in (-1.0, 0.0, 100.1, math.nan, math.inf)),
        *({"min_snr": ratio} for ratio in (-1.0, 19.9, math.nan, math.inf, -math.inf)),
        *({"min_snr": ratio, "accept_loss": True} for ratio in (math.nan, math.inf, -math.inf)),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        replace(Int8Options(), **options)


@pytest.mark.parametrize("ratio", [np.inf, -np.inf, np.nan])
def test_the_record_is_json_whatever_was_measured(ratio: float) -> None:
    report = replace(quantized()[2], outputs={"logits": ratio}, reverted=(Reverted("fc_MatMul", ratio, 3),))
    record = report.to_dict()
    assert record["snr_db"] is record["reverted"][0]["snr_db_alone"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_every_step_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With a clock on which a minute passes whenever anybody looks."""
    minutes = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 60 * next(minutes)))
    with caplog.at_level(logging.INFO, "vitdeploy"):
        model, images = network(), pixels(photos(48))
        counted = Images([images], names=[f"{index}.png" for index in range(48)])
        evaluator = Evaluator(model, [pixels(OTHERS)])
        quantize(model, RULES["portable"], RECIPE, counted, evaluator, Int8Options(min_snr=45.0), {})
    lines = [record.message for record in caplog.records if record.name == progress.__name__]
    said = dict.fromkeys(line.partition(":")[0] for line in lines)
    assert list(said) == [
        "computing FP32 outputs",
        "calibrating",
        "choosing ranges",
        "taking second moments",
        "rounding weights",
        "comparing with FP32",
        "measuring layers",
    ]
    assert all(line.endswith(" left") for line in lines)

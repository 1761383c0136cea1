"""The fewest layers are reverted, the noisiest first; what INT8 costs is measured without keeping the images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given

from tests.quantize.blocks import evaluate, network, photos
from vitdeploy.errors import UsageError
from vitdeploy.graph.qdq import S8
from vitdeploy.quantize import mixed_precision
from vitdeploy.quantize.mixed_precision import REVERTED, Evaluator, revert_layers
from vitdeploy.quantize.placement import LINEAR, Layer, Plan
from vitdeploy.statistics import decibels, snr_db


def plan_of(count: int) -> Plan:
    return tuple(Layer(f"layer{i}", LINEAR, (0,), S8, 1, 1) for i in range(count))


def run(powers: list[float], goal: float) -> tuple[Plan, list[str], int]:
    """The search over layers whose noise powers add up exactly; also how many graphs were scored."""
    scored = 0

    def ratio(plan: Plan) -> float:
        return decibels(1, sum(powers[int(layer.node[5:])] for layer in plan if layer.quantized))

    def score(plan: Plan) -> float:
        nonlocal scored
        scored += 1
        return ratio(plan)

    sizes = {f"layer{i}": 3 for i in range(len(powers))}
    plan, reverted = revert_layers(plan_of(len(powers)), lambda p: p, score, ratio, goal, extra_bytes=sizes)  # type: ignore[arg-type, return-value]
    assert all(one.snr_db == pytest.approx(decibels(1, powers[int(one.node[5:])])) for one in reverted)
    return plan, [one.node for one in reverted], scored


def test_nothing_is_reverted_where_the_goal_holds() -> None:
    plan, reverted, scored = run([1e-4] * 5, 30)
    assert reverted == []
    assert scored == 1
    assert all(layer.quantized for layer in plan)


@given(
    st.lists(st.floats(1e-7, 1e-2), min_size=2, max_size=40),
    st.floats(15, 60),
)
def test_the_fewest_layers_are_reverted_the_noisiest_first(powers: list[float], goal: float) -> None:
    plan, reverted, _ = run(powers, goal)
    left = sorted(powers, reverse=True)
    # The shortest list from the top that reaches the goal, found the slow way.
    fewest = next((n for n in range(len(powers)) if -10 * math.log10(sum(left[n:])) >= goal), None)
    if fewest is None:
        assert reverted == []
    else:
        assert len(reverted) == fewest
        assert sum(powers[int(name[5:])] for name in reverted) == pytest.approx(sum(left[:fewest]))
        assert {layer.node for layer in plan if layer.obstacle == REVERTED} == set(reverted)


def test_a_hundred_layers_take_few_steps() -> None:
    powers = [1e-6] * 97 + [1e-2, 1e-3, 5e-3]
    _, reverted, scored = run(powers, 35)
    assert reverted == ["layer97", "layer99", "layer98"]
    assert scored <= 10


def test_a_goal_out_of_reach_leaves_every_layer_in_int8(caplog: pytest.LogCaptureFixture) -> None:
    plan, reverted, _ = run([1.0, 1.0], 30)
    assert reverted == []
    assert all(layer.quantized for layer in plan)
    assert "no mixture" in caplog.text


class Stream:
    """Batches that are made anew each time."""

    def __init__(self, images: np.ndarray, size: int) -> None:
        self.images, self.size, self.times = images, size, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.times += 1
        for start in range(0, len(self.images), self.size):
            yield self.images[start : start + self.size].copy()


def disturbed(batch: int | str = "batch", size: float = 0.1) -> ir.Model:
    """The network with another head."""
    model = network(batch)
    weight = model.graph.initializers["head_weight"]
    noise = np.random.default_rng(5).standard_normal((64, 24))
    weight.const_value = ir.tensor((weight.const_value.numpy() + size * noise).astype(np.float32))
    return model


@pytest.mark.parametrize("batch", ["batch", 1, 7])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_the_ratio_is_that_of_the_first_images(batch: int | str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_precision, "SNR_IMAGES", 20)
    images = photos(33)
    found = Evaluator(network(batch), Stream(images, size)).snr_db(disturbed(batch))
    logits = [evaluate(model, images[:20])["logits"] for model in (network(), disturbed())]
    assert found == pytest.approx(snr_db(*logits), abs=1e-3)


@pytest.mark.parametrize("batch", ["batch", 1, 7])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_the_drop_is_that_of_all_images(batch: int | str, size: int) -> None:
    images = photos(33)
    logits = [evaluate(model, images)["logits"] for model in (network(), disturbed(size=0.5))]
    labels = logits[0].argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % 24  # the network is wrong there itself
    right = [(one.argmax(axis=1) == labels).mean() for one in logits]
    evaluator = Evaluator(network(batch), Stream(images, size), labels.tolist())
    other = disturbed(batch, size=0.5)
    assert evaluator.drop(other) == pytest.approx(100 * (right[0] - right[1])) != 0
    assert evaluator.gain(other) == -evaluator.drop(other)


def test_the_images_are_read_anew_and_only_a_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_precision, "SNR_IMAGES", 4)
    stream = Stream(photos(33), 5)
    evaluator = Evaluator(network(), stream, [0] * 33)
    assert stream.times == 2  # the few, and top-1 of the FP32 graph
    evaluator.drop(network())
    assert stream.times == 3
    evaluator.snr_db(network())
    assert stream.times == 3
    held = [value for value in vars(evaluator).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) <= 4 * 3 * 16 * 16 * 4 + 33 * 8


def test_nan_is_no_signal_and_an_equal_graph_has_no_noise() -> None:
    evaluator = Evaluator(network(), [photos(5)])
    assert evaluator.snr_db(network()) == math.inf
    broken = network()
    broken.graph.initializers["head_bias"].const_value = ir.tensor(np.full(24, np.nan, np.float32))
    assert evaluator.snr_db(broken) == -math.inf


def test_a_drop_needs_labels() -> None:
    with pytest.raises(UsageError, match="without labels"):
        Evaluator(network(), [photos(5)]).drop(network())

"""What INT8 costs is measured on a stream of images of which a few are kept, and an answer of NaN is no answer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph_cases import parsed
from tests.quantize.blocks import CLASSES, evaluate, network, photos
from vitdeploy.errors import InputError, UsageError
from vitdeploy.graph import run as graph_run
from vitdeploy.quantize import evaluator as module
from vitdeploy.quantize.evaluator import Evaluator
from vitdeploy.statistics import Paired, pair, snr_db


class Stream:
    """Batches that are made anew each time; `alive` counts those that somebody holds."""

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
    noise = np.random.default_rng(5).standard_normal((64, CLASSES))
    weight.const_value = ir.tensor((weight.const_value.numpy() + size * noise).astype(np.float32))
    return model


def with_bias(bias: np.ndarray) -> ir.Model:
    model = network()
    model.graph.initializers["head_bias"].const_value = ir.tensor(bias.astype(np.float32))
    return model


@pytest.mark.parametrize("batch", ["batch", 1, 7, 32])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_the_ratio_is_that_of_the_first_images(batch: int | str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SNR_IMAGES", 20)
    images = photos(33)
    found = Evaluator(network(batch), Stream(images, size)).snr_db(disturbed(batch))
    logits = [evaluate(model, images[:20])["logits"] for model in (network(), disturbed())]
    assert found == pytest.approx(snr_db(*logits), abs=1e-3)


@pytest.mark.parametrize("batch", ["batch", 1, 7, 32])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_the_drop_is_that_of_all_images(batch: int | str, size: int) -> None:
    images = photos(33)
    logits = [evaluate(model, images)["logits"] for model in (network(), disturbed(size=0.5))]
    labels = logits[0].argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % CLASSES  # the network is wrong there itself
    right = [one.argmax(axis=1) == labels for one in logits]
    evaluator = Evaluator(network(batch), Stream(images, size), labels.tolist())
    found = evaluator.drop(disturbed(batch, size=0.5))
    assert found == pair(*right)
    assert found.lost > 0
    assert evaluator.images == 33
    assert evaluator.fp32_top1 == pytest.approx(100 * 30 / 33)


def test_the_images_are_read_anew_and_only_a_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SNR_IMAGES", 4)
    stream = Stream(photos(33), 5)
    evaluator = Evaluator(network(), stream, [0] * 33)
    assert stream.times == 2  # the few, and top-1 of the FP32 graph
    evaluator.drop(network())
    assert stream.times == 3
    evaluator.snr_db(network())
    assert stream.times == 3
    held = [one if one.base is None else one.base for one in evaluator._few]
    assert sum(array.nbytes for array in held) <= 5 * 3 * 16 * 16 * 4
    assert [array.nbytes for batch in evaluator._expected for array in batch.values()] == [4 * CLASSES * 4]


@pytest.mark.parametrize("batch", [1, 16, 32])
def test_a_fixed_batch_is_filled_up_where_the_images_end_and_nowhere_else(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filling copies a batch, and what is filled up with is computed in vain."""
    filled: list[int] = []
    original = graph_run.fill
    monkeypatch.setattr(graph_run, "fill", lambda array, size: filled.append(len(array)) or original(array, size))  # type: ignore[func-returns-value]
    monkeypatch.setattr(module, "SNR_IMAGES", 32)
    evaluator = Evaluator(network(batch), Stream(photos(80), 16), [0] * 80)
    evaluator.snr_db(network(batch))
    evaluator.drop(network(batch))
    assert filled == ([16, 16] if batch == 32 else [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_no_signal_and_a_wrong_answer(value: float) -> None:
    """numpy's best class of a row with NaN is the first NaN, which may well be the right class."""
    bias = np.zeros(CLASSES)
    bias[0] = value
    images = photos(5)
    labels = evaluate(network(), images)["logits"].argmax(axis=1)
    labels[:2] = 0
    right = int((evaluate(network(), images)["logits"].argmax(axis=1) == labels).sum())
    evaluator = Evaluator(network(), [images], labels.tolist())
    assert evaluator.snr_db(with_bias(bias)) == -math.inf
    assert evaluator.drop(with_bias(bias)) == Paired(5, right, 0)


def test_an_equal_graph_has_no_noise() -> None:
    assert Evaluator(network(), [photos(5)]).snr_db(network()) == math.inf


def test_a_graph_without_a_floating_point_output_keeps_nothing_that_was_measured() -> None:
    text = """
    network (float[n, 3, 16, 16] images) => (int64[n, 1, 16, 16] best) {
      best = ArgMax <axis = 1> (images)
    }
    """
    assert Evaluator(parsed(text), [photos(5)]).snr_db(parsed(text)) == -math.inf


def test_a_drop_needs_labels_that_are_classes_of_the_network() -> None:
    with pytest.raises(UsageError, match="without labels"):
        Evaluator(network(), [photos(5)]).drop(network())
    with pytest.raises(InputError, match="DATA has class number 24"):
        Evaluator(network(), [photos(2)], [0, 24])
    text = """
    network (float[n, 3, 16, 16] images) => (float[n, 3, 16, 16] map) {
      map = Relu (images)
    }
    """
    with pytest.raises(UsageError, match="needs class scores"):
        Evaluator(parsed(text), [photos(2)], [0, 1])


@pytest.mark.parametrize("batch", ["batch", 1, 7, 32])
@pytest.mark.parametrize("size", [1, 5, 40])
@pytest.mark.parametrize("first", [20, 64])
def test_both_measures_in_one_run_are_those_of_two(
    batch: int | str, size: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNR_IMAGES", first)
    labels = list(range(24)) + list(range(9))
    found = Evaluator(network(batch), Stream(photos(33), size), labels, scores="logits")
    model = disturbed(batch, 2.0)
    assert found.measure(model) == (found.ratios(model), found.drop(model))
    assert found.drop(model) != found.drop(network(batch))
    assert Evaluator(network(batch), Stream(photos(33), size)).measure(model)[1] is None

"""The moments are those of the vectors that layers multiply by their weights, however the images are batched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.quantize.blocks import network, photos
from vitdeploy.graph.qdq import S8, QuantParams
from vitdeploy.quantize import moments as module
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.layers import Window
from vitdeploy.quantize.moments import DAMPING, LEAST_ROWS, SecondMoments, second_moments
from vitdeploy.quantize.placement import Plan, place
from vitdeploy.targets import Int8Rules

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def unfolded(values: np.ndarray, window: Window) -> np.ndarray:
    """The patches [n, K] as torch cuts them."""
    top, left, bottom, right = window.pads
    padded = torch.nn.functional.pad(torch.from_numpy(values), (left, right, top, bottom))
    columns = torch.nn.functional.unfold(padded, window.kernel, window.dilations, stride=window.strides)
    return columns.permute(0, 2, 1).reshape(-1, columns.shape[1]).double().numpy()


@given(
    kernel=pairs,
    strides=pairs,
    dilations=pairs,
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    side=st.tuples(st.integers(7, 9), st.integers(7, 9)),
    channels=st.integers(1, 3),
)
def test_moments_of_a_convolution_are_those_of_its_unfolded_patches(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    side: tuple[int, int],
    channels: int,
) -> None:
    window = Window(kernel, strides, pads, dilations)
    values = np.random.default_rng(0).standard_normal((3, channels, *side)).astype(np.float32) + 1
    found = SecondMoments(window)
    found.update(values, 3)
    expected = unfolded(values, window)
    assert (found.rows, found.images) == (len(expected), 3)
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), atol=1e-6)
    # Products are summed in float32, up to 512 at once.
    np.testing.assert_allclose(found.second, expected.T @ expected / len(expected), rtol=3e-6, atol=1e-6)


@settings(max_examples=examples(20))
@given(cuts=st.lists(st.integers(1, 3), min_size=1, max_size=3), patches=st.booleans())
def test_moments_do_not_depend_on_the_batches(cuts: list[int], patches: bool) -> None:
    rng = np.random.default_rng(4)
    count = sum(cuts)
    window = Window((3, 3), pads=(1, 1, 1, 1)) if patches else None
    # More vectors of an image than count, so that some are drawn.
    values = rng.standard_normal((count, 40, 9, 9) if patches else (count, 90, 400)).astype(np.float32)
    whole, parts = SecondMoments(window, QuantParams(0.1, 0, S8)), SecondMoments(window, QuantParams(0.1, 0, S8))
    whole.update(values, count)
    for part in np.split(values, np.cumsum(cuts)[:-1]):
        parts.update(part, len(part))
    assert whole.rows == parts.rows < count * 81
    assert whole.rows >= count * LEAST_ROWS
    np.testing.assert_allclose(whole.second, parts.second, atol=1e-10)
    np.testing.assert_allclose(whole.mean, parts.mean, atol=1e-10)
    np.testing.assert_allclose(whole.shift, parts.shift, atol=1e-10)


@pytest.mark.parametrize("together", [1, 7, 45, 1000])
def test_moments_do_not_depend_on_how_many_rows_are_added_at_once(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    values = np.random.default_rng(9).standard_normal((9, 5, 6)).astype(np.float32)
    monkeypatch.setattr(module, "TOGETHER", together)
    found = SecondMoments(params=QuantParams(0.1, 0, S8))
    for image in values:
        found.update(image[None], 1)
        assert sum(map(len, found._waiting)) < together
    rows = values.reshape(45, 6).astype(np.float64)
    np.testing.assert_allclose(found.second, rows.T @ rows / 45, rtol=1e-5, atol=1e-6)  # products in float32
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(found.shift, (QuantParams(0.1, 0, S8).round_trip(rows) - rows).mean(axis=0), atol=1e-7)
    assert found.rows == 45


def test_tokens_of_all_images_count() -> None:
    values = np.random.default_rng(5).standard_normal((4, 5, 6)).astype(np.float32)
    found = SecondMoments()
    found.update(values, 4)
    rows = values.reshape(20, 6).astype(np.float64)
    np.testing.assert_allclose(found.second, rows.T @ rows / 20, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-7)
    assert not found.shift.any()


def test_the_shift_is_the_mean_of_what_quantizing_changes() -> None:
    values = np.random.default_rng(6).exponential(size=(2, 8, 3)).astype(np.float32)
    params = QuantParams(0.01, 0, S8)  # saturates at 1.27
    found = SecondMoments(params=params)
    found.update(values, 2)
    expected = (params.round_trip(values).astype(np.float64) - values).mean(axis=(0, 1))
    np.testing.assert_allclose(found.shift, expected, atol=1e-7)
    assert (found.shift < -0.1).all()


NOISE = np.random.default_rng(7).standard_normal((2, 9, 40))


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 3, 4)), np.full((2, 3, 40), 0.1), 1000 + 1e-4 * NOISE, NOISE[:, :1], 1e-12 * NOISE],
    ids=["zeros", "constant", "far from zero", "fewer than inputs", "tiny"],
)
def test_the_metric_is_positive_definite_whatever_the_vectors(values: np.ndarray) -> None:
    found = SecondMoments()
    found.update(values.astype(np.float32), len(values))
    np.linalg.cholesky(found.metric)  # raises where it is not
    assert np.linalg.eigvalsh(found.metric).min() > 0


def test_the_metric_is_the_damped_covariance() -> None:
    values = np.random.default_rng(8).standard_normal((1, 30, 5)).astype(np.float32) + 3
    found = SecondMoments()
    found.update(values, 1)
    covariance = np.cov(values[0].T.astype(np.float64), bias=True)
    np.testing.assert_allclose(found.metric, covariance + DAMPING * np.trace(covariance) / 5 * np.eye(5), atol=1e-6)


@settings(max_examples=examples(20))
@example(offset=5793.0, spread=0.015625, seed=0)  # a square of the mean whose rounding is 1e-5 of the variance
@given(offset=st.floats(-1e4, 1e4), spread=st.floats(1e-2, 1e2), seed=st.integers(0, 99))
def test_the_covariance_of_what_is_far_from_zero_is_that_of_float64(offset: float, spread: float, seed: int) -> None:
    values = (offset + spread * np.random.default_rng(seed).standard_normal((3, 700, 12))).astype(np.float32)
    found = SecondMoments()
    for image in values:
        found.update(image[None], 1)
    rows = values.reshape(-1, 12).astype(np.float64)
    covariance = np.cov(rows.T, bias=True)
    damping = found.metric - covariance
    np.testing.assert_allclose(damping, np.eye(12) * damping[0, 0], atol=1e-5 * np.trace(covariance) / 12)


@pytest.mark.parametrize("length", [64, 2048])
def test_the_metric_of_few_vectors_along_one_line_has_a_factor(length: int) -> None:
    rng = np.random.default_rng(length)
    line = rng.standard_normal((40, 1)) * rng.standard_normal(length)
    found = SecondMoments()
    found.update((line + 1e-4 * rng.standard_normal((40, length))).astype(np.float32), 1)
    factor = np.linalg.cholesky(found.metric)  # raises where float32 left a negative eigenvalue
    assert np.diag(factor).min() > 0
    np.testing.assert_allclose(factor @ factor.T, found.metric, atol=1e-9 * np.trace(found.metric))


def planned(model: ir.Model) -> Plan:
    return place(model.graph, Int8Rules())


def test_each_quantized_layer_gets_the_moments_of_what_it_reads() -> None:
    model, images = network(), photos(6)
    plan = planned(model)
    found = {layer.node: seen for layer, seen in second_moments(model, plan, {}, [images[:4], images[4:]])}
    assert set(found) == {
        *("stem_Conv", "down_Conv", "q_MatMul", "k_MatMul", "v_MatMul", "fc_MatMul", "head_Gemm"),
    }
    assert found["q_MatMul"] is found["k_MatMul"] is found["v_MatMul"]
    read = dict(Activations(model, ["act", "norm", "sum", "pooled"])(images)) | {"images": images}
    for node, name in (("q_MatMul", "norm"), ("fc_MatMul", "sum"), ("head_Gemm", "pooled")):
        rows = read[name].reshape(-1, read[name].shape[-1]).astype(np.float64)
        np.testing.assert_allclose(found[node].second, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    for node, name in (("stem_Conv", "images"), ("down_Conv", "act")):
        patches = unfolded(read[name], Window((3, 3), (2, 2), (1, 1, 1, 1)))
        np.testing.assert_allclose(found[node].second, patches.T @ patches / len(patches), rtol=1e-4, atol=1e-5)


def test_little_memory_reads_the_images_more_often_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), photos(5)
    plan = planned(model)
    reads = itertools.count()

    class Calibration:
        def __iter__(self) -> Iterator[np.ndarray]:
            next(reads)
            yield images

    at_once = {layer.node: seen.second for layer, seen in second_moments(model, plan, {}, Calibration())}
    assert next(reads) == 1
    monkeypatch.setattr(module, "MOMENT_BYTES", 1)
    apart = {layer.node: seen.second for layer, seen in second_moments(model, plan, {}, Calibration())}
    assert next(reads) == 2 + len({"images", "act", "norm", "sum", "pooled"})
    assert list(apart) == list(at_once)
    for node, second in at_once.items():
        np.testing.assert_allclose(apart[node], second, atol=1e-6)


def test_layers_left_in_float_have_no_moments() -> None:
    model = network()
    plan = tuple(layer.left_in_float("because") for layer in planned(model))
    assert list(second_moments(model, plan, {}, [photos(2)])) == []

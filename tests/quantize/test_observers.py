"""What is remembered of a tensor does not depend on the batches, and its samples are rows of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.quantize.observers import AVERAGING, Statistics

CHANNELS = 6


def images(count: int, seed: int = 0, shape: tuple[int, ...] = (5, CHANNELS)) -> np.ndarray:
    """A tensor of `count` images whose magnitude grows, so that every batch widens the range."""
    values = np.random.default_rng(seed).normal(size=(count, *shape)) * np.linspace(1, 9, count).reshape(
        -1, *[1] * len(shape)
    )
    return values.astype(np.float32)


def observed(values: np.ndarray, cuts: list[int], axis: int | None = -1) -> Statistics:
    statistics = Statistics("t", axis, (3, 2) if axis == 1 and values.ndim == 4 else None)
    for part in np.split(values, sorted(cuts)):
        if len(part):
            statistics.update(part, len(part))
    return statistics


@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    shape=st.sampled_from([(5, CHANNELS), (CHANNELS,), (CHANNELS, 20, 18), (CHANNELS, 4, 4)]),
)
def test_batches_do_not_matter(cuts: list[int], shape: tuple[int, ...]) -> None:
    values = images(40, shape=shape)
    axis = 1 if len(shape) == 3 else -1
    whole, split = observed(values, [], axis), observed(values, cuts, axis)
    for name in ("count", "images", "low", "high", "average_low", "average_high"):
        assert getattr(whole, name) == getattr(split, name)
    np.testing.assert_array_equal(whole.histogram.counts, split.histogram.counts)
    np.testing.assert_array_equal(whole.channels, split.channels)
    assert whole.sample is not None
    assert split.sample is not None
    np.testing.assert_array_equal(whole.sample.units, split.sample.units)
    np.testing.assert_array_equal(whole.sample.weights, split.sample.weights)


def test_extremes_and_channels_are_exact() -> None:
    values = images(40)
    statistics = observed(values, [3, 20])
    assert (statistics.low, statistics.high) == (values.min(), values.max())
    assert statistics.max_abs == np.abs(values).max()
    np.testing.assert_array_equal(statistics.channels, np.abs(values).max(axis=(0, 1)))
    assert (statistics.count, statistics.images) == (values.size, 40)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_channels_along_any_axis(axis: int) -> None:
    values = images(7, shape=(3, 4, 37))
    statistics = observed(values, [], axis)
    others = tuple(i for i in range(4) if i != axis)
    np.testing.assert_array_equal(statistics.channels, np.abs(values).max(axis=others))


def test_moving_average_follows_each_image() -> None:
    values = images(10)
    low, high = float(values[0].min()), float(values[0].max())
    for image in values[1:]:
        low += AVERAGING * (float(image.min()) - low)
        high += AVERAGING * (float(image.max()) - high)
    statistics = observed(values, [4])
    assert (statistics.average_low, statistics.average_high) == pytest.approx((low, high))


def test_without_an_axis_neither_channels_nor_samples_are_kept() -> None:
    statistics = observed(images(4), [], axis=None)
    assert statistics.channels is None
    assert statistics.sample is None


def test_what_is_not_finite_is_counted_and_kept_out() -> None:
    values = images(4)
    values[1, 0, :3] = np.nan, np.inf, -np.inf
    statistics = observed(values, [])
    finite = values[np.isfinite(values)]
    assert (statistics.nans, statistics.infs, statistics.count) == (1, 2, finite.size)
    assert (statistics.low, statistics.high) == (finite.min(), finite.max())
    assert statistics.histogram.counts.sum() == finite.size


def test_a_tensor_without_any_number() -> None:
    statistics = observed(np.full((2, 3), np.nan, dtype=np.float32), [])
    assert (statistics.nans, statistics.count) == (6, 0)


def test_the_batch_need_not_be_the_first_axis() -> None:
    values = images(6).reshape(-1, 4)[:15]
    statistics = Statistics("t", -1)
    statistics.update(values, 4)
    assert statistics.images == 4
    assert (statistics.average_low, statistics.average_high) == (values.min(), values.max())

"""What is remembered of a tensor does not depend on the batches, and its samples are units of it, the largest all.

They come evenly from all images, within a bound of memory.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.quantize.observers import SAMPLE_BYTES, SAMPLE_UNITS, Sample, Statistics

CHANNELS = 6


def growing(count: int, seed: int = 0, shape: tuple[int, ...] = (5, CHANNELS)) -> np.ndarray:
    """A tensor of `count` images whose magnitude grows, so that every batch widens the range."""
    values = np.random.default_rng(seed).normal(size=(count, *shape)) * np.linspace(1, 9, count).reshape(
        -1, *[1] * len(shape)
    )
    return values.astype(np.float32)


def observed(values: np.ndarray, cuts: list[int], axis: int | None = -1, images: int | None = None) -> Statistics:
    statistics = Statistics("t", axis, (3, 2) if axis == 1 and values.ndim == 4 else None, images)
    for part in np.split(values, sorted(cuts)):
        if len(part):
            statistics.update(part, len(part))
    return statistics


@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    shape=st.sampled_from([(5, CHANNELS), (CHANNELS,), (CHANNELS, 20, 18), (CHANNELS, 4, 4)]),
)
def test_statistics_do_not_depend_on_the_batches(cuts: list[int], shape: tuple[int, ...]) -> None:
    values = growing(40, shape=shape)
    axis = 1 if len(shape) == 3 else -1
    whole, split = observed(values, [], axis), observed(values, cuts, axis)
    for name in ("count", "low", "high"):
        assert getattr(whole, name) == getattr(split, name)
    np.testing.assert_array_equal(whole.histogram.counts, split.histogram.counts)
    assert whole.sample is not None
    assert split.sample is not None
    np.testing.assert_array_equal(whole.sample.units, split.sample.units)
    np.testing.assert_array_equal(whole.sample.weights, split.sample.weights)


def test_extremes_are_exact() -> None:
    values = growing(40)
    statistics = observed(values, [3, 20])
    assert (statistics.low, statistics.high) == (values.min(), values.max())
    assert statistics.max_abs == np.abs(values).max()
    assert statistics.count == values.size


@given(cuts=st.lists(st.integers(0, 40), max_size=6), counted=st.integers(40, 2500))
def test_of_many_values_a_part_is_counted_and_each_place_equally_often(cuts: list[int], counted: int) -> None:
    """With an outlier at one place of every image, which a fixed choice would always count or never."""
    values = growing(40)
    values[:, 3, 2] = 1000
    each = values[0].size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitdeploy.quantize.observers.COUNTED", counted)
        whole, split = observed(values, [], images=40), observed(values, cuts, images=40)
    np.testing.assert_array_equal(whole.histogram.counts, split.histogram.counts)
    assert (whole.low, whole.high, whole.count) == (values.min(), 1000, values.size)
    step = max(1, values.size // counted)
    assert abs(int(whole.histogram.counts.sum()) - 40 * each / step) < 40
    outliers = int(whole.histogram.magnitudes()[whole.histogram.magnitudes().nonzero()[0][-1]])
    assert outliers in (40 // step, -(-40 // step))


def test_without_an_axis_no_sample_is_kept() -> None:
    statistics = observed(growing(4), [], axis=None)
    assert statistics.sample is None


def test_what_is_not_finite_is_counted_and_kept_out() -> None:
    values = growing(4)
    values[1, 0, :3] = np.nan, np.inf, -np.inf
    statistics = observed(values, [])
    finite = values[np.isfinite(values)]
    assert (statistics.nans, statistics.infs, statistics.count) == (1, 2, finite.size)
    assert (statistics.low, statistics.high) == (finite.min(), finite.max())
    assert statistics.histogram.counts.sum() == finite.size


def test_a_tensor_without_any_number() -> None:
    statistics = observed(np.full((2, 3), np.nan, dtype=np.float32), [])
    assert (statistics.nans, statistics.count) == (6, 0)


def rows(count: int, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def sampled(values: np.ndarray, cuts: list[int], axis: int = -1, window: tuple[int, int] | None = None) -> Sample:
    sample = Sample(axis, window)
    for part in np.split(values, sorted(cuts)):
        if len(part):
            sample.update(part)
    return sample


@given(cuts=st.lists(st.integers(0, 60), max_size=6), ties=st.booleans(), seed=st.integers(0, 5))
def test_samples_do_not_depend_on_the_batches(cuts: list[int], ties: bool, seed: int) -> None:
    values = images(60, 40, CHANNELS, seed=seed)
    if ties:
        values = np.round(values)
    whole, split = sampled(values, []), sampled(values, cuts)
    np.testing.assert_array_equal(whole.units, split.units)
    np.testing.assert_array_equal(whole.weights, split.weights)


def test_the_rows_with_the_largest_values_are_all_there() -> None:
    values = rows(9000)
    sample = sampled(values, [100, 650])
    half = SAMPLE_UNITS // 2
    largest = values[np.argsort(-np.abs(values).max(axis=1))[:half]]
    np.testing.assert_array_equal(sample.units[:half], largest)
    assert (sample.weights[:half] == 1).all()


def test_other_rows_are_rows_of_the_tensor_and_each_at_most_once() -> None:
    values = rows(9000)
    units = [row.tobytes() for row in sampled(values, [100, 650]).units]
    assert {row.tobytes() for row in values}.issuperset(units)
    assert len(set(units)) == len(units)


def test_other_rows_come_evenly_from_all_images() -> None:
    values = np.repeat(np.arange(20_000, dtype=np.float32) / 20_000, CHANNELS).reshape(-1, CHANNELS)
    values[::2] *= -1
    others = sampled(values, [10]).units[SAMPLE_UNITS // 2 :]
    counts, _ = np.histogram(np.abs(others), bins=4, range=(0, 1))
    assert (np.abs(counts / CHANNELS - len(others) / 4) < 40).all()  # four standard deviations


def test_weights_count_every_unit_of_the_tensor() -> None:
    for count in (1, 300, 700, 1024, 1500, 9000):
        sample = sampled(rows(count), [count // 3])
        assert sample.seen == count
        assert sample.weights.sum() == pytest.approx(count)
        assert len(sample.weights) == len(sample.units) <= SAMPLE_UNITS


def test_sums_over_the_tensor_can_be_told() -> None:
    """The error of clipping sits in 100 of 60,000 rows: a plain sample of 1,024 would hold about two of them."""
    values = rows(60_000)
    values[::600] *= 12
    sample = sampled(values, [7000, 30_000])
    excess = np.square(np.maximum(np.abs(values) - 5, 0)).sum()
    told = np.square(np.maximum(np.abs(sample.units) - 5, 0)).sum(axis=1) @ sample.weights
    assert told == pytest.approx(excess, rel=0.01)
    assert np.square(sample.units).sum(axis=1) @ sample.weights == pytest.approx(np.square(values).sum(), rel=0.1)


def test_few_rows_are_all_kept() -> None:
    values = rows(9)
    sample = sampled(values, [1])
    assert sorted(map(tuple, sample.units)) == sorted(map(tuple, values))
    assert (sample.weights == 1).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_run_along_the_axis_of_the_channels(axis: int) -> None:
    values = images(3, 4, 5)
    expected = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    assert sorted(map(tuple, sampled(values, [], axis).units)) == sorted(map(tuple, expected))


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 5)])
def test_windows_are_cut_from_the_images(window: tuple[int, int]) -> None:
    values = images(3, CHANNELS, 6, 7)
    sample = sampled(values, [1], 1, window)
    views = np.lib.stride_tricks.sliding_window_view(values, window, axis=(2, 3))
    expected = np.moveaxis(views, 1, 3).reshape(-1, CHANNELS, *window)
    assert sample.seen == len(expected)
    assert sorted(map(tuple, sample.units.reshape(len(expected), -1))) == sorted(
        map(tuple, expected.reshape(len(expected), -1))
    )


def test_the_windows_with_the_largest_values_are_there() -> None:
    values = images(30, CHANNELS, 12, 12)
    values[17, 2, 5, 5] = -50
    units = sampled(values, [4], 1, (3, 3)).units
    assert (np.abs(units).max(axis=(1, 2, 3)) == 50).sum() == 9
    assert (np.abs(units[:9]).max(axis=(1, 2, 3)) == 50).all()


def test_images_smaller_than_the_window_are_padded_with_zeros() -> None:
    values = images(2, CHANNELS, 2, 5)
    units = sampled(values, [], 1, (3, 5)).units
    assert units.shape == (2, CHANNELS, 3, 5)
    padded = np.pad(values, ((0, 0), (0, 0), (0, 1), (0, 0)))
    assert sorted(map(tuple, units.reshape(2, -1))) == sorted(map(tuple, padded.reshape(2, -1)))


def test_samples_stay_within_their_memory() -> None:
    wide = sampled(rows(300, 4000), [9]).units
    deep = sampled(images(20, 600, 6, 6), [9], 1, (3, 3)).units
    assert SAMPLE_BYTES * 0.9 < wide.nbytes <= SAMPLE_BYTES
    assert SAMPLE_BYTES * 0.9 < deep.nbytes <= SAMPLE_BYTES
    assert len(sampled(rows(50, 1 << 19), []).units) == 2

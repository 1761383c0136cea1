"""Tensors that agree and that do not, of every type."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from vitdeploy.proof.agreement import BF16_SNR_DB, FP16_SNR_DB, agreement, bounds_for
from vitdeploy.proof.parity import BOUNDS

SINGLE = BOUNDS["fp32"]


def test_the_bounds_of_fp32_and_fp16_are_those_of_verify() -> None:
    assert bounds_for("fp32") == bounds_for("fp32", "fp32") == BOUNDS["fp32"]
    assert bounds_for("fp16").min_snr_db == BOUNDS["fp16"].min_snr_db == FP16_SNR_DB


@pytest.mark.parametrize(
    ("precision", "computed", "left", "bound"),
    [
        ("fp32", "bf16", math.inf, BF16_SNR_DB),
        ("fp32", "fp16", math.inf, FP16_SNR_DB),
        ("fp16", "bf16", math.inf, BF16_SNR_DB),
        ("int8", None, math.inf, 40.0),
        ("int8", None, 60.0, 40.0),
        ("int8", None, 30.0, 24.0),
        ("int8", "bf16", 60.0, BF16_SNR_DB),
        ("int8", "bf16", 20.0, 14.0),
    ],
)
def test_the_coarser_precision_counts(precision: str, computed: str | None, left: float, bound: float) -> None:
    assert bounds_for(precision, computed, left).min_snr_db == bound


def test_rounding_to_bf16_keeps_its_bound_and_a_wrong_scale_does_not() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    rounded = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)  # cut off, which is worse than rounded
    assert agreement("x", values, rounded, bounds_for("fp32", "bf16")).passed
    assert not agreement("x", values, rounded, SINGLE).passed
    assert not agreement("x", values, 1.1 * values, bounds_for("fp32", "bf16")).passed


@settings(max_examples=examples(50))
@given(st.lists(st.sampled_from([0.0, 1.0, -2.5, math.inf, -math.inf, math.nan]), min_size=1, max_size=20))
def test_what_is_not_finite_agrees_with_itself_alone(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert agreement("x", array, array.copy(), SINGLE).passed
    for index in range(len(values)):
        other = array.copy()
        other[index] = math.inf if not math.isinf(values[index]) else -values[index]
        assert not agreement("x", array, other, SINGLE).passed


def test_shapes_types_and_empty_tensors() -> None:
    assert not agreement("x", np.zeros(3), np.zeros((3, 1)), SINGLE).passed
    assert agreement("x", np.zeros((0, 3)), np.zeros((0, 3)), SINGLE).passed
    flags = np.arange(1000) % 2 == 0
    assert agreement("x", flags, flags.copy(), SINGLE).passed
    assert not agreement("x", flags, ~flags, SINGLE).passed
    numbers = np.arange(1000)
    assert not agreement("x", numbers, numbers + 1, SINGLE).passed


def test_a_step_of_8_bits_is_rounding_and_another_zero_point_is_not() -> None:
    integers = np.random.default_rng(0).integers(0, 255, 10_000).astype(np.uint8)
    moved = integers.copy()
    moved[::1000] += 1
    bounds = bounds_for("int8")
    assert agreement("x", integers, moved, bounds).passed
    assert not agreement("x", integers, (integers // 2 + 60).astype(np.uint8), bounds).passed

"""Outputs that are no measures: selections, classes and flags."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vitdeploy.proof.discrete import FLIPPED_PART
from vitdeploy.proof.parity import ParityReport, compare_outputs


def selected(rows: list[list[int]]) -> dict[str, np.ndarray]:
    index = np.asarray(rows, dtype=np.int64)
    return {"logits": np.eye(len(rows), 10, dtype=np.float32) + index[:, :1].astype(np.float32), "selection": index}


def test_the_order_of_a_selection_does_not_count() -> None:
    reference, other = selected([[1, 2, 3], [4, 5, 6]]), selected([[1, 2, 3], [4, 5, 6]])
    other["selection"] = other["selection"][:, ::-1].copy()
    report = compare_outputs(reference, other, runtime="r", precision="fp32", selections=("selection",))
    assert report.passed
    assert report.selections[0].same_rows == 2


def test_a_sample_with_another_border_token_is_reported_and_left_out_of_the_logits() -> None:
    reference, other = selected([[1, 2, 3], [4, 5, 6]]), selected([[1, 2, 3], [9, 5, 6]])
    report = compare_outputs(reference, other, runtime="r", precision="fp32", selections=("selection",))
    assert report.passed
    assert (report.selections[0].same_rows, report.selections[0].exchanged) == (1, 1)
    assert "1 of 2 samples choose the same 3, at most 1 exchanged" in str(report)
    other["logits"][0, 0] += 0.1  # an error where the selection is the same still counts
    assert not compare_outputs(reference, other, runtime="r", precision="fp32", selections=("selection",)).passed


def test_a_selection_that_is_no_border_case_fails_as_a_selection() -> None:
    report = compare_outputs(
        selected([[1, 2, 3]] * 2),
        selected([[1, 2, 3], [7, 8, 9]]),
        runtime="r",
        precision="fp32",
        selections=("selection",),
    )
    assert "3 of 3 entries of one sample are chosen differently" in report.failures[0]
    report = compare_outputs(
        selected([[1, 2, 3]]), selected([[1, 2, 9]]), runtime="r", precision="fp32", selections=("selection",)
    )
    assert "nothing is left to compare" in report.failures[0]


def judged(reference: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> ParityReport:
    """The comparison, which can be told whatever it finds."""
    report = compare_outputs(reference, actual, runtime="r", precision="fp32", selections=("selection", "second"))
    assert report.runtime in str(report)
    json.dumps(report.to_dict(), allow_nan=False)
    return report


TYPES = [np.bool_, np.uint8, np.int8, np.int32, np.int64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (3, 4, 5), (2, 3, 4, 5)])
def test_whole_numbers_and_flags_of_any_rank_are_compared(dtype: type, shape: tuple[int, ...]) -> None:
    reference = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    assert judged({"out": reference}, {"out": reference.copy()}).passed
    assert not judged({"out": reference}, {"out": 1 - reference.astype(np.int8)}).passed
    assert not judged({"out": reference}, {}).passed
    assert not judged({"out": reference}, {"out": reference[..., None]}).passed
    floats = {"logits": np.random.default_rng(1).normal(size=(3, 10))}
    assert judged({**floats, "out": reference}, {**floats, "out": reference}).passed


@pytest.mark.parametrize("dtype", TYPES)
def test_a_map_of_classes_may_flip_at_borders_only(dtype: type) -> None:
    reference = np.zeros((4, 50, 50), dtype)
    most = int(FLIPPED_PART * reference.size)
    for flips, passed in ((0, True), (most, True), (most + 1, False)):
        actual = reference.copy()
        actual.reshape(-1)[:flips] = 1
        report = judged({"classes": reference}, {"classes": actual})
        assert report.passed == passed
        assert f"{reference.size - flips} of {reference.size} entries are equal" in str(report)
    assert f"{most + 1} of {reference.size} entries differ" in report.failures[0]


def test_what_is_missing_beside_a_selection_fails_in_words() -> None:
    reference = selected([[1, 2, 3], [4, 5, 6]])
    report = judged(reference, {"selection": reference["selection"]})
    assert report.failures == ("logits: the shape is [0] instead of [2, 10]",)


def test_selections_that_agree_on_no_common_sample_leave_nothing_to_compare() -> None:
    reference, actual = selected([[1, 2, 3], [4, 5, 6]]), selected([[1, 2, 3], [9, 5, 6]])
    reference["second"], actual["second"] = reference["selection"], np.array([[9, 2, 3], [4, 5, 6]])
    (failure,) = [one for one in judged(reference, actual).failures if "nothing is left" in one]
    assert failure.startswith("selection, second: ")


def test_selections_of_different_numbers_of_samples_are_no_proof() -> None:
    reference = {**selected([[1, 2, 3], [4, 5, 6]]), "second": np.array([[1, 2]])}
    assert not judged(reference, reference).passed


def test_an_output_that_has_no_samples_is_compared_whole() -> None:
    reference, actual = selected([[1, 2, 3], [4, 5, 6]]), selected([[1, 2, 3], [9, 5, 6]])
    reference["scale"] = actual["scale"] = np.float32(2) * np.ones(5, np.float32)
    assert judged(reference, actual).passed
    actual["scale"] = 2 * reference["scale"]
    assert not judged(reference, actual).passed


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (0, 2, 2)])
def test_a_discrete_reference_without_entries_proves_nothing(shape: tuple[int, ...]) -> None:
    empty = {"out": np.zeros(shape, np.int64)}
    assert not judged(empty, empty).passed


def test_no_outputs_at_all_are_no_proof() -> None:
    assert judged({}, {}).failures == ("nothing was compared",)

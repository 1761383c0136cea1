"""The numbers of an accuracy report that need no bundle: the levels of MLPerf, and a gate that NaN does not pass."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.data import open_data
from vitdeploy.tasks.classification.comparison import Answers, Comparison, ImageSet

IMAGES = 1000


def answers(right: int, count: int = IMAGES) -> Answers:
    """Two classes; the first `right` images get the right one."""
    logits = np.zeros((count, 2), np.float32)
    logits[right:, 1] = 1
    return Answers("run", {}, logits, np.zeros(count, np.int64))


def report_of(run: Comparison, max_drop: float | None = None) -> AccuracyReport:
    count = len(run.answers.targets)
    dataset = open_data(np.zeros((count, 1, 1, 3), np.uint8), targets=[0] * count)
    images = ImageSet(dataset, range(count), "", run.answers.targets, ("ant", "bee"))
    return AccuracyReport(images, run.baseline, "FP32", (), (run,), max_drop=max_drop)


@given(before=st.integers(0, IMAGES), after=st.integers(0, IMAGES))
@example(before=1000, after=990)
@example(before=1000, after=999)
@example(before=700, after=693)
@example(before=0, after=0)
def test_a_level_is_met_where_the_run_has_that_part_of_the_baselines_right_answers(before: int, after: int) -> None:
    run = Comparison(answers(after), answers(before))
    for level, part in zip(run.mlperf, (Fraction(99, 100), Fraction(999, 1000)), strict=True):
        assert level.percent == pytest.approx(float(100 * part))
        assert level.needed == pytest.approx(float(100 * part * before / IMAGES))
        assert level.met == (before > 0 and after >= part * before)


def test_the_levels_are_told_with_the_accuracy_that_they_take() -> None:
    run = Comparison(answers(896), answers(900))
    told = str(report_of(run))
    assert "  MLPerf edge: 99 % of FP32 (89.10 %) met; 99.9 % of FP32 (89.91 %) not met\n" in f"{told}\n"
    recorded = json.loads(json.dumps(run.measures(), allow_nan=False))["mlperf"]
    assert [(one["percent"], one["top1_needed"], one["met"]) for one in recorded] == [
        (99.0, pytest.approx(89.1), True),
        (99.9, pytest.approx(89.91), False),
    ]


def test_a_bound_that_is_no_number_is_not_kept() -> None:
    run = Comparison(answers(900), answers(900))
    assert report_of(run, max_drop=0.0).passed
    assert not report_of(run, max_drop=float("nan")).passed

"""Gates that NaN does not pass, and a drop that is never decided on too few images in silence."""

from __future__ import annotations

import json
import logging
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_docs import table
from vitdeploy.cli import whole_parser
from vitdeploy.errors import GateError, UsageError
from vitdeploy.quantize.gates import (
    JUDGES,
    Missed,
    check_goals,
    check_images,
    decided_by_interval,
    enforce,
    images_needed,
    judges_wanted,
    missed_gates,
)
from vitdeploy.quantize.options import MIN_SNR_DB, Int8Options
from vitdeploy.statistics import Paired

UNCHANGED = Paired(4000, 0, 0)


def missed(
    snr_db: float = 40.0, reference: float = 40.0, drop: Paired | None = UNCHANGED, **options: Any
) -> tuple[Missed, ...]:
    return missed_gates(Int8Options(**options), snr_db={"logits": snr_db}, reference_snr_db=reference, drop=drop)


# The number of images


@given(st.floats(0.01, 100))
def test_so_many_images_are_needed_that_the_interval_of_no_change_ends_at_the_points(points: float) -> None:
    needed = images_needed(points)
    assert Paired(needed, 0, 0).interval()[1] <= points
    assert needed == 1 or Paired(needed - 1, 0, 0).interval()[1] > points
    assert judges_wanted(points) >= max(JUDGES, needed)
    assert decided_by_interval(Int8Options(max_drop=points), needed)
    assert needed == 1 or not decided_by_interval(Int8Options(max_drop=points), needed - 1)


def test_the_help_names_the_number_of_images() -> None:
    commands = next(action for action in whole_parser()._actions if action.dest == "command")
    option = next(one for one in commands.choices["export"]._actions if one.dest == "max_drop")  # type: ignore[union-attr, index]
    told = re.findall(r"([\d,]+)(?: images)? for ([\d.]+)", str(option.help))
    assert [(images.replace(",", ""), points) for images, points in told] == [
        (str(images_needed(0.1)), "0.1"),
        (str(images_needed(0.5)), "0.5"),
    ]


def test_the_table_of_the_documentation_is_the_rule() -> None:
    rows = table("int8.md", "`--max-drop`")
    assert len(rows) == 5
    assert rows == [[points, f"{images_needed(float(points)):,}"] for points, _ in rows]


def test_a_drop_that_the_images_cannot_show_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError) as caught:
        check_images(Int8Options(max_drop=0.1), 364, "cats.zip")
    lines = caught.value.lines()
    assert lines == [
        "--max-drop 0.1 needs 3,838 labelled images that do not calibrate, and cats.zip has 64",
        "  why: it has 364 images, of which 300 calibrate; "
        "on 64 images the 95 % interval of the drop reaches 5.66 points if no answer changes",
        "  try: DATA with 4,138 labelled images or more, --max-drop 5.67, or --accept-loss",
    ]


def test_the_ways_out_that_are_told_are_ways_out() -> None:
    check_images(Int8Options(max_drop=0.1), 4138, "x")
    check_images(Int8Options(max_drop=5.67), 364, "x")
    with pytest.raises(UsageError, match="try: --samples 212, DATA with"):
        check_images(Int8Options(max_drop=0.1), 4050, "x")
    check_images(Int8Options(max_drop=0.1, samples=212), 4050, "x")
    with pytest.raises(UsageError, match=r"has 0\n  why: .*all|of which 20 calibrate\n  try: DATA with"):
        check_images(Int8Options(max_drop=0.1), 20, "x")


def test_without_a_drop_any_number_of_images_is_enough() -> None:
    check_images(Int8Options(), 1, "x")
    check_images(Int8Options(min_snr=30), 1, "x")


def test_an_accepted_loss_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_images(Int8Options(max_drop=0.1, accept_loss=True), 364, "cats.zip")
    (warning,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert "needs 3,838 labelled images that do not calibrate, and cats.zip has 64" in warning
    assert "the drop itself decides" in warning


def test_the_number_of_images_is_said_where_they_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_images(Int8Options(max_drop=0.5), 2000, "cats.zip")
    assert "--max-drop 0.5 takes 765 labelled images that do not calibrate; cats.zip has 1,700" in caplog.text


# What is missed


@pytest.mark.parametrize("bad", [math.nan, -math.inf, 19.999])
@pytest.mark.parametrize("where", ["snr_db", "reference"])
def test_less_than_the_floor_and_nan_are_missed(where: str, bad: float) -> None:
    (one,) = missed(**{where: bad})
    assert (one.gate, one.bound) == ("min_snr", MIN_SNR_DB)
    assert "the floor of 20 dB" in one.what
    assert one.fix
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["gate"] == "min_snr"


def test_what_is_kept_is_not_missed() -> None:
    assert missed(20.0, 20.0, None) == ()
    assert missed(math.inf, math.inf, None) == ()
    assert missed(35.0, 20.0, min_snr=35, max_drop=0.1) == ()
    assert missed(30.0, drop=Paired(4000, 1, 0), max_drop=0.15) == ()


@pytest.mark.parametrize("ratio", [math.nan, 34.9])
def test_less_than_asked_is_missed(ratio: float) -> None:
    (one,) = missed(ratio, min_snr=35)
    assert one.bound == 35
    assert "less than --min-snr 35" in one.what


@pytest.mark.parametrize("drop", [None, Paired(4000, 1, 0), Paired(64, 0, 0), Paired(4000, 40, 38)])
def test_an_interval_that_ends_above_the_bound_is_missed_whatever_the_drop(drop: Paired | None) -> None:
    (one,) = missed(drop=drop, max_drop=0.1)
    assert (one.gate, one.bound) == ("max_drop", 0.1)
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["gate"] == "max_drop"
    if drop is not None:
        assert one.reached == drop.interval()[1]
        assert f"to {one.reached:.2f}, {drop.total:,} images" in one.what


def test_less_than_the_floor_is_asked_for_only_where_it_is_accepted() -> None:
    with pytest.raises(UsageError, match="invalid --min-snr 12"):
        Int8Options(min_snr=12)
    (one,) = missed(12.0, min_snr=12, accept_loss=True)
    assert one.bound == MIN_SNR_DB


def test_what_is_missed_is_an_error_or_a_warning_and_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    both = missed(12.25, drop=Paired(4000, 9, 0), max_drop=0.1)
    with pytest.raises(GateError) as caught:
        enforce(Int8Options(max_drop=0.1), both)
    assert caught.value.what == (
        "INT8 keeps 12.2 dB, 7.8 dB less than the floor of 20 dB, on images that were not calibrated on"
    )
    assert "top-1 drops by 0.23 points" in str(caught.value.why)
    assert "--min-snr 20, or --accept-loss" in str(caught.value.fix)
    enforce(Int8Options(max_drop=0.1, accept_loss=True), both)
    assert [one.message for one in caplog.records] == [f"accepted by --accept-loss: {one.what}" for one in both]
    caplog.clear()
    enforce(Int8Options(), ())
    assert caplog.records == []


# Goals of outputs


def goals_missed(ratios: dict[str, float], **options: Any) -> list[tuple[str | None, float]]:
    found = missed_gates(Int8Options(**options), snr_db=ratios, reference_snr_db=40.0, drop=None)
    return [(one.output, one.bound) for one in found]


@given(
    ratios=st.dictionaries(st.sampled_from("abcd"), st.floats(-10, 80), min_size=1),
    goals=st.dictionaries(st.sampled_from("abcd"), st.floats(MIN_SNR_DB, 60)),
    min_snr=st.none() | st.floats(MIN_SNR_DB, 60),
)
def test_every_output_is_held_to_its_own_goal_and_the_others_to_the_common_one(
    ratios: dict[str, float], goals: dict[str, float], min_snr: float | None
) -> None:
    found = goals_missed(ratios, goals=goals, min_snr=min_snr)
    own = [(name, bound) for name, bound in goals.items() if not ratios.get(name, -math.inf) >= bound]
    common = MIN_SNR_DB if min_snr is None else min_snr
    others = [ratio for name, ratio in ratios.items() if name not in goals]
    assert found == own + [(None, common)] * any(ratio < common for ratio in others)


def test_a_goal_that_is_missed_names_its_output() -> None:
    ratios = {"logits": 31.0, "masks": 22.5}
    (one,) = missed_gates(
        Int8Options(goals={"masks": 25, "logits": 30}), snr_db=ratios, reference_snr_db=40.0, drop=None
    )
    assert one.what == "INT8 keeps 22.5 dB, 2.5 dB less than --goal masks=25, on images that were not calibrated on"
    assert one.to_dict() == {"gate": "goals", "output": "masks", "bound": 25, "reached": 22.5, "what": one.what}
    assert "--goal masks" in one.fix


@pytest.mark.parametrize("bound", [19.0, -5.0, math.nan, math.inf])
def test_a_goal_below_the_floor_is_refused_unless_the_loss_is_accepted(bound: float) -> None:
    with pytest.raises(UsageError, match="invalid --goal masks="):
        Int8Options(goals={"masks": bound})
    if math.isfinite(bound):
        Int8Options(goals={"masks": bound}, accept_loss=True)


def test_a_goal_of_no_output_lists_the_outputs() -> None:
    outputs = {"logits": np.zeros(3, np.float32), "ids": np.zeros(3, np.int64)}
    check_goals(Int8Options(goals={"logits": 30}), outputs)
    with pytest.raises(
        UsageError, match=r"--goal mask is of no output .*\n  why: the outputs are logits, ids"
    ) as caught:
        check_goals(Int8Options(goals={"mask": 30}), outputs)
    assert "--goal logits=30" in str(caught.value)
    with pytest.raises(UsageError, match=r"--goal ids is of no output .*\n  why: it is int64"):
        check_goals(Int8Options(goals={"ids": 30}), outputs)

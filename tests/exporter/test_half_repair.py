"""The search for the blocks that go back to FP32, on errors that are known."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from vitdeploy.exporter.half import HalfReport, _costs
from vitdeploy.exporter.half_repair import MAX_REPAIRS, find_repairs

SAMPLES, NUMBERS = 3, 50


class Emulated:
    """Outputs to which each block in FP16 adds an error of its own, and how often they were asked for."""

    def __init__(self, powers: dict[str, float]) -> None:
        random = np.random.default_rng(0)
        self.exact = {"y": random.standard_normal((SAMPLES, NUMBERS))}
        self.errors = {name: power * random.standard_normal((SAMPLES, NUMBERS)) for name, power in powers.items()}
        self.runs = 0

    def run(self, half: Collection[str]) -> dict[str, np.ndarray]:
        self.runs += 1
        return {"y": self.exact["y"] + sum(self.errors[block] for block in half)}

    def quality(self, outputs: dict[str, np.ndarray]) -> float:
        noise = np.square(outputs["y"] - self.exact["y"]).sum() + 1e-30
        return float(10 * np.log10(np.square(self.exact["y"]).sum() / noise))

    def search(self, bound: float) -> list[tuple[str, float, float]]:
        start = self.quality(self.run(list(self.errors)))
        found = find_repairs(self.run, self.quality, list(self.errors), self.exact, bound=bound, snr_db=start)
        return [(one.block, one.before, one.after) for one in found]

    def smallest(self, bound: float) -> int:
        """Repairs that a search needs which tries every block after every repair."""
        left, count = list(self.errors), 0
        while self.quality(self.run(left)) < bound:
            left.remove(max(left, key=lambda block: self.quality(self.run([one for one in left if one != block]))))
            count += 1
        return count


@settings(max_examples=examples(50))
@given(powers=st.lists(st.floats(1e-4, 0.1), min_size=2, max_size=14), bound=st.floats(30, 60))
def test_no_more_blocks_are_reverted_than_by_trying_all_of_them_each_time(powers: list[float], bound: float) -> None:
    emulated = Emulated({f"b{index}": power for index, power in enumerate(powers)})
    smallest = emulated.smallest(bound)
    found = emulated.search(bound)
    assert all(before == after for (_, _, before), (_, after, _) in pairwise(found))
    if 0 < smallest <= MAX_REPAIRS:
        assert found[-1][2] >= bound
        assert len(found) <= smallest


def test_each_block_runs_once_and_each_repair_too() -> None:
    emulated = Emulated({f"b{index}": 10.0 ** (-index / 2) for index in range(20)})
    found = emulated.search(50)
    assert [block for block, _, _ in found] == [f"b{index}" for index in range(len(found))]
    assert emulated.runs <= 1 + 20 + 2 * len(found)


def test_where_the_bound_is_out_of_reach_the_best_of_what_was_tried_stays() -> None:
    found = Emulated({f"b{index}": 1.0 + index for index in range(MAX_REPAIRS + 3)}).search(40)
    assert len(found) == MAX_REPAIRS
    assert found[-1][2] > found[0][1]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_block_that_breaks_the_outputs_goes_first(broken: float) -> None:
    emulated = Emulated({"a": 0.1, "b": 0.0, "c": 0.001})
    emulated.errors["b"][0, 0] = broken
    with np.errstate(invalid="ignore", divide="ignore"):
        assert [block for block, _, _ in emulated.search(40)] == ["b", "a"]


@pytest.mark.parametrize("kept", [{}, {"sum": "overflow: a sum over 4096 values", "exp": "its range"}])
def test_a_failure_that_no_block_repairs_does_not_blame_what_is_in_fp32_already(kept: dict[str, str]) -> None:
    said = _costs(HalfReport(snr_db=30.0, kept=kept))
    assert said.startswith("no single block in FP32 helps")
    assert [reason for reason in kept.values() if reason not in said] == []
    assert ("in FP32 already" in said) == bool(kept)

"""Which trials take turns once more, and which of them become bundles."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.runtime.backends import Backend
from vitdeploy.search.finalists import is_int8, kept, rivals, spread, timed_again
from vitdeploy.search.front import front
from vitdeploy.search.plan import FIXED, GREEDY, Plan, Trial
from vitdeploy.statistics import Ratio


def trial(number: int, time: float, snr_db: float, width: float = 0.02) -> Trial:
    plan = Plan("int8", "openvino", floats=(f"group {number}",))
    return Trial(plan, GREEDY, Ratio(time, time - width, time + width, paired=True), snr_db, None, 1.0)


TIMES, NOISES = st.integers(1, 100), st.integers(20, 60)
TRIALS = st.lists(st.tuples(TIMES, NOISES, st.integers(0, 20)), max_size=20).map(
    lambda rows: [trial(number, a / 100, float(b), c / 100) for number, (a, b, c) in enumerate(rows)]
)


@given(TRIALS, st.integers(1, 30))
def test_rivals_have_the_front_and_nobody_who_is_surely_beaten(trials: list[Trial], most: int) -> None:
    found = rivals(trials, most)
    assert len(found) <= most
    assert len({one.plan for one in found}) == len(found)
    best = front(trials, lambda one: one.values)
    assert len([one for one in found if one in best]) == min(len(best), most)
    for one in found:
        for other in trials:
            high, low = other.ratio.high, one.ratio.low
            assert high is not None
            assert low is not None
            surely = high < low and other.snr_db >= one.snr_db
            assert not surely or one in best
    if len(found) < most:  # there was room: whoever is left out is surely beaten
        for one in set(trials) - set(found):
            assert any(
                other.ratio.high is not None
                and one.ratio.low is not None
                and other.ratio.high < one.ratio.low
                and other.snr_db >= one.snr_db
                for other in trials
            )


def test_the_nearest_to_the_front_come_first() -> None:
    lucky, near, far = trial(0, 0.50, 40.0), trial(1, 0.51, 39.9), trial(2, 0.53, 39.9)
    assert rivals([far, near, lucky], 2) == [lucky, near]
    assert rivals([far, near, lucky], 3) == [lucky, near, far]


def test_floats_are_kept_and_of_int8_the_front_alone() -> None:
    fp32 = Trial(Plan(), FIXED, Ratio(1.0, 1.0, 1.0, paired=True), 150.0, None, 4.0)
    half = replace(fp32, plan=Plan("fp16"), ratio=Ratio(0.7, 0.7, 0.7, paired=True), snr_db=60.0)
    fast, slow, beaten = trial(0, 0.5, 40.0), trial(1, 0.6, 50.0), trial(2, 0.8, 55.0)
    found = kept([fp32, beaten, slow, half, fast], 4)
    assert found == [fp32, half, fast, slow]
    assert kept([fp32, beaten, slow, half, fast], 1) == [fp32, half, fast]
    assert [one for one in found if is_int8(one)] == [fast, slow]


@pytest.mark.parametrize(("most", "expected"), [(1, [0]), (2, [0, 9]), (3, [0, 4, 9]), (10, list(range(10)))])
def test_a_spread_has_both_ends(most: int, expected: list[int]) -> None:
    assert spread(range(10), most) == expected


class Clockwork:
    """A model that waits for so long, and says when it is closed."""

    def __init__(self, milliseconds: float, waited: list[float]) -> None:
        self.milliseconds, self.waited, self.closed = milliseconds, waited, False

    def run(self, inputs: object) -> dict[str, object]:
        self.waited[0] += self.milliseconds / 1000
        return {}

    def close(self) -> None:
        self.closed = True


def test_trials_have_the_times_of_their_common_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = [0.0]
    monkeypatch.setattr("vitdeploy.runtime.race.time.perf_counter", lambda: waited[0])
    unlucky, lucky = trial(0, 0.9, 40.0), trial(1, 0.4, 39.0)
    models = {unlucky.plan: Clockwork(5.0, waited), lucky.plan: Clockwork(7.0, waited)}
    loaded: list[Plan] = []

    def load(plan: Plan) -> Backend:
        loaded.append(plan)
        return models[plan]  # type: ignore[return-value]

    found = timed_again([unlucky, lucky], Clockwork(10.0, waited), load, {})  # type: ignore[arg-type]
    assert loaded == [unlucky.plan, lucky.plan]
    assert [one.ratio.value for one in found] == [0.5, 0.7]
    assert [replace(one, ratio=old.ratio) for one, old in zip(found, [unlucky, lucky], strict=True)] == [unlucky, lucky]
    assert all(model.closed for model in models.values())


def test_one_plan_alone_has_nobody_to_take_turns_with() -> None:
    alone = trial(0, 0.5, 40.0)
    assert timed_again([alone], None, None, {}) == [alone]  # type: ignore[arg-type]

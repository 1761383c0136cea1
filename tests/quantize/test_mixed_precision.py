"""The fewest layers are reverted for a goal, the noisiest first; where none reaches it, that is an error."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vitdeploy.errors import REPORT, GateError
from vitdeploy.graph.qdq import S8
from vitdeploy.quantize.mixed_precision import REVERTED, Goal, Measures, Mixture, meet_goals, revert_layers
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import LINEAR, Layer, Plan
from vitdeploy.statistics import Paired, decibels


def plan_of(count: int) -> Plan:
    return tuple(Layer(f"layer{i}", LINEAR, (0,), S8, 1, 1) for i in range(count))


def number(layer: Layer) -> int:
    return int(layer.node[5:])


class Noisy:
    """Stands for the evaluator of graphs that are plans: noise powers add up exactly, and so do lost answers."""

    def __init__(self, powers: list[float], lost: list[int] | None = None, images: int = 4000) -> None:
        self.powers, self.lost, self.images = powers, lost or [0] * len(powers), images
        self.measured: list[Plan] = []

    def snr_db(self, plan: Any) -> float:
        return decibels(1, sum(self.powers[number(layer)] for layer in plan if layer.quantized))

    def ratios(self, plan: Any) -> dict[str, float]:
        return {"logits": self.snr_db(plan)}

    def drop(self, plan: Any) -> Paired:
        self.measured.append(plan)
        return Paired(self.images, sum(self.lost[number(layer)] for layer in plan if layer.quantized), 0)


def search(powers: list[float], goal: float) -> tuple[Mixture, int]:
    """The search for a ratio; also how many plans were scored."""
    noisy, scored = Noisy(powers), 0

    def score(plan: Plan) -> float:
        nonlocal scored
        scored += 1
        return noisy.snr_db(plan)

    sizes = {f"layer{i}": 3 for i in range(len(powers))}
    wanted = Goal(score, goal, str, lambda _: GateError("out of reach", fix=REPORT))
    found = revert_layers(plan_of(len(powers)), wanted, noisy.snr_db, extra_bytes=sizes)
    assert all(one.snr_db == pytest.approx(decibels(1, powers[int(one.node[5:])])) for one in found.reverted)
    return found, scored


def met(noisy: Noisy, **options: Any) -> tuple[Plan, list[str]]:
    """What `meet_goals` makes of the plan, and the layers that it reverted."""
    measures = Measures(lambda plan: plan, noisy)  # type: ignore[arg-type, return-value]
    plan, reverted = meet_goals(plan_of(len(noisy.powers)), measures, Int8Options(**options), extra_bytes={})
    return plan, [one.node for one in reverted]


def test_nothing_is_reverted_where_the_goal_holds() -> None:
    found, scored = search([1e-4] * 5, 30)
    assert found.reached
    assert found.reverted == ()
    assert scored == 1
    assert all(layer.quantized for layer in found.plan)


@given(
    st.lists(st.floats(1e-7, 1e-2), min_size=1, max_size=40),
    st.floats(15, 60),
)
def test_the_fewest_layers_are_reverted_the_noisiest_first(powers: list[float], goal: float) -> None:
    found, _ = search(powers, goal)
    reverted = [one.node for one in found.reverted]
    left = sorted(powers, reverse=True)
    ratios = [decibels(1, sum(left[n:])) for n in range(len(powers))]
    # The shortest list from the top that reaches the goal, found the slow way.
    fewest = next((n for n, ratio in enumerate(ratios) if ratio >= goal), None)
    assert found.reached == (fewest is not None)
    count = len(powers) - 1 if fewest is None else fewest  # else the best one: all but one
    assert len(reverted) == count
    assert found.score == pytest.approx(ratios[count])
    assert sum(powers[int(name[5:])] for name in reverted) == pytest.approx(sum(left[:count]))
    assert {layer.node for layer in found.plan if layer.obstacle == REVERTED} == set(reverted)


def test_a_hundred_layers_take_few_steps() -> None:
    found, scored = search([1e-6] * 97 + [1e-2, 1e-3, 5e-3], 35)
    assert [one.node for one in found.reverted] == ["layer97", "layer99", "layer98"]
    assert scored <= 10


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_reaches_nothing(score: float) -> None:
    goal = Goal(lambda plan: score, -1e9, str, lambda _: GateError("out of reach", fix=REPORT))
    found = revert_layers(plan_of(3), goal, Noisy([1e-3] * 3).snr_db, extra_bytes={})
    assert not found.reached
    assert found.reverted == ()


# The goals


def test_a_ratio_out_of_reach_is_an_error_that_says_what_the_best_mixture_keeps() -> None:
    with pytest.raises(GateError) as caught:
        met(Noisy([1e-3, 1e-4, 2e-3]), min_snr=50)
    assert caught.value.what == "no mixture of INT8 and float keeps --min-snr 50"
    assert "the best one, with 2 of 3 layers reverted to float, keeps 40.0 dB" in str(caught.value)
    assert "try: --min-snr 40, --fp16, or --accept-loss" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_ratio_out_of_reach_leaves_every_layer_in_int8_where_the_loss_is_accepted() -> None:
    plan, reverted = met(Noisy([1e-3, 1e-4, 2e-3]), min_snr=50, accept_loss=True)
    assert reverted == []
    assert all(layer.quantized for layer in plan)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=12), st.sampled_from([0.15, 0.2, 0.3]))
def test_the_upper_end_of_the_interval_decides_about_a_drop(lost: list[int], max_drop: float) -> None:
    """Also where the drop itself holds: layers are reverted until the upper end does."""
    noisy = Noisy([1e-4 * (1 + loss) for loss in lost], lost)
    worst = sorted(lost, reverse=True)
    ends = [Paired(noisy.images, sum(worst[n:]), 0).interval()[1] for n in range(len(lost))]
    fewest = next((n for n, end in enumerate(ends) if end <= max_drop), None)
    if fewest is None:
        with pytest.raises(GateError, match=rf"95 % interval .* to {min(ends):.2f}, 4,000 images"):
            met(noisy, max_drop=max_drop)
        return
    plan, reverted = met(noisy, max_drop=max_drop)
    assert len(reverted) == fewest
    assert noisy.drop(plan).interval()[1] <= max_drop


def test_layers_are_reverted_where_the_drop_holds_and_the_upper_end_does_not() -> None:
    noisy = Noisy([1e-4, 2e-4, 3e-4], [1, 1, 2])
    whole = noisy.drop(plan_of(3))
    assert whole.drop <= 0.2 < whole.interval()[1]
    plan, reverted = met(noisy, max_drop=0.2)
    assert reverted == ["layer2"]
    assert noisy.drop(plan).interval()[1] <= 0.2


def test_a_drop_out_of_reach_says_whether_more_images_may_show_it() -> None:
    with pytest.raises(GateError) as caught:
        met(Noisy([1e-4, 1e-4], [1, 1]), max_drop=0.1)
    assert "top-1 drops by 0.03 points (95 % interval -0.07 to 0.14, 4,000 images)" in str(caught.value)
    assert "the drop itself is small enough, and more images may show it" in str(caught.value)
    assert "try: --max-drop 0.15, more labelled images, --fp16, or --accept-loss" in str(caught.value)
    with pytest.raises(GateError) as caught:
        met(Noisy([1e-4, 1e-4], [9, 9]), max_drop=0.1)
    assert "more images may" not in str(caught.value)


def test_on_too_few_images_the_drop_itself_decides_where_the_loss_is_accepted() -> None:
    lost = [1, 3]
    assert met(Noisy([1e-4, 2e-4], lost, images=100), max_drop=4, accept_loss=True)[1] == []
    assert met(Noisy([1e-4, 2e-4], lost, images=60), max_drop=2, accept_loss=True)[1] == ["layer1"]


def test_a_plan_is_measured_once() -> None:
    noisy = Noisy([1e-4, 2e-4, 3e-4], [1, 1, 2])
    measures = Measures(lambda plan: plan, noisy)  # type: ignore[arg-type, return-value]
    plan, _ = meet_goals(plan_of(3), measures, Int8Options(max_drop=0.2), extra_bytes={})
    measures.drop(plan)
    assert len({tuple(layer.quantized for layer in one) for one in noisy.measured}) == len(noisy.measured)


def test_both_goals_hold_one_after_the_other() -> None:
    noisy = Noisy([1e-2, 1e-5, 1e-5, 1e-4], [0, 3, 0, 30])
    plan, reverted = met(noisy, min_snr=35, max_drop=0.3)
    assert reverted == ["layer0", "layer3"]
    assert noisy.snr_db(plan) >= 35
    assert noisy.drop(plan).interval()[1] <= 0.3
    noisy.lost[2] = 9
    with pytest.raises(GateError, match=r"with the best one, 3 of 4 layers reverted to float, top-1 drops by 0.23"):
        met(noisy, min_snr=35, max_drop=0.3)


def test_what_is_kept_back_for_the_rest_raises_the_goal() -> None:
    noisy = Noisy([1e-4, 1e-3])
    measures = Measures(lambda plan: plan, noisy)  # type: ignore[arg-type, return-value]
    reached = noisy.snr_db(plan_of(2))
    options = Int8Options(min_snr=reached - 0.2)
    assert meet_goals(plan_of(2), measures, options, extra_bytes={})[1] == ()
    assert len(meet_goals(plan_of(2), measures, options, extra_bytes={}, reserve_db=0.5)[1]) == 1


# Goals of several outputs


class TwoOutputs(Noisy):
    """The layers of even number make the noise of `a`, the others that of `b`."""

    def ratios(self, plan: Any) -> dict[str, float]:
        sums = {name: [self.powers[number(one)] for one in plan if one.quantized and number(one) % 2 == odd]
                for odd, name in enumerate("ab")}  # fmt: skip
        return {name: decibels(1, sum(powers)) for name, powers in sums.items()}


@given(
    st.lists(st.floats(1e-6, 1e-2), min_size=2, max_size=12),
    st.sampled_from([25.0, 30.0, 40.0]),
    st.sampled_from([None, 25.0, 35.0]),
)
def test_layers_are_reverted_for_the_outputs_that_miss_their_goals(
    powers: list[float], goal: float, common: float | None
) -> None:
    noisy = TwoOutputs(powers)
    options = Int8Options(goals={"a": goal}, min_snr=common)
    bounds = options.bounds("ab")
    assert bounds == {"a": goal} | ({} if common is None else {"b": common})
    with contextlib.suppress(GateError):  # the order of the noisiest may not reach it
        plan, reverted = met(noisy, goals={"a": goal}, min_snr=common)
        ratios = noisy.ratios(plan)
        assert all(ratios[name] >= bound for name, bound in bounds.items())
        if common is None:  # noise of `b` alone is no reason to revert a layer
            assert all(int(name[5:]) % 2 == 0 for name in reverted)


def test_a_goal_out_of_reach_is_an_error_that_names_it() -> None:
    with pytest.raises(GateError) as caught:
        met(TwoOutputs([1e-3, 1e-4]), goals={"a": 45.0, "b": 45.0})
    assert caught.value.what == "no mixture of INT8 and float keeps --goal b=45"
    assert "the best one, with 1 of 2 layers reverted to float, keeps 40.0 dB of b" in str(caught.value)
    assert "--goal b=40, --fp16, or --accept-loss" in str(caught.value)
    with pytest.raises(GateError, match="no mixture of INT8 and float keeps --min-snr 50"):
        met(TwoOutputs([1e-3, 1e-4]), goals={"a": 45.0}, min_snr=50.0)

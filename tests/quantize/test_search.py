from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vitdeploy.graph.qdq import S8
from vitdeploy.quantize.placement import LINEAR, Layer, Plan
from vitdeploy.quantize.search import GIVEN_BACK, give_back


def plan_of(count: int) -> Plan:
    return tuple(Layer(f"layer{i}", LINEAR, (0,), S8, 1, 1) for i in range(count))


def run(powers: list[float], goal: float) -> tuple[Plan, list[str], int]:
    """The search over layers whose noise powers add up exactly; also how many graphs were scored."""
    scored = 0

    def noise(plan: Plan) -> float:
        return sum(powers[int(layer.node[5:])] for layer in plan if layer.quantized)

    def score(plan: Plan) -> float:
        nonlocal scored
        scored += 1
        power = noise(plan)
        return -10 * math.log10(power) if power else math.inf

    sizes = {f"layer{i}": 3 for i in range(len(powers))}
    plan, given = give_back(plan_of(len(powers)), lambda p: p, score, noise, goal, extra_bytes=sizes)  # type: ignore[arg-type, return-value]
    return plan, [one.node for one in given], scored


def test_nothing_is_given_back_where_the_goal_holds() -> None:
    plan, given, scored = run([1e-4] * 5, 30)
    assert given == []
    assert scored == 1
    assert all(layer.quantized for layer in plan)


@given(
    st.lists(st.floats(1e-7, 1e-2), min_size=2, max_size=40),
    st.floats(15, 60),
)
def test_the_fewest_layers_are_given_back_the_noisiest_first(powers: list[float], goal: float) -> None:
    plan, given, _ = run(powers, goal)
    left = sorted(powers, reverse=True)
    # The shortest list from the top that reaches the goal, found the slow way.
    fewest = next((n for n in range(len(powers)) if -10 * math.log10(sum(left[n:])) >= goal), None)
    if fewest is None:
        assert given == []
    else:
        assert len(given) == fewest
        assert sum(powers[int(name[5:])] for name in given) == pytest.approx(sum(left[:fewest]))
        assert {layer.node for layer in plan if layer.obstacle == GIVEN_BACK} == set(given)


def test_a_hundred_layers_take_few_steps() -> None:
    powers = [1e-6] * 97 + [1e-2, 1e-3, 5e-3]
    _, given, scored = run(powers, 35)
    assert given == ["layer97", "layer99", "layer98"]
    assert scored <= 10


def test_a_goal_out_of_reach_leaves_every_layer_in_int8(caplog: pytest.LogCaptureFixture) -> None:
    plan, given, _ = run([1.0, 1.0], 30)
    assert given == []
    assert all(layer.quantized for layer in plan)
    assert "no mixture" in caplog.text

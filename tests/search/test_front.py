"""Fronts and what they cover, held against their definitions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.search.front import covered, dominates, front

points = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_dominates_and_dominates_all_else(given_points: list[tuple[float, float]]) -> None:
    found = front(given_points, lambda point: point)
    assert len(set(found)) == len(found)
    for point in given_points:
        beaten = any(dominates(other, point) for other in given_points)
        assert (point in found) is not beaten


def test_of_equal_values_the_first_is_on_the_front() -> None:
    assert front([("b", 1.0), ("a", 1.0)], lambda item: (item[1], 0.0)) == [("b", 1.0)]


@given(points)
def test_what_a_front_covers_is_counted_square_by_square(given_points: list[tuple[float, float]]) -> None:
    corner = (10.0, 10.0)
    squares = sum(
        any(x <= left and y <= bottom for x, y in given_points)
        for left, bottom in itertools.product(range(10), range(10))
    )
    assert covered(given_points, corner) == squares


def test_what_lies_outside_of_the_corner_covers_nothing() -> None:
    assert covered([(0.0, 2.0), (2.0, 0.0)], (1.0, 1.0)) == 0
    assert covered([], (1.0, 1.0)) == 0

"""Which points of a plane no other one beats, and how much of it they cover."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
Point = tuple[float, float]  # of each the less the better


def dominates(first: Point, second: Point) -> bool:
    """Whether `first` is nowhere worse than `second`, and somewhere better."""
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def front(items: Iterable[T], values: Callable[[T], Point]) -> list[T]:
    """The items whose values nothing dominates, by their first value; of equal ones that which came first."""
    found: list[T] = []
    best = float("inf")
    for item in sorted(items, key=values):
        if values(item)[1] < best:
            found.append(item)
            best = values(item)[1]
    return found


def covered(points: Iterable[Point], corner: Point) -> float:
    """The area of what the points dominate, up to `corner`: the hypervolume of a front (Zitzler and Thiele, 1999)."""
    inside = [point for point in points if dominates(point, corner)]
    area, height = 0.0, corner[1]
    for x, y in front(inside, lambda point: point):
        area += (corner[0] - x) * (height - y)
        height = y
    return area

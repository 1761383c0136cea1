"""Turns of candidates: how many calls make one, and the rounds in which everyone has one."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TypeVar

from vitdeploy.latency.measurement import Turn

# Long enough for a call to find its caches warm again, short enough for many rounds.
TURN_SECONDS, TURN_CALLS = 0.05, 1000

Result = TypeVar("Result")


def interleave(
    turns: Sequence[Callable[[], Result]],
    *,
    seconds: float | None,
    rounds: int | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[list[Result]]:
    """Complete rounds until `seconds` have passed or there are `rounds`; at least one.

    Each takes every turn once, in a new random order (the same in every run); its results are in the order of `turns`.
    """
    chance = random.Random(0)
    begin = clock()
    for number in itertools.count(1):
        order = chance.sample(range(len(turns)), len(turns))
        results = {index: turns[index]() for index in order}
        yield [results[index] for index in range(len(turns))]
        if number == rounds or (seconds is not None and clock() - begin >= seconds):
            return


def warm_up(
    turn: Callable[[int], Turn],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    turn_seconds: float = TURN_SECONDS,
) -> int:
    """Calls for at least `seconds`, then says how many calls of a caller fill a turn of `turn_seconds`."""
    begin, latest = clock(), turn(1).seconds
    while clock() - begin < seconds:
        latest = turn(1).seconds
    return min(TURN_CALLS, max(1, int(turn_seconds / median(latest))))

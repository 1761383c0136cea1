"""Loaded models that take turns on one machine: how much longer one takes than another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from vitdeploy.errors import UsageError
from vitdeploy.runtime.backends import backends
from vitdeploy.runtime.backends.base import Array, Backend
from vitdeploy.statistics import Ratio, paired_ratio
from vitdeploy.targets import Target

ROUNDS = 30  # in which they take turns; fixed, so that the interval of their ratio is what it says
TURN_SECONDS = 0.02  # of calls that one makes in its turn, at least


def timing_runtime(runtime: str, target: Target, option: str) -> str:
    """The whole name of a runtime that can time layers of a graph for `target`; UsageError for any other."""
    able = [backend.name for backend in backends() if backend.times_layers]
    if runtime not in able:
        raise UsageError(f"layers cannot be timed on {runtime!r}", fix=f"{option} {' or '.join(able)}")
    if runtime not in target.runtimes:
        raise UsageError(
            f"bundles for {target.name} are not run by {runtime}",
            why=f"they are made for {', '.join(target.runtimes)}",
            fix=f"--target portable, or {option} {target.runtimes[0]}",
        )
    return runtime


def race(
    first: Backend,
    second: Backend,
    inputs: Mapping[str, Array],
    *,
    rounds: int = ROUNDS,
    turn_seconds: float = TURN_SECONDS,
) -> Ratio:
    """Time of `first` over time of `second`, both called with `inputs`; rounded to four digits."""
    return rounded_ratio(*turns((first, second), inputs, rounds=rounds, turn_seconds=turn_seconds))


def rounded_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """`paired_ratio`, rounded to four digits, so that a result that is kept in a file decides the same."""
    ratio = paired_ratio(candidate, baseline)
    low, high = (None if bound is None else round(bound, 4) for bound in (ratio.low, ratio.high))
    return Ratio(round(ratio.value, 4), low, high, paired=True)


def turns(
    loaded: Sequence[Backend],
    inputs: Mapping[str, Array],
    *,
    rounds: int = ROUNDS,
    turn_seconds: float = TURN_SECONDS,
) -> list[list[float]]:
    """Seconds of a call in each round, of each of them, all called with `inputs`; every other round goes backwards."""
    for other in loaded[1:]:
        _turn(other, inputs, 1)
    calls = max(1, round(turn_seconds / _turn(loaded[0], inputs, 1)))
    seconds: list[list[float]] = [[] for _ in loaded]
    order = range(len(loaded))
    for number in range(rounds):
        for index in order if number % 2 else reversed(order):
            seconds[index].append(_turn(loaded[index], inputs, calls))
    return seconds


def _turn(backend: Backend, inputs: Mapping[str, Array], calls: int) -> float:
    """Mean seconds of a call. The first one is not counted: workers of another model may still be spinning."""
    backend.run(inputs)
    begin = time.perf_counter()
    for _ in range(calls):
        backend.run(inputs)
    return (time.perf_counter() - begin) / calls

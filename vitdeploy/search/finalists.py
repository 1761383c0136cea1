"""Which plans become bundles: the front of time and noise, once its plans have taken turns with each other.

The time of a trial has the luck of its moment in it, and the best of many trials is the luckiest one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from vitdeploy.progress import Progress
from vitdeploy.runtime.backends import Backend
from vitdeploy.runtime.backends.base import Array
from vitdeploy.runtime.race import rounded_ratio, turns
from vitdeploy.search.front import front
from vitdeploy.search.plan import INT8, Plan, Trial

RIVALS = 3  # that take turns for each bundle to be written
T = TypeVar("T")


def is_int8(trial: Trial) -> bool:
    """Whether its plan has layers in INT8."""
    return trial.plan.precision == INT8


def rivals(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Trials in INT8 that may be on the front, those nearest to it first, at most `most`.

    One that another beats in noise and, with both intervals considered, surely in time is none.
    """
    tried = [trial for trial in trials if is_int8(trial)]
    first = spread(front(tried, lambda trial: trial.values), most)
    others = [one for one in tried if one not in first and not any(_surely_beats(other, one) for other in tried)]
    return [*first, *sorted(others, key=lambda one: _behind(one, tried))][:most]


def timed_again(
    trials: Sequence[Trial], fp32: Backend, load: Callable[[Plan], Backend], inputs: dict[str, Array]
) -> list[Trial]:
    """The trials with the times that their plans take in turns with each other and with FP32."""
    if len(trials) < 2:
        return list(trials)
    with ExitStack() as stack, Progress("timing the best plans in turns", len(trials) + 1) as progress:
        loaded = []
        for trial in trials:
            loaded.append(load(trial.plan))
            stack.callback(loaded[-1].close)
            progress.advance()
        baseline, *seconds = turns([fp32, *loaded], inputs)
        progress.advance()
    return [replace(one, ratio=rounded_ratio(own, baseline)) for one, own in zip(trials, seconds, strict=True)]


def kept(trials: Sequence[Trial], most: int) -> list[Trial]:
    """What becomes a bundle: everything in float, and of INT8 what is on the front, at most `most`, spread over it."""
    fixed = [trial for trial in trials if not is_int8(trial)]
    best = [trial for trial in front(trials, lambda trial: trial.values) if is_int8(trial)]
    return [*fixed, *spread(best, most)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, the first and the last one included where there is room for both."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / max(1, most - 1)
    return [items[round(number * step)] for number in range(most)]


def _surely_beats(one: Trial, other: Trial) -> bool:
    high, low = one.ratio.high, other.ratio.low
    return high is not None and low is not None and high < low and one.values[1] <= other.values[1]


def _behind(trial: Trial, trials: Sequence[Trial]) -> float:
    """How much longer it takes than the fastest that is as exact."""
    return trial.values[0] - min(other.values[0] for other in trials if other.values[1] <= trial.values[1])

"""The plain search: the groups that make the most noise for the time they save become float first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitdeploy.search.plan import Plan


@dataclass(frozen=True)
class Group:
    """Layers that are in INT8 or in float together, and what that was measured to do.

    nodes  their names
    saved  part of the time of FP32 that the network takes less with them in INT8; negative where it takes more
    noise  power of the noise that they cause alone, over that of the signal
    """

    nodes: tuple[str, ...]
    saved: float
    noise: float

    @property
    def price(self) -> float:
        """Noise for the time saved; infinite where none is."""
        return self.noise / self.saved if self.saved > 0 else math.inf


def greedy_plans(whole: Plan, groups: Mapping[str, Group], most: int) -> list[Plan]:
    """At most `most` plans from the fastest to the most exact: each has the groups of the highest price in float.

    whole  every group in INT8

    Times and powers of noise all but add up, so this is the order of the continuous knapsack (Dantzig, 1957), whose
    prefixes are optimal but for the group that is cut. The groups that save nothing are in float in all of them.
    """
    useless = [name for name, group in groups.items() if group.saved <= 0]
    order = sorted((name for name in groups if name not in useless), key=lambda name: -groups[name].price)
    cuts = _spread(len(order), most)
    return [whole.with_floats(frozenset([*useless, *order[:cut]])) for cut in cuts]


def _spread(length: int, most: int) -> Sequence[int]:
    """Numbers 0 to length - 1, at most `most` of them, denser at the beginning: few groups make most of the noise."""
    if length <= most:
        return range(length)
    steps = max(1, most - 1)
    return sorted({round((length - 1) * (step / steps) ** 1.5) for step in range(most)})

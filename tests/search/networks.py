"""A network of groups whose times and noises add up but for a few that help or hinder each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from vitdeploy.search.front import front
from vitdeploy.search.greedy import Group
from vitdeploy.search.plan import GREEDY, Plan, Trial
from vitdeploy.statistics import Ratio

WHOLE = Plan("int8", "openvino")


class Network:
    """Measures plans without noise; `interaction` is how much neighbours in INT8 change each other's noise."""

    def __init__(self, count: int, seed: int, *, interaction: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.names = [f"group {index}" for index in range(count)]
        self._saved = dict(zip(self.names, rng.uniform(-0.01, 0.5 / count, count), strict=True))
        self._noise = dict(zip(self.names, 10.0 ** rng.uniform(-6, -3, count), strict=True))
        self._interaction = interaction

    def groups(self) -> dict[str, Group]:
        return {name: Group((name,), self._saved[name], self._noise[name]) for name in self.names}

    def measure(self, plan: Plan, by: str = GREEDY) -> Trial:
        inside = [name for name in self.names if name not in plan.floats]
        noise = sum(self._noise[name] for name in inside) + 1e-9
        for first, second in itertools.pairwise(self.names):
            if first in inside and second in inside:
                noise += self._interaction * min(self._noise[first], self._noise[second])
        ratio = 1 - sum(self._saved[name] for name in inside)
        return Trial(plan, by, Ratio(ratio, ratio, ratio, paired=True), -10 * math.log10(noise), None, 1.0)

    def all_plans(self) -> Iterator[Plan]:
        for switches in itertools.product([False, True], repeat=len(self.names)):
            yield WHOLE.with_floats(frozenset(itertools.compress(self.names, switches)))

    def best(self) -> list[Trial]:
        """The front of all plans there are."""
        return front(map(self.measure, self.all_plans()), lambda trial: trial.values)


def labels(trials: list[Trial]) -> Mapping[Plan, Trial]:
    return {trial.plan: trial for trial in trials}

"""How much of the processor other programs took while something was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vitdeploy.machine.probe import ROOT, read_text
from vitdeploy.machine.settings import usable_cores

TOLERATED = 0.25  # cores


class Contention:
    """From when it is made on, what others compute; what it says is None where the system does not tell.

    The load average would not do: for a minute it still counts what this process did before.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._begun = self._now()

    def cores(self) -> float | None:
        """Cores that others used, on average: those that are not ours anyway are left out."""
        now = self._now()
        if self._begun is None or now is None or now[0] <= self._begun[0]:
            return None
        seconds, others = (after - before for before, after in zip(self._begun, now, strict=True))
        spare = (os.cpu_count() or 1) - usable_cores(self._root)
        return max(0.0, others / seconds - spare)

    def _now(self) -> tuple[float, float] | None:
        """The time, and the CPU seconds of all other processes since the start, those taken by a hypervisor too."""
        words = read_text(self._root / "proc/stat").partition("\n")[0].split()
        if len(words) < 8 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
            return None
        user, nice, system, _, _, interrupts, soft, *stolen = map(int, words[1:9])
        mine = os.times()
        own = mine.user + mine.system + mine.children_user + mine.children_system
        ticks = user + nice + system + interrupts + soft + sum(stolen)
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - own

"""RAPL: the counters of x86 processors, as the kernel's power capping framework shows them.

https://docs.kernel.org/power/powercap/powercap.html: `energy_uj` counts microjoules up to `max_energy_range_uj` and
begins at 0 again; a zone `intel-rapl:N` is a package, and its subzones `core` and `uncore` are parts of it. The subzone
`dram` is the memory, which Intel's manual (volume 3B, "RAPL Domains") has as a domain of its own beside the package;
whether it is so on every processor is not certain
(https://hubblo-org.github.io/scaphandre/book/explanations/rapl-domains.html). The zone `psys` and the zones
`intel-rapl-mmio:N` count the same packages again. AMD's processors have the same files without `dram`. Since Linux
5.10 only root may read the counters (CVE-2020-8694), because they tell what other processes compute.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.machine.energy.sensor import Counters, Facts, Sensor, Unreadable, denied, number, unreadable
from vitdeploy.machine.probe import ROOT, read_text

UPDATE_SECONDS = 0.001  # Intel SDM volume 3B, "RAPL Interfaces": updated about every millisecond


def find(root: Path = ROOT) -> Sensor | Unreadable | None:
    """The packages of the processor and their memory, in joules; None where the kernel shows no counter."""
    zones = _zones(root)
    if not zones:
        return None
    counters = [zone / "energy_uj" for zone in zones.values()]
    if closed := denied(counters):
        return unreadable(
            "the energy counters of the processor (RAPL), which vitdeploy benchmark would read",
            closed,
            "only root may read them, because they tell what other processes compute (CVE-2020-8694)",
        )
    if _microjoules(counters) is None:
        return None
    memory = any("dram" in name for name in zones)
    covers = "the processor's packages" + (" and memory (DRAM)" if memory else ", without memory")
    facts = Facts(f"RAPL {', '.join(zones)}", covers, "cpu", UPDATE_SECONDS)
    ranges = [number(zone / "max_energy_range_uj") for zone in zones.values()]
    return Counters(facts, lambda: _microjoules(counters), [None if end is None else end / 1e6 for end in ranges])


def _zones(root: Path) -> dict[str, Path]:
    """The zones whose energies add up to that of the processor and its memory, by their names."""
    folder = root / "sys/class/powercap"
    # Only the kernel's own order of numbers is sure to be the same in every run.
    numbered = {tuple(map(int, match[1].split(":"))): zone for zone in _children(folder) if (match := _number(zone))}
    zones = {}
    for key in sorted(numbered):
        name = read_text(numbered[key] / "name").strip()
        if len(key) == 1 and name.startswith("package"):
            zones[name] = numbered[key]
        elif len(key) == 2 and name == "dram" and key[:1] in numbered:
            zones[f"dram-{key[0]}"] = numbered[key]
    return zones if any(name.startswith("package") for name in zones) else {}


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _number(zone: Path) -> re.Match[str] | None:
    return re.fullmatch(r"intel-rapl:(\d+(?::\d+)*)", zone.name)


def _microjoules(counters: Sequence[Path]) -> list[float] | None:
    """Joules of every counter; None where one of them cannot be read."""
    values = [number(counter) for counter in counters]
    return None if None in values else [value / 1e6 for value in values if value is not None]

"""The power monitors of Jetsons: INA3221, with a channel for each of three rails, and INA238 at the input of Thor.

From JetPack 5 on, the kernel's driver (https://docs.kernel.org/hwmon/ina3221.html) shows the label, the millivolts and
the milliamperes of a channel as `in1_label`, `in1_input` and `curr1_input`; JetPack 4 showed its name and milliwatts as
`rail_name_0` and `in_power0_input`. An INA238 (https://docs.kernel.org/hwmon/ina238.html) shows microwatts.

The rails are those of NVIDIA's Jetson Linux Developer Guide, "Software-Based Power Consumption Modeling", and of the
device trees (`tegra234-p3701.dtsi`, `tegra234-p3767.dtsi`). VDD_IN of Orin NX and Orin Nano is the whole module, so the
other rails are parts of it (https://forums.developer.nvidia.com/t/200883). AGX modules have no such rail: theirs are
added, without VDDQ_VDD2_1V8AO, which VIN_SYS_5V0 feeds (https://forums.developer.nvidia.com/t/223111).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdeploy.machine.energy.sensor import Facts, Power, Sensor, Unreadable, denied, number, unreadable
from vitdeploy.machine.probe import ROOT, read_text

# Rails of which all others are parts, the one that covers most first, and what they cover.
WHOLE: Mapping[str, str] = {
    "VIN": "the whole board, at its input",
    "VDD_IN": "the whole module",
    "5V_IN": "the whole module",
    "POM_5V_IN": "the whole module",
}
# Parts of another rail, channels that are not connected, the driver's own sum, and what a carrier board feeds.
LEFT_OUT = re.compile(r"VDDQ_VDD2_1V8AO|NC|sum of .*|CVB_.*|", re.IGNORECASE)
UPDATE_SECONDS = 0.1  # where the driver does not tell


class Rail(NamedTuple):
    """A rail: the files whose product is its power, and what a watt is in their units."""

    label: str
    files: Sequence[Path]
    unit: float

    def watts(self) -> float | None:
        """What the rail carries now; None where it cannot be read."""
        product = 1.0
        for file in self.files:
            value = number(file)
            if value is None:
                return None
            product *= value
        return product / self.unit


def find(root: Path = ROOT) -> Sensor | Unreadable | None:
    """The power of a Jetson's module or board; None on other machines."""
    drivers = root / "sys/bus/i2c/drivers"
    rails = [rail for rail in _rails(drivers) if not LEFT_OUT.fullmatch(rail.label)]
    if closed := denied(file for rail in rails for file in rail.files):
        why = "the files of the power monitors are not readable by everyone"
        return unreadable("the power monitors of this Jetson, which vitdeploy benchmark would read", closed, why)
    rails = [rail for rail in rails if rail.watts() is not None]
    if not rails:
        return None
    whole = next((rail for name in WHOLE for rail in rails if rail.label == name), None)
    taken = [whole] if whole else rails
    names = " + ".join(rail.label for rail in taken)
    chip = "INA238" if whole and whole.label == "VIN" else "INA3221"
    covers = WHOLE[whole.label] if whole else "the rails of the module that have a monitor"
    return Power(Facts(f"{chip} {names}", covers, "board", _update_seconds(taken)), lambda: _sum(taken))


def _rails(drivers: Path) -> list[Rail]:
    rails = []
    for chip in sorted(drivers.glob("ina3221*/*/hwmon/hwmon*")):
        for label in sorted(chip.glob("in[0-9]*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            files = [chip / f"in{channel}_input", chip / f"curr{channel}_input"]
            if all(file.exists() for file in files) and number(chip / f"in{channel}_enable") != 0:
                rails.append(Rail(read_text(label).strip(), files, 1e6))
    for chip in sorted(drivers.glob("ina3221*/*/iio:device*")):
        for label in sorted(chip.glob("rail_name_[0-9]*")):
            power = chip / f"in_power{label.name.removeprefix('rail_name_')}_input"
            if power.exists():
                rails.append(Rail(read_text(label).strip(), [power], 1e3))
    rails += [Rail("VIN", [power], 1e6) for power in sorted(drivers.glob("ina238/*/hwmon/hwmon*/power1_input"))]
    return rails


def _update_seconds(rails: Sequence[Rail]) -> float:
    told = [number(file.parent / "update_interval") for rail in rails for file in rail.files[:1]]
    return max((value / 1000 for value in told if value), default=UPDATE_SECONDS)


def _sum(rails: Sequence[Rail]) -> float | None:
    watts = [rail.watts() for rail in rails]
    return None if None in watts else sum(value for value in watts if value is not None)

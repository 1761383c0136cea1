"""What the sensors of the machine tell of the candidates of a benchmark."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from vitdeploy.latency.measurement import Energy, Measurement
from vitdeploy.machine.energy.meter import Meter, find_sensors

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
# A turn in which a sensor has five new values, where that takes no longer than this.
UPDATES, LONGEST_TURN_SECONDS = 5, 1.0


class EnergySensor(NamedTuple):
    """A sensor of this machine: its name, what it covers (`label` in a word) and how often it has a new value.

    `idle_watts` is what it told before anything was loaded; None where it told nothing.
    """

    name: str
    covers: str
    label: str
    update_seconds: float
    idle_watts: float | None


def start_meter(stack: ExitStack) -> tuple[Meter, list[EnergySensor]]:
    """The meter of this machine's sensors, which `stack` will close, and what they tell before anything runs."""
    sensors, unreadable = find_sensors()
    for one in unreadable:
        log.info("not measured: %s; what to type: vitdeploy doctor", one.what)
    meter = stack.enter_context(Meter(sensors))
    if not sensors:
        return meter, []
    _, watts = meter.measure(lambda: time.sleep(IDLE_SECONDS))
    return meter, [EnergySensor(*one.facts, idle) for one, idle in zip(sensors, watts, strict=True)]


def turn_seconds(shortest: float, sensors: Sequence[EnergySensor]) -> float:
    """How long a turn lasts at least, so that each sensor tells of it and not of the turn before."""
    slowest = max((one.update_seconds for one in sensors), default=0.0)
    return max(shortest, min(LONGEST_TURN_SECONDS, UPDATES * slowest))


def energies(measurement: Measurement, sensors: Sequence[EnergySensor]) -> dict[str, Energy]:
    """What each sensor that told something tells of a candidate, by the sensor's label."""
    found = ((one.label, measurement.energy(number)) for number, one in enumerate(sensors))
    return {label: energy for label, energy in found if energy is not None}


def candidate_json(measurement: Measurement, sensors: Sequence[EnergySensor]) -> dict[str, Any] | None:
    """JSON values of `energies`; None, and never zero, where no sensor told anything."""
    return {label: energy._asdict() for label, energy in energies(measurement, sensors).items()} or None


def csv_cells(measurement: Measurement, sensors: Sequence[EnergySensor]) -> dict[str, float | None]:
    """Cells of a CSV by their columns; there are none for what the machine has no sensor of."""
    found = energies(measurement, sensors)
    return {
        f"{one.label}_{field}": getattr(found.get(one.label), field, None)
        for one in sensors
        for field in Energy._fields
    }


def table_columns(found: Sequence[Mapping[str, Energy]]) -> list[str]:
    """The labels of the sensors that told of any candidate."""
    return list(dict.fromkeys(label for one in found for label in one))


def notes(sensors: Sequence[EnergySensor], turn: float) -> list[str]:
    """What the figures of energy are, in a line for each sensor."""
    lines = []
    for one in sensors:
        idle = "unknown" if one.idle_watts is None else f"{one.idle_watts:.3g} W"
        text = f"{one.label} energy: {one.name}, {one.covers}, everything that runs included; idle before: {idle}"
        if one.update_seconds * UPDATES > turn:
            text += f"; A NEW VALUE ONLY EVERY {one.update_seconds:.3g} s: turns of candidates run into each other"
        lines.append(text)
    return lines

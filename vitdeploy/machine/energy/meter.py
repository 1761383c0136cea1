"""The sensors of this machine, read around a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from vitdeploy.machine.energy import ina3221, nvml, rapl
from vitdeploy.machine.energy.sensor import Clock, Sensor, Unreadable
from vitdeploy.machine.gpus import read_gpus
from vitdeploy.machine.hardware import read_jetson
from vitdeploy.machine.probe import ROOT

T = TypeVar("T")


class Found(NamedTuple):
    """The sensors that can be read, which the finder has to close, and those that are there and cannot."""

    sensors: Sequence[Sensor]
    unreadable: Sequence[Unreadable]


def find_sensors(root: Path = ROOT) -> Found:
    """RAPL, INA3221 and NVML, where they are. A Jetson's GPU is on its rails, and is not asked for besides."""
    found = [rapl.find(root), ina3221.find(root)]
    if root == ROOT and read_jetson(root) is None and read_gpus(root):
        found.append(nvml.find())
    sensors = [one for one in found if isinstance(one, Sensor)]
    return Found(sensors, [one for one in found if isinstance(one, Unreadable)])


class Meter:
    """A context manager that samples sensors in a thread, and closes them at its end.

    It tells what the machine draws, other processes included: no sensor knows whose energy it counts.
    """

    def __init__(self, sensors: Sequence[Sensor], clock: Clock = time.perf_counter) -> None:
        self.sensors = sensors
        self._clock = clock
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._sample, args=(one,), daemon=True) for one in sensors]

    def __enter__(self) -> Meter:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for sensor in self.sensors:
            sensor.close()

    def measure(self, job: Callable[[], T]) -> tuple[T, list[float | None]]:
        """What the job returns, and the mean watts of each sensor meanwhile.

        None for a sensor that could not be read all the time, or that counted nothing: no machine draws nothing, but
        a virtual one may show counters that stand still.
        """
        before, begin = [sensor.read() for sensor in self.sensors], self._clock()
        result = job()
        after, seconds = [sensor.read() for sensor in self.sensors], self._clock() - begin
        watts: list[float | None] = []
        for first, last in zip(before, after, strict=True):
            joules = last.joules - first.joules
            watts.append(joules / seconds if first.gaps == last.gaps and joules > 0 and seconds > 0 else None)
        return result, watts

    def _sample(self, sensor: Sensor) -> None:
        while not self._over.wait(sensor.poll_seconds):
            sensor.read()

"""NVML: the energy of discrete NVIDIA GPUs, and the memory that a process has on them.

https://docs.nvidia.com/deploy/nvml-api/: nvmlDeviceGetTotalEnergyConsumption counts the millijoules of a GPU since its
driver was loaded, from Volta on; before, nvmlDeviceGetPowerUsage tells the milliwatts of the board. On newer GPUs this
is an average over a second, which is longer than a turn, so it is only read where there is no counter.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Sequence

from vitdeploy.machine.energy.sensor import Counters, Facts, Power, Sensor
from vitdeploy.machine.probe import PROBE_SECONDS, run_probe

# https://ml.energy/blog/energy/measurement/thermally-stable-profiling-for-accurate-gpu-energy-measurement
UPDATE_SECONDS = 0.1
ANSWER_SECONDS = 2.0  # after which a driver counts as hung

# Runs in a process of its own, because a driver may hang or crash. Answers each line with one JSON object.
_PROBE = """
import ctypes, json, sys
nvml, count, devices = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_uint(), []
if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
    sys.exit(1)
for index in range(count.value):
    device = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0:
        devices.append(device)
def ask(name, kind):
    values = [kind() for _ in devices]
    function = getattr(nvml, name, None)
    if function is None or any(function(d, ctypes.byref(v)) for d, v in zip(devices, values)):
        return None
    return [value.value for value in values]
for line in sys.stdin:
    energy = ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
    power = None if energy else ask("nvmlDeviceGetPowerUsage", ctypes.c_uint)
    print(json.dumps({"millijoules": energy, "milliwatts": power}), flush=True)
"""
COMMAND = (sys.executable, "-I", "-c", _PROBE)


class Probe:
    """The process that asks the driver; once it does not answer, it is ended and nothing is known any more."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        # In a session of its own, so that Ctrl-C leaves it to whoever measures.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def ask(self, key: str, seconds: float | None = None) -> list[float] | None:
        """A value of every GPU; None where the driver does not tell within `seconds` (ANSWER_SECONDS)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is not None:
            return None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], seconds or ANSWER_SECONDS)[0]:
                raise TimeoutError
            values = json.loads(self._process.stdout.readline())[key]
            return [float(value) for value in values] if values else None
        except (OSError, ValueError, KeyError, TypeError):
            self.close()
            return None

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        with contextlib.suppress(OSError, ValueError):
            self._process.communicate()


def find(command: Sequence[str] = COMMAND) -> Sensor | None:
    """All GPUs that the driver lists; None where it tells neither energy nor power."""
    try:
        probe = Probe(command)
    except OSError:
        return None
    energy = probe.ask("millijoules", PROBE_SECONDS)
    if energy:
        return _Energy(probe, len(energy))
    if power := probe.ask("milliwatts"):
        return _Power(probe, len(power))
    probe.close()
    return None


def _facts(what: str, gpus: int) -> Facts:
    boards = "the board of the GPU" if gpus == 1 else f"the boards of all {gpus} GPUs"
    return Facts(f"NVML {what}", boards, "gpu", UPDATE_SECONDS)


class _Energy(Counters):
    def __init__(self, probe: Probe, gpus: int) -> None:
        super().__init__(_facts("energy", gpus), self._joules_of_gpus, [None] * gpus)
        self._probe = probe

    def _joules_of_gpus(self) -> list[float] | None:
        found = self._probe.ask("millijoules")
        return [value / 1000 for value in found] if found and len(found) == len(self._ranges) else None

    def close(self) -> None:
        self._probe.close()


class _Power(Power):
    def __init__(self, probe: Probe, gpus: int) -> None:
        super().__init__(_facts("power", gpus), self._watts_of_gpus)
        self._probe, self._gpus = probe, gpus

    def _watts_of_gpus(self) -> float | None:
        found = self._probe.ask("milliwatts")
        return sum(found) / 1000 if found and len(found) == self._gpus else None

    def close(self) -> None:
        self._probe.close()


def memory_of_processes() -> dict[int, int]:
    """Bytes of GPU memory of each process that computes, by its number; empty where the driver does not tell.

    In a container the driver often lists the numbers of the host, or nothing.
    """
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    return parse_memory(run_probe(query))


def parse_memory(text: str) -> dict[int, int]:
    """What `nvidia-smi --query-compute-apps=pid,used_memory` prints in MiB, in bytes; a process may be on many GPUs."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 2 and all(cell.isascii() and cell.isdigit() for cell in cells):
            found[int(cells[0])] = found.get(int(cells[0]), 0) + int(cells[1]) * 2**20
    return found

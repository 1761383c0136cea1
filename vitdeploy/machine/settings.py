"""Settings and conditions of the machine that affect a measured time, from files that anyone may read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitdeploy.machine.gpus import read_gpus
from vitdeploy.machine.hardware import driver_version, read_cpu
from vitdeploy.machine.probe import ROOT, read_text

# An entry of ONNX Runtime's session: it takes its kernels for unsigned weights, which do not overflow.
ONNXRUNTIME_EXACT = ("session.x64quantprecision", "1")
# A property of OpenVINO: it computes INT8 in FP32, as the file says it.
OPENVINO_EXACT = "LP_TRANSFORMS_MODE"

_VARIABLES = ("OMP_", "GOMP_", "KMP_", "TBB_", "MKL_", "CUDA_", "ORT_", "OV_")
_JETSON_GPU = re.compile(r"gpu|gm20b|gp10b|gv11b|ga10b|gb10b")


def machine_settings(root: Path = ROOT) -> dict[str, Any]:
    """Settings of the machine, as JSON values; those that cannot be read are left out.

    processor    name of the CPU, or of the board on Arm
    cores        usable by this process           cpu_limit   CPU time of the container, in CPUs
    governor     of the CPU's frequency           max_mhz     the highest frequency that it may choose
    boost        whether the CPU may exceed its nominal frequency
    power_mode   nvpmodel's, on a Jetson          gpu_clocks  governor and limits of a Jetson's GPU
    gpus         names of NVIDIA GPUs             driver      version of their driver
    environment  variables that configure threads and devices
    """
    cpus = root / "sys/devices/system/cpu"
    frequencies = (text for text in _texts(cpus.glob("cpu[0-9]*/cpufreq/scaling_max_freq")) if text.isdigit())
    facts = {
        "processor": read_cpu(root).name,
        "cores": usable_cores(root),
        "cpu_limit": _cpu_limit(root),
        "governor": _joined(_texts(cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"))),
        "max_mhz": _joined(str(int(kilohertz) // 1000) for kilohertz in frequencies),
        "boost": _boost(cpus),
        "power_mode": _power_mode(root),
        "gpu_clocks": _gpu_clocks(root),
        "gpus": [gpu.name for gpu in read_gpus(root)],
        "driver": driver_version(root),
        "environment": runtime_variables(),
    }
    return {key: value for key, value in facts.items() if value not in (None, "", {}, [])}


def runtime_variables() -> dict[str, str]:
    """The variables that configure threads and devices."""
    return {key: os.environ[key] for key in sorted(os.environ) if key.startswith(_VARIABLES)}


def machine_conditions(root: Path = ROOT) -> dict[str, Any]:
    """Conditions that vary during a measurement: temperatures in degrees Celsius by sensor, and the load average of the
    last minute.
    """
    temperatures: dict[str, float] = {}
    for name, reading in _sensors(root):
        # A sensor of a part that is off reads -256, and a Jetson's PMIC reads a constant.
        if re.fullmatch(r"-?\d+", reading) and -50_000 < int(reading) < 200_000 and not name.startswith("PMIC"):
            temperatures[name] = max(int(reading) / 1000, temperatures.get(name, -273.0))
    load = read_text(root / "proc/loadavg").split()
    return {"temperatures_c": temperatures, "load_average": float(load[0]) if load else None}


def exact_entries(root: Path = ROOT) -> tuple[tuple[str, str], ...]:
    """Entries of an ONNX Runtime session with which INT8 products are exact here; none where they are so anyway.

    They overflow where `Cpu.saturates`. With VNNI the entry would give the same numbers in 1.5 times the time.
    """
    return (ONNXRUNTIME_EXACT,) if read_cpu(root).saturates else ()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Every setting that differs, in words: `there` are the earlier settings."""
    return [
        f"{key} was {there.get(key, 'unknown')} and is {here.get(key, 'unknown')}"
        for key in dict.fromkeys((*there, *here))
        if there.get(key) != here.get(key)
    ]


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: those of its affinity, or fewer where the container's CPU quota is smaller."""
    limit = _cpu_limit(root)
    return _affinity() if limit is None else max(1, min(_affinity(), math.ceil(limit)))


def default_threads(root: Path = ROOT) -> int | None:
    """Threads for a runtime that was told none; None where it may use every core and finds the right number itself.

    More threads than a quota allows are halted together as soon as it is used up. ONNX Runtime counts the cores of the
    machine, and puts a thread on each of them, whatever the affinity of the process.
    """
    cores = usable_cores(root)
    return cores if cores < (os.cpu_count() or 1) else None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_limit(root: Path) -> float | None:
    """The smallest CPU quota, in CPUs, of the control groups that this process is in; None where none has one.

    A container sees its own group as the root of the tree, a service of systemd stands somewhere below it, and the
    groups above limit it too.
    """
    quotas = [quota for folder, read in _control_groups(root) if (quota := read(folder)) is not None]
    return min(quotas, default=None)


def _control_groups(root: Path) -> Iterator[tuple[Path, Callable[[Path], float | None]]]:
    """Every folder that may hold a quota of this process, and what reads it: version 2 of the interface, and 1."""
    place = root / "sys/fs/cgroup"
    unified, divided = {"/"}, {"/"}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            unified.add(path)
        elif "cpu" in names.split(","):
            divided.add(path)
    for mounts, paths, read in (
        (("", "unified"), unified, _quota),
        (("cpu", "cpu,cpuacct", "cpuacct,cpu"), divided, _quota_of_version_1),
    ):
        for mount in mounts:
            for folder in dict.fromkeys(folder for path in sorted(paths) for folder in _upward(path)):
                yield place / mount / folder, read


def _upward(path: str) -> list[str]:
    """`a/b`, `a` and the root, for `/a/b`; `..` stands for groups outside of the container, which it does not see."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _quota(folder: Path) -> float | None:
    """`200000 100000` means two CPUs, `max 100000` no limit."""
    quota = re.match(r"(\d+) ([1-9]\d*)", read_text(folder / "cpu.max"))
    return int(quota[1]) / int(quota[2]) if quota else None


def _quota_of_version_1(folder: Path) -> float | None:
    """The quota in microseconds over the period; a quota of -1 is none."""
    quota, period = (read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not (re.fullmatch(r"[1-9]\d*", quota) and re.fullmatch(r"[1-9]\d*", period)):
        return None
    return int(quota) / int(period)


def _boost(cpus: Path) -> bool | None:
    for name, yes in (("cpufreq/boost", "1"), ("intel_pstate/no_turbo", "0")):
        if text := read_text(cpus / name).strip():
            return text == yes
    return None


def _power_mode(root: Path) -> str | None:
    """The power mode that `nvpmodel -q` prints, without root."""
    status = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if not status:
        return None
    mode = int(status[1])
    models = read_text(root / "etc/nvpmodel.conf")
    name = re.search(rf"^\s*<\s*POWER_MODEL\s+ID={mode}\s+NAME=(\S+)", models, re.MULTILINE)
    return f"{name[1]} ({mode})" if name else str(mode)


def _gpu_clocks(root: Path) -> dict[str, str]:
    devices = (path for path in sorted((root / "sys/class/devfreq").glob("*")) if _JETSON_GPU.search(path.name))
    facts = {path.name: [read_text(path / f).strip() for f in ("governor", "min_freq", "max_freq")] for path in devices}
    return {name: f"{governor}, {low} to {high} Hz" for name, (governor, low, high) in facts.items()}


def _sensors(root: Path) -> Iterator[tuple[str, str]]:
    """Name and reading of every temperature sensor; the reading is empty where it cannot be read."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        yield read_text(zone / "type").strip(), read_text(zone / "temp").strip()
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for value in sorted(chip.glob("temp*_input")):
            yield read_text(chip / "name").strip(), read_text(value).strip()


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    return (text for path in paths if (text := read_text(path).strip()))


def _joined(values: Iterable[str]) -> str:
    """The distinct values of all cores, usually one."""
    return ", ".join(sorted(set(values)))

"""What a machine tells about itself, from folders that look like machines."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from vitdeploy.machine.settings import (
    default_threads,
    differences,
    exact_entries,
    machine_conditions,
    machine_settings,
    usable_cores,
)


@pytest.fixture(autouse=True)
def few_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OMP_", "KMP_", "CUDA_", "GOMP_", "TBB_", "MKL_", "ORT_", "OV_")):
            monkeypatch.delenv(name)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_that_tells_nothing_gives_no_guesses(tmp_path: Path) -> None:
    assert machine_settings(tmp_path).keys() == {"processor", "cores"}
    assert machine_conditions(tmp_path) == {"temperatures_c": {}, "load_average": None}


def test_a_workstation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name\t: Fast CPU 9000\nflags : avx2\n",
            "proc/loadavg": "1.25 0.80 0.70 1/100 4242\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "4200000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq": "4200000\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/class/hwmon/hwmon0/name": "k10temp\n",
            "sys/class/hwmon/hwmon0/temp1_input": "61250\n",
            "sys/class/hwmon/hwmon0/temp2_input": "48000\n",
        },
    )
    settings = machine_settings(root)
    assert settings.pop("cores") == min(2, len(os.sched_getaffinity(0)))
    assert settings == {
        "processor": "Fast CPU 9000",
        "cpu_limit": 1.5,
        "governor": "performance, powersave",
        "max_mhz": "4200",
        "boost": False,
        "environment": {"OMP_NUM_THREADS": "3"},
    }
    assert machine_conditions(root) == {"temperatures_c": {"k10temp": 61.25}, "load_average": 1.25}


def test_a_jetson_tells_its_power_mode_clocks_and_temperatures(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
            "etc/nvpmodel.conf": "# < POWER_MODEL ID=2 NAME=OLD >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
            "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=0 >\n",
            "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
            "sys/class/devfreq/15340000.vic/governor": "userspace\n",
            "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
            "sys/class/thermal/thermal_zone0/temp": "52500\n",
            "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
            "sys/class/thermal/thermal_zone1/temp": "-256000\n",
            "sys/class/thermal/thermal_zone2/type": "PMIC-Die\n",
            "sys/class/thermal/thermal_zone2/temp": "100000\n",
            "sys/class/thermal/thermal_zone3/type": "sleeping\n",
        },
    )
    settings = machine_settings(root)
    assert settings["processor"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert settings["power_mode"] == "MAXN_SUPER (2)"
    assert settings["gpu_clocks"] == {"17000000.gpu": "nvhost_podgov, 306000000 to 1020000000 Hz"}
    assert machine_conditions(root)["temperatures_c"] == {"CPU-therm": 52.5}


def test_an_unknown_power_mode_keeps_its_number(tmp_path: Path) -> None:
    assert machine_settings(write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007"}))["power_mode"] == "7"


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", "100000 0"])
def test_a_container_without_a_limit_has_none(tmp_path: Path, text: str) -> None:
    assert "cpu_limit" not in machine_settings(write(tmp_path, {"sys/fs/cgroup/cpu.max": text}))


@pytest.mark.parametrize(("quota", "cores"), [("1", 1), ("50000", 1), ("150000", 2), ("400000", 4), ("9900000", 8)])
def test_a_container_uses_no_more_cores_than_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert usable_cores(write(tmp_path, {"sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})) == cores


# Where a quota of two CPUs stands, and what the process reads of its groups; the interfaces' documentation is
# Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst of Linux.
GROUPS = {
    "a container of version 2": {"sys/fs/cgroup/cpu.max": "200000 100000\n", "proc/self/cgroup": "0::/\n"},
    "a service of systemd": {
        "sys/fs/cgroup/system.slice/vit.service/cpu.max": "200000 100000\n",
        "proc/self/cgroup": "0::/system.slice/vit.service\n",
    },
    "a quota of the slice above": {
        "sys/fs/cgroup/system.slice/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/system.slice/vit.service/cpu.max": "max 100000\n",
        "proc/self/cgroup": "0::/system.slice/vit.service\n",
    },
    "the smaller of two": {
        "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "600000 100000\n",
        "proc/self/cgroup": "0::/a/b\n",
    },
    "a path outside of the container": {
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
        "proc/self/cgroup": "0::/../../pod/box\n",
    },
    "a container of version 1": {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/0123\n1:name=systemd:/docker/0123\n",
    },
    "version 1 under its other name": {
        "sys/fs/cgroup/cpu,cpuacct/docker/0123/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/docker/0123/cpu.cfs_period_us": "50000\n",
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/0123\n0::/\n",
    },
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_quota_counts_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    root = write(tmp_path, GROUPS[name])
    assert machine_settings(root)["cpu_limit"] == 2
    assert usable_cores(root) == 2
    assert default_threads(root) == 2


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n"},
        {"sys/fs/cgroup/other/cpu.max": "100000 100000\n", "proc/self/cgroup": "0::/mine\nnonsense\n"},
        {"sys/fs/cgroup/cpu.max": "9900000 100000\n"},
    ],
)
def test_without_a_quota_that_limits_a_runtime_finds_its_threads_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    root = write(tmp_path, files)
    assert usable_cores(root) == 8
    assert default_threads(root) is None


@pytest.mark.parametrize(("affinity", "quota", "threads"), [(3, "max", 3), (3, "200000", 2), (8, "max", None)])
def test_a_process_on_some_of_the_cores_starts_no_more_threads_than_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str, threads: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert default_threads(write(tmp_path, {"sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})) == threads


@pytest.mark.parametrize(
    ("flags", "exact"), [("avx2", True), ("avx2 avx512f", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False)]
)
def test_onnxruntime_is_told_to_be_exact_only_where_products_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, exact: bool
) -> None:
    root = write(tmp_path, {"proc/cpuinfo": f"processor : 0\nflags : {flags}\n"})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert exact_entries(root) == ((("session.x64quantprecision", "1"),) if exact else ())
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert exact_entries(root) == ()


def test_differences_name_what_was_and_what_is() -> None:
    there, here = (
        {"threads": 4, "governor": "performance", "version": "1"},
        {"threads": 2, "version": "1", "boost": True},
    )
    assert differences(there, here) == [
        "threads was 4 and is 2",
        "governor was performance and is unknown",
        "boost was unknown and is True",
    ]
    assert differences(here, dict(here)) == []

"""The NVIDIA GPUs of this machine, as the tools of the system list them. Read-only, standard library only.

Which of them CUDA uses, and so TensorRT, its driver alone tells: see `vitdeploy.tensorrt.cuda`.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitdeploy.machine.probe import ROOT, read_text, run_probe

# Runs in a process of its own, because a driver may hang or crash. Prints one JSON list of the devices.
_CUDA_PROBE = """
import ctypes, json
driver = ctypes.CDLL("libcuda.so.1")
number, devices = ctypes.c_int(), []
if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(number)) == 0:
    for index in range(number.value):
        device, name, major, minor = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, 256, device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        devices.append({"name": name.value.decode(), "sm": 10 * major.value + minor.value})
print(json.dumps(devices))
"""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; `sm` is ten times the compute capability, None where it is unknown.

    `uuid` is `GPU-…`, or `MIG-…` for a part of one; empty where nothing tells it.
    """

    name: str
    sm: int | None
    memory_mib: int | None = None
    uuid: str = ""


# `functools.cache` alone lets threads that come at once all do the work.
_probing = threading.Lock()


def _renew_lock() -> None:
    global _probing
    _probing = threading.Lock()  # a thread of the parent may hold the old one, and there is no such thread in a child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@cache
def _probe_gpus() -> tuple[Gpu, ...]:
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    found = parse_nvidia_smi(run_probe(query))
    if not found and (Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists()):
        found = parse_cuda_devices(run_probe([sys.executable, "-I", "-c", _CUDA_PROBE]))
    return found


def read_gpus(root: Path = ROOT) -> tuple[Gpu, ...]:
    """NVIDIA GPUs, from nvidia-smi, else from the driver library, else the names that the kernel module lists.

    They come in nvidia-smi's order, all of them: which one CUDA uses, its driver alone tells. This machine is asked
    once in a process, for its answer takes a second and does not change.
    """
    found: tuple[Gpu, ...] = ()
    if root == ROOT:
        with _probing:
            found = _probe_gpus()
    if found:
        return found
    information = sorted(glob.glob(str(root / "proc/driver/nvidia/gpus/*/information")))  # noqa: PTH207
    names = (re.search(r"^Model:\s*(.+)$", read_text(Path(path)), re.MULTILINE) for path in information)
    return tuple(Gpu(name[1].strip(), None) for name in names if name)


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs from `nvidia-smi --query-gpu=name,compute_cap,memory.total`; on a Jetson most fields are `[N/A]`."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 3:
            continue
        capability = re.fullmatch(r"(\d+)\.(\d)", cells[1])
        memory = int(cells[2]) if cells[2].isdigit() else None
        gpus.append(Gpu(cells[0], int(capability[1]) * 10 + int(capability[2]) if capability else None, memory))
    return tuple(gpus)


def parse_cuda_devices(text: str) -> tuple[Gpu, ...]:
    """GPUs from what the probe of the driver library prints."""
    try:
        return tuple(Gpu(str(device["name"]), int(device["sm"])) for device in json.loads(text))
    except (ValueError, KeyError, TypeError):
        return ()

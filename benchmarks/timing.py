"""Fair timing on a noisy machine: candidates take turns; what is reported is the median of the rounds' ratios."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from vitdeploy.machine.hardware import read_cpu
from vitdeploy.machine.settings import machine_conditions, machine_settings


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call: each round runs every candidate once, in a new random order.

    `clock` is wall time, or `time.thread_time` for work on the calling thread alone: that holds on a shared machine.
    """
    order = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for number in range(-warmup, rounds):
        random.shuffle(order)
        for name in order:
            start = clock()
            candidates[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios taken round by round."""
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {"median": round(median, 4), "q1": round(low, 4), "q3": round(high, 4), "rounds": len(ratios)}


def size_and_batch(text: str) -> tuple[int, int]:
    """`224x1`, as an argument of a command: pixels on a side, and images."""
    size, batch = map(int, text.split("x"))
    return size, batch


# A process hands its peak of memory down to what it starts, so a small one starts what is measured.
LAUNCHER = """
import json, os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
code = os.waitstatus_to_exitcode(status)
print(json.dumps({"code": code, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1024}))
"""


def process(command: Sequence[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MiB) of one whole process."""
    # An installed package has its bytecode: a process may write it, and the next one reads it.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    launcher = [sys.executable, "-S", "-c", LAUNCHER]
    start = time.perf_counter()
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=True, env=variables)
    seconds = time.perf_counter() - start
    told = json.loads(done.stdout)
    if told["code"]:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return {"seconds": seconds, "cpu_seconds": told["cpu"], "peak_mb": told["peak"]}


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """What changes results: the machine with its governor and the load before, versions, date."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **machine_settings(),
        "instructions": read_cpu().kind,
        "load_before": machine_conditions()["load_average"],
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
    }


def finished(report: dict[str, Any]) -> dict[str, Any]:
    """`report` with the load after it in its environment."""
    report["environment"]["load_after"] = machine_conditions()["load_average"]
    return report

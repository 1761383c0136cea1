"""What other programs compute meanwhile, from the counters of a faked system and of this one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vitdeploy.machine import contention
from vitdeploy.machine.contention import Contention

TICKS = os.sysconf("SC_CLK_TCK")


def stat(root: Path, seconds: float) -> None:
    """All processes have used so many CPU seconds: a third each in programs, in the kernel, and by a hypervisor."""
    third = round(seconds * TICKS / 3)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(f"cpu  {third} 0 {third} 99999 50 0 0 {third} 77 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")


@pytest.mark.parametrize(
    ("total", "usable", "others"),
    [(2, 2, 1.0), (2, 1, 0.0), (64, 2, 0.0), (1, 1, 1.0)],
    ids=["all cores are ours", "one is left to others", "a container", "a single one"],
)
def test_cores_of_others_that_we_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, usable: int, others: float
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "times", lambda: os.times_result((clock[0] / 2, 0, 0, 0, 0)))  # half a core is ours
    monkeypatch.setattr(os, "cpu_count", lambda: total)
    monkeypatch.setattr(contention, "usable_cores", lambda root: usable)
    stat(tmp_path, 300)
    seen = Contention(tmp_path)
    clock[0] += 60
    stat(tmp_path, 300 + 90)
    assert seen.cores() == pytest.approx(others, abs=0.01)


@pytest.mark.parametrize("text", [None, "", "cpu", "cpu 1 2 three 4 5 6 7 8", "intr 1 2 3 4 5 6 7 8 9"])
def test_a_system_that_does_not_tell(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(text)
    assert Contention(tmp_path).cores() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the counters are those of Linux")
def test_this_system_tells() -> None:
    seen = Contention()
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    found = seen.cores()
    assert found is not None
    assert 0 <= found <= (os.cpu_count() or 1) + 0.5  # counters move in hundredths of a second

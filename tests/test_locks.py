"""Locks between threads and processes: one holder at a time, and none after its process has ended."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vitdeploy.locks import locked, locked_if_free

posix = pytest.mark.skipif(sys.platform == "win32", reason="forks")

HOLD = """
import sys, time
from pathlib import Path
from vitdeploy.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from vitdeploy.locks import locked
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(20):
    with locked(lock):
        value = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(value + 1))
"""


def held_elsewhere(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_thread_at_a_time_holds_it(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work(_: int) -> None:
        with locked(tmp_path / "a.lock"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most == [1]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_processes_lose_no_update(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    workers = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path / "a.lock"), str(counter)]) for _ in range(4)
    ]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert counter.read_text() == "80"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_who_does_not_wait_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with locked(path):
        with ThreadPoolExecutor(1) as pool:

            def ask() -> bool:
                with locked_if_free(path) as free:
                    return free

            assert pool.submit(ask).result() is False
        with locked_if_free(tmp_path / "b.lock") as other:
            assert other
    with locked_if_free(path) as free:
        assert free


@posix
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    process = held_elsewhere(path)
    with locked_if_free(path) as free:
        assert not free
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert path.exists(), "nobody cleaned up"
    with locked_if_free(path) as free:
        assert free
    assert not path.exists()


@posix
def test_who_waits_is_told_once_and_gets_it_when_the_holder_is_gone(tmp_path: Path) -> None:
    path, told = tmp_path / "a.lock", []
    process = held_elsewhere(path)

    def waiting() -> None:
        told.append(1)
        process.kill()

    with locked(path, waiting=waiting):
        assert told == [1]
    process.wait(10)


@posix
def test_a_forked_child_does_not_hold_what_its_parent_held(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    code = f"""
import os, sys, time
from pathlib import Path
from vitdeploy.locks import locked
with locked(Path({str(path)!r})):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("forked", flush=True)
    os._exit(0)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.wait(20) == 0
    try:
        deadline, free = time.monotonic() + 5, False
        while not free and time.monotonic() < deadline:
            with locked_if_free(path) as free:
                pass
        assert free, "the sleeping child holds the lock of a parent that is dead"
    finally:
        os.killpg(parent.pid, signal.SIGKILL)


def test_an_error_inside_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with pytest.raises(KeyboardInterrupt), locked(path):
        raise KeyboardInterrupt
    with locked_if_free(path) as free:
        assert free


@posix
def test_threads_exclude_each_other_also_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    path, answers = tmp_path / "a.lock", []
    with locked(path):

        def ask() -> None:
            with locked_if_free(path) as free:
                answers.append(free)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert answers == [False]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "nowhere" / "a.lock"):
        pass

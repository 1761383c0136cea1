"""The process ends at once, and yet loses nothing: output is whole, threads are done, exit functions were called."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import atexit, sys, threading, time
import vitdeploy.cli as cli

def main():
    print("x" * 100_000)  # more than a pipe takes at once
    def late():
        time.sleep(0.5)
        print("thread")
    threading.Thread(target=late).start()
    atexit.register(print, "exit function")
    {end}

cli.main = main
cli.run()
"""


@pytest.mark.parametrize(("end", "code"), [("return 0", 0), ("return 2", 2), ("raise KeyError('unforeseen')", 1)])
def test_the_end_of_the_process_loses_nothing(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM.format(end=end)], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.split() == ["x" * 100_000, "thread", "exit", "function"]
    assert ("KeyError" in done.stderr) == (code == 1)


def test_a_stream_that_takes_nothing_does_not_change_the_code() -> None:
    command = f"{sys.executable} -m vitdeploy models > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0
    assert "could not be written" in done.stderr

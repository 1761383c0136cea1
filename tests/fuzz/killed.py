"""One command that is killed without a chance to clean up; see kills.py, which starts it.

    python -m tests.fuzz.killed FOLDER {seconds,changes} AMOUNT COMMAND...

Runs the command, of which `build` gets stand-ins for TensorRT, and dies after AMOUNT seconds or just before change
number AMOUNT of a file in FOLDER. Where it gets to its end, it prints its exit code, seconds and changes as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  the moments are those of the command, not of its imports
import openvino  # noqa: F401
import pytest
import torch  # noqa: F401

from tests.tensorrt.fake_tensorrt import World
from vitdeploy.cli import main

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree", "shutil.move")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Changes:
    """An audit hook that counts what changes files below `folder`, and kills the process before number `last`."""

    def __init__(self, folder: Path, last: int | None) -> None:
        self.count, self._folder, self._last = 0, str(folder), last

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and (args[2] or 0) & WRITING):
            return
        if not isinstance(args[0], (str, os.PathLike)) or not os.fspath(args[0]).startswith(self._folder):
            return
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def run(folder: Path, unit: str, amount: float, command: list[str]) -> None:
    """Do not return where the command ends later than AMOUNT."""
    if command[0] == "build":
        World().install(pytest.MonkeyPatch())
    changes = Changes(folder, int(amount) if unit == "changes" else None)
    sys.addaudithook(changes)
    start = time.monotonic()
    if unit == "seconds":
        signal.setitimer(signal.ITIMER_REAL, amount)  # nothing handles its signal, so it ends the process at once
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(command)
    print(json.dumps({"code": code, "seconds": time.monotonic() - start, "changes": changes.count}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])

"""`--junit`: what a command judged, as a file for the system that runs it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vitdeploy.cli.failure import failure_of
from vitdeploy.cli.output_file import check_writable, write
from vitdeploy.errors import VitDeployError
from vitdeploy.junit import Case, junit

OPTION = "--junit"


def add_junit(parser: argparse.ArgumentParser) -> None:
    """`--junit FILE`."""
    parser.add_argument(
        OPTION, type=Path, metavar="FILE", help="write what was judged as JUnit XML, for Jenkins, GitLab and others"
    )


class JunitFile:
    """The file of `--junit` while a command runs: a command that ends with an error leaves that in it.

    So the file is never that of an earlier run, whose tests may have passed. Without a path nothing is written.
    Raises UsageError, before anything is computed, where the file could not be written.
    """

    def __init__(self, path: Path | None, command: str) -> None:
        self._path, self._command, self._began = path, command, time.monotonic()
        if path is not None:
            check_writable(path, OPTION)

    def __enter__(self) -> JunitFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        try:
            told = str(failure_of(error, verbose=False)).removeprefix("error: ")
            self.write([Case(f"vitdeploy {self._command}", "can be judged", error=told)])
        except VitDeployError:  # the first error is the one to tell
            return

    def write(self, cases: Sequence[Case]) -> None:
        """Writes what was judged; UsageError where that fails."""
        if self._path is not None:
            write(self._path, junit(self._command, cases, time.monotonic() - self._began), OPTION)

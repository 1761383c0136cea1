"""What went wrong with a command: what happened, why, what to type next, and the exit code."""

from __future__ import annotations

import json
from typing import NamedTuple

from vitdeploy.errors import VitDeployError

INTERRUPTED = 130
BAD_INPUT = 2


class Failure(NamedTuple):
    """A failure in words."""

    what: str
    why: str | None
    fix: str | None
    code: int
    unexpected: bool = False

    def __str__(self) -> str:
        return "error: " + "\n".join(VitDeployError(self.what, why=self.why, fix=self.fix).lines())

    def to_json(self) -> str:
        """The one object that `--json` prints instead of a result."""
        return json.dumps({"error": self.what, "why": self.why, "try": self.fix, "exit_code": self.code})


def failure_of(error: BaseException, *, verbose: bool) -> Failure:
    """The failure that an exception means to the user of the command line."""
    if isinstance(error, VitDeployError):
        return Failure(error.what, error.why, error.fix, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure(
            str(error) or "interrupted; nothing was left behind", None, "run the same command again", INTERRUPTED
        )
    if isinstance(error, MemoryError):
        return Failure("out of memory", None, "end other programs, or use a machine with more memory", BAD_INPUT)
    again = (
        "report what is printed above" if verbose else "run the same command with --verbose, and report what it prints"
    )
    return Failure(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect of vitdeploy, not of your input",
        again,
        BAD_INPUT,
        unexpected=True,
    )

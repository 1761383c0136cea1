"""Errors that a user can act on: what happened, why, and what to type next."""

from __future__ import annotations

import shlex
from typing import Any

# The `fix` of what should never happen.
REPORT = "run the command with --verbose, and report what it prints as a defect of vitdeploy"


def shell(path: object) -> str:
    """A path as one types it in a shell, for the commands in messages."""
    return shlex.quote(str(path))


class VitDeployError(Exception):
    """Base of every error that is the user's to fix; the command line prints it without a traceback.

    `what` happened, `why` (optional) and `fix`: the next thing to type or change (optional).
    `exit_code` follows the command line's contract: 2 wrong usage or bad input, 1 a gate failed.
    """

    exit_code = 2

    def __init__(self, what: str, *, why: str | None = None, fix: str | None = None) -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(self.lines()))

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another, whatever a kind of error takes to be made."""
        return _restored, (type(self), self.__dict__)

    def lines(self) -> list[str]:
        """The message, one line for each part that is known."""
        labelled = [self.what, self.why and f"  why: {self.why}", self.fix and f"  try: {self.fix}"]
        return [line for line in labelled if line]


def _restored(kind: type[VitDeployError], attributes: dict[str, Any]) -> VitDeployError:
    error = kind.__new__(kind)
    VitDeployError.__init__(error, attributes["what"], why=attributes["why"], fix=attributes["fix"])
    error.__dict__.update(attributes)
    return error


class UsageError(VitDeployError, ValueError):
    """A name, option or value that does not exist or does not fit."""


class ModelError(VitDeployError):
    """A network that cannot be built as asked, or does not admit the image size."""


class CheckpointError(VitDeployError):
    """A checkpoint that is missing, damaged, unsafe or of another network."""


class ExportError(VitDeployError):
    """A network that cannot be captured, lowered or written."""


class BundleError(VitDeployError):
    """A bundle that is incomplete, altered, of a newer schema or not a bundle."""


class InputError(VitDeployError, ValueError):
    """An image or array that a session cannot take."""


class BackendError(VitDeployError):
    """A runtime that is missing or refuses the model."""


class PluginError(VitDeployError):
    """An installed package that announces something to vitdeploy which cannot be used."""


class MissingDependencyError(BackendError, ImportError):
    """A package that this command needs and this environment lacks."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed",
            why=f"{needed_for} needs it",
            fix=f"pip install 'vitdeploy[{extra}]'",
        )


class GateError(VitDeployError):
    """What does not hold: parity with PyTorch, an accuracy gate, or a signature."""

    exit_code = 1

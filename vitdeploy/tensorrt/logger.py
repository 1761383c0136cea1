"""What NVIDIA's libraries say: every build and every engine has a logger of its own, and no two share any state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LETTERS = {"INTERNAL_ERROR": "E", "ERROR": "E", "WARNING": "W", "INFO": "I"}


def logger_of(trt: Any, say: Callable[[str, str], object]) -> Any:
    """A logger of the bindings `trt` that hands the name of the severity and the words to `say`, from any thread.

    It has to live as long as what was made with it: the libraries keep plain pointers to it.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            say(str(severity).rpartition(".")[2], message)

    return Log()


def collector(trt: Any) -> tuple[Any, list[str]]:
    """A logger, and the lines that it gets."""
    lines: list[str] = []
    return logger_of(trt, lambda severity, message: lines.extend(worded(severity, message))), lines


def worded(severity: str, message: str) -> list[str]:
    """The lines of a message, each with the letter of its severity: `[E] out of memory`."""
    return [f"[{_LETTERS.get(severity, 'V')}] {line}" for line in message.splitlines()]

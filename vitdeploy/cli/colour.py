"""Colours on a terminal: errors, warnings and verdicts. NO_COLOR=1 switches them off, FORCE_COLOR=1 on anywhere.

See https://no-color.org and https://force-color.org.
"""

from __future__ import annotations

import os
import re
from typing import Protocol

_CODES = {"error": "1;31", "warning": "33", "why": "2", "try": "36", "good": "1;32", "bad": "1;31"}
# What a line of a failure or of the log starts with.
_LABEL = re.compile(r"^(?:error:|warning:|  why:|  try:)", re.MULTILINE)
# The lines of a result that are its answer.
_GOOD = re.compile(r"^(?:passed|builds|nothing blocks)\b.*$", re.MULTILINE)
_BAD = re.compile(r"^(?:failed|FAILED|does not build|BLOCKED)\b.*$", re.MULTILINE)


class _Stream(Protocol):
    def isatty(self) -> bool: ...


def wanted(stream: _Stream | None) -> bool:
    """Whether what is written there is to have colours."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def labels(text: str) -> str:
    """A failure or a line of the log, its labels in colour."""
    return _LABEL.sub(lambda match: _paint(match[0], match[0].strip(" :")), text)


def verdicts(text: str) -> str:
    """A result, the lines that are its answer in colour."""
    return _BAD.sub(lambda match: _paint(match[0], "bad"), _GOOD.sub(lambda match: _paint(match[0], "good"), text))


def _paint(text: str, style: str) -> str:
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"

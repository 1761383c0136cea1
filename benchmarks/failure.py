"""What a benchmark records of something that failed: what was raised and where, and no path of the machine."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # characters of a message
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_INSTALLED = re.compile(r"/[^\s\"':,;]*/(?:site|dist)-packages/")
# What is left of folders that hold the work of one machine.
_ELSEWHERE = re.compile(r"(?<![\w./:])/(?:tmp|var|home|root|work|mnt|opt|usr|private|Users)/(?:[^\s\"':,;/]+/)*")


def without_paths(text: str) -> str:
    """`text` with files called by their path in the repository or in their package, others by their name alone."""
    text = _INSTALLED.sub("", _COLOUR.sub("", text))
    text = text.replace(f"{ROOT}/", "")
    for folder in sorted({entry.rstrip("/") for entry in sys.path if Path(entry).is_absolute()}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "") if folder else text
    return _ELSEWHERE.sub("", text)


def describe(error: BaseException) -> str:
    """The exception and what caused it, a line each, and the place of the first cause."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    lines = [f"{type(one).__name__}: {_first_line(str(one))}" for one in chain]
    frames = traceback.extract_tb(chain[-1].__traceback__)
    place = f"\nat {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return without_paths("\ncaused by ".join(lines) + place)


def _first_line(text: str) -> str:
    return next((line.strip()[:LONGEST] for line in text.splitlines() if line.strip()), "")

"""Asking the system: its files as text, and commands that may be missing, fail or hang."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/")
PROBE_SECONDS = 10.0


def read_text(path: Path) -> str:
    """The text of a file of the system; empty where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\0", "")
    except OSError:
        return ""


def run_probe(command: Sequence[str], *, seconds: float = PROBE_SECONDS) -> str:
    """What a command prints; empty where it is missing, fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""

"""The interpreters of Python on this machine: those on the PATH, and those that pyenv, uv and Debian keep."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

PROMISED = ("3.10", "3.11", "3.12", "3.13")
_KEPT = (".pyenv/versions/*/bin/python3", ".local/share/uv/python/*/bin/python3")


@cache
def find(version: str) -> Path | None:
    """The interpreter of a version such as `3.12`, None where there is none."""
    named = shutil.which(f"python{version}")
    kept = [path for pattern in _KEPT for path in Path.home().glob(pattern)]
    for path in [*([Path(named)] if named else []), *sorted(kept), *Path("/usr/bin").glob(f"python{version}")]:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        if re.fullmatch(rf"Python {re.escape(version)}\.\d+", told.strip()):
            return path
    return None

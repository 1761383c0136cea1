"""Asking a Python of its own, so that a package that hangs or crashes becomes a finding and does not end this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

IMPORT_SECONDS = 60.0


def probe_python(
    name: str, code: str, *arguments: str, seconds: float = IMPORT_SECONDS, doing: str = "import"
) -> dict[str, Any]:
    """The JSON that `code` prints in a new interpreter; `problem`, `why` and `fix` where it fails before that.

    `name` is the package that it is about, and `doing` says what it does with it.
    """
    reinstall = f"pip install --force-reinstall {name}"
    # Without this, a file of that name in the working folder would be imported instead.
    same_path = f"import sys; sys.path[:] = {sys.path!r}\n"
    try:
        done = subprocess.run(
            [sys.executable, "-c", same_path + code, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        why = f"the {doing} had not finished after {seconds:.0f} seconds"
        return {"problem": f"{name} hangs", "why": why, "fix": reinstall}
    if done.returncode < 0:
        kind = signal.Signals(-done.returncode).name
        return {"problem": f"{name} crashes Python on {doing}", "why": f"it ends with {kind}", "fix": reinstall}
    lines = done.stdout.strip().splitlines()
    try:
        if done.returncode == 0 and lines:
            found: dict[str, Any] = json.loads(lines[-1])
            return found
    except ValueError:
        pass
    said = done.stderr.strip().splitlines()
    last = said[-1] if said else f"exit code {done.returncode}"
    if last.startswith("ModuleNotFoundError") and f"'{name}'" in last:
        return {"problem": f"{name} is not installed", "fix": f"pip install {name}"}
    return {"problem": f"{name} is installed but cannot be imported", "why": last, "fix": reinstall}

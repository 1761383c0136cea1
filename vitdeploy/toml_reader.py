"""Files of TOML, read by Python's own reader since 3.11 and by tomli before."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vitdeploy.errors import MissingDependencyError, UsageError


def read_toml(path: Path, *, option: str) -> dict[str, Any]:
    """The tables of a file.

    option  of the command line that named the file, for messages

    Raises UsageError for a file that cannot be read or is no TOML, MissingDependencyError without a reader.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path}", why=why or str(error), fix=f"{option} with another file") from error
    toml = _reader()
    try:
        tables: dict[str, Any] = toml.loads(text)
    except (toml.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML", why=str(error), fix=f"mend {path}, or {option} FILE") from error
    return tables


def _reader() -> Any:
    for module in ("tomllib", "tomli"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise MissingDependencyError("tomli", needed_for="a file of TOML on Python 3.10", extra="config")

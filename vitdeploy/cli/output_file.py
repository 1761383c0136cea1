"""What a command writes beside what it prints: looked at before the work begins, and complete or not there."""

from __future__ import annotations

import os
from pathlib import Path

from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically


def check_writable(path: Path, option: str) -> None:
    """Raises UsageError, before anything is computed, where the file of `option` could not be written."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"{folder} is not a writable folder"
        raise UsageError(f"cannot write {path}", why=why, fix=f"give {option} another path")


def check_folder(path: Path, option: str) -> None:
    """Raises UsageError, before anything is computed, where the folder of `option` could not be made or filled."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(
            f"cannot write to {path}", why=f"{there} is not a writable folder", fix=f"give {option} another path"
        )


def write(path: Path, text: str, option: str) -> None:
    """Writes the file of `option`; UsageError where that fails."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=error.strerror, fix=f"give {option} another path") from error

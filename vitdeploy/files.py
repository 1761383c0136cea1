"""Files that are complete or not there, the cache's folders, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

CHUNK = 1 << 20


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside `path` and rename it; a text is written as UTF-8.

    Whoever opens `path` finds the old file or the new one, never a part. Raises OSError where it cannot be written,
    and then leaves what was there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cache_folder(name: str) -> Path:
    """`~/.cache/vitdeploy/NAME`, or below XDG_CACHE_HOME where that is set; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitdeploy" / name


def hash_file(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file in hexadecimal and its length in bytes, read a megabyte at a time."""
    digest, length = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            length += len(chunk)
    return digest.hexdigest(), length

"""Files that are complete or not there, what killed processes left of them, the cache's folders, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is held and nothing swept
    _LOCKS = False
else:
    _LOCKS = True

CHUNK = 1 << 20

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside `path` and rename it; a text is written as UTF-8.

    Whoever opens `path` finds the old file or the new one, never a part. What killed processes left of such files in
    the folder is removed. Raises OSError where it cannot be written, and then leaves what was there.
    """
    data = content.encode() if isinstance(content, str) else content
    with contextlib.suppress(OSError):
        sweep(one for one in path.parent.iterdir() if _PARTIAL.fullmatch(one.name))
    temporary, descriptor = hold_new(lambda: path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial"), _make_file)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if _LOCKS:
                temporary.replace(path)
        if not _LOCKS:  # where a file that is open cannot be renamed
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> int | None:
    """A new folder for `hold_new`: what holds it, or None where another command swept it away before it was held."""
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def hold_new(name: Callable[[], Path], make: Callable[[Path], int | None]) -> tuple[Path, int]:
    """A new file or folder of a fresh `name`, with the descriptor that `make` opened and that holds it.

    It is held until the descriptor is closed or the process ends, however that ends: `sweep` leaves it alone. `make`
    gives None where what it made was swept away before it could open it. Raises the OSError of `make`.
    """
    while True:
        path = name()
        descriptor = make(path)
        if descriptor is None:
            continue
        if hold(path, descriptor):
            return path, descriptor
        os.close(descriptor)


def hold(path: Path, descriptor: int) -> bool:
    """Waits until nobody else holds a file or folder, and holds it; False where it is no longer the one at `path`."""
    if _LOCKS:
        with contextlib.suppress(OSError):  # some network file systems have no locks, and then nothing is swept
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(paths: Iterable[Path], remove: Callable[[Path], object] = Path.unlink) -> None:
    """Removes those files or folders that no living process holds."""
    if not _LOCKS:
        return
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(descriptor)


def _make_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


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

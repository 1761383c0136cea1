"""Files that are read in parts: on this machine, or by an fsspec URL such as `s3://bucket/train-{0000..0009}.tar`."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NoReturn

from vitdeploy.errors import InputError, MissingDependencyError

LARGEST_PATTERN = 100_000  # files that a pattern may name

# Two letters at least, since one is a drive of Windows; a Path makes one slash of two.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Blob(ABC):
    """A file that any number of threads may read.

    name   its last part, for messages and names of images
    where  its path or URL
    size   in bytes
    step   bytes that are read at once where little is needed: a page, or what is worth a request
    check  what to do where it cannot be read
    """

    name: str
    where: str
    size: int
    step: int
    check = "check that it is whole and may be read"

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`; fewer where it ends before. InputError where they cannot be read."""

    @abstractmethod
    def open(self) -> Any:
        """It as a binary file to read, which the caller closes. InputError where it cannot be opened."""

    def unreadable(self, error: Exception) -> InputError:
        """The error for whatever went wrong in reading it."""
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return InputError(f"{self.where} cannot be read", why=why, fix=self.check)


class LocalFile(Blob):
    """A regular file on this machine."""

    step = 1 << 12

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(
                f"{path} is no regular file" if path.exists() else f"there is no file {path}",
                fix="check the path of DATA",
            )
        self.name, self.where, self._path = path.name, str(path), path
        self.size = path.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        """See `Blob.read`."""
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(start)
                parts = bytearray()
                while len(parts) < stop - start and (part := file.read(stop - start - len(parts))):
                    parts += part
                return bytes(parts)
        except OSError as error:
            raise self.unreadable(error) from error

    def open(self) -> Any:
        """See `Blob.open`."""
        try:
            return self._path.open("rb")
        except OSError as error:
            raise self.unreadable(error) from error


class RemoteFile(Blob):
    """A file by its URL, through fsspec; nothing of it is written to this machine."""

    step = 1 << 20
    check = "check the URL, the connection, and that it may be read"

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise MissingDependencyError("fsspec", needed_for=f"reading {url}", extra="remote") from None
        self.name, self.where = url.rstrip("/").rpartition("/")[2], url
        # Each file system has its own kinds of errors, and its package may be missing.
        try:
            self._system, self._path = fsspec.core.url_to_fs(url)
            self.size = int(self._system.size(self._path))
        except Exception as error:
            self._refuse(error)

    def read(self, start: int, stop: int) -> bytes:
        """See `Blob.read`."""
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        try:
            found: bytes = self._system.cat_file(self._path, start=start, end=stop)
        except Exception as error:
            self._refuse(error)
        if len(found) != stop - start:  # of another place, maybe: a server may send the whole file instead
            raise InputError(
                f"{self.where} cannot be read in parts",
                why=f"{stop - start:,} bytes from {start:,} on were asked for, and {len(found):,} came",
                fix="give a server that answers requests for ranges, or copy it to this machine",
            )
        return found

    def open(self) -> Any:
        """See `Blob.open`."""
        try:
            return self._system.open(self._path, "rb")
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> NoReturn:
        cause = error.__cause__
        if isinstance(error, FileNotFoundError) and isinstance(cause, (FileNotFoundError, type(None))):
            raise InputError(f"there is no file {self.where}", fix="check the URL of DATA") from error
        if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):  # fsspec says so of any trouble
            raise self.unreadable(cause) from error
        if isinstance(error, (ImportError, ValueError)):
            raise InputError(
                f"{self.where} cannot be read", why=str(error), fix="install the package of this file system"
            ) from error
        raise self.unreadable(error) from error


def url_of(data: object) -> str | None:
    """The URL that a path or a text is, with two slashes; None for a path of this machine."""
    if not isinstance(data, (str, Path)):
        return None
    match = _URL.fullmatch(str(data))
    if match is None or Path(str(data)).exists():
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2]}"


def expand(pattern: str) -> list[str]:
    """`train-{0000..0009}.tar` and `{train,val}.tar` as the names they stand for, in order; InputError for too many."""
    parts: list[list[str]] = []
    for text in re.split(r"(\{[^{}]*\})", pattern):
        found = _RANGE.fullmatch(text)
        if found is not None:
            first, last = int(found[1]), int(found[2])
            if last - first >= LARGEST_PATTERN:
                raise _too_many(pattern)
            width = len(found[1]) if found[1].startswith("0") else 0
            parts.append([f"{number:0{width}}" for number in range(first, last + 1)])
        elif text.startswith("{") and "," in text:
            parts.append(text[1:-1].split(","))
        else:
            parts.append([text])
    count = 1
    for part in parts:
        count *= len(part)
        if count > LARGEST_PATTERN:
            raise _too_many(pattern)
    if not count:
        raise InputError(f"{pattern} names no file", why="its range ends before it begins", fix="{0000..0009}")
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def open_blobs(data: str | Path) -> list[Blob]:
    """The files that a path, a URL or a pattern names, in order."""
    url = url_of(data)
    if url is not None:
        return [RemoteFile(one) for one in expand(url)]
    if Path(data).exists():
        return [LocalFile(Path(data))]
    return [LocalFile(Path(one)) for one in expand(str(data))]


class Window:
    """A part of a blob in memory, for who reads small pieces of it from front to back."""

    def __init__(self, blob: Blob) -> None:
        self._blob, self._start, self._held = blob, 0, b""

    def at(self, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer at the end; what is skipped by far is not fetched."""
        stop = start + count
        if not self._start <= start or stop > self._start + len(self._held):
            self._start, self._held = start, self._blob.read(start, start + max(count, self._blob.step))
        return self._held[start - self._start : stop - self._start]


def _too_many(pattern: str) -> InputError:
    return InputError(
        f"{pattern} names too many files", why=f"more than {LARGEST_PATTERN:,}", fix="give a smaller range"
    )

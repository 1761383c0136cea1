"""The caches: folders of entries that can be made again, each with a limit, the least recently used ones going first.

An entry is a file, some files whose names begin alike, or a folder. It is not removed while somebody holds its lock,
nor when it was used a moment ago: it may be another process's, which is about to read it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.errors import UsageError
from vitdeploy.files import cache_folder
from vitdeploy.locks import locked, locked_if_free

log = logging.getLogger(__name__)

LIMIT = "VITDEPLOY_CACHE_LIMIT"
DEFAULT_LIMIT = 10 << 30
RECENT_SECONDS = 60.0

_UNITS = {"": 20, "K": 10, "M": 20, "G": 30, "T": 40}  # a number alone counts MiB, as --workspace does
_LOCK = ".lock"
_TIDYING = f".tidying{_LOCK}"


@dataclass(frozen=True)
class Kind:
    """What a cache holds; `entry` matches the names of its files and folders, and its group is that of the entry.

    own_folder      it has one below the user's cache; others are where --cache says
    read_by_others  another program reads its files: when it last did, only the file system knows, to within a day
    """

    what: str
    entry: re.Pattern[str]
    own_folder: bool = True
    read_by_others: bool = False


KINDS: Mapping[str, Kind] = {
    "engines": Kind(
        "engines of TensorRT and kernel timings",
        re.compile(r"\.?(timing-[\w.+-]+?\.cache|[0-9a-f]{32})(?:$|\.)"),
    ),
    "logits": Kind("outputs that validate computed", re.compile(r"([0-9a-f]{32})$")),
    "latency": Kind("measurements of export --tune-latency", re.compile(r"\.?([0-9a-f]{32})\.json(?:$|\.)")),
    "proofs": Kind("proofs of `auto` that held", re.compile(r"\.?([0-9a-f]{32})\.json(?:$|\.)")),
    # OpenVINO names and writes these, where --cache says so.
    "compiled": Kind(
        "models that OpenVINO compiled",
        re.compile(r"(.+\.(?:blob|cl_cache))$"),
        own_folder=False,
        read_by_others=True,
    ),
}


class Entry(NamedTuple):
    """What is kept or removed as a whole; `used` is when it was last, in seconds since 1970."""

    name: str
    paths: tuple[Path, ...]
    bytes: int
    used: float


class Cleared(NamedTuple):
    """What was removed, and how many entries stay because somebody is using them."""

    entries: int
    bytes: int
    in_use: int


class Cache:
    """One cache: `name` is one of KINDS, `folder` by default the one below the user's cache.

    Raises UsageError for a name that there is not, and for a limit in the environment that is none.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        if name not in KINDS:
            raise UsageError(
                f"there is no cache called {name}",
                why=f"there are {', '.join(own_caches())}",
                fix="vitdeploy cache, which lists them",
            )
        self.name, self.kind = name, KINDS[name]
        self.folder = cache_folder(name) if folder is None else folder
        self.limit = cache_limit()

    def entries(self) -> list[Entry]:
        """Everything in it, the least recently used first; files of other names are none of its business."""
        found: dict[str, list[Path]] = {}
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                match = self.kind.entry.match(path.name)
                if match and not path.name.endswith(_LOCK):
                    found.setdefault(match[1], []).append(path)
        entries = [self._entry(name, paths) for name, paths in found.items()]
        return sorted(entries, key=lambda entry: (entry.used, entry.name))

    @contextlib.contextmanager
    def lock(self, entry: str, *, what: str = "") -> Iterator[None]:
        """Hold an entry, as to write it: nobody removes it, and who locks it too waits. OSError without the folder.

        `what` says in a message what another process does with it, where there is one to wait for.
        """

        def waiting() -> None:
            log.info("waiting for another process, which %s …", what)

        with locked(self.folder / f"{entry}{_LOCK}", waiting=waiting if what else None):
            yield

    def touch(self, *paths: Path) -> None:
        """Note that an entry with these files is being used; nothing happens where that cannot be noted."""
        for path in paths:
            with contextlib.suppress(OSError):
                os.utime(path)

    def evict(self, keep: Collection[str] = ()) -> list[str]:
        """Remove what was not used for longest until the cache is within its limit; the names of what was removed.

        Entries of `keep`, those that are locked and those that were used within the last minute stay: the cache is
        then larger than its limit for a while. Nothing is raised: a cache that cannot be tidied still serves.
        """
        removed: list[str] = []
        if self.limit is None:
            return removed
        with contextlib.suppress(OSError):
            entries = self.entries()
            total = sum(entry.bytes for entry in entries)
            if total <= self.limit:
                return removed
            with locked_if_free(self.folder / _TIDYING) as mine:
                old = time.time() - RECENT_SECONDS
                for entry in entries if mine else ():
                    if total <= self.limit or entry.used > old:
                        break
                    if entry.name not in keep and self._remove(entry):
                        total -= entry.bytes
                        removed.append(entry.name)
        if removed:
            log.info("removed %d old entries of the cache %s (%s)", len(removed), self.folder, LIMIT)
        return removed

    def clear(self) -> Cleared:
        """Remove every entry but those that somebody holds."""
        entries = self.entries()
        removed = [entry for entry in entries if self._remove(entry)]
        return Cleared(len(removed), sum(entry.bytes for entry in removed), len(entries) - len(removed))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        entries = self.entries()
        return {
            "name": self.name,
            "what": self.kind.what,
            "folder": str(self.folder),
            "entries": len(entries),
            "bytes": sum(entry.bytes for entry in entries),
            "limit_bytes": self.limit,
        }

    def _entry(self, name: str, paths: list[Path]) -> Entry:
        size, used = 0, 0.0
        for path in paths:
            for one in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
                with contextlib.suppress(OSError):  # it is gone already
                    found = one.lstat()
                    size += found.st_size if not one.is_dir() else 0
                    used = max(used, found.st_mtime, found.st_atime if self.kind.read_by_others else 0.0)
        return Entry(name, tuple(sorted(paths)), size, used)

    def _remove(self, entry: Entry) -> bool:
        """Whether the entry is gone now: it is not where somebody holds it, has used it since or forbids it."""
        try:
            with locked_if_free(self.folder / f"{entry.name}{_LOCK}") as free:
                if not free or self._entry(entry.name, list(entry.paths)).used > entry.used:
                    return False
                # The sidecar of an engine goes first, without which the others do not count.
                for path in sorted(entry.paths, key=lambda path: path.suffix != ".json"):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s stays in the cache %s: %s", entry.name, self.folder, error.strerror or error)
            return False
        return True


def own_caches() -> list[str]:
    """Names of the caches that have a folder of their own below the user's cache."""
    return [name for name, kind in KINDS.items() if kind.own_folder]


def caches(folder: Path | None = None) -> list[Cache]:
    """The caches below the user's cache; with `folder`, those that commands keep in their `--cache`."""
    if folder is None:
        return [Cache(name) for name in own_caches()]
    return [Cache(name, folder) for name in ("engines", "compiled")]


def cache_limit() -> int | None:
    """Bytes that each cache may take, from the environment; None for no limit. UsageError for what is no size."""
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return DEFAULT_LIMIT
    if text.lower() == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if found is None:
        raise UsageError(
            f"invalid {LIMIT}: {text!r}",
            why="it is the size that each cache may have",
            fix=f"{LIMIT}=10G, {LIMIT}=500M, or {LIMIT}=none for no limit",
        )
    return int(float(found[1]) * (1 << _UNITS[found[2].upper()]))

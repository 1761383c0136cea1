"""The rows of several runs on the same images, and a store that lets a run go on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.accuracy.compute import Source, Work, chunk_size, compute_chunks, identity_of, stacked
from vitdeploy.caches import Cache
from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically
from vitdeploy.machine.settings import usable_cores
from vitdeploy.progress import Progress
from vitdeploy.tasks.task import Field, Row, Task

FLUSH_SECONDS = 10.0

IDENTITY = "identity.json"


class RowStore:
    """Rows by the identity of their source and by their key, in a folder whose files are never changed.

    Each identity has a folder with its description (`identity.json`) and chunks of keys and rows (`*.npz`). A chunk
    that cannot be read, or has other fields, is ignored. The identities that were not used for longest go where the
    cache is larger than its limit.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._cache = Cache("logits", None if folder is None else Path(folder))
        self.folder = self._cache.folder

    def read(self, identity: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Row]:
        """The stored rows by key."""
        known: dict[str, Row] = {}
        place = self._place(identity)
        self._cache.touch(place)
        for path in sorted(place.glob("*.npz")):
            with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as chunk:
                hashes, arrays = chunk["hashes"], {name: chunk[name] for name in fields}
                if hashes.dtype.kind == "U" and all(
                    fields[name].admits(array, len(hashes)) for name, array in arrays.items()
                ):
                    for index, key in enumerate(hashes.tolist()):
                        known[key] = {name: array[index] for name, array in arrays.items()}
        return known

    def add(self, identity: Mapping[str, Any], rows: Mapping[str, Row]) -> None:
        """Stores more rows as one chunk, written atomically."""
        if not rows:
            return
        place = self._place(identity)
        chunk = io.BytesIO()
        np.savez(chunk, hashes=np.array(list(rows)), **stacked(list(rows.values())))  # type: ignore[arg-type]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._cache.lock(place.name):
                place.mkdir(exist_ok=True)
                if not (place / IDENTITY).exists():
                    write_atomically(place / IDENTITY, canonical(identity) + "\n")
                write_atomically(place / f"{secrets.token_hex(8)}.npz", chunk.getvalue())
        except OSError as error:
            raise UsageError(
                f"cannot keep logits in {self.folder}",
                why=error.strerror or str(error),
                fix="give --logits another folder",
            ) from error
        self._cache.evict(keep=(place.name,))

    def _place(self, identity: Mapping[str, Any]) -> Path:
        return self.folder / hashlib.sha256(canonical(identity).encode()).hexdigest()[:32]


def canonical(identity: Mapping[str, Any]) -> str:
    """The same text for equal JSON values."""
    return json.dumps(identity, sort_keys=True, indent=1)


def compute_rows(
    task: Task, indices: Sequence[int], sources: Sequence[Source], store: RowStore
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of each source, the baseline's first, stacked over the samples; and the keys of the samples.

    Rows that are in the store are not computed again. Computed ones are stored every few seconds, and when an error
    or Ctrl-C ends the computation. Memory holds all rows, and besides what `compute_chunks` says.
    """
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="vitdeploy-decode") as pool:
        try:
            keys = tuple(pool.map(lambda index: task.key(index, task.dataset.sha256(index)), indices))
            return _compute(task, dict(zip(keys, indices, strict=True)), keys, sources, store, pool), keys
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compute(
    task: Task,
    index_of: Mapping[str, int],
    keys: Sequence[str],
    sources: Sequence[Source],
    store: RowStore,
    pool: ThreadPoolExecutor,
) -> list[Row]:
    keepers = [_Keeper(task, store, identity_of(task, source, sources[0])) for source in sources]
    missing = [{key for key in index_of if key not in keeper.rows} for keeper in keepers]
    wanted = set().union(*missing)
    if task.paired:  # the baseline's outputs are needed again for every row that is made against them
        missing[0] = wanted
    ordered, size = [key for key in index_of if key in wanted], chunk_size(task, sources)
    chunks = [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def take(place: int, key: str, make: Callable[[], Row]) -> None:
        if key not in keepers[place].rows:
            keepers[place].take(key, make())

    work = Work(chunks, index_of.__getitem__, lambda place, key: key in missing[place], take)
    with contextlib.ExitStack() as kept, Progress("validating", sum(map(len, missing))) as progress:
        for keeper in keepers:
            kept.callback(keeper.flush)
        for _ in compute_chunks(task, work, sources, pool, progress):
            pass
    return [stacked([keeper.rows[key] for key in keys]) for keeper in keepers]


class _Keeper:
    """Collects rows, known and computed ones, and writes the latter to the store from time to time."""

    def __init__(self, task: Task, store: RowStore, identity: Mapping[str, Any]) -> None:
        self._store, self._identity = store if task.stored else None, identity
        self.rows = {} if self._store is None else self._store.read(identity, task.fields)
        self._new: dict[str, Row] = {}
        self._flushed = time.monotonic()

    def take(self, key: str, row: Row) -> None:
        self.rows[key] = self._new[key] = row
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        new, self._new, self._flushed = self._new, {}, time.monotonic()
        if self._store is not None:
            self._store.add(self._identity, new)

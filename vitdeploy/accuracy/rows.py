"""The rows of several runs on the same images, each image decoded once, and a store that lets a run go on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.caches import Cache
from vitdeploy.data.slots import Slot
from vitdeploy.errors import UsageError
from vitdeploy.files import write_atomically
from vitdeploy.machine.settings import usable_cores
from vitdeploy.preprocess import Preprocessing
from vitdeploy.progress import Progress
from vitdeploy.runtime.session import Session
from vitdeploy.runtime.stream import stream
from vitdeploy.tasks.choose import slots_of
from vitdeploy.tasks.task import Field, Row, Task

Array = NDArray[Any]

BATCH = 8
# Images that are decoded ahead at once: enough for many batches, and two such chunks never fill the memory.
CHUNK_IMAGES, CHUNK_BYTES = 512, 1 << 27
FLUSH_SECONDS = 10.0

IDENTITY = "identity.json"


class Form(NamedTuple):
    """How a session takes a sample; sessions of the same form share what was decoded."""

    slots: tuple[Slot, ...]
    recipe: Preprocessing | None
    normalised: bool

    @property
    def bytes(self) -> int:
        """Of one sample."""
        return sum(Field(slot.dtype, slot.shape).bytes for slot in self.slots)


class Source(NamedTuple):
    """A session, and everything its outputs depend on besides the sample."""

    session: Session
    identity: Mapping[str, Any]

    @property
    def form(self) -> Form:
        """How it takes a sample."""
        manifest = self.session.bundle.manifest
        return Form(slots_of(manifest), manifest.preprocessing, not manifest.preprocessing_in_graph)

    @property
    def bytes(self) -> int:
        """Of the outputs for one sample."""
        return sum(Field(spec.dtype, spec.shape[1:]).bytes for spec in self.session.bundle.manifest.outputs)


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
        np.savez(chunk, hashes=np.array(list(rows)), **_stacked(list(rows.values())))  # type: ignore[arg-type]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._cache.lock(place.name):
                place.mkdir(exist_ok=True)
                if not (place / IDENTITY).exists():
                    write_atomically(place / IDENTITY, _canonical(identity) + "\n")
                write_atomically(place / f"{secrets.token_hex(8)}.npz", chunk.getvalue())
        except OSError as error:
            raise UsageError(
                f"cannot keep logits in {self.folder}",
                why=error.strerror or str(error),
                fix="give --logits another folder",
            ) from error
        self._cache.evict(keep=(place.name,))

    def _place(self, identity: Mapping[str, Any]) -> Path:
        return self.folder / hashlib.sha256(_canonical(identity).encode()).hexdigest()[:32]


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, indent=1)


def compute_rows(
    task: Task, indices: Sequence[int], sources: Sequence[Source], store: RowStore
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of each source, the baseline's first, stacked over the samples; and the keys of the samples.

    Rows that are in the store are not computed again. Computed ones are stored every few seconds, and when an error
    or Ctrl-C ends the computation. Besides the rows, memory holds three chunks of decoded samples, at most 128 MB each
    for each form of input that the sources take, and as much of the baseline's outputs where rows are paired.
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
    keepers = [_Keeper(task, store, _identity(task, source, sources[0])) for source in sources]
    missing = [[key for key in index_of if key not in keeper.rows] for keeper in keepers]
    if task.paired:  # the baseline's outputs are needed again for every row that is made against them
        wanted = set().union(*missing)
        missing[0] = [key for key in index_of if key in wanted]
    wanted = {key for keys_of_one in missing for key in keys_of_one}
    each = max(source.form.bytes for source in sources)
    if task.paired:
        each = max(each, sources[0].bytes)
    size = max(BATCH, min(CHUNK_IMAGES, CHUNK_BYTES // max(each, 1)))
    ordered = [key for key in index_of if key in wanted]
    chunks = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    needed = [set(keys_of_one) for keys_of_one in missing]
    with contextlib.ExitStack() as kept, Progress("validating", sum(map(len, missing))) as progress:
        for keeper in keepers:
            kept.callback(keeper.flush)
        for chunk, decoded, truths in _decode_ahead(task, index_of, chunks, sources, pool):
            known: dict[str, Row] = {}
            for place, key, outputs in _answers(task, chunk, decoded, sources, needed):
                keeper, baseline = keepers[place], None if place == 0 else known.get(key)
                if key not in keeper.rows:
                    keeper.take(key, task.row(outputs, truths[key].result(), baseline))
                if task.paired and place == 0:
                    known[key] = outputs
                progress.advance()
    return [_stacked([keeper.rows[key] for key in keys]) for keeper in keepers]


def _identity(task: Task, source: Source, baseline: Source) -> dict[str, Any]:
    """Everything that the rows of a source depend on besides the sample."""
    identity = {**source.identity, **task.identity()}
    if task.paired:
        identity["baseline"] = dict(baseline.identity)
    return identity


def _stacked(rows: Sequence[Row]) -> dict[str, Array]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


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


Decoded = dict[Form, dict[str, Future[dict[str, Array]]]]


def _decode_ahead(
    task: Task,
    index_of: Mapping[str, int],
    chunks: Sequence[Sequence[str]],
    sources: Sequence[Source],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Sequence[str], Decoded, dict[str, Future[Any]]]]:
    """Each chunk in every form that a source takes and with what is true of it, while the next one is being decoded."""
    forms = dict.fromkeys(source.form for source in sources)
    under_way: deque[tuple[Sequence[str], Decoded, dict[str, Future[Any]]]] = deque()
    for chunk in chunks:
        decoded = {
            form: {
                key: pool.submit(
                    task.dataset.inputs, index_of[key], form.slots, form.recipe, normalised=form.normalised
                )
                for key in chunk
            }
            for form in forms
        }
        under_way.append((chunk, decoded, {key: pool.submit(task.truth, index_of[key]) for key in chunk}))
        if len(under_way) == 2:
            yield under_way.popleft()
    yield from under_way


def _answers(
    task: Task, chunk: Sequence[str], decoded: Decoded, sources: Sequence[Source], needed: Sequence[set[str]]
) -> Iterator[tuple[int, str, dict[str, Array]]]:
    """The place of a source, a sample's key and the outputs for it; for every sample those of the baseline first.

    Where there is a core for each source they advance side by side, sample by sample: what one is asked for was
    computed while another was waited for, and what cannot use all cores leaves some to the others. Otherwise each has
    all cores, one after another.
    """
    busy = sum(any(key in need for key in chunk) for need in needed)
    at_once = busy if busy <= usable_cores() else 1
    with contextlib.ExitStack() as opened:
        streams = []
        for source, need in zip(sources, needed, strict=True):
            futures = [decoded[source.form][key] for key in chunk if key in need]
            workers = -(-source.session.backend.num_requests // at_once) + 1
            made = _run(source.session, (future.result() for future in futures), task.outputs, workers)
            streams.append(opened.enter_context(contextlib.closing(made)))
        places = range(len(sources))
        turns = itertools.product(chunk, places) if at_once > 1 else ((key, place) for place in places for key in chunk)
        for key, place in turns:
            if key in needed[place]:
                yield place, key, next(streams[place])


def _run(
    session: Session, samples: Iterable[Mapping[str, Array]], names: Sequence[str], workers: int
) -> Generator[dict[str, Array], None, None]:
    """The outputs of these names for each sample, run in batches; the last sample fills an incomplete fixed batch."""
    fixed = session.bundle.manifest.inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else BATCH

    def outputs(batch: list[Mapping[str, Array]]) -> list[dict[str, Array]]:
        full = batch + batch[-1:] * (size - len(batch)) if isinstance(fixed, int) else batch
        made = session.run({name: np.stack([sample[name] for sample in full]) for name in full[0]})
        for name in names:
            array = made[name]
            if not array.ndim or len(array) != len(full):
                raise UsageError(
                    f"the output {name} of {session.bundle.path} is {list(array.shape)} for {len(full)} samples",
                    why="an accuracy is measured sample by sample, and its first axis does not count them",
                    fix="return outputs with the batch as their first axis",
                )
        return [{name: made[name][place] for name in names} for place in range(len(batch))]

    rest = iter(samples)
    batches = iter(lambda: list(itertools.islice(rest, size)), [])
    with contextlib.closing(stream(batches, outputs, workers=workers)) as results:
        yield from results

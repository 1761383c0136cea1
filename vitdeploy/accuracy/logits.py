"""The logits of several runs on the same images, each image decoded once, and a store that lets a run go on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Dataset
from vitdeploy.errors import UsageError
from vitdeploy.files import cache_folder, write_atomically
from vitdeploy.machine.settings import usable_cores
from vitdeploy.preprocess import Preprocessing
from vitdeploy.progress import Progress
from vitdeploy.runtime.session import Session

Array = NDArray[Any]

BATCH = 8
# Images that are decoded ahead at once: enough for many batches, and two such chunks never fill the memory.
CHUNK_IMAGES, CHUNK_BYTES = 512, 1 << 27
FLUSH_SECONDS = 10.0

IDENTITY = "identity.json"


class Form(NamedTuple):
    """How a session takes an image; sessions of the same form share what was decoded."""

    recipe: Preprocessing
    normalised: bool

    @property
    def bytes(self) -> int:
        """Of one image."""
        return 3 * self.recipe.size[0] * self.recipe.size[1] * (4 if self.normalised else 1)


class Source(NamedTuple):
    """A session, and everything its logits depend on besides the image."""

    session: Session
    identity: Mapping[str, Any]

    @property
    def form(self) -> Form:
        """How it takes an image."""
        manifest = self.session.bundle.manifest
        return Form(manifest.recipe, not manifest.preprocessing_in_graph)


class LogitsStore:
    """Logits by the identity of their source and by the image's hash, in a folder whose files are never changed.

    Each identity has a folder with its description (`identity.json`) and chunks of hashes and logits (`*.npz`). A chunk
    that cannot be read, or has another shape, is ignored.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = cache_folder("logits") if folder is None else Path(folder)

    def read(self, identity: Mapping[str, Any], classes: int) -> dict[str, Array]:
        """The stored logits, float32 [classes], by the hash of the image."""
        known: dict[str, Array] = {}
        for path in sorted(self._place(identity).glob("*.npz")):
            with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as chunk:
                hashes, logits = chunk["hashes"], chunk["logits"]
                if hashes.dtype.kind == "U" and logits.dtype == np.float32 and logits.shape == (len(hashes), classes):
                    known.update(zip(hashes.tolist(), logits, strict=True))
        return known

    def add(self, identity: Mapping[str, Any], rows: Mapping[str, Array]) -> None:
        """Stores the logits of more images as one chunk, written atomically."""
        if not rows:
            return
        place = self._place(identity)
        chunk = io.BytesIO()
        np.savez(chunk, hashes=np.array(list(rows)), logits=np.stack(list(rows.values())))
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not (place / IDENTITY).exists():
                write_atomically(place / IDENTITY, _canonical(identity) + "\n")
            write_atomically(place / f"{secrets.token_hex(8)}.npz", chunk.getvalue())
        except OSError as error:
            raise UsageError(
                f"cannot keep logits in {self.folder}",
                why=error.strerror or str(error),
                fix="give --logits another folder",
            ) from error

    def _place(self, identity: Mapping[str, Any]) -> Path:
        return self.folder / hashlib.sha256(_canonical(identity).encode()).hexdigest()[:32]


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, indent=1)


def compute_logits(
    dataset: Dataset, indices: Sequence[int], sources: Sequence[Source], classes: int, store: LogitsStore
) -> tuple[list[Array], tuple[str, ...]]:
    """Logits, float32 [len(indices), classes], for each source; and the hashes of the images.

    Logits that are in the store are not computed again. Computed ones are stored every few seconds, and when an error
    or Ctrl-C ends the computation. Besides the logits, memory holds three chunks of decoded images, at most 128 MB each
    for each form of input that the sources take.
    """
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="vitdeploy-decode") as pool:
        try:
            hashes = tuple(pool.map(dataset.sha256, indices))
            return _compute(dataset, indices, hashes, sources, classes, store, pool), hashes
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compute(
    dataset: Dataset,
    indices: Sequence[int],
    hashes: Sequence[str],
    sources: Sequence[Source],
    classes: int,
    store: LogitsStore,
    pool: ThreadPoolExecutor,
) -> list[Array]:
    index_of = dict(zip(hashes, indices, strict=True))
    known = [store.read(source.identity, classes) for source in sources]
    missing = [[key for key in index_of if key not in rows] for rows in known]
    keepers = [_Keeper(store, source, rows) for source, rows in zip(sources, known, strict=True)]
    wanted = [key for key in index_of if any(key not in rows for rows in known)]
    size = max(BATCH, min(CHUNK_IMAGES, CHUNK_BYTES // max(source.form.bytes for source in sources)))
    chunks = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    with contextlib.ExitStack() as kept, Progress("validating", sum(map(len, missing))) as progress:
        for keeper in keepers:
            kept.callback(keeper.flush)
        for chunk, decoded in _decode_ahead(dataset, index_of, chunks, sources, pool):
            for source, rows, keeper in zip(sources, known, keepers, strict=True):
                need = [key for key in chunk if key not in rows]
                images = [decoded[source.form][key].result() for key in need]
                for key, row in zip(need, _run(source.session, images), strict=True):
                    keeper.take(key, row)
                    progress.advance()
    return [np.stack([rows[key] for key in hashes]) for rows in known]


class _Keeper:
    """Collects computed rows, and writes them to the store from time to time."""

    def __init__(self, store: LogitsStore, source: Source, rows: dict[str, Array]) -> None:
        self._store, self._identity, self._rows = store, source.identity, rows
        self._new: dict[str, Array] = {}
        self._flushed = time.monotonic()

    def take(self, key: str, row: Array) -> None:
        self._rows[key] = self._new[key] = row
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        new, self._new, self._flushed = self._new, {}, time.monotonic()
        self._store.add(self._identity, new)


def _decode_ahead(
    dataset: Dataset,
    index_of: Mapping[str, int],
    chunks: Sequence[Sequence[str]],
    sources: Sequence[Source],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Sequence[str], dict[Form, dict[str, Future[Array]]]]]:
    """Each chunk with its images in every form that a source takes, while the next one is being decoded."""
    forms = dict.fromkeys(source.form for source in sources)
    under_way: deque[tuple[Sequence[str], dict[Form, dict[str, Future[Array]]]]] = deque()
    for chunk in chunks:
        decoded = {
            form: {
                key: pool.submit(dataset.tensor, index_of[key], form.recipe, normalised=form.normalised)
                for key in chunk
            }
            for form in forms
        }
        under_way.append((chunk, decoded))
        if len(under_way) == 2:
            yield under_way.popleft()
    yield from under_way


def _run(session: Session, images: Sequence[Array]) -> Iterator[Array]:
    """Logits [classes] of each image, run in batches; an incomplete fixed batch is filled with the last image."""
    fixed = session.bundle.manifest.inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else BATCH
    batches = [list(images[start : start + size]) for start in range(0, len(images), size)]
    lengths = [len(batch) for batch in batches]
    if isinstance(fixed, int) and batches:
        batches[-1] += batches[-1][-1:] * (fixed - lengths[-1])
    for length, rows in zip(lengths, session.map(np.stack(batch) for batch in batches), strict=True):
        yield from rows[:length].astype(np.float32, copy=False)

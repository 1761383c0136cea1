"""The rows of several runs on the same samples, chunk by chunk, each sample decoded once for all of them."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data.slots import Slot
from vitdeploy.errors import UsageError
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
    def batch(self) -> int:
        """Samples of a call."""
        fixed = self.session.bundle.manifest.inputs[0].shape[0]
        return fixed if isinstance(fixed, int) else BATCH

    @property
    def form(self) -> Form:
        """How it takes a sample."""
        manifest = self.session.bundle.manifest
        return Form(slots_of(manifest), manifest.preprocessing, not manifest.preprocessing_in_graph)

    @property
    def bytes(self) -> int:
        """Of the outputs for one sample."""
        return sum(Field(spec.dtype, spec.shape[1:]).bytes for spec in self.session.bundle.manifest.outputs)


def identity_of(task: Task, source: Source, baseline: Source) -> dict[str, Any]:
    """Everything that the rows of a source depend on besides the sample."""
    identity = {**source.identity, **task.identity()}
    if task.paired:
        identity["baseline"] = dict(baseline.identity)
    return identity


def stacked(rows: Sequence[Row]) -> dict[str, Array]:
    """The rows of several samples, along a new first axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def batch_unit(sources: Sequence[Source]) -> int:
    """Samples that are whole batches of every source: parts of so many are computed in the batches of the whole."""
    batches = [source.batch for source in sources]
    unit = math.lcm(*batches)
    return unit if unit <= CHUNK_IMAGES else max(batches)


def chunk_size(task: Task, sources: Sequence[Source], most: int = CHUNK_IMAGES) -> int:
    """Samples of a chunk: `most` or as many as CHUNK_BYTES hold, and whole batches."""
    each = max(source.form.bytes for source in sources)
    if task.paired:
        each = max(each, sources[0].bytes)
    unit = batch_unit(sources)
    return max(unit, min(most, CHUNK_BYTES // max(each, 1)) // unit * unit)


class Work(NamedTuple):
    """What is to be computed: of the samples with these keys, in chunks, whatever a source still needs.

    index_of  the sample of a key
    needs     whether the source at a place needs the sample of a key
    take      gets the place of a source, a key, and what makes the row; of a sample the baseline's comes first
    """

    chunks: Iterable[Sequence[str]]
    index_of: Callable[[str], int]
    needs: Callable[[int, str], bool]
    take: Callable[[int, str, Callable[[], Row]], None]


def compute_chunks(
    task: Task, work: Work, sources: Sequence[Source], pool: ThreadPoolExecutor, progress: Progress
) -> Iterator[Sequence[str]]:
    """Each chunk, once the rows of its samples were taken.

    Memory holds three chunks of decoded samples, at most 128 MB each for each form of input that the sources take, and
    as much of the baseline's outputs where rows are paired.
    """
    for chunk, decoded, truths in _decode_ahead(task, work, sources, pool):
        known: dict[str, Row] = {}
        for place, key, outputs in _answers(task, chunk, decoded, sources, work.needs):
            baseline = None if place == 0 else known.get(key)
            work.take(place, key, _row_maker(task, outputs, truths[key], baseline))
            if task.paired and place == 0:
                known[key] = outputs
            progress.advance()
        yield chunk


def _row_maker(task: Task, outputs: Row, truth: Future[Any], baseline: Row | None) -> Callable[[], Row]:
    return lambda: task.row(outputs, truth.result(), baseline)


Decoded = dict[Form, dict[str, Future[dict[str, Array]]]]


def _decode_ahead(
    task: Task, work: Work, sources: Sequence[Source], pool: ThreadPoolExecutor
) -> Iterator[tuple[Sequence[str], Decoded, dict[str, Future[Any]]]]:
    """Each chunk in every form that a source takes and with what is true of it, while the next one is being decoded."""
    forms = dict.fromkeys(source.form for source in sources)
    under_way: deque[tuple[Sequence[str], Decoded, dict[str, Future[Any]]]] = deque()
    for chunk in work.chunks:
        decoded = {
            form: {
                key: pool.submit(
                    task.dataset.inputs, work.index_of(key), form.slots, form.recipe, normalised=form.normalised
                )
                for key in chunk
            }
            for form in forms
        }
        under_way.append((chunk, decoded, {key: pool.submit(task.truth, work.index_of(key)) for key in chunk}))
        if len(under_way) == 2:
            yield under_way.popleft()
    yield from under_way


def _answers(
    task: Task,
    chunk: Sequence[str],
    decoded: Decoded,
    sources: Sequence[Source],
    needs: Callable[[int, str], bool],
) -> Iterator[tuple[int, str, dict[str, Array]]]:
    """The place of a source, a sample's key and the outputs for it; for every sample those of the baseline first.

    Where there is a core for each source they advance side by side, sample by sample: what one is asked for was
    computed while another was waited for, and what cannot use all cores leaves some to the others. Otherwise each has
    all cores, one after another.
    """
    places = range(len(sources))
    busy = sum(any(needs(place, key) for key in chunk) for place in places)
    at_once = busy if busy <= usable_cores() else 1
    with contextlib.ExitStack() as opened:
        streams = []
        for place, source in enumerate(sources):
            futures = [decoded[source.form][key] for key in chunk if needs(place, key)]
            workers = -(-source.session.backend.num_requests // at_once) + 1
            made = _run(source, (future.result() for future in futures), task.outputs, workers)
            streams.append(opened.enter_context(contextlib.closing(made)))
        turns = itertools.product(chunk, places) if at_once > 1 else ((key, place) for place in places for key in chunk)
        for key, place in turns:
            if needs(place, key):
                yield place, key, next(streams[place])


def _run(
    source: Source, samples: Iterable[Mapping[str, Array]], names: Sequence[str], workers: int
) -> Generator[dict[str, Array], None, None]:
    """The outputs of these names for each sample, run in batches; the last sample fills an incomplete batch.

    Every call has the same shape, so that kernels that depend on it give the same bits for a sample in any company.
    """
    session, size = source.session, source.batch

    def outputs(batch: list[Mapping[str, Array]]) -> list[dict[str, Array]]:
        full = batch + batch[-1:] * (size - len(batch))
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

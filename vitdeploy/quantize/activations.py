"""Tensors inside an FP32 graph, fetched for batches of images in bounded memory, and their statistics."""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vitdeploy.errors import InputError
from vitdeploy.graph.run import joined, rows
from vitdeploy.machine.settings import usable_cores
from vitdeploy.progress import Progress
from vitdeploy.quantize.layers import widest_window
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.samples import Batch, Images, by_name, length, regroup
from vitdeploy.quantize.segments import Run, bytes_of, groups_of, is_fixed, prune, segments_of

Array = NDArray[Any]
Item = TypeVar("Item")
_Shown = tuple[Array, int]  # a tensor of some images, and how many
_Pop = Callable[[str], list[_Shown]]  # takes a tensor by name: that of each run, one after another

FETCH_BYTES = 48 << 20  # of the tensors of one part of the graph, unless a single one of a single image is larger
MAX_IMAGES = 32  # in one call, unless the graph takes more at once
RUNS = 4  # that fit at least, where single tensors are small enough: side by side on the cores
ALONE = 1 << 20  # bytes of a tensor of one run that is observed alone: joining those of several would only copy them


def collect(model: ir.Model, tensors: Mapping[str, int | None], batches: Iterable[Batch]) -> dict[str, Statistics]:
    """Run the images through an FP32 graph (ONNX Runtime, CPU) and keep the statistics of its tensors.

    model     inputs with a fixed or a free batch in front
    tensors   the tensors to observe, inputs and outputs of the graph included, each with the axis of its channels
              (for samples, see `Statistics`) or None
    batches   arrays [m, ...] by the names of the inputs, of any m, or images float32 [m, 3, height, width] for the
              only one, or `Images`; read once, one after another

    Memory, next to the model: what `Activations` holds at once, twice `FETCH_BYTES` and on each core what the graph
    itself needs between two of its parts, and what `Statistics` states for each tensor. The statistics do not depend on
    how the images are split into batches.

    Raises ExportError for a tensor that the graph does not compute, InputError for images that the graph cannot take,
    and UsageError where there are none or none to learn from.
    """
    activations = Activations(model, tensors)
    values = {value.name: value for value in chain(model.graph.inputs, *(node.outputs for node in model.graph))}
    images = batches if isinstance(batches, Images) else Images(batches)
    statistics = {
        name: Statistics(name, axis, widest_window(values[name]) if axis == 1 else None, images.expected)
        for name, axis in tensors.items()
    }
    with Progress("calibrating", images.expected) as progress:
        observers = {name: one.update for name, one in statistics.items()}
        for count in activations.observe(regroup(images, activations.images), observers):
            progress.advance(count)
    images.check()
    return statistics


class Activations:
    """Called with a batch of the inputs, gives the named tensors one after another, in the order of the graph.

    The graph is cut into segments, so that no more tensors than `FETCH_BYTES` wait in memory at once; what later
    segments read of earlier ones is kept besides. Nothing is computed twice, and every weight is loaded once. A graph
    with a fixed batch runs as often as the images ask for, side by side on the cores: small graphs have little to
    share among threads, and a tensor of many images is observed in less time than many tensors of one.

    names    of the tensors; inputs of the graph may be among them, and are not computed
    sources  the graph's inputs
    images   how many to pass in one call: as many as fit, in whole batches where the graph has a fixed one

    Raises ExportError for a name that the graph does not compute, or that is no float32.
    """

    def __init__(self, model: ir.Model, names: Iterable[str]) -> None:
        model = model.clone()
        self.sources = list(model.graph.inputs)
        given = {value.name for value in self.sources}
        names = [name for name in dict.fromkeys(names) if name not in given]
        values = prune(model, names)
        groups = groups_of(values, names, FETCH_BYTES // RUNS, FETCH_BYTES)
        shape = self.sources[0].shape
        self._fixed = shape[0] if shape is not None else None
        heaviest = max((sum(bytes_of(value, FETCH_BYTES) for value in group) for group in groups), default=0)
        batch = self._fixed if isinstance(self._fixed, int) else 1
        fitting = max(1, min(MAX_IMAGES // batch, FETCH_BYTES // max(heaviest, 1)))  # runs
        if isinstance(self._fixed, int) and not all(map(is_fixed, chain(*groups))):
            fitting = 1  # tensors of several runs may be of several shapes, which cannot lie in one
        self.images = fitting * batch
        self._workers = usable_cores() if isinstance(self._fixed, int) and fitting > 1 else 1
        self._segments = segments_of(model, groups, threads=1 if self._workers > 1 else None)
        # The same threads for all parts: the C library keeps free memory by thread, and new ones find none of it.
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="vitdeploy-segment")

    def __call__(self, batch: Batch) -> Iterator[tuple[str, Array]]:
        """Name and values of each tensor for at most `images` images; the values are gone when the next is asked for.

        Too few images for a fixed batch are filled up with copies of the last one, which are taken off again from
        tensors that have the batch in front. Raises InputError for images of another size.
        """
        for names, pop in self._parts(self._arrays(batch)):
            for name in names:
                yield name, joined([array for array, _ in pop(name)], several=False)
            _return_free_memory()

    def observe(self, batches: Iterable[Batch], observers: Mapping[str, Callable[[Array, int], None]]) -> Iterator[int]:
        """Hand the tensors of batches, inputs included, to their observers by name, with the number of images.

        An observer sees one batch after another; several observers work at once, while the next part of the graph is
        being computed. Tensors of two parts are held for that, and one more on each core. Yields the number of images
        of each batch whose tensors were handed on; when it ends, all of them were seen.
        """
        last: dict[str, Future[None]] = {}
        waiting: deque[Future[None]] = deque()
        cores = usable_cores()
        # Matrix products in numpy would each take all cores, and wait for each other in loops that use them up.
        limits = threadpool_limits(1, user_api="blas")
        with limits, ThreadPoolExecutor(cores, thread_name_prefix="vitdeploy-observe") as pool:
            for images, names, pop in _ahead(self._stream(batches)):
                for name in names:
                    if name not in observers:
                        continue
                    if name in last:
                        last[name].result()
                    last[name] = pool.submit(_show, observers[name], pop(name))
                    waiting.append(last[name])
                    if len(waiting) > cores:
                        waiting.popleft().result()
                if not names:
                    _return_free_memory()
                    yield images
            while waiting:
                waiting.popleft().result()

    def _stream(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Sequence[str], _Pop]]:
        """The number of images of each batch with its inputs, with each part of the graph, and with no name at last."""
        for batch in batches:
            arrays, images = self._arrays(batch), length(batch)
            given = {name: [(array, images)] for name, array in arrays.items()}
            yield images, list(given), given.__getitem__
            for names, pop in self._parts(arrays):
                yield images, names, pop
            yield images, (), given.__getitem__

    def _parts(self, arrays: Mapping[str, Array]) -> Iterator[tuple[Sequence[str], _Pop]]:
        """The tensors that each segment makes, and what takes one of them, which is not kept."""
        step = self._fixed if isinstance(self._fixed, int) else length(arrays)
        runs = [Run(rows(arrays, start, start + step), step) for start in range(0, length(arrays), step)]
        for segment in self._segments:
            made = list(self._pool.map(segment.advance, runs))
            yield segment.names, partial(_pop, runs, made)

    def _arrays(self, batch: Batch) -> dict[str, Array]:
        arrays = by_name(batch, [str(source.name) for source in self.sources])
        self._check(arrays)
        return arrays

    def _check(self, arrays: Mapping[str, Array]) -> None:
        for source in self.sources:
            wanted, batch = list(source.shape or [])[1:], arrays[str(source.name)]
            if any(isinstance(dim, int) and dim != size for dim, size in zip(wanted, batch.shape[1:], strict=False)):
                what = "calibration images are" if len(self.sources) == 1 else f"the arrays for {source.name} are"
                raise InputError(
                    f"{what} {list(batch.shape[1:])}, the network takes {wanted}",
                    fix="preprocess them as the bundle does",
                )


def _pop(runs: Sequence[Run], made: Sequence[dict[str, Any]], name: str) -> list[_Shown]:
    """A tensor of several runs, which is not kept, with the number of images."""
    return [(run.array(one.pop(name)), run.count) for run, one in zip(runs, made, strict=True)]


def _show(observer: Callable[[Array, int], None], parts: list[_Shown]) -> None:
    """Hand the parts of a tensor to its observer: small ones at once, since each call costs time."""
    if parts[0][0].nbytes < ALONE:
        parts = [(joined([array for array, _ in parts], several=False), sum(images for _, images in parts))]
    while parts:
        observer(*parts.pop(0))


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="vitdeploy-ahead") as pool:
        following = pool.submit(list, islice(items, 1))
        while made := following.result():
            following = pool.submit(list, islice(items, 1))
            yield made[0]


def _return_free_memory() -> None:
    """Give the system what is free: the C library of Linux keeps it between tensors of many sizes, hundreds of MiB."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)

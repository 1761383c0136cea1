"""What INT8 costs: the outputs of quantized graphs held against those of FP32, on images not calibrated on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import InputError, UsageError
from vitdeploy.graph.qdq import Array
from vitdeploy.graph.run import Mode, Runner
from vitdeploy.machine.settings import usable_cores
from vitdeploy.progress import Progress
from vitdeploy.quantize.samples import BATCH, SNR_IMAGES, Batch, by_name, length, part, regroup
from vitdeploy.runtime.stream import stream
from vitdeploy.statistics import Paired, best_class, decibels, energies, pair


class Evaluator:
    """Holds quantized graphs against the FP32 graph they were made from, Q and DQ computed as the standard says.

    graph   FP32
    images  batches of its inputs, iterated anew for each measure: arrays by name, or of a network that takes images
            alone float32 [m, 3, H, W]
    labels  class numbers of the images, for `drop`: the classes of the output `scores`, [n, classes]
    scores  its name; None for the first output

    A graph with a fixed batch runs on several batches side by side, one on each core: among the threads of one run
    there is less to share. Memory: `SNR_IMAGES` images and their outputs, and two batches a core, however many images
    there are.

    Raises InputError for labels that are no classes of the graph, UsageError where it has no classes.
    """

    def __init__(
        self,
        graph: ir.Model,
        images: Iterable[Batch],
        labels: Sequence[int] | None = None,
        *,
        scores: str | None = None,
    ) -> None:
        shape = graph.graph.inputs[0].shape
        self._fixed = shape is not None and isinstance(shape[0], int)
        runner = self._runner(graph, "qdq")
        self._images, self._step = images, runner.batch or BATCH
        self._scores = scores or runner.outputs[0]
        self._few = list(regroup(_first(images, SNR_IMAGES), self._step))
        self._expected = list(self._outputs(runner, "computing FP32 outputs"))
        self._labels = None if labels is None else np.asarray(labels, np.int64)
        self._right = None if labels is None else self._answers(runner)

    @property
    def images(self) -> int:
        """How many labelled images judge a drop."""
        return 0 if self._labels is None else len(self._labels)

    @property
    def fp32_top1(self) -> float | None:
        """Top-1 of the FP32 graph in percent; None without labels."""
        return None if self._right is None else 100 * float(self._right.mean())

    def snr_db(self, model: ir.Model, mode: Mode = "qdq") -> float:
        """The smallest of `ratios`; -inf where there is none to measure."""
        return min(self.ratios(model, mode).values(), default=-math.inf)

    def ratios(self, model: ir.Model, mode: Mode = "qdq") -> dict[str, float]:
        """Signal-to-noise ratio of each floating-point output on the first `SNR_IMAGES` images, by its name.

        -inf for an output that is not finite. `mode` is that of `open_session`.
        """
        return self._ratios(self._runner(model, mode), [])

    def measure(self, model: ir.Model, mode: Mode = "qdq") -> tuple[dict[str, float], Paired | None]:
        """`ratios`, and `drop` where there are labels, with one run for each image."""
        runner, chosen = self._runner(model, mode), list[Array]()
        ratios = self._ratios(runner, chosen)
        if self._right is None:
            return ratios, None
        return ratios, pair(self._right, self._answers(runner, chosen))

    def _ratios(self, runner: Runner, chosen: list[Array]) -> dict[str, float]:
        """`ratios`; with labels, the best classes of the same images are added to `chosen`."""
        sums: dict[str, tuple[float, float]] = {}
        for found, expected in zip(self._outputs(runner, "comparing with FP32"), self._expected, strict=True):
            for name, array in found.items():
                signal, noise = energies(expected[name], array)
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + signal, before[1] + noise)
            if self._labels is not None and self._scores in found:
                chosen.append(best_class(found[self._scores]))
        return {name: decibels(signal, noise) for name, (signal, noise) in sums.items()}

    def drop(self, model: ir.Model, mode: Mode = "qdq") -> Paired:
        """Top-1 lost against the FP32 graph, on all images; UsageError without labels.

        An answer that is not finite is wrong. `mode` is that of `open_session`.
        """
        if self._right is None:
            raise UsageError("top-1 cannot be measured without labels", fix="--min-snr 35")
        return pair(self._right, self._answers(self._runner(model, mode)))

    def _outputs(self, runner: Runner, what: str) -> Iterator[dict[str, Array]]:
        """The floating-point outputs for one batch of the first images after another."""
        with Progress(what, sum(map(length, self._few))) as progress:
            for count, found in self._run(runner, self._few):
                progress.advance(count)
                yield {name: array for name, array in found.items() if np.issubdtype(array.dtype, np.floating)}

    def _answers(self, runner: Runner, known: Sequence[Array] = ()) -> NDArray[np.bool_]:
        """Which images have the right class as the best one of the scores; of the first ones it may be `known`."""
        chosen = list(known)
        first = sum(map(len, chosen))
        with Progress("classifying", self.images - first) as progress:
            for count, found in self._run(runner, regroup(_behind(self._images, first), self._step)):
                logits = found[self._scores]
                if not chosen:
                    self._check(logits)
                chosen.append(best_class(logits))
                progress.advance(count)
        right: NDArray[np.bool_] = np.concatenate(chosen) == self._labels
        return right

    def _runner(self, model: ir.Model, mode: Mode) -> Runner:
        return Runner(model, mode, threads=1 if self._fixed else None)

    def _run(self, runner: Runner, batches: Iterable[Batch]) -> Iterator[tuple[int, dict[str, Array]]]:
        """The number of samples of each batch, in their order, and all outputs."""

        def compute(batch: Batch) -> list[tuple[int, dict[str, Array]]]:
            return [(length(batch), runner(by_name(batch, runner.inputs), self._step))]

        return stream(batches, compute, workers=usable_cores() if self._fixed else 1)

    def _check(self, logits: Array) -> None:
        if logits.ndim != 2:
            raise UsageError(
                "--max-drop needs class scores",
                why=f"the output {self._scores} is {list(logits.shape)}, not [n, classes]",
                fix="--min-snr 35",
            )
        if self._labels is not None and self._labels.max() >= logits.shape[1]:
            raise InputError(
                f"DATA has class number {self._labels.max()}",
                why=f"the network has classes 0 to {logits.shape[1] - 1}",
                fix="number the classes from 0 in the network's order, or name them by --labels",
            )


def _first(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The first `count` images, in batches."""
    for batch in batches:
        yield part(batch, 0, count)
        count -= length(batch)
        if count <= 0:
            return


def _behind(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The images behind the first `count`, in batches."""
    for batch in batches:
        here = length(batch)
        if count < here:
            yield part(batch, count, here)
        count = max(0, count - here)

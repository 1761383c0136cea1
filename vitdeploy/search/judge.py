"""What a loaded model loses against FP32 on images that it was not calibrated on."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.graph.edit import Array
from vitdeploy.graph.run import fill, samples_in, take
from vitdeploy.quantize.samples import BATCH, CalibrationSet, by_name, regroup
from vitdeploy.runtime.backends import Backend
from vitdeploy.statistics import Paired, best_class, decibels, energies, pair


class Judge:
    """Holds what a runtime computes against what FP32 gives there.

    fp32     the network in FP32; its answers are the reference, and its inputs those of all others
    samples  whose part for evaluation judges, held in memory with the answers
    labels   class numbers of these; None where they have none
    scores   the output that has the class scores; None where none is known to

    Its `seconds` are those that FP32 takes for one of the samples. Raises BackendError where FP32 cannot run.
    """

    def __init__(
        self, fp32: Backend, samples: CalibrationSet, labels: Sequence[int] | None, scores: str | None
    ) -> None:
        names = [spec.name for spec in fp32.inputs]
        first = fp32.inputs[0].shape[0]
        self._step = first if isinstance(first, int) else BATCH
        self._fixed = isinstance(first, int)
        self._batches = [by_name(batch, names) for batch in regroup(samples.evaluation(), self._step)]
        begin = time.perf_counter()
        self._expected = [self._answers(fp32, batch) for batch in self._batches]
        self.seconds = (time.perf_counter() - begin) / max(1, self.images)
        self._scores = None if labels is None else scores
        self._labels = None if labels is None else np.asarray(labels, np.int64)
        self._right = None if self._scores is None else self._rightly(self._expected)

    @property
    def images(self) -> int:
        """How many judge."""
        return sum(map(samples_in, self._batches))

    @property
    def inputs(self) -> dict[str, Array]:
        """One batch, as a call takes it."""
        first = self._batches[0]
        return {name: fill(array, self._step) if self._fixed else array[:1] for name, array in first.items()}

    def __call__(self, backend: Backend) -> tuple[float, Paired | None]:
        """Signal to noise of the worst floating-point output in dB, and the drop of top-1 where there are labels."""
        found = [self._answers(backend, batch) for batch in self._batches]
        sums: dict[str, NDArray[np.float64]] = {}
        for expected, actual in zip(self._expected, found, strict=True):
            for name, array in expected.items():
                if np.issubdtype(array.dtype, np.floating):
                    sums[name] = sums.get(name, np.zeros(2)) + energies(array, actual[name])
        ratios = [decibels(float(signal), float(noise)) for signal, noise in sums.values()]
        return min(ratios, default=float("inf")), None if self._right is None else pair(
            self._right, self._rightly(found)
        )

    def _answers(self, backend: Backend, batch: dict[str, Array]) -> dict[str, Array]:
        count = samples_in(batch)
        whole = {name: fill(array, self._step) for name, array in batch.items()} if self._fixed else batch
        full = self._step if self._fixed else count
        return {name: take(array, count, full) for name, array in backend.run(whole).items()}

    def _rightly(self, answers: Sequence[dict[str, Array]]) -> NDArray[np.bool_]:
        assert self._scores is not None, "there is something to judge by"
        chosen = np.concatenate([best_class(one[self._scores]) for one in answers])
        right: NDArray[np.bool_] = chosen == self._labels
        return right

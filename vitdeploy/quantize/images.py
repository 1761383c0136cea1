"""The calibration images: counted, hashed, and refused where no range could be trusted that came from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import InputError, UsageError

Array = NDArray[Any]

log = logging.getLogger("vitdeploy.calibration")

ENOUGH = 32  # images; published INT8 results for vision transformers start here (PTQ4ViT)
_NAMED = 5


class Images:
    """Batches of preprocessed images float32 [n, 3, height, width] on their way into a network.

    Iterating hands the batches on and records every image; `check` then says whether they were fit to calibrate on.

    names   what messages call the images, in their order; by default `image 0`, `image 1`, ...
    hashes  SHA-256 of each image's float32 values, in hexadecimal
    flat    indices of the images without any contrast: every channel has a single value
    """

    def __init__(self, batches: Iterable[Array], *, names: Sequence[str] | None = None) -> None:
        self._batches, self._names = batches, names
        self.hashes: list[str] = []
        self.flat: list[int] = []

    def __iter__(self) -> Iterator[Array]:
        """The batches; InputError for one that is of another kind, or holds NaN or Inf."""
        for batch in self._batches:
            if batch.ndim != 4 or batch.shape[1] != 3 or batch.dtype != np.float32:
                raise InputError(
                    f"a calibration batch is {batch.dtype} {list(batch.shape)}",
                    fix="preprocessed images, float32 [n, 3, height, width]",
                )
            for image in batch:
                self._record(np.ascontiguousarray(image))
            yield batch

    @property
    def expected(self) -> int | None:
        """Images there will be; None where nobody named them."""
        return None if self._names is None else len(self._names)

    @property
    def count(self) -> int:
        """Images seen so far."""
        return len(self.hashes)

    def check(self) -> None:
        """UsageError where the images cannot calibrate anything; a warning where they are few, flat or repeated."""
        if not self.count:
            raise UsageError("there are no calibration images", fix="--calibration with a folder, zip or npz of images")
        distinct = len(set(self.hashes))
        if len(self.flat) == self.count:
            raise UsageError(
                f"all {self.count} calibration images are flat, for example all black",
                why="activations of such images say nothing about the ranges of real ones",
                fix="check the images and their preprocessing",
            )
        if distinct == 1 and self.count > 1:
            raise UsageError(
                f"all {self.count} calibration images are the same image", fix="images like those of the task"
            )
        if distinct < ENOUGH:
            log.warning(
                "only %d calibration image%s: ranges may be too narrow; give %d or more, better 300",
                distinct,
                ("" if distinct == 1 else "s") + (" that differ" if distinct < self.count else ""),
                ENOUGH,
            )
        elif distinct < self.count:
            log.warning("%d of %d calibration images are repetitions", self.count - distinct, self.count)
        if self.flat:
            some = ", ".join(map(self._name, self.flat[:_NAMED])) + (", …" if len(self.flat) > _NAMED else "")
            log.warning("%d of %d calibration images are flat: %s", len(self.flat), self.count, some)

    def _record(self, image: Array) -> None:
        if not np.isfinite(image).all():
            raise InputError(f"{self._name(self.count)} holds NaN or Inf after preprocessing", fix="check that image")
        if np.all(image.max(axis=(1, 2)) == image.min(axis=(1, 2))):
            self.flat.append(self.count)
        self.hashes.append(hashlib.sha256(image.tobytes()).hexdigest())

    def _name(self, index: int) -> str:
        return self._names[index] if self._names is not None else f"image {index}"

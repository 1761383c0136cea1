"""The inputs that a bundle proves itself on: images, and for other inputs what was given, or made values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.exporter.inputs import InputSpec, made_values
from vitdeploy.exporter.reference import choose_images
from vitdeploy.exporter.sources.subject import Subject
from vitdeploy.graph.run import Array

MADE = 8  # samples of a network that takes no images

Given = NDArray[Any] | Mapping[str, NDArray[Any]] | Sequence[str | Path] | None


class ReferenceInputs(NamedTuple):
    """Samples in whole batches.

    kinds   what each sample is, see `choose_images`; without images `given` or `made`
    inputs  as the network sees them, by name
    pixels  RGB uint8 [n, H, W, 3] of a network that takes images alone, where there are such
    """

    kinds: tuple[str, ...]
    inputs: dict[str, Array]
    pixels: Array | None


def choose_inputs(subject: Subject, given: Given, *, batch: int) -> ReferenceInputs:
    """What proves a bundle of `subject`, in whole batches.

    `given` are images, as `choose_images` takes them, or an array for each input by its name. Without any, images are
    the photographs of the package, and other inputs the examples that the network came with, or made values. Raises
    UsageError for what does not fit the inputs.
    """
    arrays = _by_name(subject, given)
    kinds, pixels = None, None
    made: dict[str, Array] = {}
    for index, name in enumerate(subject.images):
        images: Any = arrays.get(name) if arrays is not None else given
        chosen = choose_images(images, subject.card.preprocessing, batch=batch)
        # Two images of a pair are not the same, such as those of a pair of cameras.
        made[name] = chosen.images if arrays is not None or not index else np.roll(chosen.images, index, axis=0)
        kinds, pixels = chosen.kinds, chosen.pixels
    if kinds is None:
        known = subject.examples if arrays is None else arrays
        count = max((len(array) for array in known.values()), default=0)
        total = -(-max(count, MADE if arrays is None else 1) // batch) * batch
        told = count if arrays is None else total  # given arrays begin again in the last batch, examples do not
        kinds = ("given",) * told + ("made",) * (total - told)
    for index, spec in enumerate(subject.inputs):
        if spec.name not in made:
            source = arrays if arrays is not None else subject.examples
            made[spec.name] = _values(spec, source.get(spec.name), len(kinds), index, whole=arrays is not None)
    inputs = {spec.name: made[spec.name] for spec in subject.inputs}
    return ReferenceInputs(kinds, inputs, pixels if len(subject.inputs) == 1 else None)


def _by_name(subject: Subject, given: Given) -> dict[str, Array] | None:
    """The arrays that were given for the inputs; None where images were given, or nothing."""
    if given is None:
        return None
    names = [spec.name for spec in subject.inputs]
    if not isinstance(given, Mapping):
        if len(names) == 1 and subject.images:
            return None
        raise UsageError(
            f"{subject.card.name} does not take images alone",
            why=f"its inputs are {', '.join(names)}",
            fix="--reference FILE.npz with an array for each of them, by its name",
        )
    arrays = {str(name): np.asarray(array) for name, array in given.items()}
    if arrays.keys() != set(names):
        raise UsageError(
            f"the reference has the arrays {', '.join(arrays) or 'of no input'}",
            why=f"the inputs of {subject.card.name} are {', '.join(names)}",
            fix="one array for each input, by its name, with the samples along the first axis",
        )
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) > 1 or 0 in counts:
        raise UsageError(
            f"the arrays of the reference have {', '.join(map(str, sorted(counts)))} samples",
            fix="as many samples, at least one, along the first axis of every array",
        )
    return arrays


def _values(spec: InputSpec, known: Array | None, count: int, seed: int, *, whole: bool) -> Array:
    """`count` samples of an input that is no image: the known ones, from the start again or before made ones."""
    if known is None:
        return made_values(spec, count, seed)
    if known.shape[1:] != spec.shape or np.dtype(spec.dtype).kind != known.dtype.kind:
        raise UsageError(
            f"the reference for {spec.name} is {known.dtype} {list(known.shape)}",
            fix=f"{spec.dtype} [n, {', '.join(map(str, spec.shape))}]",
        )
    known = known.astype(spec.dtype)
    if whole or len(known) >= count or known.dtype.kind != "f":
        return known[np.arange(count) % len(known)]
    return np.concatenate([known, made_values(spec, count, seed)])[:count]

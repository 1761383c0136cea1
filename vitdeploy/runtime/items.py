"""The items of a stream: held against what the model takes, gathered to batches, and their exceptions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import TensorSpec
from vitdeploy.errors import InputError, UsageError

Array = NDArray[Any]


def checked(array: Any, spec: TensorSpec) -> Array:
    """The array as a backend may take it: shape and dtype right, contiguous, native byte order.

    Raises InputError for anything else than an array that `spec` describes.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(f"a {type(array).__name__} is not an array", fix="a numpy array, e.g. numpy.asarray(images)")
    if array.dtype.name != spec.dtype:
        raise InputError(
            f"{spec.name} is {array.dtype.name}, but the model takes {spec.dtype}",
            fix="RGB pixels as they are: the graph normalises them"
            if spec.dtype == "uint8"
            else f"{spec.name}.astype(numpy.{spec.dtype}); session.predict takes uint8 images",
        )
    if not spec.admits(array.shape):
        batch = spec.shape[0]
        only_batch = isinstance(batch, int) and spec.admits((batch, *array.shape[1:]))
        raise InputError(
            f"{spec.name} has shape {list(array.shape)}, but the model takes {spec}",
            why=f"it was exported for batches of exactly {batch}" if only_batch else None,
            fix="vitdeploy export MODEL --batch dynamic, for a bundle that takes any number"
            if only_batch
            else "session.predict(images), which resizes images as the bundle records",
        )
    return np.require(array, spec.dtype, ["C_CONTIGUOUS", "ALIGNED"])


def attempt(function: Callable[[Any], Array], argument: Any) -> Array | Exception:
    """What the function returns, or the exception that it raises."""
    try:
        return function(argument)
    except Exception as error:
        return error


def check_on_error(on_error: str) -> None:
    """UsageError for an `on_error` that is neither `raise` nor `return`."""
    if on_error not in ("raise", "return"):
        raise UsageError(f"on_error is {on_error!r}", fix="raise or return")


def raising(results: Generator[Array | Exception, None, None]) -> Iterator[Array]:
    """The results up to the first exception among them, which is raised."""
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, Exception):
                raise result
            yield result


def batches(items: Iterable[Any], size: int, *, whole_batches: bool) -> Iterator[list[Any] | Array]:
    """Items gathered to lists of at most `size`; with `whole_batches` an array [N, 3, H, W] passes alone."""
    gathered: list[Any] = []
    try:
        for item in items:
            if whole_batches and isinstance(item, np.ndarray) and item.ndim == 4:
                if gathered:
                    yield gathered
                yield item
                gathered = []
                continue
            gathered.append(item)
            if len(gathered) == size:
                yield gathered
                gathered = []
    except Exception:
        if gathered:
            yield gathered
        raise
    if gathered:
        yield gathered

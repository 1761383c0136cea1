"""The inputs of a network: what they are called, which shape they have, and which of them are images."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.models.outputs import IMAGES

Array = NDArray[Any]

DYNAMIC = "dynamic"
LARGEST_BYTES = 1 << 31
DTYPES = ("float32", "int64", "int32", "uint8", "int8", "bool")
_EXAMPLE = "--input images=1x3x224x224, or --input ids=1x77:int64"


@dataclass(frozen=True)
class InputSpec:
    """One input of a network.

    shape  of a single sample, without the batch in front
    dtype  a name of numpy
    image  whether preprocessing makes it out of an image
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    image: bool = False


def parse_input(text: str) -> tuple[InputSpec, int | str]:
    """`NAME=SHAPE[:DTYPE]` with the batch in front, such as `images=1x13x64x64`, as an input and its batch.

    The batch is a number, or a word such as `batch` where it is free. Raises UsageError for anything else.
    """
    name, equals, form = text.partition("=")
    shape, _, dtype = form.partition(":")
    first, *rest = shape.lower().split("x") if equals else [""]
    free = not first.isdecimal() and first.isidentifier()
    if not name or not (free or first.isdecimal()) or not all(axis.isdecimal() and int(axis) > 0 for axis in rest):
        named = next((axis for axis in rest if axis.isidentifier()), None)
        raise UsageError(
            f"invalid input {text!r}",
            why=f"only the first axis, the batch, can be free, and {named!r} is no number" if named else None,
            fix=f"NAME=SHAPE[:DTYPE] with the batch first: {_EXAMPLE}",
        )
    if (dtype or "float32") not in DTYPES:
        raise UsageError(f"invalid type {dtype!r} of the input {name}", fix=f"one of {', '.join(DTYPES)}")
    if not free and int(first) < 1:
        raise UsageError(f"invalid batch {first} of the input {name}", fix=f"1 or more: {_EXAMPLE}")
    return InputSpec(name, tuple(map(int, rest)), dtype or "float32"), DYNAMIC if free else int(first)


def specs_of(examples: Mapping[str, Array]) -> tuple[InputSpec, ...]:
    """The inputs that example inputs show, of which each has the batch in front."""
    for name, array in examples.items():
        if not array.ndim:
            raise UsageError(
                f"the example for the input {name} has no batch axis",
                why="every input has the batch as its first axis",
                fix="make what is the same for all samples a buffer of the module",
            )
        if array.dtype.name not in DTYPES:
            raise UsageError(
                f"the example for the input {name} is {array.dtype}", fix=f"a tensor of {', '.join(DTYPES)}"
            )
    counts = {len(array) for array in examples.values()}
    if len(counts) > 1:
        raise UsageError(
            f"the example inputs have batches of {', '.join(map(str, sorted(counts)))}",
            why="every input has the batch as its first axis",
            fix="examples of one batch; make what is the same for all samples a buffer of the module",
        )
    return tuple(InputSpec(name, array.shape[1:], array.dtype.name) for name, array in examples.items())


def image_inputs(size: tuple[int, int], channels: int) -> tuple[InputSpec, ...]:
    """The one input of a network that takes nothing but images."""
    return (InputSpec(IMAGES, (channels, *size), image=True),)


def with_images(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The same inputs, of which the first that is float32 [N, C, H, W] is images, and others of the same shape too."""
    shape = next((spec.shape for spec in specs if spec.dtype == "float32" and len(spec.shape) == 3), None)
    return tuple(replace(spec, image=spec.dtype == "float32" and spec.shape == shape) for spec in specs)


def made_values(spec: InputSpec, count: int, seed: int) -> Array:
    """`count` samples of an input that is no image: numbers around 0 of variance 1, whole numbers 0 and 1, or flags.

    The first sample is all zeros: what is absent often looks like that.
    """
    rng = np.random.default_rng(seed)
    shape = (count, *spec.shape)
    made: Any = rng.standard_normal(shape) if spec.dtype == "float32" else rng.integers(0, 2, shape)
    made[:1] = 0
    values: Array = made.astype(spec.dtype)
    return values


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz by name; UsageError for a file that is none, or too large."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", fix=f"check the path: ls {path.parent}")
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > LARGEST_BYTES:
            raise UsageError(f"{path} is too large", why=f"unpacked it has {total:,} bytes", fix="fewer samples")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UsageError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds of errors on damaged files
        raise UsageError(
            f"{path} cannot be read", why=str(error) or type(error).__name__, fix="write it again with numpy.savez"
        ) from error

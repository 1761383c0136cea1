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
FREE_LENGTH = 16  # of a free axis that nothing says a length of
LARGEST_BYTES = 1 << 31
DTYPES = ("float32", "int64", "int32", "uint8", "int8", "bool")
_EXAMPLE = "--input images=1x3x224x224, or --input ids=1x77:int64"


@dataclass(frozen=True)
class InputSpec:
    """One input of a network.

    shape  of a single sample, without the batch in front; for a free axis the length that the bundle is proven at
    dtype  a name of numpy
    image  whether preprocessing makes it out of an image
    free   for each axis of `shape` its name where its length is free, else None; empty where none is
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    image: bool = False
    free: tuple[str | None, ...] = ()


def parse_input(text: str) -> tuple[InputSpec, int | str]:
    """`NAME=SHAPE[:DTYPE]` with the batch in front, such as `images=1x13x64x64`, as an input and its batch.

    The batch is a number, or a word such as `batch` where it is free. So is every other axis, whose length in `shape`
    is then 0 for now, see `sized`. Raises UsageError for anything else.
    """
    name, equals, form = text.partition("=")
    shape, _, dtype = form.partition(":")
    first, *rest = shape.lower().split("x") if equals else [""]
    free = not first.isdecimal() and first.isidentifier()
    known = all(axis.isidentifier() or (axis.isdecimal() and int(axis) > 0) for axis in rest)
    if not name or not (free or first.isdecimal()) or not known:
        raise UsageError(
            f"invalid input {text!r}",
            why="an axis is a number of at least 1, or a word where its length is free",
            fix=f"NAME=SHAPE[:DTYPE] with the batch first: {_EXAMPLE}",
        )
    if (dtype or "float32") not in DTYPES:
        raise UsageError(f"invalid type {dtype!r} of the input {name}", fix=f"one of {', '.join(DTYPES)}")
    if not free and int(first) < 1:
        raise UsageError(f"invalid batch {first} of the input {name}", fix=f"1 or more: {_EXAMPLE}")
    lengths = tuple(int(axis) if axis.isdecimal() else 0 for axis in rest)
    names = tuple(None if axis.isdecimal() else axis for axis in rest)
    spec = InputSpec(name, lengths, dtype or "float32", free=names if any(names) else ())
    return spec, DYNAMIC if free else int(first)


def sized(
    specs: Sequence[InputSpec], image_size: tuple[int, int] | None, known: Mapping[str, Array]
) -> tuple[InputSpec, ...]:
    """The same inputs with a length for each free axis, the same one for all axes of one name.

    It is that of the `known` values of the input, or for images [C, H, W] that of `image_size`, or else 16. Raises
    UsageError for lengths that contradict each other.
    """
    found: dict[str, int] = {}

    def note(spec: InputSpec, shape: Sequence[int], first: int, what: str) -> None:
        for name, length in zip(spec.free[first:], shape, strict=True):
            if name is not None and found.setdefault(name, length) != length:
                raise UsageError(
                    f"the axis {name} of the input {spec.name} is {length} long in {what}, and {found[name]} before",
                    fix="another name for it in --input, or one length",
                )

    for spec in (spec for spec in specs if spec.free):
        array = known.get(spec.name)
        if array is not None and array.ndim == len(spec.shape) + 1:
            note(spec, array.shape[1:], 0, "its values")
        elif image_size is not None and spec.dtype == "float32" and len(spec.shape) == 3:
            note(spec, image_size, 1, "--image-size")
    return tuple(
        replace(spec, shape=tuple(n or found.get(str(name), FREE_LENGTH) for n, name in _axes(spec))) for spec in specs
    )


def freed(specs: Sequence[InputSpec], asked: Sequence[InputSpec], network: str) -> tuple[InputSpec, ...]:
    """The inputs of a network that says them itself, with the axes free that `asked` has words for.

    Raises UsageError for an input that it does not have, and for other numbers than its own.
    """
    known = {spec.name: spec for spec in specs}
    for one in asked:
        spec = known.get(one.name)
        fits = spec is not None and spec.dtype == one.dtype and len(spec.shape) == len(one.shape)
        if spec is None or not fits or any(a not in (0, b) for a, b in zip(one.shape, spec.shape, strict=True)):
            takes = ", ".join(f"{each.name}=1x{'x'.join(map(str, each.shape))}" for each in specs)
            raise UsageError(
                f"{network} takes no input {one.name}={'x'.join(map(str, (1, *lengths(one))))}",
                why=f"it takes {takes}",
                fix="--image-size for another size; a word in the place of a number of --input leaves that axis free",
            )
        known[one.name] = replace(spec, free=one.free)
    return tuple(known.values())


def check_size(specs: Sequence[InputSpec], image_size: tuple[int, int] | None) -> None:
    """UsageError for a size of images where the inputs say all their lengths themselves."""
    if image_size is not None and specs and not any(len(spec.shape) == 3 and any(spec.free[1:]) for spec in specs):
        raise UsageError("--image-size and --input say the same", fix="one of them")


def lengths(spec: InputSpec) -> tuple[int | str, ...]:
    """The axes of one sample as a graph states them: free ones by name."""
    return tuple(name or length for length, name in _axes(spec))


def _axes(spec: InputSpec) -> list[tuple[int, str | None]]:
    return list(zip(spec.shape, spec.free or (None,) * len(spec.shape), strict=True))


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

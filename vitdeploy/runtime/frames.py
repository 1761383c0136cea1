"""Messages between two processes: a JSON object and arrays, read without trusting who wrote them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import errors
from vitdeploy.bundle.manifest import DTYPES, LARGEST_REFERENCE
from vitdeploy.errors import BackendError, VitDeployError

Array = NDArray[Any]

LARGEST_HEADER = 1 << 24
_LENGTH = struct.Struct("<I")


class FrameError(Exception):
    """No whole frame arrived, or one that is none."""


def write_frame(stream: IO[bytes], message: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write `message` (JSON values) and `arrays`; raises what the stream raises."""
    given = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = [[name, array.dtype.name, list(array.shape)] for name, array in given.items()]
    header = json.dumps({"message": message, "arrays": described}).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in given.values():
        stream.write(array.tobytes())
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The next frame; FrameError where it ends early, is no frame, or is larger than anything that is proven."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > LARGEST_HEADER:
        raise FrameError(f"a header of {length:,} bytes")
    try:
        header = json.loads(_exactly(stream, length))
        message, described = (
            dict(header["message"]),
            [(str(n), str(d), [int(a) for a in s]) for n, d, s in header["arrays"]],
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FrameError(f"a header that is none: {error}") from None
    sizes = [math.prod(shape) * np.dtype(kind).itemsize if kind in DTYPES else -1 for _, kind, shape in described]
    if any(min(shape, default=0) < 0 for *_, shape in described) or min(sizes, default=0) < 0:
        raise FrameError("an array of no type or shape that a bundle has")
    if sum(sizes) > LARGEST_REFERENCE:
        raise FrameError(f"arrays of {sum(sizes):,} bytes")
    arrays = {
        name: np.frombuffer(bytearray(_exactly(stream, size)), kind).reshape(shape)
        for (name, kind, shape), size in zip(described, sizes, strict=True)
    }
    return message, arrays


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise FrameError("the stream ended")
    return data


def told(error: VitDeployError) -> dict[str, Any]:
    """An error as JSON values, for `raised_there`."""
    return {"kind": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}


def raised_there(values: Any) -> VitDeployError:
    """The error that another process told, as if it had been raised here; BackendError for a kind that there is not."""
    texts = {key: None if values.get(key) is None else str(values[key]) for key in ("kind", "what", "why", "fix")}
    # Its class may have a constructor of its own.
    cls = getattr(errors, texts["kind"] or "", BackendError)
    if not (isinstance(cls, type) and issubclass(cls, VitDeployError)):
        cls = BackendError
    error: VitDeployError = cls.__new__(cls)
    VitDeployError.__init__(error, texts["what"] or "", why=texts["why"], fix=texts["fix"])
    return error

"""Reading `reference.npz`: what its headers say is held against the manifest before any values are read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle.manifest import LARGEST_REFERENCE, Manifest, TensorSpec
from vitdeploy.bundle.preprocessing_sample import PIXELS, VALUES, PreprocessingSample, sample_type
from vitdeploy.errors import BundleError

Array = NDArray[Any]


class Reference(NamedTuple):
    """What a bundle is proven on.

    inputs         by tensor name
    outputs        what PyTorch computed from them, by tensor name
    file           what the file computes from them by the ONNX standard, all floats in float32, by tensor name; empty
                   in FP32, where that is what PyTorch computed, and in a bundle from before it was kept
    preprocessing  what the recorded preprocessing makes of an image; None in a bundle from before it was kept
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    file: Mapping[str, Array] = MappingProxyType({})
    preprocessing: PreprocessingSample | None = None


class _Header(NamedTuple):
    member: str
    shape: tuple[int, ...]
    bytes: int


def read_reference(data: bytes, manifest: Manifest, *, where: str) -> Reference:
    """The reference in the bytes of `reference.npz`: finite values of the manifest's shapes and types.

    Members that the manifest does not call for are not read. Raises BundleError, which names `where`, for everything
    else that does not fit.
    """
    if len(data) > LARGEST_REFERENCE:
        raise too_large(where, len(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Reader(archive, where).read(manifest)
    except BundleError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds of errors on damaged files
        raise _bad(where, str(error) or type(error).__name__) from error


def too_large(where: str, size: int) -> BundleError:
    """The error for a reference of `size` bytes."""
    return BundleError(
        f"{where} is too large",
        why=f"it has {size:,} bytes, more than {LARGEST_REFERENCE:,}, and all of them would be in memory",
        fix="export the bundle again with fewer reference images",
    )


def _bad(where: str, why: str) -> BundleError:
    return BundleError(f"{where} cannot be the reference of this bundle", why=why, fix="export the bundle again")


class _Reader:
    """The members of an opened archive, by the names that `numpy.savez` was given."""

    def __init__(self, archive: zipfile.ZipFile, where: str) -> None:
        self._archive, self._where = archive, where
        self._members = {info.filename: info for info in archive.infolist()}
        self._promised = 0

    def read(self, manifest: Manifest) -> Reference:
        inputs = self._headers("input", manifest.inputs, lambda spec: ("batch", *spec.shape[1:]))
        samples = self._samples(manifest, inputs)
        outputs = self._headers("output", manifest.outputs, lambda spec: _rows(spec, manifest, samples))
        file = {}
        if any(member.startswith("file.") for member in self._members):
            file = self._headers("file", manifest.outputs, lambda spec: _rows(spec, manifest, samples))
        sides = [{name: self._values(header) for name, header in side.items()} for side in (inputs, outputs, file)]
        return Reference(sides[0], sides[1], sides[2], self._preprocessing(manifest))

    def _headers(
        self, prefix: str, specs: Iterable[TensorSpec], shape: Callable[[TensorSpec], tuple[int | str, ...]]
    ) -> dict[str, _Header]:
        """The headers of the members `prefix.NAME`, of which each has the type of its spec and the `shape` for it."""
        found = {}
        for spec in specs:
            wanted = replace(spec, shape=shape(spec))
            found[spec.name] = header = self._header(f"{prefix}.{spec.name}", spec.dtype)
            if not wanted.admits(header.shape):
                raise self._bad(f"{prefix} {spec.name} is {list(header.shape)}, the manifest says {wanted}")
        return found

    def _samples(self, manifest: Manifest, inputs: dict[str, _Header]) -> int:
        """How many samples there are: as many in every input, in whole batches where the batch is fixed."""
        counts = {header.shape[0] for header in inputs.values()}
        batch, count = manifest.inputs[0].shape[0], max(counts)
        if len(counts) > 1:
            raise self._bad("its inputs differ in the number of samples")
        if isinstance(batch, int) and count % batch:
            raise self._bad(f"its {count} samples do not fill batches of {batch}")
        return count

    def _header(self, name: str, dtype: str) -> _Header:
        """Type and shape as the member itself says, and as its length has to confirm."""
        info = self._members.get(f"{name}.npy")
        if info is None:
            raise self._bad(f"it has no {name}")
        # As numpy.savez writes it, so that no member is larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise self._bad(f"{name} is compressed, and vitdeploy writes it as it is")
        with self._archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise self._bad(f"{name} is of version {version} of the format of numpy")
            shape, _, found = read[version](stream)
            length = stream.tell()
        if found != np.dtype(dtype):
            raise self._bad(f"{name} is of type {found}, the manifest says {dtype}")
        values = found.itemsize * int(np.prod(shape, dtype=object))
        if length + values != info.file_size:
            raise self._bad(f"{name} has {info.file_size - length:,} bytes of values instead of {values:,}")
        self._promised += values  # members of a crafted archive may overlap
        if self._promised > LARGEST_REFERENCE:
            raise too_large(self._where, self._promised)
        return _Header(f"{name}.npy", shape, values)

    def _values(self, header: _Header) -> Array:
        with self._archive.open(header.member) as stream:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            broken = np.count_nonzero(~np.isfinite(array))
            raise self._bad(f"{broken} of {array.size} values of {header.member.removesuffix('.npy')} are NaN or Inf")
        return array

    def _preprocessing(self, manifest: Manifest) -> PreprocessingSample | None:
        if manifest.preprocessing is None or not {f"{PIXELS}.npy", f"{VALUES}.npy"} & self._members.keys():
            return None
        recipe = manifest.recipe
        pixels, values = self._header(PIXELS, sample_type(recipe)), self._header(VALUES, "float32")
        largest = recipe.depth * recipe.size[0] * recipe.size[1]
        if len(pixels.shape) != 3 or pixels.shape[2] != recipe.depth or not min(pixels.shape) > 0:
            raise self._bad(f"{PIXELS} is {list(pixels.shape)}, which is no image")
        if len(values.shape) != 1 or not 0 < values.shape[0] <= largest:
            raise self._bad(f"{VALUES} is {list(values.shape)}, and the input of the network has {largest} values")
        return PreprocessingSample(self._values(pixels), self._values(values))

    def _bad(self, why: str) -> BundleError:
        return _bad(self._where, why)


def _rows(spec: TensorSpec, manifest: Manifest, samples: int) -> tuple[int | str, ...]:
    """The shape of an output for all samples, one call of the model after the other where its batch is fixed."""
    batch = manifest.inputs[0].shape[0]
    if not spec.shape:
        return (samples // batch,) if isinstance(batch, int) else ()
    length = spec.shape[0]
    if isinstance(length, str):
        return (samples, *spec.shape[1:])
    return (length * (samples // batch) if isinstance(batch, int) else length, *spec.shape[1:])

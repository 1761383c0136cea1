"""A bundle on disk: a folder that is complete or not there, and whose every file is the one the manifest names."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import BundleError
from vitdeploy.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    FileRecord,
    JsonObject,
    Manifest,
    ModelRecord,
    TensorSpec,
    WeightsRecord,
    dump,
    parse,
)

__all__ = [
    "MANIFEST",
    "MODEL",
    "REFERENCE",
    "SCHEMA_VERSION",
    "Bundle",
    "BundleWriter",
    "FileRecord",
    "Manifest",
    "ModelRecord",
    "Reference",
    "TensorSpec",
    "WeightsRecord",
]

MODEL = "model.onnx"
REFERENCE = "reference.npz"

_CHUNK = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Array = NDArray[Any]


class Reference(NamedTuple):
    """Inputs and what PyTorch made of them, both by tensor name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


class Bundle:
    """A bundle that was opened: `path`, `manifest`, and files that are only handed out when they are the manifest's."""

    def __init__(self, path: Path, document: JsonObject) -> None:
        self.path = path
        self.manifest = Manifest.from_dict(document, where=str(path))
        self._document = document

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """The bundle in the folder `path`; its files are present but not hashed yet, see `read` and `check_files`.

        Raises BundleError where there is none, where its manifest is damaged or of a newer schema, and where a file is
        missing or lies outside the folder.
        """
        path = Path(path)
        try:
            if not path.exists():
                raise BundleError(f"there is no bundle at {path}", fix=f"vitdeploy export lemevit_tiny -o {path}")
            if not path.is_dir():
                raise BundleError(f"{path} is a file; a bundle is a folder")
            if not (path / MANIFEST).is_file():
                raise BundleError(f"{path} is not a bundle", why=f"it has no {MANIFEST}")
        except OSError as error:
            raise BundleError(f"cannot read {path}", why=error.strerror) from error
        bundle = cls(path, parse(_read(path / MANIFEST), where=str(path)))
        for name in bundle.manifest.files:
            bundle._locate(name)
        return bundle

    def read(self, name: str) -> bytes:
        """The contents of one file, checked against the manifest: what a runtime loads is what was verified."""
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{self.path} has no {name}", why="its manifest does not list it", fix="export it again")
        data = _read(self._locate(name))
        self._compare(name, FileRecord(hashlib.sha256(data).hexdigest(), len(data)))
        return data

    def check_files(self) -> None:
        """Presence, length and hash of every file; a BundleError names the first that is not the manifest's."""
        for name in self.manifest.files:
            path = self._locate(name)
            try:
                found = _record(path)
            except OSError as error:
                raise BundleError(f"cannot read {path}", why=error.strerror) from error
            self._compare(name, found)

    def reference(self) -> Reference:
        """The reference inputs and PyTorch outputs, which fit the manifest's signature."""
        arrays = _load_arrays(self.read(REFERENCE), where=f"{self.path / REFERENCE}")
        sides: list[dict[str, Array]] = []
        for prefix, specs in (("input", self.manifest.inputs), ("output", self.manifest.outputs)):
            side = {}
            for spec in specs:
                array = arrays.get(f"{prefix}.{spec.name}")
                # Any number of samples: a model of fixed batch takes them a batch at a time.
                if array is None or not replace(spec, shape=("batch", *spec.shape[1:])).admits(array.shape):
                    raise BundleError(f"{self.path / REFERENCE} has no {prefix} {spec}", fix="export the bundle again")
                side[spec.name] = array
            sides.append(side)
        return Reference(*sides)

    def update_results(
        self, *, parity: list[JsonObject] | None = None, accuracy: list[JsonObject] | None = None
    ) -> None:
        """Replaces the measurements given, atomically; everything else in the manifest stays as it is."""
        given = {"parity": parity, "accuracy": accuracy}
        document = {**self._document, **{key: value for key, value in given.items() if value is not None}}
        text = dump(document)
        document = json.loads(text)
        manifest = Manifest.from_dict(document, where=str(self.path))
        temporary = self.path / f".{MANIFEST}.{secrets.token_hex(4)}"
        try:
            _write(temporary, text)
            temporary.replace(self.path / MANIFEST)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        self.manifest, self._document = manifest, document

    def _locate(self, name: str) -> Path:
        path = self.path / name
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path)):
            raise BundleError(f"{path} leads out of the bundle", why="it is a link to another place")
        if not path.is_file():
            raise BundleError(f"{path} is missing", fix="copy the bundle again, or export it again")
        return path

    def _compare(self, name: str, found: FileRecord) -> None:
        expected = self.manifest.files[name]
        if found != expected:
            lengths = f"it has {found.bytes} bytes instead of {expected.bytes}"
            raise BundleError(
                f"{self.path / name} is not the file that was exported",
                why=lengths if found.bytes != expected.bytes else "its sha256 is not the manifest's",
                fix="copy the bundle again, or export it again",
            )


class BundleWriter:
    """Writes a bundle beside its destination and renames it into place when it is complete.

    Use as a context manager: fill `path`, `seal` with the manifest, check what `seal` returned, `commit`. Leaving the
    block without a commit, for whatever reason, removes every trace. An existing bundle is replaced only with `force`;
    anything else that is not an empty folder never is.
    """

    def __init__(self, destination: str | Path, *, force: bool = False) -> None:
        self.destination = Path(os.path.realpath(destination))
        self._force = force
        with self._explained():
            self._check_destination()
            self._new_parents = [folder for folder in self.destination.parents if not folder.exists()]
        self.path = self._sibling("partial")

    def __enter__(self) -> BundleWriter:
        try:
            with self._explained():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.mkdir()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()
        if isinstance(error, OSError) and self._is_ours(error):
            raise _cannot_write(self.destination, error) from error

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Writes one file of the bundle and returns where it is for now."""
        path = self.path / name
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return path

    def write_reference(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Path:
        """Writes the reference inputs and the PyTorch outputs, both by tensor name."""
        arrays = {f"input.{name}": array for name, array in inputs.items()}
        arrays |= {f"output.{name}": array for name, array in outputs.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return self.write_bytes(REFERENCE, buffer.getvalue())

    def seal(self, manifest: Manifest) -> Bundle:
        """Hashes what was written, writes the manifest last and opens the result, still in its temporary place."""
        with self._explained():
            found = sorted(path for path in self.path.rglob("*") if not path.is_dir())
            files = {
                path.relative_to(self.path).as_posix(): _record(path, sync=True)
                for path in found
                if path != self.path / MANIFEST
            }
            sealed = replace(manifest, files=files, schema_version=SCHEMA_VERSION)
            _write(self.path / MANIFEST, dump(sealed.to_dict()))
        return Bundle.open(self.path)

    def commit(self) -> Bundle:
        """Renames the sealed bundle to its destination and opens it there."""
        with self._explained():
            self._check_destination()
            _sync_folder(self.path)
            aside = self._sibling("replaced")
            try:
                if self.destination.exists():
                    self.destination.rename(aside)
                self.path.rename(self.destination)
            except BaseException:
                if aside.exists() and not self.destination.exists():
                    aside.rename(self.destination)
                raise
            finally:
                if not self.path.exists():
                    shutil.rmtree(aside, ignore_errors=True)
            _sync_folder(self.destination.parent)
        return Bundle.open(self.destination)

    def _sibling(self, what: str) -> Path:
        return self.destination.with_name(f".{self.destination.name}.{what}-{secrets.token_hex(4)}")

    def _check_destination(self) -> None:
        path = self.destination
        if not path.exists():
            return
        if not path.is_dir():
            raise BundleError(f"{path} is a file", why="a bundle is a folder", fix="choose another place with -o")
        if any(path.iterdir()) and not _looks_like_bundle(path):
            raise BundleError(
                f"{path} exists and is not a bundle",
                why="replacing it would delete files that vitdeploy did not write",
                fix="choose another place with -o",
            )
        if not self._force:
            raise BundleError(f"{path} exists", fix="--force to replace it, or another place with -o")

    def _discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._new_parents:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _is_ours(self, error: OSError) -> bool:
        inside = isinstance(error.filename, str) and Path(error.filename).is_relative_to(self.path)
        return inside or error.errno in _DISK_FULL

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _cannot_write(self.destination, error) from error


def _cannot_write(path: Path, error: OSError) -> BundleError:
    if error.errno in _DISK_FULL:
        return BundleError(
            f"cannot write {path}", why="the disk is full", fix="free some space, or choose another place with -o"
        )
    return BundleError(f"cannot write {path}", why=error.strerror or str(error), fix="choose another place with -o")


def _looks_like_bundle(path: Path) -> bool:
    """Whether vitdeploy wrote this folder; a damaged bundle counts, somebody's web manifest does not."""
    try:
        document = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"schema_version", "model", "files"} <= document.keys()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}", why=error.strerror or str(error)) from error


def _record(path: Path, *, sync: bool = False) -> FileRecord:
    digest, length = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            length += len(chunk)
        if sync:
            os.fsync(file.fileno())
    return FileRecord(digest.hexdigest(), length)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    # Some network file systems cannot; the names are then as durable as they make them.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _load_arrays(data: bytes, *, where: str) -> dict[str, Array]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        raise BundleError(f"{where} cannot be read", why=str(error), fix="export the bundle again") from error

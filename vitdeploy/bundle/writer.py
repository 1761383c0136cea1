"""Writing a bundle: into a folder beside its destination, which is renamed when the bundle is complete."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle.bundle import DISK_FULL, REFERENCE, Bundle, cannot_write
from vitdeploy.bundle.manifest import LARGEST_REFERENCE, MANIFEST, SCHEMA_VERSION, FileRecord, Manifest, dump
from vitdeploy.bundle.preprocessing_sample import PIXELS, VALUES, sample_preprocessing
from vitdeploy.bundle.reference import Array, too_large
from vitdeploy.errors import BundleError
from vitdeploy.files import hash_file, hold, hold_new, make_folder, sweep, write_atomically
from vitdeploy.preprocess import Preprocessing

_ELSEWHERE = "choose another folder with -o"


class BundleWriter:
    """Writes a bundle beside its destination and renames it into place when it is complete.

    Use as a context manager: fill `path`, `seal` with the manifest, check what `seal` returned, `commit`. Leaving the
    block without a commit, for whatever reason, removes every trace. An existing bundle is replaced only with `force`;
    anything else that is not an empty folder never is.
    """

    @checked_arguments
    def __init__(self, destination: str | Path, *, force: bool = False) -> None:
        self.destination = Path(os.path.realpath(destination))
        self._force = force
        with self._explained():
            _check_links(Path(os.path.abspath(destination)))  # noqa: PTH100 - `resolve` would follow them
            self._check_destination()
            self._new_parents = [folder for folder in self.destination.parents if not folder.exists()]
        self.path = self._sibling("partial")
        self._held: int | None = None

    def __enter__(self) -> BundleWriter:
        try:
            with self._explained():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._sweep()
                self.path, self._held = hold_new(lambda: self._sibling("partial"), make_folder)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()
        if isinstance(error, OSError) and self._is_ours(error):
            raise cannot_write(self.destination, error, otherwise=_ELSEWHERE) from error

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Writes one file of the bundle and returns its path in the temporary folder."""
        path = self.path / name
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return path

    def write_reference(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        *,
        file: Mapping[str, Array] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Path:
        """Writes the reference inputs, the PyTorch outputs and what the `file` itself computes, by tensor name.

        With `preprocessing` also what it makes of an image, so that the bundle shows which one it was. Raises
        BundleError where all of it is more than LARGEST_REFERENCE bytes.
        """
        arrays = {f"input.{name}": array for name, array in inputs.items()}
        arrays |= {f"output.{name}": array for name, array in outputs.items()}
        arrays |= {f"file.{name}": array for name, array in (file or {}).items()}
        if preprocessing is not None:
            sample = sample_preprocessing(preprocessing)
            arrays |= {PIXELS: sample.pixels, VALUES: sample.values}
        size = sum(array.nbytes for array in arrays.values())
        if size > LARGEST_REFERENCE:
            raise too_large(f"the reference of {self.destination}", size)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return self.write_bytes(REFERENCE, buffer.getvalue())

    def seal(self, manifest: Manifest) -> Bundle:
        """Hashes what was written, writes the manifest last and opens the result, still in its temporary place."""
        with self._explained():
            found = sorted(path for path in self.path.rglob("*") if not path.is_dir())
            files = {
                path.relative_to(self.path).as_posix(): _synced(path) for path in found if path != self.path / MANIFEST
            }
            sealed = replace(manifest, files=files, schema_version=SCHEMA_VERSION)
            write_atomically(self.path / MANIFEST, dump(sealed.to_dict()))
        return Bundle.open(self.path)

    def commit(self) -> Bundle:
        """Renames the sealed bundle to its destination and opens it there."""
        with self._explained():
            self._check_destination()
            _sync_folder(self.path)
            aside = self._sibling("replaced")
            with _held(self.destination):
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

    def _sweep(self) -> None:
        """Removes what killed exports to this place left, and puts back the bundle that one was about to replace."""
        siblings = {what: [*self._siblings(what)] for what in ("partial", "replaced")}
        sweep(siblings["partial"], _remove_tree)
        for aside in siblings["replaced"]:
            sweep([aside], _remove_tree if self.destination.exists() else lambda path: path.rename(self.destination))

    def _siblings(self, what: str) -> Iterator[Path]:
        name = re.compile(re.escape(f".{self.destination.name}.{what}-") + "[0-9a-f]{8}")
        with contextlib.suppress(OSError):  # a folder that may be written and not listed
            yield from (path for path in self.destination.parent.iterdir() if name.fullmatch(path.name))

    def _check_destination(self) -> None:
        path = self.destination
        outer = next((folder for folder in path.parents if _looks_like_bundle(folder)), None)
        if outer is not None:
            raise BundleError(
                f"{path} is inside the bundle {outer}",
                why="a bundle holds the files of its manifest and nothing else",
                fix=f"choose a folder outside of it with -o, such as {outer.parent / path.name}",
            )
        if not path.exists():
            return
        if not path.is_dir():
            raise BundleError(f"{path} is a file", why="a bundle is a folder", fix=_ELSEWHERE)
        if any(path.iterdir()) and not _looks_like_bundle(path):
            raise BundleError(
                f"{path} exists and is not a bundle",
                why="replacing it would delete files that vitdeploy did not write",
                fix=_ELSEWHERE,
            )
        if not self._force:
            raise BundleError(f"{path} exists", fix="add --force to replace it, or choose another folder with -o")

    def _discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None
        for folder in self._new_parents:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _is_ours(self, error: OSError) -> bool:
        inside = isinstance(error.filename, str) and Path(error.filename).is_relative_to(self.path)
        return inside or error.errno in DISK_FULL

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self.destination, error, otherwise=_ELSEWHERE) from error


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds the folder that is now at `path`, if any, also while it has another name."""
    descriptor = None
    while descriptor is None and path.exists():
        found = os.open(path, os.O_RDONLY)
        if hold(path, found):
            descriptor = found
        else:
            os.close(found)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _check_links(path: Path) -> None:
    """Raises BundleError for a path through a symbolic link to nothing: what it names would be made far from here."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise BundleError(
                f"{place} is a symbolic link to {place.readlink()}, which is not there",
                why="the bundle would be written to a place that nobody looks at",
                fix="remove the link, make its target, or choose another folder with -o",
            )


def _looks_like_bundle(path: Path) -> bool:
    """Whether vitdeploy wrote this folder; a damaged bundle counts, somebody's web manifest does not."""
    try:
        document = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"schema_version", "model", "files"} <= document.keys()


def _sync_folder(path: Path) -> None:
    # Some network file systems cannot sync a folder; the data of the files is synced all the same.
    with contextlib.suppress(OSError):
        _sync(path)


def _synced(path: Path) -> FileRecord:
    """Flushes a file to the disk, and returns its record for the manifest."""
    _sync(path)
    return FileRecord(*hash_file(path))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

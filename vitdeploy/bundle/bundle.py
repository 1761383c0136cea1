"""Reading a bundle: a folder whose files are checked against its manifest before they are used."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from pathlib import Path

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle.contradictions import contradictions
from vitdeploy.bundle.graph_facts import GraphFacts, read_facts
from vitdeploy.bundle.manifest import (
    LARGEST_REFERENCE,
    MANIFEST,
    SIGNATURE,
    FileRecord,
    JsonObject,
    Manifest,
    damaged,
    dump,
    parse,
)
from vitdeploy.bundle.reference import Reference, read_reference, too_large
from vitdeploy.errors import BundleError, shell
from vitdeploy.files import hash_file, write_atomically

MODEL = "model.onnx"
REFERENCE = "reference.npz"

# Bytes. That of LeMeViT-Tiny in FP16 has 44,000.
LARGEST_MANIFEST = 1 << 26

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)

_COPY_AGAIN = "copy the bundle again, or export it again"


class Bundle:
    """An opened bundle: `path`, `manifest`, and files, which are returned only when they match the manifest.

    Attributes:
        path: The folder.
        manifest: What the bundle says about itself.
        manifest_sha256: Hash of the file `manifest.json` as it was opened or last written, in hexadecimal.
        signed_by: Fingerprint of the public key that its signature was checked with; None where none was checked.
        graph_is_known: `check_graph` passed before with this manifest, so that the model need not be parsed again.
    """

    def __init__(self, path: Path, document: JsonObject, manifest_sha256: str) -> None:
        self.path, self.manifest_sha256 = path, manifest_sha256
        self.signed_by: str | None = None
        self.graph_is_known = False
        self.manifest = Manifest.from_dict(document, where=str(path))
        self._document = document
        self._facts: GraphFacts | None = None

    @classmethod
    @checked_arguments
    def open(cls, path: str | Path, *, manifest_sha256: str | None = None) -> Bundle:
        """The bundle in the folder `path`; its files are present but not hashed yet, see `read` and `check_files`.

        Args:
            path: The folder.
            manifest_sha256: Hash that the manifest has to have, in hexadecimal; None for any.

        Returns:
            The bundle.

        Raises:
            BundleError: There is none, its manifest is damaged or of a newer schema or not the one of
                `manifest_sha256`, or a file is missing or lies outside the folder.
        """
        path = Path(path)
        try:
            if not path.exists():
                raise BundleError(
                    f"there is no bundle at {path}", fix=f"vitdeploy export lemevit_tiny -o {shell(path)}"
                )
            if not path.is_dir():
                raise BundleError(f"{path} is a file; a bundle is a folder", fix=_folder_around(path))
            if not (path / MANIFEST).is_file():
                raise BundleError(f"{path} is not a bundle", why=f"it has no {MANIFEST}", fix=_bundle_inside(path))
        except OSError as error:
            raise cannot_read(path, error) from error
        text = _read(path / MANIFEST)
        found = hashlib.sha256(text).hexdigest()
        if manifest_sha256 not in (None, found):
            raise BundleError(f"the manifest of {path} was exchanged after it was checked", fix=_COPY_AGAIN)
        bundle = cls(path, parse(text, where=str(path)), found)
        for name in bundle.manifest.files:
            bundle._locate(name)
        return bundle

    def read(self, name: str) -> bytes:
        """The contents of one file, checked against the manifest, so that a runtime loads what was verified.

        Args:
            name: Path of the file inside the bundle.

        Returns:
            Its bytes.

        Raises:
            BundleError: The file differs, or it is a model that no runtime should see: one that is no ONNX file,
                refers to other files, has custom operators or cycles, or is of absurd sizes.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(
                f"{self.path} has no {name}", why="its manifest does not list it", fix="export the bundle again"
            )
        path = self._locate(name)
        if (size := _size(path)) != record.bytes:
            self._compare(name, FileRecord(record.sha256, size))
        data = _read(path)
        self._compare(name, FileRecord(hashlib.sha256(data).hexdigest(), len(data)))
        if name == MODEL and self._facts is None and not self.graph_is_known:
            self._facts = read_facts(data, where=str(path))
        return data

    def check_graph(self) -> None:
        """Holds the manifest against the graph: signature, image size, classes, opset and precision.

        Raises:
            BundleError: They contradict each other, or the model is one that `read` refuses.
        """
        if self.graph_is_known:
            return
        if self._facts is None:
            self.read(MODEL)
        assert self._facts is not None, "reading the model takes note of it"
        found = contradictions(self.manifest, self._facts)
        if found:
            raise BundleError(
                f"the manifest of {self.path} does not describe its {MODEL}",
                why="; ".join(found),
                fix="export the bundle again",
            )

    def check_files(self) -> None:
        """Checks presence, length and hash of every file.

        Raises:
            BundleError: A file is missing or differs; the first one is named.
        """
        for name in self.manifest.files:
            path = self._locate(name)
            try:
                found = FileRecord(*hash_file(path))
            except OSError as error:
                raise cannot_read(path, error) from error
            self._compare(name, found)

    def reference(self) -> Reference:
        """The reference inputs and PyTorch outputs: finite, and of the shapes and types of the manifest.

        Returns:
            Arrays by the names of the inputs and outputs, the samples along the first axis.

        Raises:
            BundleError: The reference is anything else, or has more than LARGEST_REFERENCE bytes.
        """
        record = self.manifest.files.get(REFERENCE)
        if record is not None and record.bytes > LARGEST_REFERENCE:
            raise too_large(str(self.path / REFERENCE), record.bytes)
        return read_reference(self.read(REFERENCE), self.manifest, where=str(self.path / REFERENCE))

    def update_results(
        self, *, parity: list[JsonObject] | None = None, accuracy: list[JsonObject] | None = None
    ) -> None:
        """Replaces the measurements given, atomically; everything else in the manifest stays as it is.

        Args:
            parity: One JSON object for each comparison with the reference.
            accuracy: One JSON object for each run of `validate`.

        A bundle that is signed is not written to, for its signature would not hold any more: a warning is logged.
        """
        if self.is_signed:
            log.warning(
                "%s is signed, so the results are not written into it; to have them signed: "
                "remove its %s, run the command again, and sign it again",
                self.path,
                SIGNATURE,
            )
            return
        given = {"parity": parity, "accuracy": accuracy}
        document = {**self._document, **{key: value for key, value in given.items() if value is not None}}
        text = dump(document)
        document = json.loads(text)
        manifest = Manifest.from_dict(document, where=str(self.path))
        try:
            write_atomically(self.path / MANIFEST, text)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.manifest, self._document = manifest, document
        self.manifest_sha256 = hashlib.sha256(text).hexdigest()

    @property
    def is_signed(self) -> bool:
        """Whether a signature is in the folder, which says nothing about whose it is: see `signed_by`."""
        return os.path.lexists(self.path / SIGNATURE)

    def _locate(self, name: str) -> Path:
        path = self.path / name
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path)):
            raise BundleError(
                f"{path} leads out of the bundle",
                why=f"it is a symbolic link to {os.path.realpath(path)}",
                fix="replace the link with a copy of the file, e.g. with cp --dereference --recursive",
            )
        if not path.is_file():
            raise BundleError(f"{path} is missing", fix=_COPY_AGAIN)
        return path

    def _compare(self, name: str, found: FileRecord) -> None:
        expected = self.manifest.files[name]
        if found != expected:
            lengths = f"it has {found.bytes} bytes instead of {expected.bytes}"
            raise BundleError(
                f"{self.path / name} is not the file that was exported",
                why=lengths if found.bytes != expected.bytes else "its SHA-256 differs from the one in the manifest",
                fix=_COPY_AGAIN,
            )


def cannot_read(path: Path, error: OSError) -> BundleError:
    """The error for a file or folder of a bundle that the system does not let us read."""
    why = error.strerror or str(error)
    return BundleError(f"cannot read {path}", why=why, fix=f"check its permissions: ls -ld {path}")


def cannot_write(path: Path, error: OSError, *, otherwise: str | None = None) -> BundleError:
    """The error for a file or folder that cannot be written; `otherwise` is what else may be done about it."""
    if error.errno in DISK_FULL:
        fix = " or ".join(filter(None, ("free some space", otherwise)))
        return BundleError(f"cannot write {path}", why="the disk is full", fix=fix)
    return BundleError(
        f"cannot write {path}",
        why=error.strerror or str(error),
        fix=otherwise or f"check its permissions: ls -ld {shell(path)}",
    )


def _folder_around(path: Path) -> str:
    """What to try for a file that was given as a bundle."""
    bundle = (path.parent / MANIFEST).is_file()
    return f"give its folder: {path.parent}" if bundle else "give the folder that vitdeploy export wrote"


def _bundle_inside(path: Path) -> str:
    """What to try for a folder without a manifest."""
    inside = sorted(found.parent for found in path.glob(f"*/{MANIFEST}"))
    return f"give the bundle inside it: {inside[0]}" if inside else "give the folder that vitdeploy export wrote"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise cannot_read(path, error) from error


def _read_manifest(path: Path) -> bytes:
    size = _size(path)
    if size > LARGEST_MANIFEST:
        raise damaged(str(path.parent), f"{MANIFEST} has {size:,} bytes, more than {LARGEST_MANIFEST:,}")
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error

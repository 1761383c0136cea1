"""Signing a bundle: every file in its folder, with a private key, into `model.sig` beside them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import MANIFEST, SIGNATURE, Bundle
from vitdeploy.bundle.bundle import cannot_read, cannot_write
from vitdeploy.errors import BundleError, UsageError, shell
from vitdeploy.files import write_atomically
from vitdeploy.signing import library
from vitdeploy.signing.contents import Contents, Statement, first, list_contents, read_statement
from vitdeploy.signing.keys import is_encrypted, private_fingerprint


@dataclass(frozen=True)
class SignReport:
    """What was signed; `str()` says it in lines.

    Attributes:
        bundle: Its folder.
        signature: The file with the signature.
        key: Fingerprint of the public key: the SHA-256 of its PEM form.
        files: Every file that is signed, by its path in the bundle.
        unlisted: Those of them that the manifest does not list, which nobody but the signer answers for.
    """

    bundle: str
    signature: str
    key: str
    files: tuple[str, ...]
    unlisted: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        return {
            "bundle": self.bundle,
            "signature": self.signature,
            "key": self.key,
            "files": list(self.files),
            "unlisted": list(self.unlisted),
        }

    def __str__(self) -> str:
        lines = [f"{self.bundle}: {len(self.files)} files signed in {self.signature}", f"key {self.key}"]
        if self.unlisted:
            lines.insert(1, f"among them, not of the export: {', '.join(self.unlisted)}")
        return "\n".join(lines)


@checked_arguments
def sign(
    bundle: Bundle | str | Path, *, key: str | Path, password: str | None = None, force: bool = False
) -> SignReport:
    """Sign a bundle with a private key, in the format of OpenSSF model signing; nothing leaves this machine.

    Every file in the folder is signed, the manifest and files that vitdeploy did not write included. The signature is
    written into the bundle as `model.sig`, whole or not at all. From then on nothing writes into the bundle: results of
    `validate` are reported and not recorded.

    Args:
        bundle: the bundle, or its folder.
        key: PEM file of a private key of the curves P-256, P-384 or P-521.
        password: of the key, where it is encrypted.
        force: whether a signature that is there is replaced.

    Returns:
        What was signed, and the fingerprint of the key.

    Raises:
        BundleError: the bundle is damaged, has links in its folder or cannot be written.
        UsageError: the key is missing, encrypted and without its password, or no such key; the bundle is signed and
            `force` is not given.
        MissingDependencyError: the extra `sign` is not installed.
    """
    shown, key = bundle.path if isinstance(bundle, Bundle) else Path(bundle), Path(key)
    fingerprint = private_fingerprint(key, password)
    opened = Bundle.open(shown)
    opened.check_files()
    contents = _signable(shown)
    if opened.is_signed and not force:
        raise UsageError(
            f"{shown} is signed already", fix=f"--force replaces the signature; to check it: {_verify(shown)}"
        )
    data = _signature(shown, key, password if is_encrypted(key) else None)
    _require_of(opened, contents, read_statement(data), fingerprint)
    try:
        write_atomically(shown / SIGNATURE, data)
    except OSError as error:
        raise cannot_write(shown / SIGNATURE, error) from error
    signed = contents.files
    unlisted = tuple(name for name in signed if name not in opened.manifest.files and name != MANIFEST)
    return SignReport(str(shown), SIGNATURE, fingerprint, signed, unlisted)


def _verify(bundle: Path) -> str:
    return f"vitdeploy verify {shell(bundle)} --key PUBLIC.pem"


def _signable(bundle: Path) -> Contents:
    """What is in the folder; BundleError for what no signature covers."""
    try:
        contents = list_contents(bundle)
    except OSError as error:
        raise cannot_read(bundle, error) from error
    for name, what in contents.unusual.items():
        raise BundleError(
            f"{bundle / name} cannot be signed",
            why=f"it is {what}, and a signature is of files",
            fix="replace a link with a copy of its file, e.g. with cp --dereference --recursive; remove anything else",
        )
    return contents


def _signature(bundle: Path, key: Path, password: str | None) -> bytes:
    """The signature of a folder as it is now."""
    folder = Path(os.path.realpath(bundle))  # the package takes no link to a folder
    with tempfile.TemporaryDirectory() as beside:
        signature = Path(beside) / SIGNATURE
        try:
            library.write_signature(folder, signature, SIGNATURE, key, password)
            return signature.read_bytes()
        except OSError as error:
            raise cannot_read(bundle, error) from error


def _require_of(bundle: Bundle, contents: Contents, statement: Statement, fingerprint: str) -> None:
    """BundleError where the files were changed between their check and their signature."""
    expected = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    expected[MANIFEST] = bundle.manifest_sha256
    found = {name: statement.files.get(name) for name in expected}
    if found != expected or set(statement.files) != set(contents.files) or statement.key != fingerprint:
        changed = [name for name in expected if found[name] != expected[name]]
        raise BundleError(
            f"{bundle.path} was changed while it was signed",
            why=f"the signature would be of another {first(changed)}" if changed else "files came or went",
            fix="let what writes there end, and sign it again",
        )

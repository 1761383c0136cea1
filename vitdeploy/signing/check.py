"""Checking who signed a bundle, before anything of it is parsed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vitdeploy.bundle import MANIFEST, SIGNATURE, Bundle
from vitdeploy.bundle.bundle import cannot_read
from vitdeploy.errors import GateError, VitDeployError, shell
from vitdeploy.files import hash_file
from vitdeploy.signing import library
from vitdeploy.signing.contents import LARGEST_SIGNATURE, Contents, Statement, first, list_contents, read_statement
from vitdeploy.signing.keys import public_fingerprint

FROM_ITS_SOURCE = "get the bundle again from where it was signed"


def open_bundle(bundle: Bundle | str | Path, key: str | Path | None) -> Bundle:
    """The bundle; with a public `key` opened anew by `open_signed`, which says what is raised then."""
    if key is not None:
        return open_signed(bundle, key)
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def open_signed(bundle: Bundle | str | Path, key: str | Path) -> Bundle:
    """The bundle, opened after its signature was checked with the public key in the PEM file `key`.

    Every file in the folder has to be signed by the private half of `key` and unchanged, hidden files too. The manifest
    that is opened is the signed one, and it is what `Bundle.read` holds each file against, so that a file that is
    exchanged later is refused too.

    Raises GateError where the signature is missing, by another key, of another bundle or of other files; UsageError for
    a `key` that is no public key; BundleError where there is no bundle or it cannot be read; MissingDependencyError
    where the extra `sign` is not installed.
    """
    path, key = bundle.path if isinstance(bundle, Bundle) else Path(bundle), Path(key)
    fingerprint = public_fingerprint(key)
    if not path.is_dir():
        return Bundle.open(path)  # says what is wrong with it
    try:
        statement = _checked(path, key, fingerprint)
    except OSError as error:
        raise cannot_read(path, error) from error
    opened = Bundle.open(path, manifest_sha256=statement.files[MANIFEST])
    opened.signed_by = fingerprint
    return opened


def _checked(path: Path, key: Path, fingerprint: str) -> Statement:
    """What the signature says, which holds; see `open_signed`. OSError where a file cannot be read."""
    contents, signature = list_contents(path), _read_signature(path)
    for name, what in contents.unusual.items():
        raise _refused(path, f"{name} is {what}, which no signature covers")
    if signature is None:
        raise GateError(
            f"{path} is not signed",
            why=f"it has no {SIGNATURE}, and --key asks for one",
            fix=f"`vitdeploy sign {shell(path)} --key PRIVATE.pem` where it was made and the private key is",
        )
    try:
        statement = read_statement(signature)
    except ValueError as error:
        raise GateError(f"the signature of {path} cannot be read", why=str(error), fix=FROM_ITS_SOURCE) from error
    if statement.key != fingerprint:
        raise GateError(
            f"{path} is signed by another key",
            why=f"it names the key {statement.key[:16]}…, and {key} is {fingerprint[:16]}…",
            fix="give the public key of whoever signed it, or do not use the bundle",
        )
    _require_signed(path, key, statement, contents)
    return statement


def _read_signature(path: Path) -> bytes | None:
    """The bytes of the signature; None where there is none."""
    file = path / SIGNATURE
    if not file.is_file() or file.is_symlink():
        return None
    with file.open("rb") as stream:
        return stream.read(LARGEST_SIGNATURE + 1)


def _require_signed(path: Path, key: Path, statement: Statement, contents: Contents) -> None:
    """GateError unless the signature is by the key, of exactly these files, and they are unchanged."""
    folder = Path(os.path.realpath(path))  # the package takes no link to a folder
    with tempfile.TemporaryDirectory() as beside:
        alone = Path(beside) / SIGNATURE
        alone.write_bytes(statement.alone)
        try:
            library.check(folder, alone, SIGNATURE, key)
        except (VitDeployError, OSError, MemoryError):
            raise
        except Exception as error:  # of several libraries, without a common base
            raise _failure(path, key, statement, contents, error) from error
    # The package leaves out what a signature says it leaves out; a bundle has nothing that nobody answers for.
    differences = _differences(folder, statement, contents)
    if differences or MANIFEST not in statement.files:
        raise _refused(path, differences or f"{MANIFEST} is not signed")


def _failure(path: Path, key: Path, statement: Statement, contents: Contents, error: Exception) -> GateError:
    """Why the package refused a signature: files that are not as it says, or else that it is not by the key."""
    differences = _differences(path, statement, contents)
    said = (str(error).strip().splitlines() or ["the signature does not fit the key and what it says"])[0]
    if said.startswith("Signature mismatch"):
        return _refused(path, differences or said)
    return GateError(f"the signature of {path} is not by {key}", why=said, fix=FROM_ITS_SOURCE)


def _refused(path: Path, why: str) -> GateError:
    return GateError(f"{path} is not what was signed", why=why, fix=f"remove what was added, or {FROM_ITS_SOURCE}")


def _differences(folder: Path, statement: Statement, contents: Contents) -> str:
    """Where a folder is not what its signature says, in words; empty where it is."""
    missing = set(statement.files) - set(contents.files)
    added = set(contents.files) - set(statement.files)
    changed = [
        name
        for name, digest in statement.files.items()
        if name in contents.files and hash_file(folder / name)[0] != digest
    ]
    found = (
        (changed, "{} changed since it was signed"),
        (missing, "{} was signed and is missing"),
        (added, "{} is not signed"),
    )
    return "; ".join(words.format(first(names)) for names, words in found if names)

"""The keys of a signature: elliptic curve keys in PEM files, whose faults are told apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.signing.library import require

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
LARGEST_KEY = 64 << 10  # bytes
PASSWORD_VARIABLE = "VITDEPLOY_KEY_PASSWORD"

NEW_PRIVATE = "openssl ecparam -genkey -name prime256v1 -noout -out private.pem"
NEW_PUBLIC = "openssl pkey -in private.pem -pubout -out public.pem"


def public_fingerprint(path: Path) -> str:
    """The fingerprint of the public key in a PEM file: the SHA-256 of its PEM form, as a signature records it.

    Raises UsageError for what is no public key of the curves of CURVES.
    """
    serialization = _serialization()
    data = _read(path, NEW_PUBLIC)
    if b"PRIVATE KEY-----" in data:
        raise UsageError(
            f"{path} is a private key",
            why="a signature is checked with the public one; the private one stays where bundles are signed",
            fix=f"openssl pkey -in {path} -pubout -out public.pem, and --key public.pem",
        )
    if b"BEGIN CERTIFICATE-----" in data:
        raise UsageError(
            f"{path} is a certificate, not a key",
            fix=f"openssl x509 -in {path} -pubkey -noout > public.pem, and --key public.pem",
        )
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:  # of several libraries, without a common base
        raise _no_key(path, "public", error, NEW_PUBLIC) from error
    return _fingerprint(_of_known_curve(key, path), serialization)


def private_fingerprint(path: Path, password: str | None) -> str:
    """The fingerprint of the public half of the private key in a PEM file.

    Raises UsageError for what is no private key of the curves of CURVES, and for a password that is missing or wrong.
    """
    serialization = _serialization()
    data = _read(path, NEW_PRIVATE)
    if b"PUBLIC KEY-----" in data and b"PRIVATE KEY-----" not in data:
        raise UsageError(
            f"{path} is a public key", why="a bundle is signed with the private one", fix="--key PRIVATE.pem"
        )
    encrypted = _is_encrypted(data)
    if encrypted and password is None:
        raise UsageError(
            f"the private key {path} is encrypted, and there is no password",
            fix=f"set the environment variable {PASSWORD_VARIABLE}, or run the command in a terminal, which asks",
        )
    try:
        key = serialization.load_pem_private_key(data, password.encode() if encrypted and password else None)
    except Exception as error:
        if encrypted and isinstance(error, (ValueError, TypeError)):
            raise UsageError(
                f"the private key {path} does not open with this password",
                fix=f"check the password, which is read from {PASSWORD_VARIABLE} or asked for in a terminal",
            ) from None
        raise _no_key(path, "private", error, NEW_PRIVATE) from error
    return _fingerprint(_of_known_curve(key, path).public_key(), serialization)


def is_encrypted(path: Path) -> bool:
    """Whether a private key needs a password; UsageError for a file that cannot be read."""
    return _is_encrypted(_read(path, NEW_PRIVATE))


def _is_encrypted(data: bytes) -> bool:
    return b"BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data


def _serialization() -> Any:
    # Before any key is read, so that whoever has to install something hears of that first.
    require("model_signing.verifying", needed_for="a signature")
    return require("cryptography.hazmat.primitives.serialization", needed_for="a signature")


def _read(path: Path, make: str) -> bytes:
    try:
        if not path.exists():
            raise UsageError(f"there is no key at {path}", fix=f"give the key's file, or make one: {make}")
        if not path.is_file():
            raise UsageError(f"{path} is not a file", why="a key is a PEM file", fix=f"to make one: {make}")
        if path.stat().st_size > LARGEST_KEY:
            raise UsageError(f"{path} is not a key", why="it is too large for one", fix=f"to make one: {make}")
        return path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read the key {path}", why=why, fix=f"check its permissions: ls -l {path}") from error


def _no_key(path: Path, kind: str, error: Exception, make: str) -> UsageError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UsageError(f"{path} holds no {kind} key in PEM form", why=why, fix=f"to make one: {make}")


def _of_known_curve(key: Any, path: Path) -> Any:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        kind = f"of the curve {curve}" if curve else f"of the kind {type(key).__name__.strip('_')}"
        raise UsageError(
            f"{path} holds a key that cannot sign a bundle",
            why=f"it is {kind}; OpenSSF model signing takes the curves {', '.join(CURVES.values())}",
            fix=f"to make one: {NEW_PRIVATE}, and {NEW_PUBLIC}",
        )
    return key


def _fingerprint(public: Any, serialization: Any) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(encoding=encoding, format=form)).hexdigest()

"""The package model-signing, which is imported when a bundle is signed or a signature is checked."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError, MissingDependencyError

ALGORITHM = "sha256"
METHOD = "files"


def require(module: str, *, needed_for: str) -> Any:
    """A module of model-signing or of what it needs.

    Raises MissingDependencyError where a package is not installed, and BackendError where one is broken.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise MissingDependencyError(
            {"model_signing": "model-signing", "OpenSSL": "pyopenssl"}.get(package, package),
            needed_for=needed_for,
            extra="sign",
        ) from None
    except Exception as error:
        raise BackendError(
            "model-signing is installed but cannot be imported",
            why=str(error) or type(error).__name__,
            fix="pip install --force-reinstall 'vitdeploy[sign]'",
        ) from error


def write_signature(bundle: Path, signature: Path, ignored: str, key: Path, password: str | None) -> None:
    """Signs every file in the folder `bundle` but `ignored`, hidden ones too, and writes `signature`."""
    config = require("model_signing.signing", needed_for="signing a bundle").Config()
    try:
        # 1.1 announces text and hands it on as it is to what takes bytes alone.
        config.use_elliptic_key_signer(private_key=key, password=None if password is None else password.encode())
    except AttributeError:
        config.use_elliptic_key_signer(private_key=key, password=password)
    config.set_hashing_config(_hashing(ignored)).sign(bundle, signature)


def check(bundle: Path, signature: Path, ignored: str, key: Path) -> None:
    """Raises an exception of the package's unless `signature` is by `key` and of the files in the folder `bundle`."""
    verifying = require("model_signing.verifying", needed_for="checking a signature")
    config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    verify: Callable[[Path, Path], None] = config.set_hashing_config(_hashing(ignored)).verify
    verify(bundle, signature)


def _hashing(ignored: str) -> Any:
    hashing = require("model_signing.hashing", needed_for="hashing a bundle")
    config = hashing.Config().use_file_serialization(hashing_algorithm=ALGORITHM, allow_symlinks=False)
    return config.set_ignored_paths(paths=[ignored], ignore_git_paths=False)

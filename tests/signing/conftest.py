"""Keys made for the tests, and a bundle that is signed with one of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from vitdeploy.signing.sign import sign

PASSWORD = "a word, and spaces"


def write_keys(folder: Path, name: str, *, curve: ec.EllipticCurve | None = None, password: str = "") -> None:
    """`NAME.pem` with a new private key and `NAME.pub` with its public half."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, form, hidden))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs `ours`, `theirs` and, with a password, `locked`: .pem is private, .pub is public."""
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder, "ours")
    write_keys(folder, "theirs")
    write_keys(folder, "locked", password=PASSWORD)
    return folder


@pytest.fixture(scope="session")
def original(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, signed with `ours`; not to be changed."""
    path = tmp_path_factory.mktemp("signed") / "bundle"
    write_tiny_bundle(path)
    sign(path, key=keys / "ours.pem")
    return path


@pytest.fixture
def signed(original: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))

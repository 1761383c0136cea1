"""A lab of played devices, and a bundle to send to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bundles import write_tiny_bundle

if TYPE_CHECKING:
    from tests.hosts.boards import Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """No device yet; the home folder is one of its own, with a key and without an agent."""
    pytest.importorskip("asyncssh", reason="the extra `fleet` is not installed")
    from tests.hosts.boards import lab

    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with lab(tmp_path) as made:
        yield made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The tiny bundle."""
    return write_tiny_bundle(tmp_path / "tiny").path

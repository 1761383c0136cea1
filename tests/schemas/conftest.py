"""Commands as a program calls them, and what is played or made for other folders of tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_tiny_bundle
from tests.cli.conftest import model_file
from tests.divergence.conftest import broken
from tests.hosts.conftest import lab
from tests.schemas.forms import read
from tests.tensorrt.conftest import world
from tests.tensorrt.rtx.conftest import play
from vitdeploy.cli import main

__all__ = ["broken", "lab", "model_file", "play", "world"]

Told = Callable[..., Any]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    """What a command prints with `--json`, run in an empty folder; `code` is the exit code that it has to have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == code
        return read(capsys.readouterr().out)

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The tiny bundle."""
    return write_tiny_bundle(tmp_path / "tiny").path

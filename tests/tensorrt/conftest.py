"""TensorRT, played by stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tensorrt.fake_tensorrt import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """TensorRT 10.3 on an Orin, played by stand-ins; engines are kept in `tmp_path/cache/vitdeploy/engines`."""
    pytest.importorskip("onnxruntime")
    from tests.tensorrt.fake_tensorrt import World

    world = World()
    world.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return world

"""NVIDIA's compiler, played by stand-ins that say what the real one said."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.tensorrt.rtx.fake_runtime import RtxWorld

HERE = Path(__file__).parent
Play = Callable[..., None]


def recorded(name: str) -> dict[str, Any]:
    """What the real compiler said of a network: version, compute capability and log."""
    document: dict[str, Any] = json.loads((HERE / "recorded" / f"{name}.json").read_text())
    return document


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    """Installs the stand-ins, and has them play what they are told, see `fake/tensorrt_rtx_bindings.py`."""
    folder = tmp_path / "site"
    shutil.copytree(HERE / "fake", folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")

    def write(**behaviour: Any) -> None:
        (folder / "play.json").write_text(json.dumps(behaviour))

    write()
    return write


@pytest.fixture
def world(play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RtxWorld:
    """TensorRT for RTX with a GPU, builder and runtime played by stand-ins; engines are in `tmp_path/cache`."""
    pytest.importorskip("onnxruntime")
    from tests.tensorrt.rtx.fake_runtime import RtxWorld

    world = RtxWorld()
    world.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return world

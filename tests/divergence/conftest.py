"""Runtimes that are wrong: ONNX Runtime on a damaged graph, in this process and in the program that is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import tiny_in_the_zoo
from tests.tensorrt.conftest import world
from vitdeploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

__all__ = ["broken", "tiny_in_the_zoo", "world"]

Damage = Callable[[bytes], bytes]
Break = Callable[..., list[bytes]]

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """\
import onnxruntime
from {place} import {name}


def run(model, inputs):
    damaged = {call}(Path(model).read_bytes())
    session = onnxruntime.InferenceSession(damaged, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
"""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Makes the runtime `onnxruntime` compute what a damage makes of each graph; the graphs come back as a list.

    The damage is a function of a module of tests, or what such a function makes of `arguments`.
    """

    def install(function: Callable[..., Any], *arguments: object) -> list[bytes]:
        asked: list[bytes] = []
        damage: Damage = function(*arguments) if arguments else function
        load = OnnxRuntimeBackend._load.__func__  # type: ignore[attr-defined]

        def damaged(kind: Any, model: bytes, weights: bytes, options: Any) -> Any:
            asked.append(model)
            return load(kind, damage(model), weights, options)

        call = f"{function.__name__}{arguments!r}" if arguments else function.__name__
        call = call.replace(",)", ")")
        program = PROGRAM.format(place=function.__module__, name=function.__name__, call=call)
        monkeypatch.setattr(OnnxRuntimeBackend, "_load", classmethod(damaged))
        monkeypatch.setattr(OnnxRuntimeBackend, "stand_alone", classmethod(lambda kind, options: program))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return asked

    return install
